"""YAML files, validated: what is wrong is named with its place, and for an unknown key the nearest right one."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from lepta.core.errors import LeptaError, said_of, suggestion
from lepta.core.reading import expanded, read_yaml
from lepta.core.shipped import shipped_files, shipped_name

# Each kind of file by a key that only it has, and what reads it
READERS = {"base": "recipe", "sources": "corpus file"}
COMMANDS = {"recipe": "lepta adapt", "corpus file": "lepta corpus prepare"}  # kind of file -> what takes it
# A name becomes a folder: it may not be "." or "..".
NAME = r"^[\w-][\w.-]*$"
# What pydantic says in terms of Python's types
EXPECTED = {"model_type": "expected keys and values", "path_type": "expected the path of a file or folder"}
NUMBERS = (int, float, int | None, float | None)
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one
Sources = Annotated[list[str], Field(min_length=1)]
Value = TypeVar("Value")


def as_list(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def nonempty(values: Mapping[str, Value]) -> dict[str, Value]:
    """Those of some values that are neither empty nor None."""
    return {name: value for name, value in values.items() if value}


def known_script(name: str) -> str:
    """The name of a Unicode script; ValueError if there is none of that name."""
    import regex

    try:
        if re.fullmatch(r"\w+", name) and regex.compile(rf"\p{{Script={name}}}"):
            return name
    except regex.error:
        pass
    raise ValueError(f"unknown script {name!r}; Unicode's names are Cyrillic, Latin, Greek...")


def is_name(text: str) -> bool:
    """Whether a text can be the name of a recipe or a variant."""
    return re.fullmatch(NAME, text) is not None


class Section(BaseModel):
    """A part of a settings file; unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and no as true and false, which pydantic would take for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in NUMBERS:
            raise ValueError(f"expected a number, but it is {str(value).lower()}")
        return value


Settings = TypeVar("Settings", bound=Section)


def settings_file(path: str | Path, kind: str, example: str) -> Path:
    """A settings file of the user's, or one that comes with the package, by its name; LeptaError if there is neither.

    `kind` and `example` are what such a file is called and the name of one to start from, for messages.
    """
    path = expanded(path)
    if path.is_file():
        return path
    shipped = shipped_files()
    if str(path) in shipped:
        return shipped[str(path)]
    name = shipped_name(str(path))
    if name in shipped:
        raise LeptaError(
            f"{path}: no such file here; the {kind} of that name comes with LEPTA and is called {name}, "
            f"as in `{COMMANDS[kind]} {name}`; `lepta recipes list` shows all"
        )
    near = suggestion(str(path).lower(), shipped, "")
    raise LeptaError(
        f"{path}: no such {kind}; {near and near + ' '}`lepta recipes list` shows those that come with LEPTA, "
        f"`lepta recipes copy {example}` writes one here to start from"
    )


def read_settings(path: str | Path, model: type[Settings], kind: str, example: str) -> Settings:
    """Read and validate a YAML file (see `settings_file`); LeptaError names file, field and what was expected."""
    path = settings_file(path, kind, example)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise LeptaError(f"{path}: expected keys and values at the top level, as `lepta recipes show {example}` prints")
    found = READERS.keys() & content.keys()
    if len(found) == 1 and not found & model.model_fields.keys():
        other = READERS[found.pop()]
        raise LeptaError(f"{path}: this is a {other}, for `{COMMANDS[other]}`; expected a {kind}")
    return validated(model, content, str(path))


def validated(
    model: type[Settings], content: dict[str, Any], where: str, worded: Callable[[str, str], str] = said_of
) -> Settings:
    """Check values as `read_settings` does; messages begin with `where`.

    `worded` makes one of a field's path and what is wrong with it. There, other fields of its section stand in
    backticks.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        reasons = "; ".join(worded(*_explain(reason, content, model)) for reason in error.errors()[:3])
        raise LeptaError(f"{where}: {reasons}") from error


def _explain(error: Any, content: Any, model: type[Section]) -> tuple[str, str]:
    """Path of the field, empty for the model as a whole, and what is wrong with it."""
    field = ".".join(_as_written(error["loc"], content))
    if error["type"] == "extra_forbidden":
        known = list(_section_at(error["loc"][:-1], model).model_fields)
        hint = suggestion(str(error["loc"][-1]), known, f"known here: {', '.join(known)}")
        return field, f"unknown key; {hint}"
    if error["type"] == "missing":
        return field, "missing"
    said = EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    given = error["input"]
    shown = isinstance(given, str | int | float) and error["type"].endswith(("_type", "_parsing"))
    return field, f"{said}, but it is {given!r}" if shown else said


def _as_written(location: tuple[int | str, ...], content: Any) -> Iterator[str]:
    """Parts of a location, without the index of a value that was written alone instead of in a list."""
    for part in location:
        if isinstance(part, int) and not isinstance(content, list):
            continue
        yield str(part)
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        else:
            content = None


def _section_at(location: tuple[int | str, ...], section: type[Section]) -> type[Section]:
    """Follow field names down to the section they lie in; other parts of a location are keys of a dict or list."""
    parts = iter(location)
    for name in parts:
        annotation = section.model_fields[str(name)].annotation
        section = sections_in(annotation)[0]
        if get_origin(annotation) in (dict, list):
            next(parts, None)  # the key in the dict, a name of the user's, or the index in the list
    return section


def sections_in(annotation: Any) -> list[type[Section]]:
    """The settings models in an annotation such as `dict[str, Variant]` or `Tune | None`."""
    arguments = get_args(annotation)
    if arguments:
        return list(itertools.chain.from_iterable(map(sections_in, arguments)))
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Section) else []
