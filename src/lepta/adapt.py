"""From a recipe to stages: which folder feeds which."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lepta.checkpoints.card import write_card
from lepta.checkpoints.folder import MODEL_FILES, Checkpoint
from lepta.checkpoints.load import load_model, load_tokenizer, model_folder
from lepta.checkpoints.publish import save_loaded_model
from lepta.checkpoints.weights import count_weights
from lepta.corpus import dialogue_file, read_dialogues, read_documents
from lepta.embeddings.initialise import initialise
from lepta.embeddings.variant import propagate
from lepta.errors import LeptaError
from lepta.evaluation.bits import WINDOW, windows
from lepta.evaluation.evaluate import Contestant, evaluate
from lepta.locate import locate, read_json
from lepta.pipeline import CHECKPOINTS, MANIFEST, Pipeline, Stage, write_json
from lepta.recipe import Recipe, Text, Tune
from lepta.report.page import write_report
from lepta.training.pretrain import pretrain_folder
from lepta.training.tune import tune
from lepta.vocabulary.build import build_vocabulary, choose_size, save_vocabulary
from lepta.vocabulary.source import open_tokenizer

CURVE = "training_curve.json"
EVALUATION = "evaluation.json"
REPORT = "report.json"


def pipeline_of(recipe: Recipe) -> Pipeline:
    """Lay out the stages of a recipe: vocabulary, initialised, pretrained, variants, propagated, evaluation, report."""
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
    pretrained = add(
        "pretrained",
        partial(_pretrain, recipe, base, initialised),
        {"base": base, "initialised": initialised},
        settings=recipe.pretrain.model_dump(),
        texts=_texts(text, "train") | {"valid": text.target.valid},
    )
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
    evaluation = add(
        "evaluation",
        partial(_evaluate, recipe, contestants, base),
        {contestant.name: contestant.folder for contestant in contestants}
        | ({"behaviour": dialogue_file(recipe.evaluate.behaviour.dialogues)} if recipe.evaluate.behaviour else {}),
        settings=recipe.evaluate.model_dump(),
        texts=_texts(text, "valid"),
    )
    add(
        "report",
        partial(_report, recipe),
        {"evaluation": evaluation, "pretrained": pretrained, "initialised": initialised}
        | {f"propagated {name}": out / "propagated" / name for name in recipe.variants},
        settings={"name": recipe.name},
    )
    return Pipeline(out, stages)


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


def _pretrain(recipe: Recipe, base: Path, initialised: Path, folder: Path) -> dict[str, Any]:
    settings, text = recipe.pretrain, recipe.text
    target = list(read_documents(text.target.train))
    source = list(read_documents(text.source.train)) if text.source.train else []
    valid = windows(list(read_documents(text.target.valid)), WINDOW, settings.measure_characters)
    facts, curve = pretrain_folder(
        initialised, Checkpoint(base).rows, target, source, valid, text.target.language, settings, recipe.seed, folder
    )
    write_json(folder / CURVE, {"curve": curve})
    return facts


def _tune(recipe: Recipe, base: Path, settings: Tune, folder: Path) -> dict[str, Any]:
    model, tokenizer = load_model(base, torch.float32), load_tokenizer(base)
    dialogues = read_dialogues(settings.dialogues)[: settings.limit]
    curve = tune(
        model,
        tokenizer,
        dialogues,
        folder / CHECKPOINTS,
        learning_rate=settings.learning_rate,
        batch=settings.batch,
        seed=recipe.seed,
    )
    save_loaded_model(model, open_tokenizer(base), folder)
    write_json(folder / CURVE, {"curve": curve})
    return {"dialogues": len(dialogues)}


def _propagate(recipe: Recipe, base: Path, pretrained: Path, instruct: Path, name: str, folder: Path) -> dict[str, Any]:
    models = Checkpoint(base), Checkpoint(pretrained), [(Checkpoint(instruct), folder)]
    (facts,) = propagate(*models, recipe.propagate.method)
    write_card(recipe, name, base, facts, folder)
    return facts


def _evaluate(recipe: Recipe, contestants: list[Contestant], base: Path, folder: Path) -> dict[str, Any]:
    original, adapted = (contestants[-2], contestants[-1]) if recipe.variants else (contestants[0], contestants[2])
    result = evaluate(contestants, base, original.name, adapted.name, recipe.text, recipe.evaluate)
    write_json(folder / EVALUATION, result)
    return {}


def _report(recipe: Recipe, folder: Path) -> dict[str, Any]:
    write_report(collect(recipe, folder), folder)
    return {}


def collect(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Gather the numbers of all stages, and keep them as `report.json` beside the page."""
    out = recipe.output
    manifests = {stage.name: read_json(out / stage.name / MANIFEST) for stage in pipeline_of(recipe).stages[:-1]}
    data = {
        "name": recipe.name,
        "languages": {"target": recipe.text.target.language, "source": recipe.text.source.language},
        "evaluation": read_json(out / "evaluation" / EVALUATION),
        "curve": read_json(out / "pretrained" / CURVE)["curve"],
        "vocabulary": manifests["vocabulary"]["facts"],
        "initialised": manifests["initialised"]["facts"],
        "pretrained": manifests["pretrained"]["facts"],
        "propagated": {name: manifests[f"propagated/{name}"]["facts"] for name in recipe.variants},
        "environment": manifests["evaluation"]["environment"],
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
    }
    write_json(folder / REPORT, data)
    return data


def report_data(output: Path) -> dict[str, Any]:
    """Numbers of a finished run; LeptaError if the run has not come to its report."""
    file = output / "report" / REPORT
    if not file.is_file():
        raise LeptaError(f"{output}: no report yet; run `lepta adapt RECIPE` to its end")
    return read_json(file)


def adapt(recipe: Recipe, start: str | None = None, force: bool = False, report: Callable[[str], None] = print) -> Path:
    """Run a recipe; returns the output folder. See `lepta.pipeline.Pipeline.run`."""
    pipeline_of(recipe).run(start, force, report)
    return recipe.output
