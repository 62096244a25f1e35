"""Command-line options made from settings models, which own names, defaults, rules and help.

A command takes a settings model as one parameter; `takes_settings` shows its fields as options instead::

    @takes_settings
    def distill(model: ModelPath, settings: DistillSettings, as_json: AsJson = False) -> None: ...
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from lepta.core.errors import LeptaError, said_of
from lepta.core.settings import Section, as_list, sections_in, validated

SETTINGS = "Settings"  # heading of options that name none
QUOTED = re.compile(r"`([\w.]+)`")  # how texts about settings name other ones
HEAD = re.compile(r"([\w.]+): ")  # how errors name the setting that they are about


@dataclass(frozen=True)
class Flags:
    """How the fields of a settings model, by their paths such as `lora.rank`, are called on the command line."""

    # Option of a field; of a section: what its fields' options begin with; "" is the model itself.
    names: dict[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()  # fields and sections that have no option
    # Sections that are off by default: the first option of theirs turns them on, with their model's own defaults.
    off: frozenset[str] = frozenset()
    headings: dict[str, str] = field(default_factory=dict)  # that options of a field or section stand under in the help


WRITING = Flags({"as_json": "--json"}, headings={"": "Output"})
WRITING_ANEW = Flags({"as_json": "--json"}, without=frozenset({"hard_link"}), headings={"": "Output"})


@dataclass(frozen=True)
class _Option:
    path: tuple[str, ...]
    flag: str  # of a switch with two sides both, as "--chat/--plain"
    heading: str
    info: FieldInfo
    default: Any

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.flag.partition("/")[0]

    @property
    def parameter(self) -> str:
        """Its name as a parameter of the command."""
        return self.name.removeprefix("--").replace("-", "_")


class _Names:
    """What a command calls settings: texts name fields as recipes do, and users of a command know its options."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names  # path of a field -> option

    def option(self, field: str) -> str | None:
        """The option of a field, named by its path, or of the list that it is in."""
        return self._names.get(field) or self._names.get(field.rpartition(".")[0])

    def text(self, text: str, section: str = "") -> str:
        """A text with options in place of the fields in backticks, those of a section first."""

        def called(found: re.Match[str]) -> str:
            field = found[1]
            inner = self.option(f"{section}.{field}")
            return inner or self.option(field) or self.option(field.partition(".")[2]) or found[0]

        return QUOTED.sub(called, text)

    def invalid(self, field: str, message: str) -> str:
        """What is wrong with the value of a field."""
        text, option = self.text(message, field), self.option(field)
        return said_of(option, text)

    def error(self, message: str) -> str:
        """An error that came up while the command ran: it may begin with a field, its section before it or not."""
        head = HEAD.match(message)
        option = head and self.text(f"`{head[1]}`")
        if head and option and option.startswith("-"):
            message = f"{option}: {message[head.end() :]}"
        return self.text(message)


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command whose parameters of type `Section` are options, one for each field.

    The name of the function is that of the command, `vocab_build` that of `lepta vocab build`.
    What the user does not give is not passed on, so the settings model alone knows defaults. Rules are checked there
    too: an error names the command and the option.
    """
    called = command.__name__.replace("_", " ")
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    sections: dict[str, tuple[type[Section], Flags, list[_Option], _Names]] = {}
    all_names: dict[str, str] = {}
    for parameter in signature.parameters.values():
        model, flags = _section_of(parameter.annotation)
        if model is None:
            parameters.append(parameter)
            all_names[parameter.name] = "--" + parameter.name.replace("_", "-")
            continue
        options = list(_options(model, _defaults(model, flags), flags, ()))
        names = {".".join(option.path): option.name for option in options}
        all_names = names | all_names
        sections[parameter.name] = model, flags, options, _Names(names)
        parameters += [_parameter(option, _Names(names)) for option in options]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for parameter, (model, flags, options, names) in sections.items():
            values: dict[str, Any] = {}
            for option in options:
                value = given.pop(option.parameter)
                if value is not None:
                    _put(values, option.path, value)
            content = _on_defaults(_defaults(model, flags), values)
            given[parameter] = validated(model, content, called, names.invalid)
        try:
            command(**given)
        except LeptaError as error:
            raise LeptaError(_Names(all_names).error(str(error))) from error

    # Typer reads options from `__signature__`, which mypy does not know of functions. Keyword-only parameters may come
    # in any order, required ones or not.
    keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
    return run


def _section_of(annotation: Any) -> tuple[type[Section] | None, Flags]:
    """The settings model of a parameter, if it is one, and its flags."""
    flags = Flags()
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        flags = next((extra for extra in extras if isinstance(extra, Flags)), flags)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, flags
    return None, flags


def _options(model: type[Section], defaults: dict[str, Any], flags: Flags, above: tuple[str, ...]) -> Iterator[_Option]:
    """Go through the fields of a model and of the sections in it."""
    for name, info in model.model_fields.items():
        path, default = (*above, name), defaults[name]
        if ".".join(path) in flags.without:
            continue
        inner = sections_in(info.annotation)
        if inner:
            inner_defaults = dict(default) if isinstance(default, Section) else _defaults(inner[0], flags)
            yield from _options(inner[0], inner_defaults, flags, path)
        else:
            yield _Option(path, _flag(path, flags), _heading(path, flags), info, default)


def _defaults(model: type[Section], flags: Flags) -> dict[str, Any]:
    """Field -> its default, None for a section that is off."""
    fields = model.model_fields.items()
    return {name: None if name in flags.off else info.get_default(call_default_factory=True) for name, info in fields}


def _flag(path: tuple[str, ...], flags: Flags) -> str:
    """`lora.rank` is --lora-rank, unless `names` calls the field or its section otherwise."""
    if named := flags.names.get(".".join(path)):
        return named
    *sections, name = path
    above = flags.names.get(".".join(sections), "-".join(sections))
    return "--" + "-".join(filter(None, (above, name))).replace("_", "-")


def _heading(path: tuple[str, ...], flags: Flags) -> str:
    """What a field's option stands under: its own heading, or that of the nearest section that has one."""
    for end in range(len(path), -1, -1):
        if heading := flags.headings.get(".".join(path[:end])):
            return heading
    return SETTINGS


