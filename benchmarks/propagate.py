"""Propagation at the true size of embeddings: time, peak memory, exactness. One command:

    pip install --no-deps llama-models mistral-common
    python benchmarks/propagate.py [--cases mistral llama-8b ...] [--work DIR] [--output results.json]

Models have random weights, embeddings of the true shape in bfloat16, two layers of the true shape and files as the
published models have them; tokenizers are the real ones, extended by Russian words to the sizes of the paper. Each
call of `lepta propagate` is a process of its own, so that its peak memory is its own. DIR needs 45 GB for llama-70b.
"""

import argparse
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

MISTRAL = "package:mistral_common/data/tokenizer.model.v1"
LLAMA = "package:llama_models/llama3/tokenizer.model"


@dataclass(frozen=True)
class Shape:
    """A model's size and what is wanted of its propagation."""

    tokenizer: str
    rows: int
    new_rows: int
    width: int
    inner: int
    heads: int
    model_type: str
    most_gb: float
    most_seconds: float | None


SHAPES = {
    "mistral": Shape(MISTRAL, 32_000, 55_328, 4096, 14_336, 32, "mistral", 2.5, None),
    "llama-8b": Shape(LLAMA, 128_256, 174_816, 4096, 14_336, 32, "llama", 5, 360),
    "llama-70b": Shape(LLAMA, 128_256, 174_816, 8192, 28_672, 64, "llama", 12, None),
}
CASES = [*SHAPES, "three", "lstsq", "exact", "generate"]


