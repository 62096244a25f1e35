"""Stages: each reads files and folders and writes one folder with a manifest, beside its place, then renamed into it.

A stage is up to date when its manifest names the same settings, the same content of every input and the same version
of LEPTA, and its files are as it left them. Names and dates of inputs do not count, content does.
"""

import gc
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lepta.card import write_card
from lepta.core.errors import LeptaError, reason_of
from lepta.core.journal import read_record
from lepta.core.machine import versions_of
from lepta.core.output import (
    DESCRIPTIONS,
    MANIFEST,
    Key,
    claimed,
    in_progress,
    move_into_place,
    partial_of,
    read_manifest,
    write_json,
)
from lepta.core.progress import step
from lepta.core.reading import conform, read_json
from lepta.text.sources import DATASET, FIELD, WORDFREQ, check_source, is_word_list, text_field, text_files
from lepta.version import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
OPTIONAL_LIBRARIES = ("datatrove", "peft", "pyarrow", "trl", "zstandard")  # named where they are installed
CHECKPOINTS = "checkpoints"  # work of a stage that is not part of its result
# Settings that may differ when a run goes on: they say how a step is computed, and change its result by rounding.
STEP_SETTINGS = ("micro_batch", "gradient_checkpointing", "save_every")


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline. Its result is decided by the contents of what it reads, and by `settings`."""

    name: str  # also its folder below the recipe's output
    inputs: dict[str, Path]  # label -> file or folder that it reads
    settings: dict[str, Any]  # what else decides its result, as JSON
    # Gets an empty folder, or what an interrupted run of the same stage left in it; gives facts for the manifest.
    run: Callable[[Path], dict[str, Any]]
    texts: dict[str, list[str]] = field(default_factory=dict)  # label -> text sources that it reads
    together: bool = False  # whether all processes of a distributed run take part, not only the first
    named: dict[str, str] = field(default_factory=dict)  # label -> what the user called an input, if not by its place

    def key(self, hashes: "Hashes") -> dict[str, Any]:
        """All that decides the result: settings, contents of inputs, version. Names and dates do not count."""
        contents = {label: hashes.content(path) for label, path in self.inputs.items()}
        contents |= {label: hashes.text(sources) for label, sources in self.texts.items()}
        return {"stage": self.name, "lepta": __version__, "settings": self.settings, "inputs": contents}


class _Known(BaseModel):
    files: dict[str, tuple[int, int, str]]  # path -> size, time of change in nanoseconds, SHA-256


class Hashes:
    """Content hashes of files, remembered by path, size and time of change."""

    def __init__(self, store: Path | None = None) -> None:
        self._store = store
        self._known: dict[str, list[Any]] = {}
        if store and store.is_file():
            known = read_json(store)
            conform(_Known, {"files": known}, store, "remove it: files are then hashed again")
            self._known = known

    def file(self, path: Path) -> str:
        """SHA-256 of a file."""
        status = path.stat()
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        if self._known.get(key, [])[:2] != stamp:
            with path.open("rb") as data:
                self._known[key] = [*stamp, hashlib.file_digest(data, "sha256").hexdigest()]
        return self._known[key][2]

    @step("hashing files")
    def content(self, path: Path) -> str:
        """One hash for a file, or for all files in a folder with their names."""
        if path.is_file():
            return self.file(path)
        if not path.is_dir():
            raise LeptaError(f"{path}: no such file or folder")
        return digest(self.files(path))

    def files(self, folder: Path) -> dict[str, str]:
        """Hash of each file in a folder; left out are checkpoints and what only describes it (see `DESCRIPTIONS`)."""
        hashes = {}
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder)
            if file.is_file() and name.parts[0] != CHECKPOINTS and str(name) not in DESCRIPTIONS:
                hashes[name.as_posix()] = self.file(file)
        return hashes

    def text(self, sources: list[str]) -> str:
        """One hash for a list of text sources: the contents in their order, or the version of a word list."""
        parts: list[str] = []
        for source in sources:
            if is_word_list(source):
                parts.append(f"{source} {metadata.version(WORDFREQ.rstrip(':'))}")
            elif source.startswith(DATASET):
                parts.append(source)  # name, revision and options stand for its content
            else:
                _, field = text_field(source)
                parts += map(self.file, text_files(source))
                if field != FIELD:
                    parts.append(field)
        return digest(parts)

    def moved(self, old: Path, new: Path) -> None:
        """Know the files of a folder under its new name."""
        for file in new.rglob("*"):
            if known := self._known.pop(str(old.resolve() / file.relative_to(new)), None):
                self._known[str(file.resolve())] = known

    def save(self) -> None:
        """Remember what was hashed for the next run."""
        self._known = {path: known for path, known in self._known.items() if Path(path).exists()}
        if self._store:
            write_json(self._store, self._known)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_manifest(
    command: str,
    folder: Path,
    inputs: dict[str, Path],
    settings: dict[str, Any],
    facts: dict[str, Any],
    sources: dict[str, Any],
    texts: dict[str, list[str]] | None = None,
) -> None:
    """Write what a command that is no stage made its folder from; `sources` is what the user called the inputs."""
    hashes = Hashes()
    key = Stage(command, inputs, settings, lambda _: facts, texts or {}).key(hashes)
    _write_manifest(folder, key, sources, hashes.files(folder), facts)


def _write_manifest(
    folder: Path,
    key: dict[str, Any],
    sources: dict[str, Any],
    outputs: dict[str, str],
    facts: dict[str, Any],
    **more: Any,
) -> None:
    manifest = {"key": key, "sources": sources, "outputs": outputs, "facts": facts, **more}
    write_json(folder / MANIFEST, manifest | {"environment": environment()})
    write_card(folder)


@dataclass(frozen=True)
class Verdict:
    """Whether a stage has to run, and why."""

    stage: Stage
    current: bool
    reason: str


class Pipeline:
    """Runs stages in order, skipping those that are up to date.

    Each stage has a folder below `output`, and comes after those that make its inputs. `announce` is told the name of
    each stage that all processes take part in, just before it runs. `remember` keeps hashes of files in the output
    folder: hashing an 8B model takes a minute.
    """

    def __init__(
        self,
        output: Path,
        stages: list[Stage],
        announce: Callable[[str], None] = lambda name: None,
        remember: bool = True,
    ) -> None:
        self.output, self.stages, self.announce = output, stages, announce
        self.hashes = Hashes(output / ".hashes.json" if remember else None)

    def names(self) -> list[str]:
        """Stage names in order."""
        return [stage.name for stage in self.stages]

    def _check(self, start: str | None) -> None:
        """Find the first stage and every text before anything runs; LeptaError names what is missing."""
        if start is not None and start not in self.names():
            raise LeptaError(f"--from {start}: no such stage; this recipe has {', '.join(self.names())}")
        for stage in self.stages:
            for source in itertools.chain.from_iterable(stage.texts.values()):
                check_source(source)

    def status(self, start: str | None = None, force: bool = False) -> list[Verdict]:
        """Tell for every stage whether it would run. A stage after one that runs is judged by its present inputs."""
        self._check(start)
        verdicts: list[Verdict] = []
        rerun: set[Path] = set()
        forced = False
        for stage in self.stages:
            forced = forced or force or stage.name == start
            changed = sorted({self._called(stage, label) for label, path in stage.inputs.items() if path in rerun})
            reason: str | None = "forced"
            if not forced:
                reason = f"after {', '.join(changed)}" if changed else self._why_not_current(stage)
            if reason:
                rerun.add(self.output / stage.name)
            verdicts.append(Verdict(stage, reason is None, reason or "up to date"))
        return verdicts

    def run(
        self, start: str | None = None, force: bool = False, report: Callable[[str], None] = lambda line: None
    ) -> None:
        """Run what is not up to date, and in any case the stage `start` and all after it, or all with `force`.

        `report` is told one line about each stage.
        """
        self._check(start)
        forced = False
        for stage in self.stages:
            forced = forced or force or stage.name == start
            reason = "forced" if forced else self._why_not_current(stage)
            if reason is None:
                shutil.rmtree(self.output / stage.name / CHECKPOINTS, ignore_errors=True)  # a kill may have left them
                report(f"{stage.name}: up to date")
                continue
            report(f"{stage.name}: running ({reason})")
            try:
                seconds = self._run(stage, resume=not forced)
            except LeptaError:
                with suppress(OSError):  # it holds files
                    self.output.rmdir()
                raise
            report(f"{stage.name}: done in {seconds:.0f} s")
        self.hashes.save()

    def _why_not_current(self, stage: Stage) -> str | None:
        """None if the stage is up to date, else the reason why it is not."""
        folder = self.output / stage.name
        if not (folder / MANIFEST).is_file():
            if not partial_of(folder).exists():
                return "not made yet"
            if in_progress(folder):
                return "another run is writing it now"
            return "interrupted, goes on" if _is_costly(partial_of(folder)) else "interrupted, starts again"
        manifest = read_manifest(folder)
        for path in stage.inputs.values():
            if not path.exists():
                return f"{path} is missing"
        if difference := _difference(manifest["key"], stage.key(self.hashes), lambda name: self._called(stage, name)):
            return difference
        if self.hashes.files(folder) != manifest["outputs"]:
            return "its files were changed"
        return None

    def _called(self, stage: Stage, label: str) -> str:
        """The name of the stage that makes an input, as a user knows it; of other inputs and settings their own."""
        path = stage.inputs.get(label)
        for maker in self.stages:
            if path == self.output / maker.name:
                return maker.name
        return label

    def _run(self, stage: Stage, resume: bool) -> float:
        """Run a stage and give its folder the name; returns seconds."""
        folder = self.output / stage.name
        with claimed(folder):
            try:
                seconds = self._run_claimed(stage, resume)
            except LeptaError:
                if not _is_costly(partial_of(folder)):
                    shutil.rmtree(partial_of(folder), ignore_errors=True)  # another process may do the same
                raise
            except OSError as error:
                raise LeptaError(
                    f"{folder}: cannot be written ({reason_of(error)}); "
                    "free space or name another output, and run again"
                ) from error
        self.hashes.save()
        return seconds

    def _run_claimed(self, stage: Stage, resume: bool) -> float:
        folder, key = self.output / stage.name, stage.key(self.hashes)
        partial = partial_of(folder)
        _prepare(partial, key, resume)
        started = time.monotonic()
        if stage.together:
            self.announce(stage.name)
        facts = stage.run(partial)
        gc.collect()  # a model that was trained refers to itself; the next stage needs its memory
        seconds = time.monotonic() - started
        sources = {label: str(path) for label, path in stage.inputs.items()} | stage.named | stage.texts
        with step(f"hashing {stage.name}, and writing all of it to the disk"):
            _write_manifest(partial, key, sources, self.hashes.files(partial), facts, seconds=round(seconds, 1))
            move_into_place(folder, CHECKPOINTS)
        self.hashes.moved(partial, folder)
        return seconds


def _prepare(partial: Path, key: dict[str, Any], resume: bool) -> None:
    """Leave in a stage's folder only checkpoints of an interrupted run with the same key, if it is to go on."""
    marker = partial / CHECKPOINTS / "key.json"
    old = None
    if resume and marker.is_file():
        old = read_record(marker, Key).model_dump()
        if _without_step_settings(old) == _without_step_settings(key):
            old = key
        _refuse_other_checkpoints(partial, old, key)
    if old != key:
        shutil.rmtree(partial, ignore_errors=True)
    for leftover in partial.glob("*"):
        if leftover.name != CHECKPOINTS:  # half-written results; only checkpoints are known to be whole
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    write_json(marker, key)


