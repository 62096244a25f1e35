"""Stages: each reads files and folders and writes one folder with a manifest, beside its place, then renamed into it.

A stage is up to date when its manifest names the same settings, the same content of every input and the same version
of LEPTA, and its files are as it left them. Names and dates of inputs do not count, content does.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST, claimed, in_progress, move_into_place, partial_of, write_json
from lepta.text.locate import read_json
from lepta.text.sources import DATASET, FIELD, WORDFREQ, is_word_list, text_field, text_files
from lepta.version import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
OPTIONAL_LIBRARIES = ("datatrove", "peft", "pyarrow", "trl", "zstandard")  # named where they are installed
CHECKPOINTS = "checkpoints"  # work of a stage that is not part of its result


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes
    ----------
    name : str
        Also its folder below the recipe's output.
    inputs : dict
        Label -> file or folder that it reads.
    settings : dict
        What else decides its result, as JSON.
    run : callable
        Given an empty folder (or what an interrupted run of the same stage left in it), fills it and returns facts for
        the manifest.
    texts : dict
        Label -> text sources that it reads.
    together : bool
        Whether all processes of a distributed run take part, not only the first.
    """

    name: str
    inputs: dict[str, Path]
    settings: dict[str, Any]
    run: Callable[[Path], dict[str, Any]]
    texts: dict[str, list[str]] = field(default_factory=dict)
    together: bool = False


class Hashes:
    """Content hashes of files, remembered by path, size and time of change."""

    def __init__(self, store: Path | None = None) -> None:
        self._store = store
        self._known: dict[str, list] = read_json(store) if store and store.is_file() else {}

    def file(self, path: Path) -> str:
        """SHA-256 of a file."""
        status = path.stat()
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        if self._known.get(key, [])[:2] != stamp:
            with path.open("rb") as data:
                self._known[key] = [*stamp, hashlib.file_digest(data, "sha256").hexdigest()]
        return self._known[key][2]

    def content(self, path: Path) -> str:
        """One hash for a file, or for all files in a folder with their names."""
        if path.is_file():
            return self.file(path)
        if not path.is_dir():
            raise LeptaError(f"{path}: no such file or folder")
        return digest(self.files(path))

    def files(self, folder: Path) -> dict[str, str]:
        """Hash of each file in a folder, LEPTA's manifest left out."""
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
        return {file.relative_to(folder).as_posix(): self.file(file) for file in files}

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
                parts += [self.file(file) for file in text_files(source)] + ([field] if field != FIELD else [])
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
    """Write what a single command made its folder from: content hashes, settings, facts, versions.

    Parameters
    ----------
    command : str
    folder : Path
        What was made.
    inputs : dict
        Label -> file or folder that was read.
    settings, facts : dict
    sources : dict
        Label -> what the user called the input.
    texts : dict, optional
        Label -> text sources that were read.
    """
    hashes = Hashes()
    contents = {label: hashes.content(path) for label, path in inputs.items()}
    contents |= {label: hashes.text(names) for label, names in (texts or {}).items()}
    manifest = {
        "key": {"stage": command, "lepta": __version__, "settings": settings, "inputs": contents},
        "sources": sources,
        "outputs": hashes.files(folder),
        "facts": facts,
        "environment": environment(),
    }
    write_json(folder / MANIFEST, manifest)


@dataclass(frozen=True)
class Verdict:
    """Whether a stage has to run, and why."""

    stage: Stage
    current: bool
    reason: str


