"""Files that come with the package: its own data, and recipes by name: `demo` is recipes/demo.yaml.

Try: lepta recipes list
"""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lepta.core.errors import LeptaError

SUFFIX = ".yaml"
PACKAGE = Path(str(resources.files("lepta")))
FOLDER = PACKAGE / "data" / "recipes"


def shipped_data(name: str) -> Any:
    """What a YAML file of the folder `data` holds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    return yaml.load((PACKAGE / "data" / name).read_text(encoding="utf-8"), loader)


def shipped_files() -> dict[str, Path]:
    """Name -> file, in the order of the names."""
    files = {file.relative_to(FOLDER).as_posix().removesuffix(SUFFIX): file for file in FOLDER.rglob(f"*{SUFFIX}")}
    return dict(sorted(files.items()))


def shipped_name(path: str) -> str:
    """The name that `demo`, `demo.yaml` and `recipes/demo.yaml` stand for, whether there is such a file or not."""
    return path.removeprefix("recipes/").removesuffix(SUFFIX)


def shipped_file(name: str) -> Path:
    """The file of a name, as `shipped_name` takes it; LeptaError if there is none."""
    known = shipped_files()
    file = known.get(shipped_name(name))
    if file is None:
        raise LeptaError(f"{name}: no such recipe; expected one of {', '.join(known)}")
    return file


def summary_of(file: Path) -> str:
    """What a settings file is for: its first line, a comment."""
    with file.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()
