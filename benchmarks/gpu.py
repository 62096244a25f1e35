"""LEPTA on one data-centre GPU, whole or a slice of one, in at most nine minutes. One command:

    python benchmarks/gpu.py [--parts NAME ...] [--output gpu.json] [--publish] [--smoke]

pretrain-1b, pretrain-8b    embeddings trained with the body frozen in bfloat16, by LEPTA and by `transformers.Trainer`
distill-1b, distill-8b      rows learned by hidden states of a third of the layers, from a teacher with the same body
quantised                   a model of the 1B shape loaded in bfloat16, 8 and 4 bits: seconds, memory, what it predicts
fsdp2                       `lepta pretrain` under FSDP2 in one process against the same without: losses
miniature                   the table `gpu` of benchmarks/miniature, as far as time goes; the same command goes on. Its
                            text is streamed from the hub, or LEPTA_DATA names a folder with corpus_ru and corpus_en

Models have random weights, made on the device; token ids follow Zipf's law: text would change neither time nor memory.
Each part runs in a process of its own and ends at its time limit. The speed of one large product, measured first, is
what shares are of: of a slice of a GPU, whose data sheet does not exist, it is the peak that can be had.
--publish writes the table into docs/training.md. --smoke runs every part on the CPU with tiny shapes: it tests this
script. Without a GPU and without --smoke the command ends with code 2.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, BEGIN, END = ROOT / "docs/training.md", "<!-- gpu: begin -->", "<!-- gpu: end -->"
LIMITS = {  # seconds; together nine minutes
    "pretrain-1b": 70,
    "distill-1b": 35,
    "pretrain-8b": 110,
    "distill-8b": 55,
    "quantised": 55,
    "fsdp2": 65,
    "miniature": 150,
}
DATA = "LEPTA_DATA"  # folder of the miniature's text, where the hub is not to be asked
SKIPPED = 2  # steps that warm up
NEW = 16_000  # rows that distillation learns


@dataclass(frozen=True)
class Size:
    """Shape of a LLaMA, and how much of it is trained on."""

    rows: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    block: int
    batch: int
    steps: int


SIZES = {
    "1b": Size(128_256, 2048, 8192, 16, 32, 8, 1024, 8, 12),
    "8b": Size(128_256, 4096, 14336, 32, 32, 8, 1024, 4, 8),
    "smoke": Size(49_152, 64, 128, 3, 4, 2, 64, 2, 4),
}


def device() -> str:
    """Where the parts run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make_model(size: Size) -> Any:
    """A LLaMA with random weights in bfloat16, made on the device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.rows,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def zipf(size: Size, number: int, length: int) -> Any:
    """Token ids, shape (number, length)."""
    import numpy as np

    return (np.random.default_rng(0).zipf(1.2, size=(number, length)) - 1) % size.rows


class Blocks(list[dict[str, Any]]):
    """Examples that know their sizes."""

    @property
    def sizes(self) -> list[int]:
        """Tokens of each."""
        return [len(example["input_ids"]) for example in self]


def blocks(size: Size) -> Blocks:
    """What is trained on."""
    rows = zipf(size, size.steps * size.batch, size.block).tolist()
    return Blocks({"input_ids": row, "labels": row} for row in rows)


def now() -> float:
    """Seconds, when the device has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float:
    """Most memory of the device that was in use; of a CPU, of the process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def product_tflops() -> float:
    """Speed of a large product in bfloat16."""
    import torch

    side, times = (8192, 20) if torch.cuda.is_available() else (512, 3)
    a, b = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    started = now()
    for _ in range(times):
        a @ b
    return 2 * side**3 * times / (now() - started) / 1e12


def train_lepta(size: Size, model: Any) -> list[float]:
    """Times after each step."""
    from lepta.training.pretrain import Pretraining, pretrain
    from lepta.training.settings import PretrainSettings
    from lepta.training.trainer import Watch

    times: list[float] = []

    def note_time() -> dict[str, float]:
        times.append(now())
        return {}

    settings = PretrainSettings(
        tokens=1, batch=size.batch, warmup_steps=2, save_every=10**6, body_dtype="bfloat16", keep="last"
    )
    with tempfile.TemporaryDirectory() as work:
        run = Pretraining(settings, blocks(size), new_rows=0, rate=1e-4, seed=0, work=Path(work))
        pretrain(model, run, Watch(note_time, 1))
    return times[1:]  # the first is before any step


def train_stock(size: Size, model: Any) -> list[float]:
    """The same with nothing of LEPTA in it."""
    import transformers

    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    model.requires_grad_(False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.float().weight.requires_grad_(True)
    with tempfile.TemporaryDirectory() as work:
        arguments = transformers.TrainingArguments(
            output_dir=work,
            num_train_epochs=1,
            per_device_train_batch_size=size.batch,
            learning_rate=1e-4,
            bf16=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device() == "cpu",
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=list(blocks(size)),
            data_collator=transformers.default_data_collator,
            callbacks=[Clock()],
        )
        trainer.train()
    return times


def part_pretrain(size: Size, kind: str) -> dict[str, Any]:
    """Tokens per second of one of the two, its memory, and the share of what the device can do."""
    model, speed = make_model(size), product_tflops()
    head = size.rows * size.width
    body = sum(parameter.numel() for parameter in model.parameters()) - 2 * head
    times = train_lepta(size, model) if kind == "lepta" else train_stock(size, model)
    rate = (size.steps - SKIPPED) * size.batch * size.block / (times[-1] - times[SKIPPED - 1])
    # Two products a weight in the frozen body (forward, and what goes back), three in the head; attention left out.
    share = rate * (4 * body + 6 * head) / (speed * 1e12)
    return {"tokens_per_second": rate, "gib": peak_gib(), "share_of_product": share, "product_tflops": speed}


def part_distill(size: Size) -> dict[str, Any]:
    """New tokens per second of the run that learns input rows."""
    import numpy as np
    import torch

    from lepta.distillation.passages import Examples
    from lepta.distillation.student import Distiller
    from lepta.training.trainer import Run, Watch, train
    from lepta.vocabulary.alignment import Alignment

    model, batch, length = make_model(size), 2 * size.batch, size.block // 8
    new = min(NEW, size.rows // 4)
    learned = torch.arange(size.rows - new, size.rows, device=device())
    layer = -(-size.layers // 3)
    distiller = Distiller(model, model.get_input_embeddings().weight.detach(), learned, learned, layer)
    distiller.head.rows.requires_grad_(False)
    ids = zipf(size, size.steps * batch, length)
    fresh = (ids + size.rows - new) % size.rows  # the usual ones are new
    ends = np.arange(length)
    # Two old tokens to a new one.
    passages = [
        Alignment(np.repeat(old, 2), one, 2 * ends, ends, 4 * length) for old, one in zip(ids, fresh, strict=True)
    ]
    examples = Examples([passages], learned.cpu().numpy(), size.rows, batch, everywhere=False, seed=0)
    times: list[float] = []  # before the first step, and after each

    def note_time() -> dict[str, float]:
        times.append(now())
        return {}

    groups = [{"name": "rows", "params": [distiller.embedding.rows], "lr": 1e-3}]
    with tempfile.TemporaryDirectory() as work:
        watch = Watch(note_time, 1)
        train(Run(distiller, examples, groups, Path(work), batch, 0, dtype=torch.bfloat16, watch=watch))
    used = times[-1] - times[SKIPPED]
    return {"tokens_per_second": (size.steps - SKIPPED) * batch * (length - 1) / used, "gib": peak_gib()}


def part_quantised(size: Size, work: Path) -> dict[str, Any]:
    """A folder loaded in bfloat16, in 8 and in 4 bits."""
    import torch

    from lepta.models.load import load_model

    make_model(size).save_pretrained(work / "model")
    ids, result, logits = torch.tensor([zipf(size, 1, 64)[0].tolist()]), dict[str, Any](), []
    for name, bits in (("bfloat16", None), ("8bit", 8), ("4bit", 4)):
        if bits and device() == "cpu":
            return result | {"8bit": "needs a GPU", "4bit": "needs a GPU"}
        before, started = _used(), now()
        model = load_model(work / "model", torch.bfloat16, bits)
        result[name] = {"seconds": now() - started, "gib": (_used() - before) / 2**30}
        with torch.no_grad():
            logits.append(model(ids.to(model.device)).logits.float())
        del model
        result[name]["same_first_choice"] = float((logits[0].argmax(-1) == logits[-1].argmax(-1)).float().mean())
    return result


def _used() -> int:
    import gc

    import torch

    gc.collect()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def part_fsdp2(work: Path) -> dict[str, Any]:
    """Losses of a short run without and with FSDP2, one process each."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.pretrain import FSDP2, LEPTA, losses_of, pretrain, small_model

    small_model(work / "model")
    sharded = {name: value for name, value in FSDP2.items() if device() == "cpu" or name != "ACCELERATE_USE_CPU"}
    one = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m", "lepta"]
    result: dict[str, Any] = {}
    for name, launcher, more in (("plain", LEPTA, {}), ("fsdp2", one, sharded)):
        started = time.perf_counter()
        subprocess.run(
            pretrain(work, name, launcher), check=True, env={**os.environ, **more}, stdout=subprocess.DEVNULL
        )
        result[f"{name}_seconds"] = time.perf_counter() - started
    plain, fsdp2 = losses_of(work / "plain"), losses_of(work / "fsdp2")
    largest = max(abs(a - b) for a, b in zip(plain, fsdp2, strict=True))
    return result | {"steps": len(plain), "largest_difference_of_the_loss": largest}


