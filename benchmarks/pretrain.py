"""Continued pre-training of embeddings against stock `transformers.Trainer` with the body frozen. One command:

    python benchmarks/pretrain.py [--steps N] [--output results.json]

The same model (LLaMA-like, vocabulary of 55,328, untied, float32), data, batch and settings; each run in a process of
its own, so that its peak memory is its own. Token ids follow Zipf's law: text would change neither time nor memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SIZE, WIDTH, BLOCK, BATCH = 55_328, 512, 512, 4
SKIPPED = 2  # steps that warm up


def make_model() -> Any:
    """A LLaMA of 4 layers with random weights, the same in every run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=WIDTH,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def make_blocks(number: int) -> list[list[int]]:
    """Blocks of token ids that follow Zipf's law."""
    import numpy as np

    ranks = np.random.default_rng(0).zipf(1.2, size=(number, BLOCK)) - 1
    return (ranks % SIZE).tolist()


def run(kind: str, steps: int) -> dict:
    """Train for so many steps with LEPTA or the stock Trainer."""
    import transformers

    from lepta.training import trainer
    from lepta.training.pretrain import pretrain

    transformers.logging.set_verbosity_error()
    if kind == "stock":  # everything else stays as it is
        trainer.has_plain_head = lambda *_: False
    times: list[float] = []

    def note_time() -> dict:
        times.append(time.perf_counter())
        return {}

    with tempfile.TemporaryDirectory() as work:
        curve = pretrain(
            make_model(),
            make_blocks(steps * BATCH),
            0,
            Path(work),
            trains="embeddings",
            old_rows=0,
            batch=BATCH,
            learning_rate=1e-3,
            warmup_steps=2,
            weight_decay=0.1,
            seed=0,
            save_every=0,
            measure=note_time,
        )
    rate = (steps - SKIPPED) * BATCH * BLOCK / (times[-1] - times[SKIPPED])
    return {
        "tokens_per_second": rate,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "loss": [entry["loss"] for entry in curve if "loss" in entry],
    }


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(run(arguments.one, arguments.steps)) + "\n")
        return
    results = {}
    for kind in ("stock", "lepta"):
        command = [sys.executable, __file__, "--one", kind, "--steps", str(arguments.steps)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[kind] = json.loads(done.stdout.splitlines()[-1])
    stock, lepta = results["stock"], results["lepta"]
    off = max(abs(a - b) for a, b in zip(stock["loss"], lepta["loss"], strict=True))
    table = Table("", "stock Trainer", "LEPTA", "ratio")
    for name in ("tokens_per_second", "peak_gb"):
        table.add_row(name, f"{stock[name]:.2f}", f"{lepta[name]:.2f}", f"{lepta[name] / stock[name]:.2f}")
    table.add_row("largest difference of the loss", "", "", f"{off:.2e}")
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(results | {"loss_difference": off}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
