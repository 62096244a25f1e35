"""How a corpus is divided: tasks that read about so many bytes each, whatever the number of workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepta.corpora.settings import CorpusSettings, Source
from lepta.text.sources import DATASET, FIELD, text_field, text_files

TASK = 16_000_000  # bytes of files; a larger file is one task, as compressed files can be read from the start only


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


def plan(settings: CorpusSettings) -> list[Task]:
    """Divide the sources of a corpus into tasks, in the order of the settings."""
    tasks: list[Task] = []
    for name, source in settings.sources.items():
        group: list[Input] = []
        for part in inputs_of(source):
            if group and sum(there.size for there in group) + part.size > TASK:
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
        _, field = text_field(text)
        for file in text_files(text):
            inputs.append(Input(str(file), field if field != FIELD else source.field, file.stat().st_size))
    return inputs


def as_json(tasks: list[Task]) -> list[dict[str, Any]]:
    """Give tasks as JSON, for workers elsewhere."""
    rows = []
    for task in tasks:
        rows.append({"source": task.source, "inputs": [vars(part) for part in task.inputs]})
    return rows


def from_json(tasks: list[dict[str, Any]]) -> list[Task]:
    """Read what `as_json` gave."""
    read = []
    for task in tasks:
        read.append(Task(task["source"], [Input(**part) for part in task["inputs"]]))
    return read


def stamp(settings: CorpusSettings) -> list[list[Any]]:
    """Tell all files that are read apart from others and from themselves at other times, without reading them."""
    sources = list(settings.sources.values())
    if settings.decontaminate:
        sources.append(Source(text=settings.decontaminate.against))
    places = [part.place for source in sources for part in inputs_of(source)]
    files = [Path(place) for place in places if not place.startswith(DATASET)]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
