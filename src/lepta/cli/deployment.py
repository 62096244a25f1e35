"""`lepta check` and `lepta publish`: finished model folders on their way to users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from lepta.cli.common import AsJson, check_places, console, opened, print_json

if TYPE_CHECKING:
    from lepta.deployment.check import Deployment

MARKS = {"works": "green", "limits": "yellow", "step": "yellow", "fails": "red", "unknown": "dim"}
CONSUMER_NAMES = (
    "transformers-5, transformers-4, tokenizers, tokenizers-js, llama.cpp, vllm, sglang, ctranslate2, peft, draft"
)


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="HF folder, GGUF file or hub id.")],
    consumer: Annotated[list[str] | None, typer.Option(help=f"Only these; repeat. Of {CONSUMER_NAMES}.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="Draft model or tokenizer for speculative decoding: does it still fit?")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the verdicts as JSON; a model folder takes it as deployment.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell which programs run a model folder as it is, and what is left to do for the others.

    Exit code 1 if one of them cannot run it.

    Try: lepta check my/adapted --output my/adapted/deployment.json
    """
    check_places([model, *([draft] if draft else [])], [], force=False)
    from lepta.deployment.check import check_model, write_deployment

    with opened(model) as checkpoint:
        found = check_model(checkpoint, consumer or [], draft)
    if output:
        write_deployment(found, output)
    if as_json:
        print_json(found.as_json())
    else:
        _print(model, found)
    if found.failed:
        raise typer.Exit(1)


def _print(model: str, found: "Deployment") -> None:
    """One screen, then the lines to paste by themselves, never wrapped."""
    facts = found.facts
    tied = "one matrix for input and head" if facts["tied"] else "a head of its own"
    console.print(model, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{facts['type']}, {facts['family']}, {facts['ids']:,} ids, {facts['rows']:,} rows, {tied}\n",
        highlight=False,
        markup=False,
    )
    table = Table(
        Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False, pad_edge=False
    )
    for verdict in found.verdicts:
        words = escape(verdict.reason) + (f"\n-> {escape(verdict.step)}" if verdict.step else "")
        table.add_row(verdict.consumer, f"[{MARKS[verdict.status]}]{verdict.status}[/]", words)
    console.print(table)
    pasted: set[str] = set()
    for verdict in found.verdicts:
        if verdict.lines and verdict.lines not in pasted:
            pasted.add(verdict.lines)
            console.print(f"\nInto {verdict.place}:", highlight=False, markup=False)
            print(verdict.lines)  # noqa: T201 rich would wrap it
