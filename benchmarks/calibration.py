r"""What self-calibration does to copying, forgetting and the use of new tokens, before and after, with intervals.

What is copied in training shares no 13 words with what is copied in the test:

    python benchmarks/calibration.py --model runs/demo/propagated/short-answers \
        --original runs/demo/variants/short-answers --copy-text train.jsonl --held-out valid.jsonl \
        --source-valid starter:en/valid --copies 300 --output OUT

Without --prompts the model learns from copies alone.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lepta.calibration.calibrate import Place, calibrate_folder
from lepta.calibration.settings import CalibrateSettings, EffectSettings, calibration_tuning
from lepta.core.output import publishing
from lepta.core.settings import validated
from lepta.darumeru.aggregate import compare
from lepta.darumeru.data import write_dataset
from lepta.darumeru.importers import import_dataset
from lepta.darumeru.log import read_results


def main() -> None:
    """Make the test, calibrate, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--original", required=True)
    parser.add_argument("--copy-text", action="append", required=True)
    parser.add_argument("--held-out", required=True, help="File of rows with texts to copy in the test.")
    parser.add_argument("--source-valid", action="append", default=[])
    parser.add_argument("--prompts", action="append", default=[])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--shown", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--copy-characters", type=int, default=200)
    parser.add_argument("--rows", type=int, default=40, help="Sentences and paragraphs in the test.")
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    data, names = options.output / "test", options.task or ["copy_sentence_ru"]
    if not data.exists():
        dataset, facts = import_dataset("text", [Path(options.held_out)], "copy_ru", [], 5, options.rows, 1)
        with publishing(data / "copy_ru") as folder:
            write_dataset(folder, dataset, facts)
    tuning = calibration_tuning().model_dump()
    tuning |= {"learning_rate": options.learning_rate, "batch": options.batch, "epochs": options.epochs}
    settings = validated(
        CalibrateSettings,
        {
            "prompts": options.prompts,
            "limit": options.limit,
            "shown": options.shown,
            "answers": {"max_tokens": options.max_tokens},
            "copies": {"text": options.copy_text, "number": options.copies, "characters": options.copy_characters},
            "tune": tuning | {"max_length": 1024},
        },
        "benchmark",
    )
    effect = EffectSettings(
        target=[options.held_out], source=options.source_valid, tasks=names, benchmark=str(data), limit=None
    )
    facts = calibrate_folder(
        options.model, Place(options.original), settings, effect, [options.held_out], 1, options.output / "run", False
    )
    samples = options.output / "run" / "report" / "samples"
    before, after = (
        [result for result, _ in read_results(samples / side).values()] for side in ("propagated", "calibrated")
    )
    facts["difference"] = {name: asdict(found) for name, found in compare(before, after).items()}
    print(json.dumps(facts, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
