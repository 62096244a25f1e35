"""Every option of every command with odd values: a usage error, or one line; commands end before they begin to work."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fuzz.conftest import run
from fuzz.mutations import accepted
from hypothesis import given
from hypothesis import strategies as st
from typer._click.exceptions import ClickException

from lepta.cli import COMMANDS, app

ODD = ["", " ", "-1", "0", "1", "7", "1e12", "1e400", "nan", "inf", "-inf", "99999999999", "9" * 5000, "0x10", "½", "٣"]
ODD += [
    "auto",
    "true",
    "None",
    "a,b",
    "=",
    "[",
    "{}",
    "x" * 5000,
    "x" * 300 + "/y",
    "~nobody-of-this-name/x",
    "/",
    ".",
    "..",
]
ODD += [
    "a\0b",
    "\x1b[2J",
    "\udcff",
    "a/b@c",
    "a/b.git",
    "package:",
    "package:os.path/x",
    "package:gguf/../x",
    "starter:",
]
ODD += ["starter:../x", "dataset:", "wordfreq:", "wordfreq:xx", "http://", "http://u:p@h/v1", "-", "--", "?field="]


def commands(group: Any, context: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their names, groups left out."""
    for name in COMMANDS if not path else group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, context, (*path, name))
        else:
            yield (*path, name), command


def options() -> list[tuple[tuple[str, ...], Any, Any]]:
    """Each option or argument, with its command."""
    group = typer.main.get_command(app)
    found = []
    for path, command in commands(group, typer.Context(group)):
        if path != ("doctor",):
            found += [(path, command, option) for option in command.params if option.name != "help"]
    return found


def asked(path: tuple[str, ...], command: Any, odd: Any, value: str) -> list[str]:
    """The command with an odd value for one option, and values that name nothing for all that it needs."""
    line = list(path)
    for option in command.params:
        if option is not odd and not option.required:
            continue
        given = value if option is odd else "missing/nothing"
        is_flag = getattr(option, "is_flag", False)
        line += (
            [option.opts[0]]
            if is_flag
            else [given]
            if option.param_type_name == "argument"
            else [option.opts[0], given]
        )
    return line


@given(which=st.sampled_from(options()), value=st.sampled_from(ODD))
def test_options(tmp_path_factory: pytest.TempPathFactory, which: Any, value: str) -> None:
    path, command, option = which
    folder = tmp_path_factory.mktemp("o")
    line = asked(path, command, option, value)

    def call() -> None:
        with contextlib.suppress(ClickException, typer.Abort, OSError):  # the entry makes these one line
            run(folder, *line)

    accepted(call, "")
    assert not list(Path(folder).rglob("*.partial")), line
