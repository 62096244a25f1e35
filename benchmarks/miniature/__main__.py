"""The paper in miniature, measured. One command:

    python -m benchmarks.miniature --scale cpu [--data DIR] [--work DIR] [--jobs N] [--minutes N] [--publish]

It trains a foundation model on English with a little Russian, tunes an instruct variant, gives both new vocabularies
and carries them over by every map, beside an upper bound and controls that must fail; docs/miniature.md says what came
out. What is up to date is skipped, so a run that was stopped or killed goes on when the command is given again.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.miniature.pages import publish
from benchmarks.miniature.results import RESULTS, collect
from benchmarks.miniature.settings import FILE, ScaleSettings, Side, Texts, read
from benchmarks.miniature.stages import SCENARIOS, shared_pipeline, vocabulary_pipeline
from lepta.core.errors import LeptaError
from lepta.core.output import write_json

console = Console()


@dataclass(frozen=True)
class Unit:
    """What one process does: the shared stages of a seed, or those of one new vocabulary (`scenario`)."""

    seed: int
    scenario: str = ""

    @property
    def name(self) -> str:
        """Also the name of its log."""
        return f"seed-{self.seed}" + (f"-{self.scenario}" if self.scenario else "")


def texts_of(data: Path | None, texts: Texts) -> Texts:
    """Texts of a folder that has corpus_ru and corpus_en, or those of the settings."""
    if data is None:
        return texts
    sides = {
        code: Side(
            train=[str(data / f"corpus_{code}/train.jsonl.gz")], valid=[str(data / f"corpus_{code}/valid.jsonl")]
        )
        for code in ("ru", "en")
    }
    return Texts(**sides)


def run_unit(unit: Unit, texts: Texts, scale: ScaleSettings, work: Path) -> None:
    """Run the stages of a unit in this process."""
    shared = work / f"seed-{unit.seed}"
    if unit.scenario:
        pipeline = vocabulary_pipeline(scale, unit.seed, shared, unit.scenario)
    else:
        pipeline = shared_pipeline(texts, scale, unit.seed, shared)
    pipeline.run(report=lambda line: console.print(line, highlight=False, markup=False))


def units(seeds: int) -> Iterator[Unit]:
    """All units, in an order in which what a unit needs comes before it."""
    yield from (Unit(seed) for seed in range(1, seeds + 1))
    yield from (Unit(seed, scenario) for seed in range(1, seeds + 1) for scenario in SCENARIOS)


def run_all(arguments: argparse.Namespace, seeds: int, work: Path) -> bool:
    """Run all units in processes of their own; tells whether there was time for all of them."""
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
    shared: dict[int, Future[bool]] = {}

    def process(unit: Unit) -> bool:
        if unit.scenario and not shared[unit.seed].result():
            return False
        log = work / "logs" / f"{unit.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.miniature", *sys.argv[1:], "--unit", str(unit.seed), unit.scenario]
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        started = time.monotonic()
        with log.open("ab") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
            try:
                status = child.wait(left)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                return False
        if status:
            raise LeptaError(f"{unit.name}: failed; see {log}")
        console.print(f"{unit.name}: {time.monotonic() - started:.0f} s", highlight=False)
        return True

    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = []
        for unit in units(seeds):
            futures.append(pool.submit(process, unit))
            if not unit.scenario:
                shared[unit.seed] = futures[-1]
        return all([future.result() for future in futures])


def jobs_here() -> int:
    """Processes that this machine has room for."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def main() -> None:
    """Run a scale, and collect what it measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scale",
        required=True,
        choices=("smoke", "cpu", "gpu"),
        help="smoke: a minute, learns nothing; cpu: an hour on 2 cores; gpu: 25 minutes on a data-centre GPU",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with corpus_ru and corpus_en (train.jsonl.gz, valid.jsonl) [the texts of the settings]",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"), help="folder of all models [%(default)s]")
    parser.add_argument("--settings", type=Path, default=FILE, help="another file such as miniature.yaml")
    parser.add_argument(
        "--jobs",
        type=int,
        default=jobs_here(),
        help="processes with one thread each [cores; 1 on a GPU]; the numbers do not depend on it",
    )
    parser.add_argument("--minutes", type=float, help="stop after so many, to go on later")
    parser.add_argument(
        "--publish", action="store_true", help="write tables and figures into docs, and the results beside this file"
    )
    parser.add_argument("--unit", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = read(arguments.settings)
    scale, work = settings.scales[arguments.scale], arguments.work / arguments.scale
    if arguments.unit:
        seed, scenario = arguments.unit
        run_unit(Unit(int(seed), scenario), texts_of(arguments.data, settings.texts), scale, work)
        return
    started = time.monotonic()
    if not run_all(arguments, scale.seeds, work):
        console.print(f"stopped after {arguments.minutes:g} minutes; give the same command again to go on")
        return
    results = collect(arguments.scale, scale, work)
    write_json(work / RESULTS, results)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{work / RESULTS}: written after {minutes:.1f} minutes in this run", highlight=False)
    if arguments.publish:
        for file in publish(results):
            console.print(f"{file}: written", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except LeptaError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        sys.exit(1)
