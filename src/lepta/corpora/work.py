"""How a corpus is divided into tasks, and the folder beside its place that it is made in: a killed run goes on there.

Tasks read about so many bytes each, whatever the number of workers.
"""

import itertools
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.output import write_json
from lepta.core.reading import read_json
from lepta.corpora.settings import CorpusSettings, Source
from lepta.text.sources import DATASET, text_field, text_files

TASK = 16_000_000  # bytes of files; a larger file is one task, as compressed files can be read from the start only
SECONDS_BETWEEN_PULSES = 1.0
REMOVALS = 50  # attempts, a tenth of a second apart


@dataclass(frozen=True)
class Input:
    """A file, or a dataset that is streamed, with the field that holds its text."""

    place: str
    field: str
    size: int


@dataclass(frozen=True)
class Task:
    """Inputs of one source, read in their order by one worker."""

    source: str
    inputs: list[Input]

    @property
    def size(self) -> int:
        """Bytes of all files; 0 for a dataset."""
        return sum(part.size for part in self.inputs)


def divide(settings: CorpusSettings) -> list[Task]:
    """Divide the sources of a corpus into tasks, in the order of the settings."""
    tasks: list[Task] = []
    for name, source in settings.sources.items():
        group: list[Input] = []
        for part in inputs_of(source):
            if group and Task(name, group).size + part.size > TASK:
                tasks.append(Task(name, group))
                group = []
            group.append(part)
        tasks.append(Task(name, group))
    return tasks


def inputs_of(source: Source) -> list[Input]:
    """List the files and datasets of a source, in the order of its text sources."""
    inputs = []
    for text in source.text:
        if text.startswith(DATASET):
            inputs.append(Input(text, source.field, 0))
            continue
        _, field = text_field(text, source.field)
        for file in text_files(text):
            inputs.append(Input(str(file), field, file.stat().st_size))
    return inputs


def stamp(settings: CorpusSettings) -> list[list[Any]]:
    """Tell all files that are read apart from others and from themselves at other times, without reading them."""
    sources = list(settings.sources.values())
    if settings.decontaminate:
        sources.append(Source(text=settings.decontaminate.against))
    stamps: list[list[Any]] = []
    for part in itertools.chain.from_iterable(map(inputs_of, sources)):
        if not part.place.startswith(DATASET):
            file = Path(part.place)
            stamps.append([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
    return stamps


def part_of(count: int, rank: int, world_size: int) -> range:
    """The numbers out of `count` that are a worker's: neighbours, so that order goes on over workers."""
    return range(rank * count // world_size, (rank + 1) * count // world_size)


@dataclass
class Work:
    """Names of what is in the folder."""

    folder: Path
    compression: str  # of the result: zst or gz
    parts: int = 0  # that the cleaned text is divided into; 0 until it is
    _pulsed: float = field(default=0.0, repr=False)

    def open(self, key: dict[str, Any]) -> None:
        """Make the folder, or go on in it if it was made for the same corpus."""
        marker = self.folder / "key.json"
        if not (marker.is_file() and read_json(marker) == key):
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(marker, key)
        shutil.rmtree(self.folder / "failures", ignore_errors=True)
        shutil.rmtree(self.folder / "progress", ignore_errors=True)

    def remove(self) -> None:
        """Take the folder away; a worker that is being stopped may still write into it."""
        for _ in range(REMOVALS):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)

    @property
    def divided(self) -> Path:
        """Place of what is named by the number of a part: one for each division, as part 3 of 4 is not part 3 of 8."""
        return self.folder / f"parts-{self.parts}" if self.parts else self.folder

    @property
    def index(self) -> Path:
        """Runs of words that the corpus must not hold."""
        return self.folder / "contamination.npy"

    def clean_shard(self, task: int, part: int) -> Path:
        """Name a shard of cleaned text."""
        return self.folder / "clean" / f"{task:06d}-{part:06d}.jsonl.zst"

    def clean_shards(self) -> list[Path]:
        """List the shards of cleaned text in the order of the corpus."""
        return sorted((self.folder / "clean").glob("*.jsonl.zst"))

    def remove_shards(self, task: int) -> None:
        """Take away what an interrupted worker left of a task."""
        for file in (self.folder / "clean").glob(f"{task:06d}-*"):
            file.unlink()

    def result(self, source: str, copy: int, shard: int, rank: int) -> Path:
        """Name a shard of the result."""
        return self.divided / "result" / source / f"{copy:03d}-{shard:06d}-{rank:06d}.jsonl.{self.compression}"

    def results(self, source: str) -> list[Path]:
        """List the shards of the result in their order: first all first copies."""
        return sorted((self.divided / "result" / source).glob("*"))

    def remove_results(self, rank: int) -> None:
        """Take away what an interrupted worker left."""
        for file in (self.divided / "result").glob(f"*/*-{rank:06d}.jsonl.{self.compression}"):
            file.unlink()

    def write_counts(self, stage: str, number: int, counts: dict[str, Any]) -> None:
        """Write the counts of a task."""
        write_json(self.divided / "counts" / stage / f"{number:06d}.json", counts)

    def counts(self) -> list[dict[str, Any]]:
        """Read all counts, in the order of the tasks: of cleaning, then of writing."""
        cleaned, written = (self.folder / "counts" / "clean", self.divided / "counts" / "write")
        return list(map(read_json, [*sorted(cleaned.glob("*.json")), *sorted(written.glob("*.json"))]))

    def pulse(self, stage: str, rank: int, done: int) -> None:
        """Say how many bytes a worker has read; at most once in so many seconds."""
        now = time.monotonic()
        if now - self._pulsed >= SECONDS_BETWEEN_PULSES:
            self._pulsed = now
            place = self.folder / "progress" / stage / f"{rank:06d}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(done))

    def pulses(self, stage: str) -> int:
        """Sum what all workers have read."""
        texts = map(Path.read_text, (self.folder / "progress" / stage).glob("*"))
        return sum(map(int, filter(str.isdigit, texts)))

    def write_failure(self, stage: str, rank: int, error: BaseException) -> None:
        """Leave the reason why a worker stopped."""
        facts = {"message": str(error), "kind": type(error).__name__, "input": isinstance(error, LeptaError)}
        write_json(self.folder / "failures" / f"{stage}-{rank:06d}.json", facts)

    def failures(self) -> list[dict[str, Any]]:
        """Read why workers stopped, in their order."""
        return list(map(read_json, sorted((self.folder / "failures").glob("*.json"))))