class Pipeline:
    """Runs stages in order, skipping those that are up to date.

    Parameters
    ----------
    output : Path
        Folder that holds a folder for each stage.
    stages : list of Stage
        In an order in which each stage's inputs come before it.
    announce : callable
        Told the name of each stage that all processes take part in, just before it runs.
    remember : bool
        Keep hashes of large files in the output folder, for the next run.
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

    def _check_stage(self, name: str | None) -> None:
        if name is not None and name not in self.names():
            raise LeptaError(f"--from {name}: no such stage; this recipe has {', '.join(self.names())}")

    def _check_texts(self) -> None:
        """Find every text before anything runs; LeptaError names the first that is missing."""
        for sources in (sources for stage in self.stages for sources in stage.texts.values()):
            for source in sources:
                if not is_word_list(source) and not source.startswith(DATASET):
                    text_files(source)

    def status(self, start: str | None = None, force: bool = False) -> list[Verdict]:
        """Tell for every stage whether it would run. A stage after one that runs is judged by its present inputs."""
        self._check_stage(start)
        self._check_texts()
        verdicts: list[Verdict] = []
        rerun: set[Path] = set()
        for stage in self.stages:
            folder = self.output / stage.name
            forced = force or (start is not None and self.names().index(stage.name) >= self.names().index(start))
            changed = sorted(label for label, path in stage.inputs.items() if path in rerun)
            if forced:
                verdict = Verdict(stage, False, "forced")
            elif changed:
                verdict = Verdict(stage, False, f"after {', '.join(changed)}")
            else:
                reason = self._why_not_current(stage)
                verdict = Verdict(stage, reason is None, reason or "up to date")
            if not verdict.current:
                rerun.add(folder)
            verdicts.append(verdict)
        return verdicts

    def run(
        self, start: str | None = None, force: bool = False, report: Callable[[str], None] = lambda line: None
    ) -> None:
        """Run what is not up to date.

        Parameters
        ----------
        start : str, optional
            Run this stage and all after it in any case.
        force : bool
            Run all stages in any case.
        report : callable
            Told one line about each stage.
        """
        self._check_stage(start)
        self._check_texts()
        forced = False
        for stage in self.stages:
            forced = forced or force or stage.name == start
            reason = "forced" if forced else self._why_not_current(stage)
            if reason is None:
                report(f"{stage.name}: up to date")
                continue
            report(f"{stage.name}: {reason}")
            seconds = self._run(stage, resume=not forced)
            report(f"{stage.name}: done in {seconds:.0f} s")
        self.hashes.save()

    def _key(self, stage: Stage) -> dict[str, Any]:
        """All that decides a stage's result."""
        return {
            "stage": stage.name,
            "lepta": __version__,
            "settings": stage.settings,
            "inputs": {label: self.hashes.content(path) for label, path in stage.inputs.items()}
            | {label: self.hashes.text(sources) for label, sources in stage.texts.items()},
        }

    def _why_not_current(self, stage: Stage) -> str | None:
        """None if the stage is up to date, else the reason why it is not."""
        folder = self.output / stage.name
        if not (folder / MANIFEST).is_file():
            if not partial_of(folder).exists():
                return "not made yet"
            return "another run is writing it now" if in_progress(folder) else "interrupted, goes on"
        manifest = read_json(folder / MANIFEST)
        if missing := [str(path) for path in stage.inputs.values() if not path.exists()]:
            return f"{missing[0]} is missing"
        if difference := _difference(manifest["key"], self._key(stage)):
            return difference
        if self.hashes.files(folder) != manifest["outputs"]:
            return "its files were changed"
        return None

    def _run(self, stage: Stage, resume: bool) -> float:
        with claimed(self.output / stage.name):
            return self._run_claimed(stage, resume)

    def _run_claimed(self, stage: Stage, resume: bool) -> float:
        folder, key = self.output / stage.name, self._key(stage)
        partial, marker = partial_of(folder), partial_of(folder) / CHECKPOINTS / "key.json"
        try:
            if resume and marker.is_file():
                _refuse_other_checkpoints(partial, read_json(marker), key)
            if not (resume and marker.is_file() and read_json(marker) == key):
                shutil.rmtree(partial, ignore_errors=True)
            for leftover in partial.iterdir() if partial.exists() else ():
                if leftover.name != CHECKPOINTS:  # half-written results; only checkpoints are known to be whole
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            write_json(marker, key)
            started = time.monotonic()
            if stage.together:
                self.announce(stage.name)
            facts = stage.run(partial)
            seconds = time.monotonic() - started
            shutil.rmtree(partial / CHECKPOINTS)
            outputs = self.hashes.files(partial)
            manifest = {
                "key": key,
                "sources": {label: str(path) for label, path in stage.inputs.items()} | stage.texts,
                "outputs": outputs,
                "facts": facts,
                "seconds": round(seconds, 1),
                "environment": environment(),
            }
            write_json(partial / MANIFEST, manifest)
            move_into_place(partial, folder)
            self.hashes.moved(partial, folder)
        except OSError as error:
            raise LeptaError(
                f"{folder}: cannot be written ({error.strerror or error}); "
                "free space or name another output, and run again"
            ) from error
        self.hashes.save()
        return seconds


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """What changed between two keys of a stage, in words; None if nothing did."""
    for part in ("lepta", "settings", "inputs"):
        if old[part] != new[part]:
            if not isinstance(new[part], dict):
                return f"made by version {old[part]}"
            names = set(new[part]) | set(old[part])
            return f"{', '.join(sorted(n for n in names if new[part].get(n) != old[part].get(n)))} changed"
    return None


def _refuse_other_checkpoints(partial: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """LeptaError if training was interrupted under other settings: hours of work are not thrown away unasked."""
    difference = _difference(old, new)
    costly = any(file.suffix in (".safetensors", ".jsonl") for file in (partial / CHECKPOINTS).rglob("*"))
    if difference and costly:
        raise LeptaError(
            f"{partial / CHECKPOINTS}: holds checkpoints of an interrupted run with other settings ({difference}); "
            f"restore them to go on, or start over with --from {new['stage']} (lepta pretrain: --force)"
        )


def environment() -> dict[str, str | int | None]:
    """Versions and machine, for the manifest."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    for name in OPTIONAL_LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {"lepta": __version__} | versions | machine
