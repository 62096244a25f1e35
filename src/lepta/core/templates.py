"""Texts from jinja2 templates that come with the package: pages, cards, recipes."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepta.core.shipped import PACKAGE

if TYPE_CHECKING:
    from jinja2 import Environment


def render(
    template: str,
    view: Mapping[str, Any],
    escape: bool = False,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Fill a template, named by its place in the package; `escape` is for HTML. An unknown name in it is an error."""
    place = PACKAGE / template
    environment = _environment(place.parent, escape)
    environment.filters |= filters or {}
    return environment.get_template(place.name).render(view)


@cache
def _environment(folder: Path, escape: bool) -> "Environment":
    """What compiles the templates of a folder, each once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escape,
        undefined=StrictUndefined,
    )
