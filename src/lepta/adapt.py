"""From a recipe to stages: which folder feeds which."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lepta.checkpoints.card import write_card
from lepta.checkpoints.folder import Checkpoint
from lepta.checkpoints.load import load_model, load_tokenizer, model_folder
from lepta.checkpoints.publish import save_loaded_model, write_model
from lepta.corpus import dialogue_file, read_dialogues, read_documents
from lepta.embeddings.initialise import initialise
from lepta.embeddings.variant import propagate
from lepta.evaluation.bits import score_text, windows
from lepta.evaluation.evaluate import Contestant, evaluate
from lepta.locate import locate
from lepta.pipeline import CHECKPOINTS, Pipeline, Stage, facts_of, write_json
from lepta.recipe import PretrainSettings, Recipe, Text, Tune
from lepta.report.page import write_report
from lepta.training.blocks import training_blocks
from lepta.training.pretrain import pretrain
from lepta.training.tune import tune
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.source import open_tokenizer

CURVE = "training_curve.json"
EVALUATION = "evaluation.json"


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
        path = locate(source, hub_files=[])
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
        partial(_report, recipe, pretrained, initialised, evaluation),
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
    tokenizer = build_vocabulary(original, settings.corpus, settings.scenario, settings.add, settings.script)
    tokenizer.save(folder)
    return {"old_size": original.vocabulary().size, "new_size": tokenizer.vocabulary().size}


def _initialise(recipe: Recipe, base: Path, vocabulary: Path, folder: Path) -> dict[str, Any]:
    return initialise(Checkpoint(base), open_tokenizer(vocabulary), folder, recipe.vocabulary.pad_to)


def _pretrain(recipe: Recipe, base: Path, initialised: Path, folder: Path) -> dict[str, Any]:
    settings, text = recipe.pretrain, recipe.text
    target = list(read_documents(text.target.train))
    source = list(read_documents(text.source.train)) if text.source.train else []
    valid = windows(list(read_documents(text.target.valid)), recipe.evaluate.window, settings.measure_characters)
    facts, curve = pretrain_folder(
        initialised, Checkpoint(base).rows, target, source, valid, text.target.language, settings, recipe.seed, folder
    )
    write_json(folder / CURVE, curve)
    return facts


def pretrain_folder(
    initialised: Path,
    old_rows: int,
    target: list[str],
    source: list[str],
    valid: list[str],
    language: str,
    settings: PretrainSettings,
    seed: int,
    folder: Path,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Pre-train a model folder on text and write the result; see `lepta.training.pretrain`.

    Parameters
    ----------
    initialised : Path
        Model with the new vocabulary.
    old_rows : int
        Rows before the vocabulary changed.
    target, source : documents to train on
    valid : texts of the target language to measure on
    language : str
        Name of the target language in the curve.
    folder : Path
        Existing folder for the result; checkpoints found in it are resumed from.

    Returns
    -------
    facts : dict
    curve : list of dict
    """
    checkpoint, tokenizer = Checkpoint(initialised), load_tokenizer(initialised)
    model = load_model(initialised, torch.float32)
    blocks = training_blocks(
        tokenizer, target, source, settings.tokens, settings.block, settings.source_share, seed
    )

    def measure() -> dict[str, float]:
        score = score_text(model, tokenizer, valid, f"held-out {language}")
        return {f"{language}_bits_per_byte": score.bits_per_byte}

    curve = pretrain(
        model,
        blocks,
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        folder / CHECKPOINTS,
        trains=settings.trains,
        old_rows=old_rows,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        seed=seed,
        save_every=settings.save_every,
        measure=measure if valid else None,
        measure_every=settings.measure_every,
    )
    trained = {checkpoint.input_name: model.get_input_embeddings().weight.detach().cpu()}
    if checkpoint.output_name:
        trained[checkpoint.output_name] = model.get_output_embeddings().weight.detach().cpu()
    write_model(checkpoint, trained, open_tokenizer(initialised), folder)
    return {"tokens": sum(map(len, blocks)), "blocks": len(blocks)}, curve


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
    write_json(folder / CURVE, curve)
    return {"dialogues": len(dialogues)}


def _propagate(
    recipe: Recipe, base: Path, pretrained: Path, instruct: Path, name: str, folder: Path
) -> dict[str, Any]:
    method = recipe.propagate.method
    facts = propagate(Checkpoint(base), Checkpoint(pretrained), Checkpoint(instruct), method, folder)
    write_card(recipe, name, base, facts, folder)
    return facts


def _evaluate(recipe: Recipe, contestants: list[Contestant], base: Path, folder: Path) -> dict[str, Any]:
    original, adapted = (contestants[-2], contestants[-1]) if recipe.variants else (contestants[0], contestants[2])
    result = evaluate(contestants, base, original.name, adapted.name, recipe.text, recipe.evaluate)
    write_json(folder / EVALUATION, result)
    return {}


def _report(recipe: Recipe, pretrained: Path, initialised: Path, evaluation: Path, folder: Path) -> dict[str, Any]:
    propagated = {name: recipe.output / "propagated" / name for name in recipe.variants}
    data = {
        "name": recipe.name,
        "languages": {"target": recipe.text.target.language, "source": recipe.text.source.language},
        "evaluation": json.loads((evaluation / EVALUATION).read_bytes()),
        "curve": json.loads((pretrained / CURVE).read_bytes()),
        "initialised": facts_of(initialised),
        "pretrained": facts_of(pretrained),
        "propagated": {name: facts_of(path) for name, path in propagated.items()},
        "environment": json.loads((evaluation / "manifest.json").read_bytes())["environment"],
        "seconds": {
            stage.name: json.loads((recipe.output / stage.name / "manifest.json").read_bytes())["seconds"]
            for stage in pipeline_of(recipe).stages[:-1]
        },
    }
    write_report(data, folder)
    return {}


def adapt(recipe: Recipe, start: str | None = None, force: bool = False, report: Callable[[str], None] = print) -> Path:
    """Run a recipe; returns the output folder. See `lepta.pipeline.Pipeline.run`."""
    pipeline_of(recipe).run(start, force, report)
    return recipe.output
