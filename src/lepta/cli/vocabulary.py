"""`lepta vocab`: build, check and measure vocabularies."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column

from lepta.cli.common import AsJson, Force, Output, TokenizerPath, console, print_json, result, say
from lepta.cli.options import Flags, takes_settings
from lepta.core.tables import narrow_table, number_table
from lepta.vocabulary.settings import VocabularySettings

vocab = typer.Typer(no_args_is_help=True, help="Build, check and measure vocabularies.")


@vocab.command("build")
@takes_settings
def vocab_build(
    tokenizer: TokenizerPath,
    output: Output,
    settings: Annotated[VocabularySettings, Flags(without=frozenset({"pad_to"}))],
    model: Annotated[
        str | None,
        typer.Option(help="--size auto: the model that pays for a larger head (default: that of --tokenizer)."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build a new vocabulary from a tokenizer and text.

    Try: lepta vocab build --tokenizer Qwen/Qwen3-0.6B-Base --corpus my.txt --add 8000 --output my/vocabulary
    """
    from lepta.core.output import publishing
    from lepta.vocabulary.build import build, save_vocabulary
    from lepta.vocabulary.source import open_tokenizer

    original = open_tokenizer(tokenizer)
    curve: dict[str, Any] = {}
    with publishing(output, force) as folder:
        if settings.size == "auto":
            built, curve = _cheapest_size(original, settings, model or tokenizer, as_json)
        else:
            built = build(original, settings)
        facts = save_vocabulary(built, tokenizer, settings.scenario, folder, model)
    result({"output": str(output), **facts, **curve}, as_json, "vocabulary")