def tensor_shapes(shape: Shape, rows: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors of each file: the input embeddings lie in the first, the head in the last."""
    d, i, kv = shape.width, shape.inner, 1024
    layers = [
        {
            f"model.layers.{n}.{name}": size
            for name, size in {
                "input_layernorm.weight": (d,),
                "self_attn.q_proj.weight": (d, d),
                "self_attn.k_proj.weight": (kv, d),
                "self_attn.v_proj.weight": (kv, d),
                "self_attn.o_proj.weight": (d, d),
                "post_attention_layernorm.weight": (d,),
                "mlp.gate_proj.weight": (i, d),
                "mlp.up_proj.weight": (i, d),
                "mlp.down_proj.weight": (d, i),
            }.items()
        }
        for n in range(2)
    ]
    return [
        {"model.embed_tokens.weight": (rows, d), **layers[0]},
        {**layers[1], "model.norm.weight": (d,)},
        {"lm_head.weight": (rows, d)},
    ]


def random_rows(rows: int, width: int, seed: int, add: float = 0.0) -> torch.Tensor:
    """The same random rows for the same seed; `add` moves them by so much of another random matrix."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((rows, width), generator=generator) * 0.02
    return (values + add * torch.randn((rows, width), generator=generator)).to(torch.bfloat16)


def write_model(
    folder: Path, shape: Shape, rows: int, tokenizer: Path, seed: int, add: float, body: Path | None
) -> None:
    """Write a model folder of bfloat16, a block of rows at a time; files of the body alone are those of `body`."""
    folder.mkdir(parents=True)
    files, total = {}, 0
    for number, tensors in enumerate(tensor_shapes(shape, rows), 1):
        name = f"model-{number:05}-of-00003.safetensors"
        files |= dict.fromkeys(tensors, name)
        total += sum(2 * math.prod(size) for size in tensors.values())
        if body and number == 2:
            (folder / name).hardlink_to(body / name)
            continue
        header, start = {}, 0
        for tensor, size in tensors.items():
            end = start + 2 * math.prod(size)
            header[tensor] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
            start = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (folder / name).open("wb") as out:
            out.write(struct.pack("<Q", len(encoded)) + encoded)
            for tensor, size in tensors.items():
                is_embedding = tensor in ("model.embed_tokens.weight", "lm_head.weight")
                for block in range(0, size[0], 4096):
                    height = min(4096, size[0] - block)
                    own = 7919 * block + len(tensor) + (seed if is_embedding else 0)
                    values = random_rows(height, math.prod(size[1:]), own, add if is_embedding else 0.0)
                    out.write(values.view(torch.uint8).numpy().data)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": shape.model_type,
        "architectures": [f"{shape.model_type.capitalize()}ForCausalLM"],
        "vocab_size": rows,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": 2,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 1024 * shape.heads // shape.width,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)


def make_models(work: Path, name: str, variants: int) -> Path:
    """Base, adapted base and variants of a case, once."""
    from lepta.vocabulary.build import build_vocabulary
    from lepta.vocabulary.source import open_tokenizer

    shape, place = SHAPES[name], work / name
    tokenizers = work / f"tokenizers-{shape.new_rows}"
    if not (tokenizers / "new").exists():
        old = open_tokenizer(shape.tokenizer)
        built = build_vocabulary(old, ["wordfreq:ru"], "extended", size=shape.new_rows)
        for part, tokenizer in (("old", old), ("new", built)):
            (tokenizers / part).mkdir(parents=True)
            tokenizer.save(tokenizers / part)
    old, new = tokenizers / "old", tokenizers / "new"
    if not (place / "base").exists():
        write_model(place / "base", shape, shape.rows, old, 0, 0.0, None)
        write_model(place / "adapted", shape, shape.new_rows, new, 1, 0.0, place / "base")
    for n in range(variants):
        if not (place / f"instruct-{n}").exists():
            write_model(place / f"instruct-{n}", shape, shape.rows, old, 0, 0.002 * (n + 1), place / "base")
    return place


def propagate(place: Path, variants: int, method: str = "anchored") -> dict[str, float]:
    """Seconds and peak memory (GB) of one call of `lepta propagate`."""
    output = place / "result"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "lepta", "propagate", "--base", place / "base", "--adapted", place / "adapted"]
    command += ["--output", output, "--method", method, "--json"]
    for n in range(variants):
        command += ["--instruct", place / f"instruct-{n}"]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(list(map(str, command)), stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise SystemExit(f"{' '.join(map(str, command))}: failed")
        out.seek(0)
        facts = json.load(out)
    maps = (facts[0] if isinstance(facts, list) else facts)["maps"]
    r2 = {name.split(".")[-2]: round(fit["held_out"]["r2"], 5) for name, fit in maps.items()}
    return {"seconds": seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9, "held_out_r2": r2}


def run_case(case: str, work: Path) -> dict:
    """Measure one case."""
    if case in SHAPES:
        shape = SHAPES[case]
        place = make_models(work, case, 1)
        others = {name: propagate(place, 1, name) for name in ("conversion", "auto") if case == "mistral"}
        return propagate(place, 1) | {"wanted_gb": shape.most_gb, "wanted_seconds": shape.most_seconds} | others
    return {"three": three_variants, "lstsq": against_lstsq, "exact": exactness, "generate": generate}[case](work)


def three_variants(work: Path) -> dict:
    """A variant in a call of three, against a call for one."""
    place = make_models(work, "mistral", 3)
    single, three = propagate(place, 1)["seconds"], propagate(place, 3)["seconds"]
    return {"single_seconds": single, "three_seconds": three, "ratio_per_variant": three / 3 / single}


def against_lstsq(work: Path) -> dict:
    """The map of one matrix, against `torch.linalg.lstsq(driver="gelsy")` in float64 on the same rows."""
    from lepta.embeddings.maps import MapFitter
    from lepta.embeddings.transfer import transfer_matrix
    from lepta.models.folder import Checkpoint
    from lepta.vocabulary.source import open_tokenizer

    place = make_models(work, "mistral", 1)
    base, adapted, instruct = (Checkpoint(place / name) for name in ("base", "adapted", "instruct-0"))
    old, new = (open_tokenizer(model.folder).vocabulary() for model in (base, adapted))
    transfer = transfer_matrix(old, new, base.rows, adapted.rows)
    name = base.input_name
    started = time.perf_counter()
    fitted = MapFitter(transfer, base.rows_of(name)).fit("conversion", instruct.rows_of(name))
    ours = time.perf_counter() - started
    x, y = (torch.from_numpy(transfer.matrix @ model.load(name).double().numpy()) for model in (base, instruct))
    started = time.perf_counter()
    expected = torch.linalg.lstsq(x, y, driver="gelsy").solution
    theirs = time.perf_counter() - started
    found = fitted.offset.double() + torch.eye(len(expected))
    difference = float((found - expected).norm() / expected.norm())
    return {"seconds": ours, "lstsq_seconds": theirs, "times_faster": theirs / ours, "relative_difference": difference}


def exactness(work: Path) -> dict:
    """Instruct = base gives the adapted rows back; instruct = base R gives R."""
    from lepta.embeddings.maps import METHODS, MapFitter
    from lepta.embeddings.transfer import transfer_matrix
    from lepta.models.folder import Checkpoint
    from lepta.vocabulary.source import open_tokenizer

    place = make_models(work, "mistral", 1)
    base, adapted = Checkpoint(place / "base"), Checkpoint(place / "adapted")
    old, new = (open_tokenizer(model.folder).vocabulary() for model in (base, adapted))
    transfer = transfer_matrix(old, new, base.rows, adapted.rows)
    width = 512  # columns; exactness does not depend on them
    own = base.load(base.input_name)[:, :width].float()
    after = adapted.load(adapted.input_name)[:, :width].float()
    fitter = MapFitter(transfer, own)
    same = {method: float((fitter.fit(method, own).apply(after).whole() - after).abs().max()) for method in METHODS}
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    linear = rotation + 0.1 * torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / math.sqrt(width)
    off = {}
    for method, change in (("overlap", linear), ("conversion", linear), ("ridge", linear), ("procrustes", rotation)):
        found = fitter.fit(method, own @ change).offset + torch.eye(width)
        off[method] = float((found - change).norm() / change.norm())
    return {"same_variant_largest_difference": same, "recovered_map_relative_error": off}


def generate(work: Path) -> dict:
    """The propagated folder loads in transformers and generates."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = make_models(work, "mistral", 1)
    propagate(place, 1)
    model = AutoModelForCausalLM.from_pretrained(place / "result", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "result")
    ids = tokenizer("Привет, мир", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return {"prompt_tokens": ids["input_ids"].shape[1], "new_tokens": out.shape[1] - ids["input_ids"].shape[1]}


def main() -> None:
    """Run the cases one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--work", type=Path, help="where the models go; kept if named")
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(run_case(arguments.one, arguments.work)) + "\n")
        return
    table, results = Table("case", "result"), {}
    with tempfile.TemporaryDirectory(prefix="lepta-benchmark-") as temporary:
        work = arguments.work or Path(temporary)
        for case in arguments.cases:
            command = [sys.executable, __file__, "--one", case, "--work", str(work)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[case] = json.loads(run.stdout.splitlines()[-1])
            table.add_row(case, json.dumps(results[case], indent=1))
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
