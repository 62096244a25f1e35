"""From a recipe to stages: which folder feeds which, and what each stage does.

Try: lepta adapt demo --dry-run
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lepta.calibration.calibrate import Place, calibration_stages
from lepta.card import Measure, write_card
from lepta.core.errors import LeptaError
from lepta.core.output import read_manifest, write_json
from lepta.core.reading import read_json
from lepta.darumeru.log import read_results
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.evaluation.benchmark import ask
from lepta.evaluation.evaluate import Model, behaviour_dialogues, evaluate
from lepta.evaluation.sweep import Judge, propagate_best
from lepta.inference.thinking import block_of
from lepta.learning import check_teacher, distill, distill_texts, pretrain, sources_of
from lepta.models.folder import MODEL_FILES, Checkpoint
from lepta.models.load import model_folder
from lepta.models.weights import count_weights
from lepta.plan.shapes import shape_of
from lepta.recipe import Recipe, Tune
from lepta.repair import check_head, repair_stages
from lepta.report.darumeru import side_by_side, write_comparison_page
from lepta.report.run import NUMBERS, write_report
from lepta.stages import Pipeline, Stage
from lepta.text.locate import locate
from lepta.text.sources import BENCHMARK, dialogue_file
from lepta.training.conversations import read_conversations
from lepta.training.distributed import CURVE, announce, run_together, with_curve
from lepta.training.settings import PretrainSettings
from lepta.training.tune import tune_folder
from lepta.vocabulary.build import build, choose_size, write_vocabulary
from lepta.vocabulary.donors import donor_places
from lepta.vocabulary.source import chat_template_of, open_tokenizer

EVALUATION = "evaluation.json"
DARUMERU = "darumeru"  # folder of the stages that ask the benchmark


def adapt(recipe: Recipe, start: str | None = None, force: bool = False, report: Callable[[str], None] = print) -> Path:
    """Run a recipe.

    Of several processes (`accelerate launch`, `torchrun`) the first one runs all stages; the others take part where a
    model is trained.

    The stage `start` and all after it run in any case, or all with `force`. `report` is told one line about each stage.
    Gives the output folder.
    """
    run_together(pipeline_of(recipe), start, force, report)
    return recipe.output


def pipeline_of(recipe: Recipe) -> Pipeline:
    """Lay out the stages of a recipe, from vocabulary to report."""
    _check_templates(recipe)
    if recipe.repair:
        untied = recipe.distill is not None and recipe.distill.untie
        tied = shape_of(str(locate(recipe.base, hub_files=MODEL_FILES))).tied
        check_head(recipe.repair, tied and not untied)
    layout = _Layout(recipe)
    base = layout.model("base", recipe.base)
    pretrained = initialised = layout.initialised(base, layout.vocabulary(base))
    if recipe.distill:
        pretrained = layout.distilled(base, pretrained, recipe.distill)
    for number, settings in enumerate(recipe.pretrain, 1):
        # The last stage has the plain name, so that adding one before it does not move the result.
        name = "pretrained" if number == len(recipe.pretrain) else f"pretrained-{number}"
        pretrained = layout.pretrained(name, base, pretrained, settings)

    models = [
        Model("original base", base, adapted=False, chat=False),
        Model("initialised base", initialised, adapted=True, chat=False),
        Model("adapted base", pretrained, adapted=True, chat=False),
    ]
    for name, variant in recipe.variants.items():
        if variant.tune:
            instruct = layout.tuned(name, base, variant.tune)
        else:
            instruct = layout.model(f"variants/{name}", variant.model or "")
        propagated = layout.propagated(name, base, pretrained, instruct)
        models.append(Model(f"original {name}", instruct, adapted=False, chat=True))
        models.append(Model(f"propagated {name}", propagated, adapted=True, chat=True))
        if recipe.repair:
            propagated = layout.repaired(name, propagated, instruct)
            models.append(Model(f"repaired {name}", propagated, adapted=True, chat=True))
        if recipe.calibrate:
            calibrated = layout.calibrated(name, instruct, propagated)
            models.append(Model(f"calibrated {name}", calibrated, adapted=True, chat=True))

    layout.evaluation(base, models)
    if recipe.evaluate.darumeru:
        # Each variant takes the benchmark, the original first; without variants the base does, before and after.
        for model in [one for one in models if one.chat] or [models[0], models[2]]:
            layout.benchmark(model)
    layout.report(models)
    return Pipeline(recipe.output, layout.stages, announce)


def _check_templates(recipe: Recipe) -> None:
    """LeptaError if a model is to be asked or tuned by a chat template that it does not have, or to think and cannot.

    The stages that would find out come after the training.
    """
    benchmark, behaviour = recipe.evaluate.darumeru, recipe.evaluate.behaviour
    thinkers = [recipe.calibrate and recipe.calibrate.answers, benchmark, behaviour]
    thinking = any(setting.thinking for setting in thinkers if setting)
    variants = {variant.model or recipe.base for variant in recipe.variants.values()}
    for source, settings in _templates_needed(recipe).items():
        thinks = thinking and source in variants
        if not settings and not thinks:
            continue
        template = chat_template_of(locate(source, hub_files=MODEL_FILES))
        if thinks and not block_of(template):
            raise LeptaError(f"{source}: its chat template has no block of thinking; leave `thinking` off")
        if settings and not template:
            without = f"set {settings[0]} to 0" if settings[0].endswith("chat_share") else f"leave {settings[0]} out"
            raise LeptaError(
                f"{source}: no chat template, which {settings[0]} needs; add chat_template.jinja to its folder, take "
                f"an instruct model, or {without}"
            )


def _templates_needed(recipe: Recipe) -> dict[str, list[str]]:
    """Model -> the settings for which it needs a chat template."""
    needed = {recipe.base: [f"variants.{name}.tune" for name, variant in recipe.variants.items() if variant.tune]}
    if recipe.distill and recipe.distill.chat_share:
        needed[recipe.base].append("distill.chat_share")
    if any(stage.chat_share for stage in recipe.pretrain):
        needed[recipe.base].append("pretrain.chat_share")
    asked = []
    if recipe.evaluate.behaviour:
        asked.append("evaluate.behaviour")
    needed[recipe.base] += asked
    if recipe.repair and recipe.repair.chat_share:
        asked.append("repair.chat_share")
    if recipe.calibrate:
        asked.append("calibrate")
    for variant in recipe.variants.values():
        if variant.model:
            needed.setdefault(variant.model, []).extend(asked)
    return needed


class _Layout:
    """Stages of a recipe in their order. Each method adds one: what it reads, what decides its result, what it does."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages: list[Stage] = []
        self.asked: dict[str, Path] = {}  # model -> its folder of the benchmark
        self.teachers: dict[str, Path] = {}  # source -> its folder

    def add(
        self, name: str, inputs: dict[str, Path], settings: dict[str, Any], run: Callable[[Path], Any], **rest: Any
    ) -> Path:
        """Add a stage; returns its folder."""
        settings = {"seed": self.recipe.seed, **settings}
        self.stages.append(Stage(name, inputs, settings, run, **rest))
        return self.recipe.output / name

    def model(self, name: str, source: str) -> Path:
        """A model that is a folder serves as it is; any other is converted by a stage."""
        path = locate(source, hub_files=MODEL_FILES)
        if path.is_dir():
            Checkpoint(path).check_replaceable()
            return path
        dtype = self.recipe.gguf_dtype

        def run(folder: Path) -> dict[str, Any]:
            model_folder(source, folder, dtype)
            return {"source": source}

        return self.add(name, {"model": path}, {"dtype": dtype}, run)

    def vocabulary(self, base: Path) -> Path:
        settings = self.recipe.vocabulary

        def run(folder: Path) -> dict[str, Any]:
            original = open_tokenizer(base)
            if settings.size == "auto":
                built, points, _ = choose_size(original, settings, count_weights(base))
                write_json(folder / "size_curve.json", list(map(vars, points)))
            else:
                built = build(original, settings)
            return write_vocabulary(built, original, settings.scenario, folder)

        inputs = {"base": base, **donor_places(settings.donor)}
        return self.add("vocabulary", inputs, settings.key, run, texts=settings.texts)

    def initialised(self, base: Path, vocabulary: Path) -> Path:
        pad_to = self.recipe.vocabulary.pad_to

        def run(folder: Path) -> dict[str, Any]:
            return initialise(Checkpoint(base), open_tokenizer(vocabulary), folder, pad_to)

        return self.add("initialised", {"base": base, "vocabulary": vocabulary}, {"pad_to": pad_to}, run)

    def distilled(self, base: Path, initialised: Path, settings: DistillSettings) -> Path:
        text = self.recipe.text
        run = partial(distill, base, initialised, text, settings, self.recipe.seed)
        inputs = {"base": base, "initialised": initialised}
        texts = distill_texts(text, settings)
        return self.add("distilled", inputs, settings.model_dump(), run, texts=texts, together=True)

    def pretrained(self, name: str, base: Path, start: Path, settings: PretrainSettings) -> Path:
        text = self.recipe.text
        inputs = {"base": base, "initialised": start}
        if settings.teacher:
            check_teacher(settings.teacher, self.recipe.base)
            inputs["teacher"] = self.teacher(base, settings.teacher)
        run = partial(pretrain, base, start, text, settings, self.recipe.seed, teacher=inputs.get("teacher"))
        if settings.darumeru:
            inputs |= settings.darumeru.files
        texts = sources_of(text, "train", "valid")
        return self.add(name, inputs, settings.model_dump(exclude={"teacher"}), run, texts=texts, together=True)

    def teacher(self, base: Path, source: str) -> Path:
        """The folder of a model that teaches: the base's own, or one that a stage makes once."""
        if source == self.recipe.base:
            return base
        if source not in self.teachers:
            number = len(self.teachers) + 1
            self.teachers[source] = self.model(f"teacher-{number}" if number > 1 else "teacher", source)
        return self.teachers[source]

    def tuned(self, name: str, base: Path, settings: Tune) -> Path:
        def run(folder: Path) -> dict[str, Any]:
            dialogues = itertools.islice(read_conversations([settings.dialogues]), settings.limit)
            return with_curve(folder, tune_folder(base, dialogues, settings, self.recipe.seed, folder))

        inputs = {"base": base, "dialogues": dialogue_file(settings.dialogues)}
        return self.add(f"variants/{name}", inputs, settings.model_dump(exclude={"dialogues"}), run, together=True)

    def propagated(self, name: str, base: Path, pretrained: Path, instruct: Path) -> Path:
        settings = self.recipe.propagate
        body_trained = any(stage.changes_body for stage in self.recipe.pretrain)
        body_trained |= self.recipe.distill is not None and self.recipe.distill.lora_rank > 0
        deltas = []
        if body_trained:
            deltas = settings.body_delta or [1.0]
        settings = settings.model_copy(update={"body_delta": deltas})
        held_out = sources_of(self.recipe.text, "valid")
        texts = held_out | {"answers": settings.answers} if settings.several else {}

        def run(folder: Path) -> dict[str, Any]:
            valid = list(itertools.chain.from_iterable(held_out.values()))
            judge = Judge.of(valid, settings.answers) if settings.several else None
            variants = [(Checkpoint(instruct), folder)]
            (facts,) = propagate_best(Checkpoint(base), Checkpoint(pretrained), variants, settings, judge)
            return facts

        inputs = {"base": base, "adapted": pretrained, "instruct": instruct}
        key = settings.model_dump(exclude={"answers"})
        return self.add(f"propagated/{name}", inputs, key, run, texts=texts)

    def repaired(self, name: str, propagated: Path, instruct: Path) -> Path:
        assert self.recipe.repair is not None
        out, names = self.recipe.output, (f"repair/{name}", f"repaired/{name}")
        self.stages += repair_stages(
            out, names, propagated, instruct, self.recipe.text, self.recipe.repair, self.recipe.seed
        )
        return out / names[1]

    def calibrated(self, name: str, instruct: Path, propagated: Path) -> Path:
        assert self.recipe.calibrate is not None

        def name_of(part: str) -> str:
            """The model is beside the propagated ones; what it is made from is kept apart."""
            return f"calibrated/{name}" if part == "model" else f"calibration/{name}/{part}"

        text, out = self.recipe.text, self.recipe.output
        apart_from = [*text.target.train, *text.source.train, BENCHMARK]
        self.stages += calibration_stages(
            out, name_of, propagated, Place(instruct), self.recipe.calibrate, apart_from, self.recipe.seed
        )
        return out / name_of("model")

    def evaluation(self, base: Path, models: list[Model]) -> None:
        recipe, settings = self.recipe, self.recipe.evaluate
        inputs = {model.name: model.folder for model in models}
        if settings.behaviour:
            behaviour_dialogues(settings.behaviour)  # an error in them is reported before anything is trained
            inputs["behaviour"] = dialogue_file(settings.behaviour.dialogues)

        def run(folder: Path) -> dict[str, Any]:
            original = next(one for one in reversed(models) if not one.adapted)
            result = evaluate(models, base, original.name, models[-1].name, recipe.text, settings)
            write_json(folder / EVALUATION, result)
            return {"dtype": result["dtype"]}

        key = settings.model_dump(exclude={"darumeru"})
        self.add("evaluation", inputs, key, run, texts=sources_of(recipe.text, "valid"))

    def benchmark(self, model: Model) -> None:
        settings = self.recipe.evaluate.darumeru
        assert settings is not None
        name = f"{DARUMERU}/{model.name.replace(' ', '-')}"
        run = partial(ask, model, settings, self.recipe.seed)
        self.asked[model.name] = self.add(name, {"model": model.folder} | settings.files, settings.model_dump(), run)

    def report(self, models: list[Model]) -> None:
        recipe, names = self.recipe, [stage.name for stage in self.stages]
        learned = [name for name in names if name == "distilled" or name.startswith("pretrained")]
        out = recipe.output
        inputs = {"evaluation": out / "evaluation", "initialised": out / "initialised"}
        inputs |= {f"Darumeru of {name}": folder for name, folder in self.asked.items()}
        inputs |= {name: out / name for name in learned}
        inputs |= {f"propagated {name}": out / "propagated" / name for name in recipe.variants}

        def run(folder: Path) -> dict[str, Any]:
            data = collect(recipe, names, learned)
            write_json(folder / NUMBERS, data)
            write_report(data, folder)
            for one in models:
                if one.adapted:
                    write_card(one.folder, measured(data["evaluation"], one.name))
            for pair in data["darumeru"]:
                folders = list(map(out.joinpath, pair["stages"]))
                write_comparison_page(folders, list(map(read_results, folders)), pair, folder / pair["page"])
            return {}

        self.add("report", inputs, {"name": recipe.name}, run)


