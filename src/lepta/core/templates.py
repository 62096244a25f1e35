"""Texts from jinja2 templates that come with the package: pages, cards, recipes."""

from collections.abc import Callable, Mapping
from typing import Any

from lepta.core.shipped import PACKAGE


def render(
    template: str,
    view: Mapping[str, Any],
    escape: bool = False,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Fill a template, named by its place in the package; `escape` is for HTML. An unknown name in it is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    place = PACKAGE / template
    environment = Environment(
        loader=FileSystemLoader(place.parent),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escape,
        undefined=StrictUndefined,
    )
    environment.filters |= filters or {}
    return environment.get_template(place.name).render(view)
