"""A corpus from raw text to text for training: plan, clean, find duplicates, weigh and write, publish with a report."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupFilter

from lepta.core.errors import LeptaError
from lepta.core.output import publishing, refuse_existing, write_json
from lepta.core.reading import read_json
from lepta.corpora.executors import Stage, Stopped, run_stage, submit
from lepta.corpora.overlap import Clusters, Signatures, build_index, minhash_config
from lepta.corpora.settings import CorpusSettings
from lepta.corpora.steps import DUPLICATE, CleanTexts, Dropped, ReadShards, WriteTexts
from lepta.corpora.tally import Tally
from lepta.corpora.work import Work, divide, stamp
from lepta.stages import write_manifest
from lepta.version import __version__

REPORT = "report.json"
AGAINST = "against.json"
MOST_PARTS = 512  # files that the merging of signatures opens at once


def prepare(
    settings: CorpusSettings, output: Path, force: bool, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Make a corpus in the folder `output`, which `force` replaces; `report` is told one line about each stage.

    Returns the report; on Slurm the ids of the jobs that were queued, under `jobs`.
    """
    refuse_existing(output, force)
    tasks = divide(settings)
    work = work_of(settings, output)
    key = {"lepta": __version__, "settings": _deciding(settings), "inputs": stamp(settings)}
    try:
        work.open(key)
        if settings.decontaminate and not (work.folder / AGAINST).is_file():
            write_json(work.folder / AGAINST, build_index(settings.decontaminate, settings.clean, work.index))
        clean = Stage("clean", [CleanTexts(settings, work, tasks)], len(tasks), work, sum(task.size for task in tasks))
        if settings.executor.kind == "slurm":  # how many shards there will be is not known yet
            divided = replace(work, parts=min(settings.executor.tasks or len(tasks), MOST_PARTS))
            publishing_stage = Stage("publish", [Publish(settings, divided, output.absolute(), force)], 1, divided)
            stages = [clean, *_later_stages(settings, divided, 0), publishing_stage]
            return {"jobs": submit(stages, settings.executor)}

        def run(stage: Stage) -> None:
            report(f"{stage.name}: {stage.tasks} tasks")
            run_stage(stage, settings.executor)

        run(clean)
        shards = work.clean_shards()
        divided = replace(work, parts=min(len(shards), MOST_PARTS))
        for stage in _later_stages(settings, divided, sum(shard.stat().st_size for shard in shards)):
            run(stage)
        return publish(settings, divided, output, force)
    except Stopped:
        raise
    except LeptaError:
        work.remove()
        raise
    except OSError as error:
        raise LeptaError(
            f"{work.folder}: cannot be written ({error.strerror or error}); free space and run again, it goes on"
        ) from error


def work_of(settings: CorpusSettings, output: Path) -> Work:
    """Name the folder that a corpus is made in."""
    folder = output.absolute()
    return Work(folder.with_name(f".{folder.name}.work"), settings.compression)


def _deciding(settings: CorpusSettings) -> dict[str, Any]:
    """What decides the result: all settings but where it runs and goes."""
    return settings.model_dump(mode="json", exclude={"executor", "output"})


def _later_stages(settings: CorpusSettings, work: Work, size: int) -> list[Stage]:
    duplicates = Dropped(DUPLICATE)
    write: list[Any] = [ReadShards(work, "write"), WriteTexts(settings, work, duplicates)]
    if settings.deduplicate is None or not work.parts:
        return [Stage("write", write, work.parts, work, size)]
    config = minhash_config(settings.deduplicate, settings.seed)
    signatures, pairs = str(work.divided / "signatures"), str(work.divided / "pairs")
    remove = str(work.divided / "remove")
    write.insert(1, MinhashDedupFilter(remove, exclusion_writer=duplicates))
    sign = [ReadShards(work, "signatures"), Signatures(signatures, config)]
    return [
        Stage("signatures", sign, work.parts, work, size),
        Stage("buckets", [MinhashDedupBuckets(signatures, pairs, config=config)], config.num_buckets, work),
        Stage("clusters", [Clusters(pairs, remove, config)], 1, work),
        Stage("write", write, work.parts, work, size),
    ]


class Publish(PipelineStep):
    """The last job on a cluster."""

    type, name = "LEPTA", "publish"

    def __init__(self, settings: CorpusSettings, work: Work, output: Path, force: bool) -> None:
        super().__init__()
        self._settings, self._work, self._output, self._force = settings, work, output, force

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Publish the corpus; the work folder stays, with the logs of the jobs."""
        publish(self._settings, self._work, self._output, self._force, remove=False)


def publish(settings: CorpusSettings, work: Work, output: Path, force: bool, remove: bool = True) -> dict[str, Any]:
    """Give a corpus its place: shards, report, manifest; returns the report."""
    facts = Tally.sum(work.counts()).report()
    if settings.decontaminate:
        facts["against"] = read_json(work.folder / AGAINST)
    if not facts["total"]["written"]["documents"]:
        reasons = ", ".join(f"{reason} {lost['documents']:,}" for reason, lost in facts["total"]["dropped"].items())
        raise LeptaError(f"{output}: no document is left ({reasons or 'there was none'}); see filters and clean")
    texts = {name: _named(settings, name) for name in settings.sources}
    if settings.decontaminate:
        texts |= {"decontaminate": settings.decontaminate.against}
    with publishing(output, force) as folder:
        for source in settings.sources:
            place = folder / "text" / source
            for number, shard in enumerate(work.results(source)):
                place.mkdir(parents=True, exist_ok=True)
                _link(shard, place / f"{number:05d}.jsonl.{settings.compression}")
        write_json(folder / REPORT, facts)
        write_manifest("corpus prepare", folder, {}, _deciding(settings), facts["total"], texts, texts)
    if remove:
        work.remove()
    return facts


def _link(shard: Path, place: Path) -> None:
    """Give a shard a second name: a run that is killed now finds all of them when it goes on."""
    try:
        os.link(shard, place)
    except OSError:  # a disk that knows no links
        shutil.copyfile(shard, place)


def _named(settings: CorpusSettings, name: str) -> list[str]:
    """The text sources of a source, each with its field, so that the manifest's hash knows it."""
    source = settings.sources[name]
    if source.field == "text":
        return list(source.text)
    return [text if "?" in text else f"{text}?field={source.field}" for text in source.text]
