"""`--help` teaches: every option of every command says what it is."""

from collections.abc import Iterator

import pytest
import typer

from lepta.cli import app


def commands(command, path: str) -> Iterator:
    """Every command and group below a command, with the words that call it."""
    yield pytest.param(command, id=path)
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from commands(command.get_command(None, name), f"{path} {name}")


@pytest.mark.parametrize("command", commands(typer.main.get_command(app), "lepta"))
def test_every_option_and_command_has_a_help_text(command):
    assert command.help
    silent = [option.opts for option in command.params if option.param_type_name == "option" and not option.help]
    assert not silent
    eaten = [option.opts for option in command.params if "[" in (getattr(option, "help", None) or "")]
    assert not eaten  # rich takes [default: all] for markup, and shows nothing
