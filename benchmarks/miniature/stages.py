"""The stages of one seed: a foundation and an instruct model, and for each new vocabulary all that is compared."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.miniature.measures import COPIES, measure, speeds
from benchmarks.miniature.model import english_heavy, train_tokenizer, write_random_model
from benchmarks.miniature.settings import Calibration, Measures, ScaleSettings, Texts, Tuning
from benchmarks.miniature.tasks import ASK, Item, Pool, held_out, make, pools, to_tune_on
from benchmarks.miniature.text import draw_text, write_rows
from lepta.core.output import write_json
from lepta.distillation.distill import distill_folder
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.embeddings.maps import METHODS
from lepta.embeddings.propagate import propagate
from lepta.inference.bits import windows
from lepta.inference.chat import chat_prompt
from lepta.inference.generation import generate
from lepta.models.folder import Checkpoint
from lepta.models.load import load_model, load_tokenizer
from lepta.models.rows import ComputedRows
from lepta.models.write import write_model
from lepta.stages import CHECKPOINTS, Pipeline, Stage
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText
from lepta.training.conversations import read_conversations
from lepta.training.distributed import CURVE
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.tune import tune_folder
from lepta.vocabulary.build import build_vocabulary, save_vocabulary
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import open_tokenizer

SCENARIOS = ("extended", "optimized", "bpe", "unigram")
REPLACED = ("bpe", "unigram")
LEP = (*METHODS, "auto")
# What is measured, by the name it has in the tables -> the stage that makes it: of a seed, and of each new vocabulary
SHARED_MODELS = {"foundation": "foundation", "instruct": "instruct", "instruct, calibrated": "instruct-calibrated"}
MODELS = {
    "adapted base": "adapted",
    "distilled base": "distilled",
    **{method: method for method in LEP},
    "no training": "no-training",
    "distilled": "distilled-variant",
    "random map": "random-map",
    "upper bound": "upper",
    "auto, tuned body": "tuned-body",
    "auto, calibrated": "calibrated",
}
WINDOW = 400  # characters of held-out text that a model sees at once
SCORES, SPEED = "scores.json", "speed.json"
CONVERSATIONS, COPIED, ITEMS = "conversations.jsonl", "copied.jsonl", "items.jsonl"
LONGEST_ANSWER = 40  # tokens, of the answers to calibrate on


def shared_pipeline(texts: Texts, scale: ScaleSettings, seed: int, out: Path) -> Pipeline:
    """What all vocabularies of a seed share: text, instructions, foundation and instruct model."""
    stages: list[Stage] = []

    def add(name: str, run: Callable[[Path], dict[str, Any]], inputs: dict[str, Path], settings: Any = None) -> Path:
        key = {"seed": seed, **({} if settings is None else {name: settings.model_dump()})}
        sources = {}
        if name == "text":
            sources = {f"{code} {part}": names for code, side in texts for part, names in side if names}
        stages.append(Stage(name, inputs, key, run, sources))
        return out / name

    text = add("text", partial(draw_text, texts, scale.sample, seed), {}, scale.sample)
    tasks = add("tasks", partial(_tasks, scale.tuning, seed, text), {"text": text}, scale.tuning)
    prompts = add("prompts", partial(_prompts, scale.calibration, seed, text), {"text": text}, scale.calibration)
    held = add("held-out", partial(_held_out, scale.measures, seed, text), {"text": text}, scale.measures)
    start = add("random", partial(_random, scale, seed, text), {"text": text}, scale.shape)
    foundation = add(
        "foundation",
        partial(_pretrain, start, start, text, ("en", "ru"), scale.foundation, seed),
        {"start": start, "text": text},
        scale.foundation,
    )
    instruct = add(
        "instruct",
        partial(_tune, foundation, tasks / CONVERSATIONS, scale.tuning, seed),
        {"foundation": foundation, "tasks": tasks},
        scale.tuning,
    )
    make_answers = partial(_answers, instruct, prompts, scale.measures.batch)
    answers = add("answers", make_answers, {"instruct": instruct, "prompts": prompts})
    add(
        "instruct-calibrated",
        partial(_tune, instruct, answers / CONVERSATIONS, scale.calibration, seed),
        {"instruct": instruct, "answers": answers},
        scale.calibration,
    )
    for stage in SHARED_MODELS.values():
        inputs = {"model": out / stage, "text": text, "held out": held}
        add(scores_of(stage), partial(_score, out / stage, text, held, scale), inputs, scale.measures)
    return Pipeline(out, stages)


def vocabulary_pipeline(scale: ScaleSettings, seed: int, shared: Path, scenario: str) -> Pipeline:
    """One new vocabulary: adaptation, every map, controls, the upper bound, calibration, scores."""
    stages: list[Stage] = []
    out = shared / scenario
    text, tasks, answers, held = (shared / name for name in ("text", "tasks", "answers", "held-out"))
    base, instruct = (shared / name for name in ("foundation", "instruct"))

    def add(name: str, run: Callable[[Path], dict[str, Any]], inputs: dict[str, Path], settings: Any = None) -> Path:
        key = {"seed": seed, "scenario": scenario, **({} if settings is None else {"settings": settings})}
        stages.append(Stage(name, inputs, key, run))
        return out / name

    vocabulary = add(
        "vocabulary",
        partial(_vocabulary, base, text, scenario, scale.vocabulary),
        {"base": base, "text": text},
        scale.vocabulary,
    )
    start = add("initialised", partial(_initialise, base, vocabulary), {"base": base, "vocabulary": vocabulary})
    adaptation = scale.adaptation
    if scenario in REPLACED:  # old tokens are among the new ones, so their rows have no rate of their own
        adaptation = adaptation.model_copy(update={"old_rows_learning_rate": None})
    adapted = add(
        "adapted",
        partial(_pretrain, base, start, text, ("ru", "en"), adaptation, seed),
        {"base": base, "start": start, "text": text},
        adaptation.model_dump(),
    )
    distilled = add(
        "distilled",
        partial(_distill, base, start, text, scale.distillation, seed),
        {"base": base, "start": start, "text": text},
        scale.distillation.model_dump(),
    )
    models = {"base": base, "instruct": instruct, "adapted": adapted}
    for method in LEP:
        add(method, partial(_propagate, base, adapted, instruct, method), models)
    add("no-training", partial(_propagate, base, start, instruct, "conversion"), models | {"adapted": start})
    anchored = partial(_propagate, base, distilled, instruct, "anchored")
    add("distilled-variant", anchored, models | {"adapted": distilled})
    add("random-map", partial(_random_map, base, adapted, instruct, seed), models)
    add(
        "upper",
        partial(_tune, adapted, tasks / CONVERSATIONS, scale.tuning, seed),
        {"adapted": adapted, "tasks": tasks},
        scale.tuning.model_dump(),
    )
    add("tuned-body", partial(_tuned_body, out / "upper", out / "auto"), {"upper": out / "upper", "auto": out / "auto"})
    add(
        "calibrated",
        partial(_tune, out / "auto", answers / CONVERSATIONS, scale.calibration, seed),
        {"propagated": out / "auto", "answers": answers},
        scale.calibration.model_dump(),
    )
    measures = scale.measures.model_dump()
    for stage in MODELS.values():  # each for itself: a run that is stopped here loses the scores of one model
        inputs = {"model": out / stage, "text": text, "held out": held}
        add(scores_of(stage), partial(_score, out / stage, text, held, scale), inputs, measures)
    speed = partial(_speed, instruct, adapted, text, scale)
    add("speed", speed, {"instruct": instruct, "adapted": adapted, "text": text}, measures)
    return Pipeline(out, stages)


def scores_of(stage: str) -> str:
    """The stage that measures what a stage made."""
    return f"scores-{stage}"


def rows(file: Path) -> list[str]:
    """The texts of a file."""
    return list(read_documents([str(file)]))


def _pools(text: Path, seed: int) -> dict[str, tuple[Pool, Pool]]:
    """Language -> what instructions to tune on are made from, and what held-out ones are."""
    return {code: pools(code, rows(text / code / "train.jsonl"), seed) for code in ("en", "ru")}


def _tasks(settings: Tuning, seed: int, text: Path, folder: Path) -> dict[str, Any]:
    """Instructions to tune on, with their answers."""
    (english, _), (russian, _) = _pools(text, seed).values()
    items = to_tune_on(english, russian, settings.examples, settings.russian, seed)
    return {"conversations": _write_conversations(folder / CONVERSATIONS, [item.messages() for item in items])}


def _prompts(settings: Calibration, seed: int, text: Path, folder: Path) -> dict[str, Any]:
    """Instructions to calibrate on, and sentences to copy."""
    (english, _), (russian, _) = _pools(text, seed).values()
    items = to_tune_on(english, russian, settings.examples, 0.5, seed + 1000)
    draw = random.Random(f"copies {seed}")
    copies = [make("sentence", pool, draw) for pool in (english, russian) for _ in range(settings.copies // 2)]
    made = {CONVERSATIONS: items, COPIED: copies}
    return {name: _write_conversations(folder / name, [item.messages() for item in made[name]]) for name in made}


def _held_out(settings: Measures, seed: int, text: Path, folder: Path) -> dict[str, Any]:
    """Instructions and passages to copy that no model is tuned on."""
    apart = {code: pool for code, (_, pool) in _pools(text, seed).items()}
    tests = [item for pool in apart.values() for item in held_out(pool, settings.items, seed)]
    tests += [
        Item(name, code, ASK[code]["sentence"].format(passage), passage)
        for code in apart
        for name, most in COPIES.items()
        for passage in _to_copy(rows(text / code / "valid.jsonl"), most)[: settings.copies]
    ]
    write_rows(folder / ITEMS, [vars(item) | {"messages": item.messages()} for item in tests])
    return {"items": len(tests)}


def _write_conversations(file: Path, conversations: list[list[dict[str, str]]]) -> int:
    write_rows(file, [{"messages": messages} for messages in conversations])
    return len(conversations)


def _to_copy(passages: list[str], most: int) -> list[str]:
    """The openings of passages, up to so many characters, cut between words."""
    openings = (passage.partition("\n")[0][:most].rpartition(" ")[0] for passage in passages)
    return [opening for opening in openings if len(opening) > most // 2]


def _random(scale: ScaleSettings, seed: int, text: Path, folder: Path) -> dict[str, Any]:
    english, russian = (rows(text / code / "train.jsonl") for code in ("en", "ru"))
    tokenizer = train_tokenizer(english_heavy(english, russian, scale.shape.russian), scale.shape.vocabulary)
    return {"weights": write_random_model(scale.shape, tokenizer, seed, folder)}


def _pretrain(
    base: Path,
    start: Path,
    text: Path,
    languages: tuple[str, str],
    settings: PretrainSettings,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Train on text of a first language and, as `source_share` says, a second one."""
    first, second = languages
    ids = VocabularyChange.between(open_tokenizer(base).vocabulary(), open_tokenizer(start).vocabulary()).new_ids
    shares = (1 - settings.source_share, settings.source_share)
    held = [windows(rows(text / code / "valid.jsonl"), WINDOW, settings.measure_characters) for code in languages]
    facts, curve = pretrain_folder(
        start,
        int(ids[0]) if len(ids) else Checkpoint(start).rows,
        [
            TrainingText(partial(rows, text / code / "train.jsonl"), share)
            for code, share in zip(languages, shares, strict=True)
        ],
        HeldOut(held[0], held[1], first, second),
        settings,
        seed,
        folder,
    )
    write_json(folder / CURVE, {"curve": curve})
    return facts