def _parameter(option: _Option, names: _Names) -> inspect.Parameter:
    """One option. It has no default of its own: None says that the user gave nothing."""
    info, default, flag = option.info, option.default, option.flag
    kind: Any = str  # the settings model converts
    metavar: str | None = _metavar(info.annotation)
    help_text = names.text(info.description or "", ".".join(option.path[:-1])).rstrip(".")
    if bool in (info.annotation, *get_args(info.annotation)):
        assert not default, f"{flag}: a switch turns on what is off by default"
        kind, metavar = bool, None
    elif _is_list(info.annotation):
        kind = list[str]
        help_text += "; repeat for several"
    shown = ", ".join(map(str, as_list(default)))
    if shown and not info.is_required() and default is not None and default is not False:
        help_text += f" (default: {shown})"
    shown_as = typer.Option(
        flag, help=f"{help_text}.", metavar=metavar, show_default=False, rich_help_panel=option.heading
    )
    not_given: Any = inspect.Parameter.empty
    if not info.is_required():
        kind, not_given = kind | None, None
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.parameter, keyword_only, default=not_given, annotation=Annotated[kind, shown_as])


def _is_list(annotation: Any) -> bool:
    """Whether one of the kinds of value that a field takes is a list."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return any(map(_is_list, get_args(annotation)))
    return get_origin(annotation) is list


def _metavar(annotation: Any) -> str:
    """What to write for a value: <int>, <str>, or the names to choose from."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin is Annotated or origin is list:
        return _metavar(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return "|".join(_metavar(part) for part in get_args(annotation) if part is not types.NoneType)
    return {int: "<int>", float: "<float>", Path: "<path>"}.get(annotation, "<str>")


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for section in path[:-1]:
        values = values.setdefault(section, {})
    values[path[-1]] = value


def _on_defaults(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values of an inner section go on top of its defaults there, which need not be those of its own model."""
    merged = {}
    for name, value in values.items():
        default = defaults[name]
        if isinstance(value, dict) and isinstance(default, Section):
            value = default.model_dump(exclude_unset=True) | _on_defaults(dict(default), value)
        merged[name] = value
    return merged