def _cheapest_size(
    original: Any, settings: VocabularySettings, model: str, as_json: bool
) -> tuple[Any, dict[str, Any]]:
    from lepta.models.folder import MODEL_FILES
    from lepta.models.weights import count_weights
    from lepta.text.locate import locate
    from lepta.vocabulary.budget import TOLERANCE
    from lepta.vocabulary.build import choose_size

    built, points, chosen = choose_size(original, settings, count_weights(locate(model, hub_files=MODEL_FILES)))
    if as_json:
        return built, {"curve": points}
    table = number_table("new tokens", "tokens of text", "per 1,000 more", "cost of text", "weights added")
    shown = [point for point in points if point.added % max(1000, len(points) // 16 * 1000) == 0 or point == chosen]
    before = shown[0]
    for point in shown:
        step = (before.tokens - point.tokens) / max(point.added - before.added, 1) * 1000
        cells = [f"{point.added:,}", f"{point.tokens:.1%}", f"{-step:z.2%}", f"{point.compute:.1%}"]
        cells.append(f"{point.embedding_weights / 1e6:,.1f} M")
        if point == chosen:
            cells = [f"[bold]{cell}" for cell in cells]
        table.add_row(*cells)
        before = point
    console.print(table)
    best = min(points, key=lambda point: point.compute)
    say(
        f"Taken: {chosen.added:,}, the fewest with which text costs at most {TOLERANCE:.0%} more than at its cheapest "
        f"({best.added:,}: {best.compute:.1%})."
    )
    return built, {}


@vocab.command("check")
def vocab_check(
    tokenizer: TokenizerPath,
    original: Annotated[str | None, typer.Option(help="The tokenizer that it was made from.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Text of the target language; repeat.")] = None,
    other: Annotated[list[str] | None, typer.Option(help="Text whose ids must not change; repeat.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a tokenizer is safe to use: a table of passes and failures, exit code 1 if any fails.

    Try: lepta vocab check --tokenizer my/vocabulary --original Qwen/Qwen3-0.6B-Base
    """
    from lepta.text.sources import read_documents
    from lepta.vocabulary.check import check_vocabulary
    from lepta.vocabulary.source import open_tokenizer

    checks = check_vocabulary(
        open_tokenizer(tokenizer),
        original and open_tokenizer(original),
        list(read_documents(target)) if target else [],
        list(read_documents(other)) if other else [],
    )
    if as_json:
        print_json(checks)
    else:
        table = narrow_table("check", "result", Column("evidence", overflow="fold"))
        for check in checks:
            evidence, *more = check.evidence.split("\n")
            if more:
                evidence += " (see below)"
            table.add_row(check.name, "[green]pass[/]" if check.passed else "[red]FAIL[/]", escape(evidence))
        console.print(table)
        for check in checks:
            if "\n" in check.evidence:  # lines to paste: a table would break them
                say(f"\n{check.name}: {check.evidence}", soft_wrap=True)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@vocab.command("measure")
def vocab_measure(
    tokenizer: Annotated[list[str], typer.Option(help="Tokenizer to measure; repeat to compare.")],
    text: Annotated[list[str], typer.Option(help="Text source; repeat for numbers of each, and of all.")],
    by_source: Annotated[
        bool, typer.Option("--by-source", help="For each source too: the one that a row names, else its file.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how much text a token holds, how many words it takes whole, and what of it a text never uses.

    Try: lepta vocab measure --tokenizer Qwen/Qwen3-0.6B-Base --tokenizer my/vocabulary --text starter:ru/valid
    """
    from lepta.report.compare import summaries
    from lepta.text.sources import read_labelled
    from lepta.vocabulary.measure import measure_sources
    from lepta.vocabulary.source import open_tokenizer

    if by_source:
        documents = list(read_labelled(text))
    else:
        documents = []
        for name in text:
            documents += [replace(document, source=name) for document in read_labelled([name])]
    apart = by_source or len(text) > 1
    rows = summaries({name: measure_sources(open_tokenizer(name).vocabulary(), documents) for name in tokenizer})
    if as_json and not apart:
        for row in rows.values():
            del row["sources"]
    if as_json:
        print_json(rows)
    else:
        _print_measures(rows, apart)


@vocab.command("compare")
def vocab_compare(
    tokenizer: Annotated[list[str], typer.Option(help="Tokenizer; repeat to compare.")],
    text: Annotated[list[str], typer.Option(help="Text source; repeat.")],
    output: Annotated[Path, typer.Option(help="HTML page to write; it must not exist yet.")],
    examples: Annotated[int, typer.Option(min=0, help="Number of texts to show in pieces.")] = 6,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a page that shows tokenizers side by side: numbers for each source of text, and examples in pieces.

    Try: lepta vocab compare --tokenizer Qwen/Qwen3-0.6B-Base --tokenizer my/vocabulary --text my.txt --output page.html
    """
    from lepta.report.compare import write_comparison

    facts = write_comparison(tokenizer, text, output, examples, force)
    if as_json:
        print_json(facts)
    else:
        _print_measures(facts["tokenizers"], by_source=False)
        say(f"\nThis is all text together; each source has its numbers on the page: {output}")


def _print_measures(rows: dict[str, dict[str, Any]], by_source: bool) -> None:
    """Print a table of measures: a row for each tokenizer, or for each source and tokenizer."""
    from lepta.report.compare import short_names

    named = list(zip(short_names(list(rows)), rows.values(), strict=True))
    parts = []
    if by_source:
        for source in named[0][1]["sources"]:
            parts += [(f"{source}: {name}", row["sources"][source]) for name, row in named]
        named = [(f"all text: {name}", row) for name, row in named]
    units = ("chars/\ntoken", "bytes/\ntoken", "words/\ntoken")
    table = number_table("tokenizer", "tokens", *units, "1-token\nwords", "not in\nthis text")
    for label, row in parts + named:
        ratios = row["characters_per_token"], row["bytes_per_token"], row["words_per_token"]
        unused = f"{row['unused_tokens']:,} ({row['unused_share']:.1%})"
        cells = [f"{row['tokens']:,}", *map("{:.3f}".format, ratios), f"{row['single_token_words']:.1%}", unused]
        table.add_row(escape(label), *cells)
    console.print(table)
