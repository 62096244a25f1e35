"""Data of evaluations: a file of the user's, or by the name of a language what comes with LEPTA."""

from pathlib import Path

from lepta.core.errors import LeptaError
from lepta.core.reading import expanded, is_there
from lepta.core.shipped import PACKAGE

FOLDER = PACKAGE / "data" / "evaluation"


def evaluation_file(source: str | Path, kind: str, suffix: str) -> Path:
    """The file that a name stands for; LeptaError if there is none, with the names that are known."""
    shipped = FOLDER / f"{kind}_{source}{suffix}"
    if is_there(source) and not expanded(source).is_dir():
        return expanded(source)
    if shipped.parent == FOLDER and shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem.removeprefix(f"{kind}_") for file in FOLDER.glob(f"{kind}_*{suffix}")))
    raise LeptaError(f"{source}: no such file; expected a file of {kind}, or one that comes with LEPTA: {known}")