def _distill(base: Path, start: Path, text: Path, settings: DistillSettings, seed: int, folder: Path) -> dict[str, Any]:
    """Learn new rows from the foundation, on Russian."""
    facts, curve = distill_folder(base, start, partial(rows, text / "ru" / "train.jsonl"), settings, seed, folder)
    write_json(folder / CURVE, {"curve": curve})
    return facts


def _tune(start: Path, dialogues: Path, settings: Tuning | Calibration, seed: int, folder: Path) -> dict[str, Any]:
    facts, curve = tune_folder(start, read_conversations([str(dialogues)]), settings, seed, folder)
    write_json(folder / CURVE, {"curve": curve})
    return facts


def _vocabulary(base: Path, text: Path, scenario: Any, size: int, folder: Path) -> dict[str, Any]:
    """Learn a vocabulary: of Russian where the old one is kept, of both languages where it is not."""
    original = open_tokenizer(base)
    codes = ("ru",) if scenario == "extended" else ("ru", "en")
    corpus = [str(text / code / "train.jsonl") for code in codes]
    built = build_vocabulary(original, corpus, scenario, size=size)
    return save_vocabulary(built, original, scenario, folder)


def _initialise(base: Path, vocabulary: Path, folder: Path) -> dict[str, Any]:
    return initialise(Checkpoint(base), open_tokenizer(vocabulary), folder)


