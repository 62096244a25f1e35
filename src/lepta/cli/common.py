"""What all commands share: options, and how results are printed."""

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.markup import escape

from lepta.cli.words import line
from lepta.core.errors import printable
from lepta.core.output import refuse_existing
from lepta.core.progress import console as messages
from lepta.core.progress import terminal
from lepta.core.settings import Section
from lepta.text.locate import locate

if TYPE_CHECKING:
    from lepta.models.folder import Checkpoint

console = terminal()

MOST_GPUS = 100_000  # that work together; no cluster has more
LEFT_OUT = "left out"  # how lines begin that tell nothing where nothing was
OUTPUT = "Output"  # heading of options that all commands have
MODEL_KINDS = "HF folder, GGUF file, package:NAME/FILE or hub id."

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would run, and what distillation and pre-training cost; run nothing.",
        rich_help_panel=OUTPUT,
    ),
]
Output = Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.", rich_help_panel=OUTPUT)]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel=OUTPUT)]
TokenizerPath = Annotated[
    str,
    typer.Option(
        help="HF folder, tokenizer.json, SentencePiece .model, tiktoken file, tekken.json, GGUF file, "
        "package:NAME/FILE or hub id OWNER/NAME or OWNER/NAME@REVISION."
    ),
]
ModelPath = Annotated[str, typer.Option(help=MODEL_KINDS)]
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_KINDS)]


class Writing(Section):
    """How a command writes a folder."""

    hard_link: bool = Field(
        default=False, description="Share unchanged files with the source: who edits one edits both"
    )
    force: bool = Field(default=False, description="Replace the output if it exists")
    as_json: bool = Field(default=False, description="Print the result as JSON")


def opened(
    source: str, input_name: str | None = None, output_name: str | None = None, dtype: str | None = None
) -> "AbstractContextManager[Checkpoint]":
    """Open any model source; `dtype` is what a GGUF file becomes."""
    from lepta.models.load import opened  # with torch, so not before places are checked

    return opened(source, input_name, output_name, dtype)


def check_places(sources: Sequence[str | None], outputs: Sequence[Path] = (), force: bool = False) -> None:
    """Find all models that are given and refuse outputs that exist, before imports and reading, which take seconds.

    Then say what is opened, since the first bar may come seconds later.
    """
    for output in outputs:
        refuse_existing(output, force)
    given = [source for source in sources if source is not None]
    for source in given:
        locate(source, hub_files=["*.json"])  # of a hub id the small files alone: weights come when it is opened
    if given:  # a server may have all of them
        log(f"opening {', '.join(given)}")


def say(text: str, **style: Any) -> None:
    """Print text as it is: brackets and numbers in it are no markup."""
    console.print(text, highlight=False, markup=False, **style)


def log(line: str) -> None:
    """Tell on standard error what a long command is doing."""
    messages.print(f"[dim]lepta[/] {escape(line)}", highlight=False, soft_wrap=True)


def result(facts: dict[str, Any], as_json: bool, kind: str = "") -> None:
    """Print facts line by line, in the words that there are for this kind, or as JSON; warnings come first."""
    if as_json:
        print_json(facts)
        return
    print_warnings(facts.get("warnings", []))
    for name, value in facts.items():
        text = line(kind, name, value)
        if name != "warnings" and (value or not text.startswith(LEFT_OUT)):
            say(text)


def print_warnings(warnings: list[str]) -> None:
    """Print what the user should know before trusting a result."""
    for warning in warnings:
        say(f"warning: {warning}", style="yellow")


def print_json(value: Any) -> None:
    """Print JSON and nothing else on standard output; dataclasses are objects, and what JSON does not know is text."""
    if not console.quiet:
        text = json.dumps(value, ensure_ascii=False, indent=2, default=_plain)
        if text != printable(text):
            text = json.dumps(value, indent=2, default=_plain)
        sys.stdout.write(f"{text}\n")


def print_results(results: Sequence[Any]) -> None:
    """Print results as JSON: a list of several, one by itself."""
    if len(results) == 1:
        [results] = results
    print_json(results)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return vars(value)
    return str(value)