def measured(evaluation: dict[str, Any], name: str) -> list[Measure]:
    """What was measured of a model and of the original that it stands beside, for its card."""
    original, found = f"original {name.partition(' ')[2]}", list[Measure]()
    bits, dense = "bits_per_byte", "characters_per_token"
    for language, first in evaluation["text"][original].items():
        second = evaluation["text"][name][language]
        found.append(Measure(f"{language}, bits per byte (lower is better)", first[bits], second[bits]))
        found.append(Measure(f"{language}, characters per token (higher is better)", first[dense], second[dense], True))
    behaviour = evaluation["behaviour"]
    if {original, name} <= behaviour.keys():
        before, after = behaviour[original]["share"], behaviour[name]["share"]
        found.append(Measure("answers that open in the variant's style, share", before, after, True))
    return found


def collect(recipe: Recipe, names: list[str], learned: list[str]) -> dict[str, Any]:
    """Gather the numbers of all stages for the report; `learned` are those that trained the base model."""
    out = recipe.output
    manifests = {name: read_manifest(out / name) for name in names}
    facts = {name: manifest["facts"] for name, manifest in manifests.items()}
    curves = [read_json(out / name / CURVE)["curve"] for name in learned if name != "distilled"]
    return {
        "name": recipe.name,
        "languages": {"target": recipe.text.target.language, "source": recipe.text.source.language},
        "evaluation": read_json(out / "evaluation" / EVALUATION),
        "curve": _joined(curves),
        "vocabulary": facts["vocabulary"],
        "initialised": facts["initialised"],
        "pretrained": {
            "tokens": sum(facts[name].get("tokens", 0) for name in learned),
            "blocks": sum(facts[name].get("blocks", 0) for name in learned),
            "warnings": _warnings(facts, learned),
        },
        "propagated": {name: _propagated(name, facts) for name in recipe.variants},
        "darumeru": _benchmarks(recipe, facts),
        "environment": manifests["evaluation"]["environment"],
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
    }


