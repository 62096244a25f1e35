r"""Rows of new tokens: mean, calibrated, distilled (with low-rank changes too), trained; on equal text, one by one.

    python benchmarks/rows.py --original MODEL --tokenizer VOCABULARY --text train.jsonl.gz --valid valid.jsonl \\
        --source-text english.jsonl.gz --source-valid english-valid.jsonl --tokens 50000 --output runs/rows

Prints a table in Markdown: bits per byte of both languages, the share of new tokens in greedy text, and minutes.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lepta.distillation.distill import distill_folder
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.inference.bits import WINDOW, score_text, windows
from lepta.inference.generation import generate
from lepta.models.folder import Checkpoint
from lepta.models.load import load_model, load_tokenizer
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import open_tokenizer

OPENINGS, OPENING, CONTINUATION = 16, 60, 32  # prompts of held-out text, their characters, tokens that follow


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "tokenizer", "text", "valid", "source-text", "source-valid", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=100_000, help="of held-out text, each language")
    parser.add_argument("--untie", action="store_true")
    return parser.parse_args()


def made(folder: Path, make: Callable[[Path], object]) -> float:
    """Make a folder unless it is there; returns its minutes."""
    note = folder / "minutes.json"
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        make(folder)
        note.write_text(json.dumps((time.monotonic() - started) / 60))
    return float(json.loads(note.read_text()))


def distilled(options: argparse.Namespace, start: Path, values: dict, folder: Path) -> None:
    """Token distillation of a model."""
    settings = DistillSettings(tokens=options.tokens, untie=options.untie, **values)
    documents = partial(read_documents, [options.text])
    source = partial(read_documents, [options.source_text])
    facts, _ = distill_folder(options.original, start, documents, settings, 1, folder, source)
    (folder / "facts.json").write_text(json.dumps(facts, ensure_ascii=False, indent=2))


def trained(options: argparse.Namespace, start: Path, first_new: int, folder: Path) -> None:
    """Cross-entropy training of a model's new rows."""
    text = TrainingText(partial(read_documents, [options.text]), 1.0)
    settings = PretrainSettings(trains="new-rows", tokens=options.tokens, block=256, batch=8, keep="last")
    pretrain_folder(start, first_new, [text], HeldOut(), settings, 1, folder)


def folder_of(output: Path, name: str) -> Path:
    """Where a model of the table is."""
    return output / name.replace(",", "").replace(" ", "-")


def row(name: str, folder: Path, minutes: float, texts: dict[str, list[str]], fresh: frozenset[int]) -> str:
    """A model's line of the table."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    bits = [score_text(model, tokenizer, text, language).bits_per_byte for language, text in texts.items()]
    openings = [text[:OPENING] for text in texts["target"][:OPENINGS]]
    share = generate(model, tokenizer, openings, CONTINUATION, "writing").share_of(fresh) or 0.0
    return f"| {name} | {bits[0]:.4f} | {bits[1]:.4f} | {share:.0%} | {minutes:.1f} |"


def main() -> None:
    """Make all models, then measure them."""
    options = arguments()
    output, original = Path(options.output), Path(options.original)
    mean = output / "mean"
    minutes = {
        "mean": made(mean, lambda folder: initialise(Checkpoint(original), open_tokenizer(options.tokenizer), folder))
    }
    ids = VocabularyChange.between(open_tokenizer(original).vocabulary(), open_tokenizer(mean).vocabulary()).new_ids
    arms: dict[str, Callable[[Path], object]] = {
        "calibrated": partial(distilled, options, mean, {"hidden_rate": 1e-12, "head_epochs": 0}),
        "distilled": partial(distilled, options, mean, {}),
        "distilled, low-rank changes": partial(distilled, options, mean, {"lora_rank": 16}),
        "cross-entropy": partial(trained, options, mean, int(ids[0])),
        "distilled, cross-entropy": partial(trained, options, output / "distilled", int(ids[0])),
    }
    for name, make in arms.items():
        minutes[name] = made(folder_of(output, name), make)
    texts = {}
    for language, source in (("target", options.valid), ("source", options.source_valid)):
        texts[language] = windows(list(read_documents([source])), WINDOW, options.characters)
    print("| rows | target | source | new tokens in greedy text | minutes |\n|---|---|---|---|---|")
    print(row("original", original, 0.0, texts, frozenset()))
    for name in minutes:
        print(row(name, folder_of(output, name), minutes[name], texts, frozenset(ids.tolist())))


if __name__ == "__main__":
    main()