def _propagate(base: Path, adapted: Path, instruct: Path, method: Any, folder: Path) -> dict[str, Any]:
    (facts,) = propagate(Checkpoint(base), Checkpoint(adapted), [(Checkpoint(instruct), folder)], method)
    return facts


def _random_map(base: Path, adapted: Path, instruct: Path, seed: int, folder: Path) -> dict[str, Any]:
    """A map that means nothing: a random rotation of the adapted rows. Special tokens keep the variant's, as always."""
    checkpoint = Checkpoint(adapted)
    noise = torch.randn(checkpoint.width, checkpoint.width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise)[0]
    matrices = {name: ComputedRows.of(checkpoint.rows_of(name)[:] @ rotation) for name in checkpoint.embedding_names}
    with TemporaryDirectory(dir=folder / CHECKPOINTS) as rotated:
        write_model(checkpoint, matrices, open_tokenizer(adapted), Path(rotated))
        return _propagate(base, Path(rotated), instruct, "swap", folder)


def _tuned_body(upper: Path, propagated: Path, folder: Path) -> dict[str, Any]:
    """Propagated rows in the upper bound's body, which was tuned with the new tokens: what do the rows alone lose?"""
    body, rows_from = Checkpoint(upper), Checkpoint(propagated)
    matrices = {name: ComputedRows.of(rows_from.rows_of(name)[:]) for name in body.embedding_names}
    write_model(body, matrices, open_tokenizer(upper), folder)
    return {}