def starter_data(folder: Path) -> Path:
    """The starter corpus as the miniature reads text."""
    from lepta.text.sources import read_documents

    for language in ("ru", "en"):
        place = folder / f"corpus_{language}"
        place.mkdir(parents=True)
        for part, file in (("train", "train.jsonl.gz"), ("valid", "valid.jsonl")):
            rows = [json.dumps({"text": text}) for text in read_documents([f"starter:{language}/{part}"])]
            data = "\n".join(rows).encode()
            (place / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    return folder


def part_miniature(smoke: bool, limit: float, work: Path) -> dict[str, Any]:
    """The miniature; what it measured is written beside its own table. LEPTA_DATA names its text, if it is here."""
    scale, minutes = ("smoke", "9") if smoke else ("gpu", f"{(limit - 15) / 60:.2f}")
    command = [sys.executable, "-m", "benchmarks.miniature", "--scale", scale, "--minutes", minutes]
    if smoke:
        command += ["--data", str(starter_data(work / "data")), "--work", str(work / "runs")]
    else:
        command += ["--publish", *(["--data", os.environ[DATA]] if DATA in os.environ else [])]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    said = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    return {"seconds": time.perf_counter() - started, "said": said}


def run_part(name: str, kind: str, smoke: bool) -> dict[str, Any]:
    """One part, in this process."""
    import transformers

    transformers.logging.set_verbosity_error()
    size = SIZES["smoke" if smoke else name.rpartition("-")[2] if name[-2:] in ("1b", "8b") else "1b"]
    if name.startswith("pretrain"):
        return part_pretrain(size, kind)
    if name.startswith("distill"):
        return part_distill(size)
    with tempfile.TemporaryDirectory(prefix="lepta-") as work:
        by_name: dict[str, Callable[[], dict[str, Any]]] = {
            "quantised": lambda: part_quantised(size, Path(work)),
            "fsdp2": lambda: part_fsdp2(Path(work)),
            "miniature": lambda: part_miniature(smoke, LIMITS["miniature"], Path(work)),
        }
        return by_name[name]()


def started_part(name: str, kind: str, smoke: bool, limit: float) -> dict[str, Any]:
    """A part in a process of its own: what it measured, or why it did not."""
    command = [sys.executable, __file__, "--one", name, kind, *(["--smoke"] if smoke else [])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, said = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        child.communicate()
        return {"failed": f"not done in {limit:.0f} s"}
    if child.returncode:
        last = said.strip().splitlines()[-1:] or ["no message"]
        return {"failed": "out of memory" if "out of memory" in said.lower() else last[0][:200]}
    return dict(json.loads(printed.splitlines()[-1]))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| part | tokens/s | memory, GiB | share of one large product |", "|---|---|---|---|"]
    other = []
    for name, result in results["parts"].items():
        if "failed" in result:
            lines.append(f"| {name} | {result['failed']} | | |")
        elif "tokens_per_second" in result:
            share = f"{result['share_of_product']:.0%}" if "share_of_product" in result else ""
            lines.append(f"| {name} | {result['tokens_per_second']:,.0f} | {result['gib']:.1f} | {share} |")
        else:
            other.append(f"- {name}: {json.dumps(rounded(result), ensure_ascii=False)}")
    place, seconds = f"{results['device']}, {results['memory_gib']:.0f} GiB", f"{results['seconds']:.0f} s"
    head = f"`python benchmarks/gpu.py` on {place}, {seconds}:"
    return "\n".join([head, "", *lines, "", *other]).rstrip() + "\n"


def rounded(value: Any) -> Any:
    """Numbers as they are shown."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def publish(text: str) -> None:
    """Put the table between its marks in the docs, which are added at the end where there are none."""
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    after = rest.partition(END)[2] if found else "\n"
    before = before if found else f"{page.rstrip()}\n\n## On a GPU\n\n"
    PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def main() -> int:
    """Run the parts, and write what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="NAME")
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    parser.add_argument("--publish", action="store_true", help="write the table into docs/training.md")
    parser.add_argument("--smoke", action="store_true", help="every part on the CPU, with tiny shapes")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.one:
        sys.stdout.write(json.dumps(run_part(*arguments.one, arguments.smoke)) + "\n")
        return 0
    import torch

    if not arguments.smoke and not torch.cuda.is_available():
        sys.stderr.write("gpu.py: no GPU here; run it on a machine with one, or test the script itself with --smoke\n")
        return 2
    name, memory = "a CPU (smoke)", 0.0
    if not arguments.smoke:
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory / 2**30
    started, parts = time.monotonic(), dict[str, Any]()
    for part in arguments.parts:
        kinds = ("lepta", "stock") if part.startswith("pretrain") else ("",)
        for kind in kinds:
            label = f"{part}, {kind}" if kind else part
            parts[label] = started_part(
                part, kind, arguments.smoke, 600 if arguments.smoke else LIMITS[part] / len(kinds)
            )
            sys.stderr.write(f"{label}: {json.dumps(rounded(parts[label]), ensure_ascii=False)}\n")
    sizes = {size: asdict(shape) for size, shape in SIZES.items()}
    results = {
        "device": name,
        "memory_gib": memory,
        "seconds": time.monotonic() - started,
        "sizes": sizes,
        "parts": parts,
    }
    text = table(results)
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.publish:
        publish(text)
    return 1 if any("failed" in result for result in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
