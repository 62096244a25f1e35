"""From a recipe to stages: which folder feeds which."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepta.calibration.calibrate import Place, calibration_stages
from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST, partial_of, write_json
from lepta.core.stages import Pipeline, Stage
from lepta.darumeru.log import read_results
from lepta.distillation.distill import distill_folder
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.embeddings.propagate import propagate
from lepta.evaluation.benchmark import ask
from lepta.evaluation.evaluate import Contestant, behaviour_dialogues, evaluate
from lepta.inference.bits import WINDOW, windows
from lepta.models.folder import MODEL_FILES, Checkpoint
from lepta.models.load import model_folder
from lepta.models.weights import count_weights
from lepta.recipe import Recipe, Tune
from lepta.report.card import write_card
from lepta.report.darumeru import side_by_side, write_comparison_page
from lepta.report.page import write_report
from lepta.text.locate import locate, read_json
from lepta.text.settings import Text
from lepta.text.sources import BENCHMARK, dialogue_file, read_documents
from lepta.training.alone import facts_of, run_stages
from lepta.training.blocks import TrainingText
from lepta.training.conversations import read_conversations
from lepta.training.distributed import announce, announced, processes
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings, rows_apart
from lepta.training.tune import tune_folder
from lepta.vocabulary.build import build_vocabulary, choose_size, save_vocabulary
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import TOKENIZER_FILES, open_tokenizer
from lepta.vocabulary.tokens import Vocabulary

CURVE = "training_curve.json"
EVALUATION = "evaluation.json"
REPORT = "report.json"
DARUMERU = "darumeru"  # folder of the stages that ask the benchmark


def pipeline_of(recipe: Recipe) -> Pipeline:
    """Lay out the stages of a recipe, from vocabulary to report."""
    out = recipe.output
    stages: list[Stage] = []

    def add(name: str, run: Callable[[Path], dict[str, Any]], inputs: dict[str, Path], **rest: Any) -> Path:
        settings = {"seed": recipe.seed, **rest.pop("settings", {})}
        stages.append(Stage(name, inputs, settings, run, **rest))
        return out / name

    def add_model(name: str, source: str) -> Path:
        """A model that is a folder serves as it is; any other is converted by a stage."""
        path = locate(source, hub_files=MODEL_FILES)
        return path if path.is_dir() else add(name, partial(_import, source), {"model": path})

    base = add_model("base", recipe.base)
    text, settings = recipe.text, recipe.vocabulary
    vocabulary = add(
        "vocabulary",
        partial(_vocabulary, recipe, base),
        {"base": base},
        settings=settings.model_dump(exclude={"corpus", "pad_to"}),
        texts={"corpus": settings.corpus},
    )
    initialised = add(
        "initialised",
        partial(_initialise, recipe, base, vocabulary),
        {"base": base, "vocabulary": vocabulary},
        settings=settings.model_dump(include={"pad_to"}),
    )
    pretraining = _learning_stages(recipe, base, initialised, add)
    pretrained = pretraining[-1]
    contestants = [
        Contestant("original base", base, adapted=False, chat=False),
        Contestant("initialised base", initialised, adapted=True, chat=False),
        Contestant("adapted base", pretrained, adapted=True, chat=False),
    ]
    for name, variant in recipe.variants.items():
        if variant.tune:
            folder = add(
                f"variants/{name}",
                partial(_tune, recipe, base, variant.tune),
                {"base": base, "dialogues": dialogue_file(variant.tune.dialogues)},
                settings=variant.tune.model_dump(exclude={"dialogues"}),
                together=True,
            )
        else:
            folder = add_model(f"variants/{name}", variant.model or "")
        propagated = add(
            f"propagated/{name}",
            partial(_propagate, recipe, base, pretrained, folder, name),
            {"base": base, "adapted": pretrained, "instruct": folder},
            settings=recipe.propagate.model_dump(),
        )
        contestants += [
            Contestant(f"original {name}", folder, adapted=False, chat=True),
            Contestant(f"propagated {name}", propagated, adapted=True, chat=True),
        ]
        if recipe.calibrate:
            stages += calibration_stages(
                out,
                partial(_calibration_name, name),
                propagated,
                Place(folder),
                recipe.calibrate,
                [*text.target.train, *text.source.train, BENCHMARK],
                recipe.seed,
            )
            calibrated = out / _calibration_name(name, "model")
            contestants.append(Contestant(f"calibrated {name}", calibrated, adapted=True, chat=True))
    if behaviour := recipe.evaluate.behaviour:
        behaviour_dialogues(behaviour)  # what is wrong with them is said before anything is trained
    evaluation = add(
        "evaluation",
        partial(_evaluate, recipe, contestants, base),
        {contestant.name: contestant.folder for contestant in contestants}
        | ({"behaviour": dialogue_file(behaviour.dialogues)} if behaviour else {}),
        settings=recipe.evaluate.model_dump(exclude={"darumeru"}),
        texts=_texts(text, "valid"),
    )
    asked = {}
    if benchmark := recipe.evaluate.darumeru:
        for contestant in _examined(contestants):
            asked[contestant.name] = add(
                f"{DARUMERU}/{contestant.name.replace(' ', '-')}",
                partial(ask, contestant, benchmark, recipe.seed),
                {"model": contestant.folder} | benchmark.files,
                settings=benchmark.model_dump(),
            )
    add(
        "report",
        partial(_report, recipe),
        {"evaluation": evaluation, "initialised": initialised}
        | {f"Darumeru of {name}": folder for name, folder in asked.items()}
        | {folder.name: folder for folder in pretraining}
        | {f"propagated {name}": out / "propagated" / name for name in recipe.variants},
        settings={"name": recipe.name},
    )
    return Pipeline(out, stages, announce)


def _learning_stages(recipe: Recipe, base: Path, initialised: Path, add: Callable[..., Path]) -> list[Path]:
    """Lay out the stages in which the base model learns its new rows, and what else trains; returns their folders."""
    text, folders = recipe.text, [initialised]
    if recipe.distill:
        distilled = add(
            "distilled",
            partial(_distill, base, initialised, text.target.train, recipe.distill, recipe.seed),
            {"base": base, "initialised": initialised},
            settings=recipe.distill.model_dump(),
            texts={"train": text.target.train},
            together=True,
        )
        folders.append(distilled)
    for number, stage in enumerate(recipe.pretrain, 1):
        name = "pretrained" if number == len(recipe.pretrain) else f"pretrained-{number}"
        pretrained = add(
            name,
            partial(_pretrain, base, folders[-1], text, stage, recipe.seed),
            {"base": base, "initialised": folders[-1]} | (stage.darumeru.files if stage.darumeru else {}),
            settings=stage.model_dump(),
            texts=_texts(text, "train") | _texts(text, "valid"),
            together=True,
        )
        folders.append(pretrained)
    return folders[1:]


def _calibration_name(variant: str, part: str) -> str:
    """Name of a stage of self-calibration; the model is beside the propagated ones, what it is made from apart."""
    return f"calibrated/{variant}" if part == "model" else f"calibration/{variant}/{part}"


def _examined(contestants: list[Contestant]) -> list[Contestant]:
    """Those that take the benchmark: each variant, the original first, or the base before and after."""
    return [contestant for contestant in contestants if contestant.chat] or [contestants[0], contestants[2]]


def _texts(text: Text, part: str) -> dict[str, list[str]]:
    return {f"{part} {side.language}": getattr(side, part) for side in (text.target, text.source)}


def _import(source: str, folder: Path) -> dict[str, Any]:
    model_folder(source, folder)
    return {"source": source}


def _vocabulary(recipe: Recipe, base: Path, folder: Path) -> dict[str, Any]:
    settings, original = recipe.vocabulary, open_tokenizer(base)
    if settings.size == "auto":
        built, points, _ = choose_size(original, settings.corpus, settings.script, count_weights(base))
        write_json(folder / "size_curve.json", [vars(point) for point in points])
    else:
        built = build_vocabulary(original, settings.corpus, **settings.model_dump(exclude={"corpus", "pad_to"}))
    return save_vocabulary(built, original, settings.scenario, folder)


def _initialise(recipe: Recipe, base: Path, vocabulary: Path, folder: Path) -> dict[str, Any]:
    return initialise(Checkpoint(base), open_tokenizer(vocabulary), folder, recipe.vocabulary.pad_to)


def _pretrain(
    base: str | Path | None, start: Path, text: Text, settings: PretrainSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """One stage of pre-training from a model folder; all processes come here."""
    ids = np.zeros(0, dtype=np.int64)
    if base is not None:
        vocabulary = open_tokenizer(start).vocabulary()
        ids = VocabularyChange.between(open_tokenizer(base).vocabulary(), vocabulary).new_ids
        if apart := rows_apart(settings):
            _check_order(ids, vocabulary, apart, start)

    def held_out(sources: list[str]) -> list[str]:
        return windows(list(read_documents(sources)), WINDOW, settings.measure_characters) if sources else []

    facts, curve = pretrain_folder(
        start,
        int(ids[0]) if len(ids) else Checkpoint(start).rows,
        [
            TrainingText(partial(read_documents, side.train), share, f"text in {side.language}")
            for side, share in ((text.target, 1 - settings.source_share), (text.source, settings.source_share))
        ],
        HeldOut(
            held_out(text.target.valid),
            held_out(text.source.valid),
            text.target.language,
            text.source.language,
            frozenset(ids.tolist()),
        ),
        settings,
        seed,
        folder,
    )
    if processes().is_main_process:
        write_json(folder / CURVE, {"curve": curve})
    return facts


def _distill(
    original: Path, start: Path, sources: list[str], settings: DistillSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """Token distillation from one model folder to another; all processes come here."""
    facts, curve = distill_folder(original, start, partial(read_documents, sources), settings, seed, folder)
    if processes().is_main_process:
        write_json(folder / CURVE, {"curve": curve})
    return facts


def distill_stage(
    original: Path, start: Path, sources: list[str], settings: DistillSettings, seed: int, output: Path, force: bool
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Run token distillation alone, as a pipeline of one stage: it resumes, and all processes take part.

    Parameters
    ----------
    original : Path
        Model folder before its vocabulary changed.
    start : Path
        The same model with the new vocabulary.
    sources : list of str
        Text sources.
    settings : DistillSettings
    seed : int
    output : Path
        Folder for the result.
    force : bool
        Start over where another run was interrupted.

    Returns
    -------
    facts : dict
    curve : list of dict
    """
    run = partial(_distill, original, start, sources, settings, seed)
    key = settings.model_dump() | {"seed": seed}
    stage = Stage(output.name, {"model": start, "original": original}, key, run, {"text": sources}, together=True)
    run_stages(output.parent, [stage], force)
    return facts_of(output), read_json(output / CURVE)["curve"]


