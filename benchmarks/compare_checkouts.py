r"""Whether two checkouts of LEPTA make the same bytes: the test of a change that shall not change any result.

    python benchmarks/compare_checkouts.py OLD NEW --work /tmp/compare

Runs a small version of OLD's `recipes/demo.yaml` in each checkout, one after the other: vocabulary, initialisation,
distillation, pre-training, a variant, propagation, evaluation; then a patch of the propagated model and a task of
Darumeru. Prints which files and which numbers differ, and exits with 1 if any does. Takes about 3 minutes for
each checkout on two cores. With `--work`, the results of an OLD without local changes are kept for the next comparison.

Files are compared by SHA-256. Of files that hold times or versions (manifests, evaluation, report, logs of Darumeru)
the other values are compared; pages are not compared.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

OUTPUT = Path("runs")  # relative, as both checkouts must see the same paths
VARIANT = "short-answers"
COMMIT = "commit"  # which commit made the results beside it
SKIPPED = (".html", ".lock")
WITH_TIMES = ("manifest.json", "evaluation.json", "report.json", "training_curve.json", "summary.json")
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

# What the small recipe changes in the demo's. Precisions are named, because `auto` times a matrix product.
SMALLER: dict[str, dict[str, Any]] = {
    "distill": {"tokens": 1000, "head_epochs": 1, "body_dtype": "float32"},
    "propagate": {"method": "auto"},
    "evaluate": {
        "characters": 200,
        "speed_characters": 100,
        "speed_repeats": 1,
        "max_tokens": 4,
        "behaviour": {"dialogues": "starter:dialogues/valid.jsonl", "prompts": 1, "max_tokens": 4},
    },
}
TUNE = {"limit": 8, "body_dtype": "float32"}
PRETRAIN = {
    "trains": "embeddings",
    "tokens": 500,
    "block": 64,
    "batch": 4,
    "micro_batch": 2,
    "body_dtype": "float32",
    "source_share": 0.2,
    "measure_characters": 200,
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD", help="checkout whose results are right")
    parser.add_argument("new", type=Path, metavar="NEW", help="checkout to compare with it")
    parser.add_argument("--work", type=Path, help="folder for the results (default: a temporary one)")
    return parser.parse_args()


def small_recipe(checkout: Path) -> dict[str, Any]:
    """The demo recipe with less of everything, and a stage of pre-training."""
    recipe = yaml.safe_load((checkout / "recipes/demo.yaml").read_text(encoding="utf-8"))
    for section, changes in SMALLER.items():
        recipe[section] |= changes
    recipe["variants"][VARIANT]["tune"] |= TUNE
    recipe["evaluate"]["prompts"] = recipe["evaluate"]["prompts"][:1]
    recipe["pretrain"] = PRETRAIN
    recipe["output"] = str(OUTPUT)
    del recipe["calibrate"]
    return recipe


def results_of(checkout: Path, recipe: dict[str, Any], place: Path, keep: bool = False) -> Path:
    """Run everything in one checkout; returns the folder of the results."""
    commit = clean_commit(checkout) if keep else ""
    note = place / COMMIT
    if commit and note.is_file() and note.read_text() == commit:
        print(f"{checkout}: results of {commit[:8]} are in {place} already")
        return place / OUTPUT
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "small.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    variant, propagated, patch = OUTPUT / "variants" / VARIANT, OUTPUT / "propagated" / VARIANT, OUTPUT / "patch"
    for command in (
        ["adapt", "small.yaml"],
        ["patch", "export", "--original", variant, "--adapted", propagated, "--output", patch],
        ["patch", "apply", "--patch", patch, "--model", variant, "--output", OUTPUT / "patched"],
        ["darumeru", "run", "--model", propagated, "--tasks", "rucola", "--limit", "4", "--output", OUTPUT / "asked"],
    ):
        lepta(checkout, place, [str(argument) for argument in command])
    if commit:
        note.write_text(commit)
    return place / OUTPUT


def clean_commit(checkout: Path) -> str:
    """The commit of a checkout; empty if its files have changes, or it is no repository."""
    changes = subprocess.run(["git", "-C", checkout, "status", "--porcelain"], capture_output=True, text=True)
    if changes.returncode or changes.stdout:
        return ""
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return head.stdout.strip()


def lepta(checkout: Path, place: Path, command: list[str]) -> None:
    """Run one command of a checkout's LEPTA."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    where = [sys.executable, "-c", "import lepta; print(lepta.__file__)"]
    found = subprocess.run(where, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_relative_to(checkout):
        sys.exit(f"{checkout}: PYTHONPATH does not win, lepta comes from {found}")
    print(f"{checkout}: lepta {' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, "-m", "lepta", *command], cwd=place, env=environment).returncode:
        sys.exit(f"{checkout}: this command failed, so nothing was compared")


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
        elif file.name == "README.md":
            found[name] = hashlib.sha256(VERSION.sub(b"LEPTA", file.read_bytes())).hexdigest()
        else:
            with file.open("rb") as data:
                found[name] = hashlib.file_digest(data, "sha256").hexdigest()
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
    options = arguments()
    old, new = options.old.resolve(), options.new.resolve()
    with tempfile.TemporaryDirectory(prefix="lepta-compare-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        recipe = small_recipe(old)
        sides = [
            content(results_of(old, recipe, work / "old", keep=options.work is not None)),
            content(results_of(new, recipe, work / "new")),
        ]
    lines = differences(*sides)
    for line in lines:
        print(line)
    print(f"{len(sides[0])} files compared, {len(lines)} differences")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