def _answers(instruct: Path, prompts: Path, batch: int, folder: Path) -> dict[str, Any]:
    """What to calibrate on: the original instruct model's own answers that are right, and copies (paper 2.4.2).

    The paper's judge keeps good answers; of these tasks an answer is good if it is the reference, word for word.
    """
    model, tokenizer = load_model(instruct), load_tokenizer(instruct)
    dialogues = list(read_conversations([str(prompts / CONVERSATIONS)]))
    asked = [chat_prompt(tokenizer, dialogue[:-1]) for dialogue in dialogues]
    answers = generate(model, tokenizer, asked, LONGEST_ANSWER, "answers to calibrate on", batch).texts
    right = [
        dialogue
        for dialogue, answer in zip(dialogues, answers, strict=True)
        if answer.strip() == dialogue[-1]["content"]
    ]
    copies = list(read_conversations([str(prompts / COPIED)]))
    return {"asked": len(asked), "kept": _write_conversations(folder / CONVERSATIONS, right + copies) - len(copies)}


def _score(model: Path, text: Path, held_out: Path, scale: ScaleSettings, folder: Path) -> dict[str, Any]:
    """Measure one model."""
    held = {code: windows(rows(text / code / "valid.jsonl"), WINDOW, scale.sample.held_out) for code in ("ru", "en")}
    with (held_out / ITEMS).open(encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    write_json(folder / SCORES, measure(model, held, items, scale.measures.batch))
    return {}


def _speed(original: Path, adapted: Path, text: Path, scale: ScaleSettings, folder: Path) -> dict[str, Any]:
    """How fast a new vocabulary reads and writes, beside the original instruct model."""
    passage = "".join(windows(rows(text / "ru" / "valid.jsonl"), WINDOW, scale.sample.held_out))
    write_json(folder / SPEED, speeds(original, adapted, passage[: scale.measures.speed_characters]))
    return {}