def _check_order(ids: np.ndarray, vocabulary: Vocabulary, apart: str, start: Path) -> None:
    """LeptaError unless old tokens come before new ones, as rows can be kept apart only so."""
    between = [i for i in range(ids[0], vocabulary.size) if not vocabulary.is_hole(i)] if len(ids) else []
    if len(between) > len(ids):
        raise LeptaError(
            f"pretrain.{apart} needs old rows before new ones, as vocabularies of scenario extended or optimized have "
            f"them; in {start} {len(between) - len(ids):,} old tokens come after the first new one ({ids[0]:,})"
        )


def pretrain_stage(
    start: Path, base: str | None, text: Text, settings: PretrainSettings, seed: int, output: Path, force: bool
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Run pre-training alone, as a pipeline of one stage: it resumes, and all processes take part.

    Parameters
    ----------
    start : Path
        Model folder with the new vocabulary.
    base : str, optional
        Model or tokenizer before the vocabulary changed.
    text : Text
    settings : PretrainSettings
    seed : int
    output : Path
        Folder for the result.
    force : bool
        Start over where another run was interrupted.

    Returns
    -------
    facts : dict
    curve : list of dict
    """
    run = partial(_pretrain, base, start, text, settings, seed)
    inputs = {"model": start} | ({"original": locate(base, hub_files=TOKENIZER_FILES)} if base else {})
    sources = {label: names for label, names in (_texts(text, "train") | _texts(text, "valid")).items() if names}
    key = settings.model_dump() | {"seed": seed}
    stage = Stage(output.name, inputs, key, run, sources, together=True)
    run_stages(output.parent, [stage], force)
    return facts_of(output), read_json(output / CURVE)["curve"]


def _tune(recipe: Recipe, base: Path, settings: Tune, folder: Path) -> dict[str, Any]:
    dialogues = itertools.islice(read_conversations([settings.dialogues]), settings.limit)
    facts, curve = tune_folder(base, dialogues, settings, recipe.seed, folder)
    if processes().is_main_process:
        write_json(folder / CURVE, {"curve": curve})
    return facts


def _propagate(recipe: Recipe, base: Path, pretrained: Path, instruct: Path, name: str, folder: Path) -> dict[str, Any]:
    models = Checkpoint(base), Checkpoint(pretrained), [(Checkpoint(instruct), folder)]
    body_trained = any(stage.trains in ("embeddings+lora", "full") for stage in recipe.pretrain)
    scale = recipe.propagate.body_delta if body_trained else None
    (facts,) = propagate(*models, recipe.propagate.method, body_deltas=[scale])
    write_card(recipe, name, base, facts, folder)
    return facts


def _evaluate(recipe: Recipe, contestants: list[Contestant], base: Path, folder: Path) -> dict[str, Any]:
    original, adapted = next(one for one in reversed(contestants) if not one.adapted), contestants[-1]
    result = evaluate(contestants, base, original.name, adapted.name, recipe.text, recipe.evaluate)
    write_json(folder / EVALUATION, result)
    return {"dtype": result["dtype"]}


def _report(recipe: Recipe, folder: Path) -> dict[str, Any]:
    data = collect(recipe, folder)
    write_report(data, folder)
    for pair in data["darumeru"]:
        folders = [recipe.output / name for name in pair["stages"]]
        write_comparison_page(folders, [read_results(place) for place in folders], pair, folder / pair["page"])
    return {}


def collect(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Gather the numbers of all stages, and keep them as `report.json` beside the page."""
    out = recipe.output
    names = pipeline_of(recipe).names()
    pretraining = [name for name in names if name.startswith("pretrained")]
    learning = [name for name in names if name == "distilled"] + pretraining
    manifests = {stage.name: read_json(out / stage.name / MANIFEST) for stage in pipeline_of(recipe).stages[:-1]}
    data = {
        "name": recipe.name,
        "languages": {"target": recipe.text.target.language, "source": recipe.text.source.language},
        "evaluation": read_json(out / "evaluation" / EVALUATION),
        "curve": _joined([read_json(out / name / CURVE)["curve"] for name in pretraining]),
        "vocabulary": manifests["vocabulary"]["facts"],
        "initialised": manifests["initialised"]["facts"],
        "pretrained": _of_all_stages({name: manifests[name]["facts"] for name in learning}),
        "propagated": {name: manifests[f"propagated/{name}"]["facts"] for name in recipe.variants},
        "darumeru": _benchmarks(recipe, manifests),
        "environment": manifests["evaluation"]["environment"],
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
    }
    write_json(folder / REPORT, data)
    return data


def _of_all_stages(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What distillation and pre-training took in all their stages, and what there is to say of each."""
    warnings = [f"{name}: {warning}" for name, of_stage in facts.items() for warning in of_stage.get("warnings", ())]
    sums = {key: sum(of_stage.get(key, 0) for of_stage in facts.values()) for key in ("tokens", "blocks")}
    return {**sums, "warnings": warnings}


def _benchmarks(recipe: Recipe, manifests: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Original and adapted models side by side, as `side_by_side` gives them, with where they are from."""
    models = {name: manifests[name]["facts"]["model"] for name in manifests if name.startswith(f"{DARUMERU}/")}
    pairs, first = [], ""
    for second, model in models.items():
        if model.startswith("original "):
            first = second
            continue
        names = models[first], model
        sides = [read_results(recipe.output / stage) for stage in (first, second)]
        scores = side_by_side(sides, names, recipe.seed)
        pairs.append(scores | {"stages": [first, second], "page": f"{second.replace('/', '-')}.html"})
    return pairs


def _joined(curves: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The curves of several stages as one, steps and tokens counted on."""
    joined: list[dict[str, float]] = []
    for curve in curves:
        step, tokens = (joined[-1]["step"], joined[-1]["tokens"]) if joined else (0, 0)
        joined += [entry | {"step": entry["step"] + step, "tokens": entry["tokens"] + tokens} for entry in curve]
    return joined


def report_data(output: Path) -> dict[str, Any]:
    """Numbers of a finished run; LeptaError if the run has not come to its report."""
    file = output / "report" / REPORT
    if not file.is_file():
        raise LeptaError(f"{output}: no report yet; run `lepta adapt RECIPE` to its end")
    return read_json(file)


def adapt(recipe: Recipe, start: str | None = None, force: bool = False, report: Callable[[str], None] = print) -> Path:
    """Run a recipe; returns the output folder. See `lepta.core.stages.Pipeline.run`.

    Of several processes (`accelerate launch`, `torchrun`) the first one runs all stages; the others take part where a
    model is trained.
    """
    pipeline = pipeline_of(recipe)
    if processes().is_main_process:
        pipeline.run(start, force, report)
        announce(None)
    else:
        stages = {stage.name: stage for stage in pipeline.stages}
        while name := announced():
            stages[name].run(partial_of(recipe.output / name))
    return recipe.output
