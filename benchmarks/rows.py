r"""Rows of new tokens: means, distilled, trained by cross-entropy, or both, by operations. A table and a figure.

    python -m benchmarks.rows --original MODEL --tokenizer VOCABULARY --untie --tokens 60000 --output runs/rows \
        --text train.jsonl.gz --valid valid.jsonl --source-text english.jsonl.gz --source-valid english-valid.jsonl \
        --variant TUNED --answers conversations.jsonl --figure docs/figures/rows.svg

`--tokens` is what distillation reads, `--training-tokens` what cross-entropy reads (and twice as many in one arm).
Operations are counted by torch: matrix products of teacher and student, forward and backward. Those of distillation
include its own measurements of held-out passages. A model that is there is not made again. With `--variant` and
`--answers` each model is propagated into the variant, which is measured too.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks.miniature.figures import lines
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.embeddings.propagate import propagate
from lepta.evaluation.measure import answer_bits
from lepta.inference.bits import WINDOW, read_windows, score_text
from lepta.inference.generation import generate, start_tokens
from lepta.learning import distill, pretrain
from lepta.models.folder import Checkpoint
from lepta.models.load import load_model, load_tokenizer
from lepta.text.settings import Language, Text
from lepta.training.conversations import read_conversations
from lepta.training.settings import PretrainSettings
from lepta.vocabulary.change import new_ids
from lepta.vocabulary.source import open_tokenizer

OPENINGS, OPENING, CONTINUATION = 16, 60, 40  # prompts of held-out text, their characters, tokens that follow
CURVE = 24_000  # characters of held-out text that a curve is measured on
MEASUREMENTS = 6  # along a curve
BLOCK, BATCH = 512, 4
PROBE = 2 * BLOCK * BATCH  # tokens that tell the operations of one
RATES = {"body_learning_rate": 5e-4, "source_share": 0.12}  # of runs that change the body; rows have the default rate
BITS = "target_bits_per_byte"
TERA = 1e12  # unit of operations in the table
MEAN, ROWS, LORA = "mean", "distilled", "distilled, low-rank changes"
LEVEL = "original"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "tokenizer", "text", "valid", "source-text", "source-valid", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--training-tokens", type=int, default=60_000)
    parser.add_argument("--characters", type=int, default=100_000, help="of held-out text, each language")
    parser.add_argument("--untie", action="store_true")
    parser.add_argument("--variant", help="tuned from the original, with its vocabulary")
    parser.add_argument("--answers", help="conversations put aside, to measure the variant on")
    parser.add_argument("--figure", help="SVG file to write")
    return parser.parse_args()


def untie(folder: Path) -> None:
    """Give a model whose head is its embeddings a head of its own, with the same rows."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = model.get_input_embeddings().weight.detach()
    head = torch.nn.Linear(rows.shape[1], rows.shape[0], bias=False, dtype=rows.dtype)
    head.weight = torch.nn.Parameter(rows.clone())
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)


def product_operations(one: torch.Tensor, other: torch.Tensor, *_: Any, **__: Any) -> int:
    """Operations of a matrix product; torch's own counter takes a sparse matrix for a dense one."""
    held = one._nnz() if one.layout != torch.strided else one.numel()
    return 2 * held * other.shape[-1]


product_operations._get_raw = True  # type: ignore[attr-defined]  # the counter then hands over tensors, not shapes


