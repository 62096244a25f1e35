r"""Settings of pre-training against its defaults, at equal tokens: WSD, substitution, a teacher, shares of source text.

    python benchmarks/schedules.py --original MODEL --model INITIALISED --text train.jsonl.gz --valid valid.jsonl \
        --tokens 30000 --seeds 3 --output runs/schedules

Arms take turns, one seed after the other; a run that is done is not made again. Prints a table in Markdown: bits per
byte of held-out text along the run, its end relative to the default of the same seed, seconds. What a share of source
text keeps of the source language (its forgetting curve):

    python benchmarks/schedules.py ... --source-text english.jsonl.gz --source-valid english-valid.jsonl \
        --trains new-rows+lora --arms default --also source_share=0.05 source_share=0.1 source_share=0.2
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from lepta.learning import pretrain
from lepta.text.settings import Language, Text
from lepta.training.settings import PretrainSettings

BITS, SOURCE = "target_bits_per_byte", "source_bits_per_byte"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "model", "text", "valid", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("source-text", "source-valid"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trains", default="new-rows")
    parser.add_argument("--characters", type=int, default=20_000, help="of held-out text")
    parser.add_argument("--measurements", type=int, default=3, help="along a run")
    parser.add_argument("--arms", nargs="*", help="default: all")
    parser.add_argument(
        "--also", nargs="*", default=(), metavar="FIELD=VALUE,...", help="further arms, by their settings"
    )
    return parser.parse_args()


def arms(original: str) -> dict[str, dict[str, Any]]:
    """What each arm has beside the defaults."""
    return {
        "default": {},
        "wsd": {"schedule": "wsd"},
        "substitution 0.25": {"substitution": 0.25},
        "teacher 1": {"teacher": original},
        "teacher 0.3": {"teacher": original, "teacher_weight": 0.3},
    }


def as_settings(arm: str) -> dict[str, str]:
    """Settings of an arm that is named by them, as adam_epsilon=1e-5,learning_rate=2e-3."""
    return dict(part.split("=") for part in arm.split(","))


def trained(options: argparse.Namespace, values: dict[str, Any], seed: int, file: Path) -> dict[str, Any]:
    """Bits per byte along a run, and its seconds; the model is not kept."""
    if file.is_file():
        return dict(json.loads(file.read_text()))
    steps = options.tokens // 512
    common = {"tokens": options.tokens, "trains": options.trains, "block": 256, "batch": 2, "keep": "last"}
    measuring = {"measure_every": max(1, steps // options.measurements), "measure_characters": options.characters}
    settings = PretrainSettings.model_validate(common | measuring | values)
    text = Text.model_construct(
        target=Language.model_construct(language="target", train=[options.text], valid=[options.valid]),
        source=Language.model_construct(language="source", train=options.source_text, valid=options.source_valid),
    )
    folder = file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Path(settings.teacher) if settings.teacher else None
    started = time.monotonic()
    pretrain(Path(options.original), Path(options.model), text, settings, seed, folder, teacher)
    curve = json.loads((folder / "training_curve.json").read_text())["curve"]
    shutil.rmtree(folder)
    measured = [(entry["tokens"], entry[BITS]) for entry in curve if BITS in entry]
    forgotten = [entry[SOURCE] for entry in curve if SOURCE in entry]
    found = {"curve": measured, "source": forgotten, "seconds": time.monotonic() - started}
    file.write_text(json.dumps(found))
    return found


def main() -> None:
    """Train all arms, then print the table."""
    options = arguments()
    output = Path(options.output)
    chosen = {name: values for name, values in arms(options.original).items() if name in (options.arms or [name])}
    chosen |= {arm: as_settings(arm) for arm in options.also}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in range(1, options.seeds + 1):
        for name, values in chosen.items():
            runs[name].append(trained(options, values, seed, output / f"{name.replace(' ', '-')}-{seed}.json"))
    places = [tokens for tokens, _ in runs[next(iter(runs))][0]["curve"]]
    head = ["arm", *(f"{tokens:,}" for tokens in places), "against the default", "source language", "seconds"]
    print(f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    for name, of_arm in runs.items():
        along = zip(*([bits for _, bits in run["curve"]] for run in of_arm), strict=True)
        means = " | ".join(f"{statistics.mean(values):.4f}" for values in along)
        pairs = zip(of_arm, runs.get("default", of_arm), strict=True)
        changes = ", ".join(f"{one['curve'][-1][1] - other['curve'][-1][1]:+.4f}" for one, other in pairs)
        source = [run["source"][-1] - run["source"][0] for run in of_arm if run["source"]]
        seconds = statistics.mean(run["seconds"] for run in of_arm)
        print(f"| {name} | {means} | {changes} | {statistics.mean(source or [0.0]):+.4f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
