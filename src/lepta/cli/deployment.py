"""`lepta check` and `lepta publish`: finished model folders on their way to users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from lepta.cli.common import AsJson, check_places, console, opened, print_json, print_warnings, say
from lepta.core.errors import LeptaError

if TYPE_CHECKING:
    from lepta.deployment.check import Deployment
    from lepta.deployment.publish import Publication

MARKS = {"works": "green", "limits": "yellow", "step": "yellow", "fails": "red", "unknown": "dim"}
CONSUMER_NAMES = (
    "transformers-5, transformers-4, tokenizers, tokenizers-js, llama.cpp, vllm, sglang, ctranslate2, peft, draft"
)


def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="HF folder or hub id; a GGUF file as the folder that it becomes.")
    ],
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

    Only the programs marked "run here" are run. The others are judged by rules read from their code.
    Exit code 1 if one of them cannot run it.

    Try: lepta check my/adapted --output my/adapted/deployment.json
    """
    check_places([model, draft])
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise LeptaError(f"{model}: no config.json; expected a model folder (for a vocabulary: lepta vocab check)")
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


def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a finished model.")],
    repo: Annotated[str, typer.Option(help="Name on the hub, OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Only its owner can see it.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="OWNER/NAME that it was made from, if its card does not say.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Code (ISO 639: ru, kk) that the card is to name too; repeat.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, sizes and card; send nothing, ask no network.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a model folder on the Hugging Face hub, with its card, in one commit.

    The token is that of `hf auth login` or the environment variable HF_TOKEN.

    Try: lepta publish my/adapted --repo OWNER/NAME --dry-run
    """
    from lepta.deployment.publish import prepare
    from lepta.deployment.publish import publish as send

    publication = prepare(model, repo, base_model, language or [])
    facts = {
        "repo": repo,
        "private": private,
        "files": publication.sizes,
        "left_out": publication.left_out,
        "warnings": publication.warnings,
    }
    if not as_json:
        _print_publication(publication)
    if not dry_run:
        facts["address"] = send(publication, private)
    if as_json:
        print_json(facts | {"card": publication.card})
    elif dry_run:
        say("Nothing was sent.")
    else:
        say(f"Published: {facts['address']}", soft_wrap=True)


def _print_publication(publication: "Publication") -> None:
    table = Table("file", Column("bytes", justify="right", no_wrap=True), box=None, pad_edge=False)
    for name, size in publication.sizes.items():
        table.add_row(escape(name), f"{size:,}")
    table.add_row("all", f"{sum(publication.sizes.values()):,}")
    console.print(table)
    if publication.left_out:
        say(f"left here: {', '.join(publication.left_out)}")
    say(f"\n{publication.card}", soft_wrap=True)
    print_warnings(publication.warnings)


def _print(model: str, found: "Deployment") -> None:
    """One screen, then the lines to paste by themselves, never wrapped."""
    facts = found.facts
    tied = "one matrix for input and head" if facts["tied"] else "a head of its own"
    say(model, soft_wrap=True)
    if model.endswith(".gguf"):
        say("A GGUF file: judged is the folder that lepta export folder makes of it.")
    say(f"{facts['type']}, {facts['family']}, {facts['ids']:,} ids, {facts['rows']:,} rows, {tied}\n")
    names = [Column(no_wrap=True) for _ in ("program", "verdict", "how")]
    table = Table(*names, Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
    for name, verdict in found.verdicts.items():
        words = "\n-> ".join(map(escape, filter(None, (verdict.reason, verdict.step))))
        how = "run here" if verdict.tried else "by rules"
        table.add_row(name, f"[{MARKS[verdict.status]}]{verdict.status}[/]", how, words)
    console.print(table)
    if not all(verdict.tried for verdict in found.verdicts.values()):
        say("\nby rules: not run; judged by rules read from the program's code. Try the model there.")
    pasted: set[str] = set()
    for verdict in found.verdicts.values():
        if verdict.lines and verdict.lines not in pasted:
            pasted.add(verdict.lines)
            say(f"\nInto {verdict.place}:")
            print(verdict.lines)  # noqa: T201 rich would wrap it