def counter() -> FlopCounterMode:
    """Counts the operations of what runs inside it."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mm: product_operations})


class Bench:
    """Makes the models of the table in a folder, each once, and keeps what each cost."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.original, self.output = Path(options.original), Path(options.output)
        self.options = options
        self.text = Text.model_construct(
            target=Language.model_construct(language="target", train=[options.text], valid=[options.valid]),
            source=Language.model_construct(language="source", train=[options.source_text], valid=[]),
        )

    def folder(self, name: str) -> Path:
        """Where a model is."""
        return self.output / name.replace(",", "").replace(" ", "-")

    def made(self, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Make a model unless it is there; its facts: minutes, operations, perhaps a curve."""
        folder = self.folder(name)
        note = folder / "cost.json"
        if not note.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            facts = make(folder)
            note.write_text(json.dumps({"minutes": (time.monotonic() - started) / 60, **facts}))
        return dict(json.loads(note.read_text()))

    def mean(self, folder: Path) -> dict[str, Any]:
        """New rows as means of their old pieces; with `--untie` the head is a matrix of its own for all arms."""
        initialise(Checkpoint(self.original), open_tokenizer(self.options.tokenizer), folder)
        if self.options.untie:
            untie(folder)
        return {"operations": 0}

    def distilled(self, folder: Path, **values: Any) -> dict[str, Any]:
        """Token distillation of the means."""
        settings = DistillSettings(tokens=self.options.tokens, untie=self.options.untie, **values)
        with counter() as counted:
            distill(self.original, self.folder("mean"), self.text, settings, 1, folder)
        return {"operations": counted.get_total_flops()}

    def trained(self, folder: Path, start: str, trains: str, tokens: int) -> dict[str, Any]:
        """Cross-entropy training of a model that is there; its curve comes along."""
        rates = RATES if trains.endswith("+lora") else {}
        common = {"trains": trains, "block": BLOCK, "batch": BATCH, "keep": "last", **rates}
        per_token = self.made(f"probe of {trains}", partial(self.probe, common=common))["operations"] / PROBE
        steps = math.ceil(tokens / (BLOCK * BATCH))
        measuring = {"measure_every": math.ceil(steps / MEASUREMENTS), "measure_characters": CURVE}
        settings = PretrainSettings.model_validate({"tokens": tokens, **common, **measuring})
        pretrain(self.original, self.folder(start), self.text, settings, 1, folder)
        curve = json.loads((folder / "training_curve.json").read_text())["curve"]
        points = [(entry["tokens"] * per_token, entry[BITS]) for entry in curve if BITS in entry]
        return {"operations": tokens * per_token, "curve": points}

    def probe(self, folder: Path, common: dict[str, Any]) -> dict[str, Any]:
        """Two steps of training, to count what a token costs."""
        settings = PretrainSettings.model_validate({"tokens": PROBE, **common})
        text = self.text.model_copy(update={"target": self.text.target.model_copy(update={"valid": []})})
        with counter() as counted:
            pretrain(self.original, self.folder(MEAN), text, settings, 1, folder)
        return {"operations": counted.get_total_flops()}

    def propagated(self, name: str) -> Path:
        """A model's change carried into the variant."""
        folder = self.output / "variants" / self.folder(name).name
        if not folder.is_dir():
            folder.mkdir(parents=True)
            propagate(self.original, self.folder(name), [(self.options.variant, folder)], body_deltas=[1.0])
        return folder


def make_all(bench: Bench) -> dict[str, dict[str, Any]]:
    """Make the models of the table; name -> facts, operations counted from the mean on."""
    facts = {MEAN: bench.made(MEAN, bench.mean)}
    facts["head calibrated"] = bench.made("head calibrated", partial(bench.distilled, hidden_rate=1e-12, head_epochs=0))
    facts[ROWS] = bench.made(ROWS, bench.distilled)
    facts[LORA] = bench.made(LORA, partial(bench.distilled, lora_rank=16))
    tokens = bench.options.training_tokens
    for name, start, trains, times in (
        ("cross-entropy, rows", MEAN, "new-rows", 1),
        ("cross-entropy, rows and low-rank changes", MEAN, "new-rows+lora", 1),
        ("the same, twice the tokens", MEAN, "new-rows+lora", 2),
        ("distilled, then cross-entropy", LORA, "new-rows+lora", 1),
    ):
        make = partial(bench.trained, start=start, trains=trains, tokens=times * tokens)
        facts[name] = bench.made(name, make)
        if start == LORA:
            facts[name] |= shifted(facts[name], facts[LORA]["operations"])
    return facts


def shifted(facts: dict[str, Any], by: float) -> dict[str, Any]:
    """Operations of a run that started from a model which had cost some."""
    return {"operations": facts["operations"] + by, "curve": [[x + by, bits] for x, bits in facts["curve"]]}


class Scores:
    """Measures models on held-out text, in what they write, and as variants."""

    def __init__(self, options: argparse.Namespace) -> None:
        sources = (options.valid, options.source_valid)
        self.texts = [read_windows([source], WINDOW, options.characters) for source in sources]
        self.curve_text = read_windows([options.valid], WINDOW, CURVE)
        self.openings = [text[:OPENING] for text in self.texts[0][:OPENINGS]]
        self.conversations = list(read_conversations([options.answers])) if options.answers else []

    def of(self, folder: Path, new: frozenset[int]) -> list[str]:
        """Bits per byte of both languages, and the share of new tokens in greedy text."""
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        bits = [score_text(model, tokenizer, text, folder.name).bits_per_byte for text in self.texts]
        start = start_tokens(tokenizer)
        written = generate(model, tokenizer, self.openings, CONTINUATION, folder.name, start=start)
        return [f"{bits[0]:.4f}", f"{bits[1]:.4f}", f"{written.share_of(new) or 0.0:.0%}"]

    def on_curve(self, folder: Path) -> float:
        """Bits per byte of the text that curves are measured on."""
        return score_text(load_model(folder), load_tokenizer(folder), self.curve_text, folder.name).bits_per_byte

    def as_variant(self, folder: Path) -> list[str]:
        """Bits per byte of the target language and of answers."""
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        text = score_text(model, tokenizer, self.texts[0], folder.name).bits_per_byte
        return [f"{text:.4f}", f"{answer_bits(model, tokenizer, self.conversations, folder.name):.4f}"]


def figure(bench: Bench, scores: Scores, facts: dict[str, dict[str, Any]]) -> str:
    """Bits per byte against operations, as SVG; the runs that rows alone learn in are left out."""
    start, distilled = scores.on_curve(bench.folder(MEAN)), scores.on_curve(bench.folder(LORA))
    curves = {
        "cross-entropy": facts["the same, twice the tokens"]["curve"],
        "distilled": [(0.0, start), (facts[LORA]["operations"], distilled)],
        "then cross-entropy": facts["distilled, then cross-entropy"]["curve"],
    }
    scaled = {name: [(x / TERA, bits) for x, bits in points] for name, points in curves.items()}
    level = (LEVEL, scores.on_curve(bench.original))
    return lines("Bits per byte of the target language", "operations (10^12)", scaled, level)


def main() -> None:
    """Make all models, then measure them."""
    options = arguments()
    bench, scores = Bench(options), Scores(options)
    facts = make_all(bench)
    new = new_ids(bench.original, bench.folder(MEAN))
    head = ["rows", "10^12 operations", "minutes", "target", "source", "new tokens in greedy text"]
    if options.variant:
        head += ["variant", "its answers"]
    print(f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    own = scores.of(bench.original, frozenset()) + (scores.as_variant(Path(options.variant)) if options.variant else [])
    print(f"| {LEVEL} | | | {' | '.join(own)} |", flush=True)
    for name, cost in facts.items():
        cells = [f"{cost['operations'] / TERA:.1f}", f"{cost['minutes']:.1f}", *scores.of(bench.folder(name), new)]
        if options.variant:
            cells += scores.as_variant(bench.propagated(name))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if options.figure:
        Path(options.figure).write_text(figure(bench, scores, facts), encoding="utf-8")


if __name__ == "__main__":
    main()
