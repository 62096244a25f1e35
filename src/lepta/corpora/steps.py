"""The steps that workers run: read and clean; read what was cleaned; weigh and write.

Between them are shards: files of rows that hold about so much text each, so that many workers can share a corpus.
"""

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from lepta.core.errors import LeptaError
from lepta.corpora.clean import Cleaner
from lepta.corpora.judge import Judge
from lepta.corpora.overlap import Contamination
from lepta.corpora.settings import CorpusSettings
from lepta.corpora.tally import Tally
from lepta.corpora.work import Task, Work, part_of
from lepta.text.formats import read_rows, stop
from lepta.text.sources import DATASET, LONE_SURROGATE, read_dataset, read_file
from lepta.text.sources import Document as Text

SHARD = 32_000_000  # characters of text
LEVEL = {"zst": 3, "gz": 6}
DUPLICATE, WEIGHT, UNREADABLE, CONTAMINATED = "duplicate", "weight", "unreadable", "contaminated"


class ShardWriter:
    """Writes rows to one file (.zst or .gz), whose bytes depend on nothing but the rows."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._stream = _compressor(self._file, path.suffix[1:])
        self.characters = 0

    def write(self, row: dict[str, Any]) -> None:
        """Write a row with a field `text`."""
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.characters += len(row["text"])

    def close(self) -> None:
        """End the file."""
        self._stream.close()
        self._file.close()


def _compressor(file: BinaryIO, kind: str) -> Any:
    if kind == "gz":  # no name and no time in it: the same rows, the same bytes
        return gzip.GzipFile("", "wb", LEVEL[kind], file, mtime=0)
    import zstandard

    writer: Any = zstandard.ZstdCompressor(LEVEL[kind], write_checksum=True).stream_writer(file, closefd=False)
    return io.BufferedWriter(writer, 1 << 17)


class DocumentFilter:
    """Cleans and judges the documents of a corpus, and counts."""

    def __init__(self, settings: CorpusSettings, work: Work) -> None:
        self.tally = Tally()
        self._cleaner = Cleaner(settings.clean)
        self._judge = Judge(settings.filters, settings.clean)
        against = settings.decontaminate
        self._contamination = Contamination(against, work.index) if against else None

    def filter(self, source: str, document: Text) -> dict[str, Any] | None:
        """Clean a document and give the row of a shard; None if it is dropped."""
        read = len(document.text)
        self.tally.read(source, read)
        cleaned = self._cleaner.clean(document.text)
        reason = self._judge.reason(cleaned)
        if reason is None and self._contamination and self._contamination.found(cleaned.text):
            reason = CONTAMINATED
        if reason:
            self.tally.drop(source, reason, read, document.name, document.text)
            return None
        row = {"text": cleaned.text, "source": source, "doc": document.name}
        return row | {"read": read, "removed": cleaned.removed}

    def unreadable(self, source: str, error: LeptaError) -> None:
        """Count a row or file that is damaged, as a document of no characters."""
        self.tally.read(source, 0)
        self.tally.drop(source, UNREADABLE, 0, "", str(error))


class CleanTexts(PipelineStep):
    """Reads the inputs of tasks, cleans, judges, and writes what is left as shards."""

    type, name = "LEPTA", "clean"

    def __init__(self, settings: CorpusSettings, work: Work, tasks: list[Task]) -> None:
        super().__init__()
        self._settings, self._work, self._tasks = settings, work, tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do the part of one worker."""
        done = 0
        for number in part_of(len(self._tasks), rank, world_size):
            done = self._clean(number, self._tasks[number], rank, done)

    def _clean(self, number: int, task: Task, rank: int, done: int) -> int:
        document_filter, shard, part = DocumentFilter(self._settings, self._work), None, 0
        self._work.remove_shards(number)
        for document, position in read_task(task, document_filter, self._settings.on_error):
            self._work.pulse("clean", rank, done + position)
            if row := document_filter.filter(task.source, document):
                shard = shard or ShardWriter(self._work.clean_shard(number, part))
                shard.write(row)
                if shard.characters >= SHARD:
                    shard.close()
                    shard, part = None, part + 1
        if shard:
            shard.close()
        self._work.write_counts("clean", number, document_filter.tally.counts)
        return done + task.size


def read_task(task: Task, document_filter: DocumentFilter, on_error: str) -> Iterator[tuple[Text, int]]:
    """Stream the documents of a task, with the bytes that were read so far."""
    bad = stop if on_error == "stop" else lambda error: document_filter.unreadable(task.source, error)
    before = 0
    for part in task.inputs:
        if part.place.startswith(DATASET):
            for document in read_dataset(part.place, part.field):
                yield _whole(document), 0
            continue
        for document, position in read_file(Path(part.place), part.field, bad):
            yield document, before + position
        before += part.size


def _whole(document: Text) -> Text:
    return Text(LONE_SURROGATE.sub("", document.text), document.source, document.name)


class ReadShards(PipelineStep):
    """Reads the cleaned shards that are this worker's, in their order."""

    type, name = "LEPTA", "read shards"

    def __init__(self, work: Work, stage: str) -> None:
        super().__init__()
        self._work, self._stage = work, stage

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Stream the documents."""
        shards = self._work.clean_shards()
        done = 0
        for number in part_of(len(shards), rank, world_size):
            for read in read_rows(shards[number]):
                self._work.pulse(self._stage, rank, done + read.position)
                text = read.value.pop("text")
                yield Document(text, read.value["doc"], metadata=read.value | {"shard": number})
            done += shards[number].stat().st_size


class Dropped(AbstractContextManager["Dropped"]):
    """What datatrove's filter is told to write dropped documents to: counts them."""

    def __init__(self, reason: str) -> None:
        self.tally, self._reason = Tally(), reason

    def write(self, document: Document, rank: int = 0) -> None:
        """Count a document."""
        facts = document.metadata
        self.tally.drop(facts["source"], self._reason, facts["read"], facts["doc"], document.text)

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""


class WriteTexts(PipelineStep):
    """Weighs documents and writes the shards of the result, later copies apart from the first."""

    type, name = "LEPTA", "write"

    def __init__(self, settings: CorpusSettings, work: Work, duplicates: Dropped) -> None:
        super().__init__()
        self._settings, self._work, self._duplicates = settings, work, duplicates

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do the part of one worker."""
        tally, unweighted = Tally(), Dropped(WEIGHT)
        self._work.remove_results(rank)
        shards: dict[int, ShardWriter] = {}
        current = None
        for document in data:
            facts = document.metadata
            if facts["shard"] != current:
                _close(shards)
                current = facts["shard"]
            copies = self._copies(document)
            if not copies:
                unweighted.write(document)
                continue
            tally.keep(facts["source"], facts["read"], facts["removed"], copies)
            for copy in range(copies):
                if copy not in shards:
                    shards[copy] = ShardWriter(self._work.result(facts["source"], copy, facts["shard"], rank))
                shards[copy].write({"text": document.text, "source": facts["source"], "doc": facts["doc"]})
        _close(shards)
        parts = (self._duplicates.tally, unweighted.tally, tally)
        self._work.write_counts("write", rank, Tally.sum(part.counts for part in parts).counts)

    def _copies(self, document: Document) -> int:
        weight = self._settings.sources[document.metadata["source"]].weight
        whole = int(weight)
        chance = xxhash.xxh64_intdigest(document.text.encode(), seed=self._settings.seed) / 2**64
        return whole + (chance < weight - whole)


def _close(shards: dict[int, ShardWriter]) -> None:
    for shard in shards.values():
        shard.close()
    shards.clear()
