"""Output that gets its name only when it is whole: written beside its place, by one run at a time, then renamed in."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from lepta.core.errors import LeptaError, reason_of
from lepta.core.reading import conform, read_json

MANIFEST = "manifest.json"  # in every folder that is whole
CARD, DEPLOYMENT = "README.md", "deployment.json"
DESCRIPTIONS = (MANIFEST, CARD, DEPLOYMENT)  # of a folder: who writes in them changes nothing that it is or makes


class Key(BaseModel):
    """What decides the result of a stage."""

    stage: str
    lepta: str
    settings: dict[str, Any]
    inputs: dict[str, str]


class Manifest(BaseModel):
    """A `manifest.json`; what a stage counted is read by who knows the stage."""

    key: Key
    sources: dict[str, str | list[str] | None]
    outputs: dict[str, str]
    facts: dict[str, Any]
    environment: dict[str, str | int | None]
    seconds: float = 0.0


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; LeptaError if it is damaged."""
    file = folder / MANIFEST
    manifest = read_json(file)
    conform(Manifest, manifest, file, "restore it, or make the folder again")
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place and rename it in."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a place beside a file to write to, and rename it in if the block succeeds; else nothing is left there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(file)
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def publishing(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to write to, and rename it to its name only if the block succeeds.

    LeptaError if the folder exists and `replace` is not set, or the disk cannot be written.
    """
    folder = Path(folder)
    refuse_existing(folder, replace)
    folder = folder if folder.name else folder.resolve()
    partial = partial_of(folder)
    with claimed(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            move_into_place(folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise _unwritable(folder, error) from error
            raise


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Be the only run that writes a folder; LeptaError if another does, or nothing can be written there."""
    lock = _lock_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LeptaError(f"{folder}: another run is writing it now; wait for it, or name another output") from error
    except NotImplementedError:  # a file system without locks, as some clusters have
        pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        if lock.is_locked:  # its file goes first: once it is released, that of another run may be there
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _unwritable(folder: Path, error: OSError) -> LeptaError:
    return LeptaError(f"{folder}: cannot be written ({reason_of(error)}); nothing was left there")


def _lock_of(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)


def in_progress(folder: Path) -> bool:
    """Whether a run is writing a folder now, as far as this machine can see."""
    lock = _lock_of(folder)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):  # where nothing can be locked, nobody can tell
        return False


def refuse_existing(place: Path, replace: bool, for_file: bool = False) -> None:
    """LeptaError if a place is taken and not to be replaced, or by what no command of LEPTA wrote.

    That is a folder without a manifest, or a file where a folder is to be; `for_file` says that a file is to be there.
    """
    if place.exists() and not replace:
        raise LeptaError(f"{place}: exists already; give another --output, or --force to replace it")
    if place.is_file() and not for_file:
        raise LeptaError(f"{place}: is a file, and --force does not replace it by a folder; give another --output")
    if place.is_dir() and any(place.iterdir()) and not (place / MANIFEST).is_file():
        raise LeptaError(
            f"{place}: holds files but no {MANIFEST}, so LEPTA did not write it, and --force does not replace it; "
            "give another --output, or remove it yourself"
        )


def write_new_file(file: Path, text: str, replace: bool = False) -> None:
    """Write a text file atomically; LeptaError if it exists and is not to be replaced, or cannot be written."""
    if file.exists() and not (replace and file.is_file()):
        raise LeptaError(f"{file}: exists already; give another name, or --force to replace a file")
    try:
        with replacing(file) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LeptaError(f"{file}: cannot be written ({reason_of(error)})") from error


def free_bytes(place: Path) -> int:
    """Bytes that are free on the disk of a place, which need not exist yet."""
    place = place.absolute()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free


def partial_of(folder: Path) -> Path:
    """Where a folder is written before it gets its name."""
    return folder.with_name(f".{folder.name}.partial")


def move_into_place(folder: Path, work: str = "") -> None:
    """Give what was written beside a folder its name; what had the name before goes.

    `work` names a folder in it that is no part of the result. It goes last, so that an interruption loses nothing.
    """
    partial = partial_of(folder)
    _open_to_readers(partial)
    _flush(partial, work)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    if work:
        shutil.rmtree(folder / work)


def _open_to_readers(folder: Path) -> None:
    """Let others read what the umask lets them: safetensors writes files for their owner alone.

    Files that are shared with another folder keep what they have.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


def _flush(folder: Path, work: str) -> None:
    """Have the disk take all bytes of the result before the name says that they are there."""
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(folder).parts[0] != work:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