def _without_step_settings(key: dict[str, Any]) -> dict[str, Any]:
    """A key without `STEP_SETTINGS`: what ran out of memory goes on with a smaller `micro_batch`."""
    settings = {name: value for name, value in key["settings"].items() if name not in STEP_SETTINGS}
    return {**key, "settings": settings}


def _difference(old: dict[str, Any], new: dict[str, Any], called: Callable[[str], str] = str) -> str | None:
    """What changed between two keys of a stage, in words; None if nothing did. `called` names inputs for the user."""
    if old["lepta"] != new["lepta"]:
        return f"made by version {old['lepta']}"
    for part in ("settings", "inputs"):
        if old[part] != new[part]:
            names = set(new[part]) | set(old[part])
            different = {called(name) for name in names if new[part].get(name) != old[part].get(name)}
            return f"{', '.join(sorted(different))} changed"
    return None


def _refuse_other_checkpoints(partial: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """LeptaError if training was interrupted under other settings: hours of work are not thrown away unasked."""
    difference = _difference(old, new)
    if difference and _is_costly(partial):
        raise LeptaError(
            f"{partial / CHECKPOINTS}: holds checkpoints of an interrupted run with other settings ({difference}); "
            f"restore them to go on, or start over with --force (in a recipe: --from {new['stage']})"
        )


def _is_costly(partial: Path) -> bool:
    """Whether a stage that was interrupted has left work that another run can go on from."""
    files = (partial / CHECKPOINTS).rglob("*")
    return any(file.suffix in (".safetensors", ".jsonl") and file.stat().st_size for file in files)


@cache
def environment() -> dict[str, str | int | None]:
    """Versions and machine, for the manifest."""
    versions = versions_of(*LIBRARIES)
    for name in OPTIONAL_LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {"lepta": __version__} | versions | machine
