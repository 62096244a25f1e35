"""Fields of settings models as text: what each takes, its default, and what it means.

Try: lepta recipes fields pretrain
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lepta.core.settings import Section, as_list, sections_in

KINDS = {str: "text", bool: "true | false", int: "whole number", float: "number", Path: "path"}


@dataclass(frozen=True)
class FieldText:
    """What there is to say of a field; `default` is empty if there is none to show."""

    name: str
    takes: str
    required: bool
    default: str
    meaning: str


def sections(model: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A settings model and those in it, each with the fields that lead to it."""
    yield path, model
    for name, info in model.model_fields.items():
        key = ".NAME" if get_origin(info.annotation) is dict else ""
        for inner in sections_in(info.annotation):
            yield from sections(inner, f"{path}.{name}{key}".lstrip("."))


def field_texts(model: type[Section]) -> list[FieldText]:
    """The fields of one model, in order."""
    texts = []
    for name, info in model.model_fields.items():
        meaning = (info.description or "").rstrip(".")
        texts.append(FieldText(name, _takes(info.annotation), info.is_required(), _default(info), meaning))
    return texts


def _takes(annotation: Any) -> str:
    """An annotation in words: kinds of values, or the names to choose from."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is Annotated:
        return _takes(parts[0])
    if origin is list:
        return f"list of {_takes(parts[0])}"
    if origin is dict:
        return f"map from {_takes(parts[0])} to {_takes(parts[1])}"
    if parts:
        return " | ".join(_takes(part) for part in parts if part is not NoneType)
    return "section" if issubclass(annotation, Section) else KINDS[annotation]


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if info.is_required() or value is None or value in ([], {}) or isinstance(value, Section):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, as_list(value)))