def _propagated(name: str, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What propagation found of a variant, with the warnings of its repair."""
    found = facts[f"propagated/{name}"]
    of_repair = _warnings(facts, [f"repair/{name}", f"repaired/{name}"])
    return found | {"warnings": [*found["warnings"], *of_repair]}


def _warnings(facts: dict[str, dict[str, Any]], stages: list[str]) -> list[str]:
    """What stages warn of, each with its name; a recipe may not have all of them."""
    found = []
    for stage in stages:
        for warning in facts.get(stage, {}).get("warnings", ()):
            found.append(f"{stage}: {warning}")
    return found


def _benchmarks(recipe: Recipe, facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Original and adapted models side by side, as `side_by_side` gives them, with the stages they are from."""
    pairs, original = [], ""
    for stage in facts:
        if not stage.startswith(f"{DARUMERU}/"):
            continue
        if facts[stage]["model"].startswith("original "):
            original = stage  # stages are in order: each original comes before what was made of it
            continue
        names = facts[original]["model"], facts[stage]["model"]
        sides = read_results(recipe.output / original), read_results(recipe.output / stage)
        scores = side_by_side(sides, names, recipe.seed)
        pairs.append(scores | {"stages": [original, stage], "page": f"{stage.replace('/', '-')}.html"})
    return pairs


def _joined(curves: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The curves of several stages as one, steps and tokens counted on."""
    joined: list[dict[str, float]] = []
    step: float = 0
    tokens: float = 0
    for curve in curves:
        joined += [entry | {"step": entry["step"] + step, "tokens": entry["tokens"] + tokens} for entry in curve]
        if joined:
            step, tokens = joined[-1]["step"], joined[-1]["tokens"]
    return joined
