"""`lepta corpus`: training text out of raw text."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lepta.cli.common import AsJson, Force, console, log, print_json, say
from lepta.core.errors import optional
from lepta.core.tables import number_table, significant
from lepta.corpora.settings import read_corpus_settings
from lepta.report.page import duration

SAMPLE = 2_000_000  # characters of each source, for --dry-run
REASONS = {  # that do not say by themselves what they count
    "duplicate": "nearly the same words as an earlier document, which is kept",
    "contaminated": "a run of words that a text under `decontaminate` has too",
    "weight": "left out because the weight of the source is below 1",
}

corpus = typer.Typer(no_args_is_help=True, help="Make training text out of raw text.")


@corpus.callback()
def _corpus() -> None:
    """A group of commands, though it has one only."""


@corpus.command("prepare")
def corpus_prepare(
    settings: Annotated[
        Path, typer.Argument(help="YAML file, or corpus_ru, which comes with LEPTA (lepta recipes copy corpus_ru).")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder to write (default: `output` in the file).")] = None,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell from a sample what would be kept, and how long it takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Clean, filter, deduplicate, decontaminate and weigh text; say what was dropped and why.

    A run that was killed goes on where it was when the same command is given again.

    Try: lepta corpus prepare corpus_ru --dry-run
    """
    plan = read_corpus_settings(settings)
    place = output or plan.output
    with optional("corpus", "corpus"):
        from lepta.corpora.prepare import prepare, work_of

    if dry_run:
        _print_sample(_sampled(plan, work_of(plan, place)), as_json)
        return
    facts = prepare(plan, place, force, log)
    if as_json:
        print_json({"output": str(place), **facts})
    elif "jobs" in facts:
        say(f"Queued on Slurm: {', '.join(facts['jobs'])}. The corpus will be in {place}")
    else:
        print_report(facts)
        say(f"\nText:   {place / 'text'}\nReport: {place / 'report.json'}")


def _sampled(plan: Any, work: Any) -> dict[str, Any]:
    """Sample with an index of its own, so that nothing of a run that goes on is touched."""
    import tempfile
    from dataclasses import replace

    from lepta.corpora.overlap import build_index
    from lepta.corpora.sample import sample

    with tempfile.TemporaryDirectory() as folder:
        work = replace(work, folder=Path(folder))
        if plan.decontaminate:
            build_index(plan.decontaminate, plan.clean, work.index)
        return sample(plan, work, SAMPLE)


def print_report(facts: dict[str, Any]) -> None:
    """Print two tables: what became of each source, and why documents were dropped."""
    numbers = ("documents read", "documents dropped", "documents kept", "copies written")
    table = number_table("source", *numbers, "million\ncharacters written", "characters cleaned away")
    for name, row in (facts["sources"] | {"total": facts["total"]}).items():
        lost = sum(reason["documents"] for reason in row["dropped"].values())
        amounts = (row["read"]["documents"], lost, row["kept"]["documents"], row["written"]["documents"])
        taken_out = sum(row["removed"].values()) / max(row["kept"]["characters"], 1)
        characters = f"{row['written']['characters'] / 1e6:,.2f}"
        table.add_row(escape(name), *map("{:,}".format, amounts), characters, f"{taken_out:.1%}")
    console.print(table)
    reasons = number_table("why documents are dropped", "documents", "of those\nread")
    for source in facts["sources"]:
        reasons.add_column(escape(source), justify="right", overflow="fold")
    for reason, lost in facts["total"]["dropped"].items():
        per = (facts["sources"][name]["dropped"].get(reason, {}).get("documents", 0) for name in facts["sources"])
        share = lost["documents"] / facts["total"]["read"]["documents"]
        reasons.add_row(escape(reason), f"{lost['documents']:,}", f"{share:.1%}", *map("{:,}".format, per))
    if facts["total"]["dropped"]:
        console.print(reasons)
    for reason, meaning in REASONS.items():
        if reason in facts["total"]["dropped"]:
            say(f"{reason}: {meaning}")


def _dropped(counts: dict[str, Any]) -> str:
    """How many of the documents that were read are dropped, and why."""
    reasons = counts.get("dropped", {})
    most_first = sorted(reasons.items(), key=lambda item: -item[1])
    why = ", ".join(f"{number:,} {reason}" for reason, number in most_first)
    number = f"{sum(reasons.values()):,} of {counts.get('read', {}).get('documents', 0):,}"
    return f"{number}: {why}" if why else number


def _print_sample(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    from lepta.corpora.sample import CHARACTERS_PER_TOKEN

    sampled = ("files,\nMB", "of these sampled", "kept of the sample")
    table = number_table("source", *sampled, "estimate,\nmillion characters", "estimate,\nmillion\ntokens")
    table.add_column("documents dropped, of\nthose in the sample", overflow="fold")
    for name, row in facts["estimate"].items():
        why = _dropped(facts["sample"].get(name, {}))
        share = "?" if row["sampled"] is None else f"{row['sampled']:.1%}"
        estimates = row["characters"], row["tokens_about"]
        sizes = ("?" if amount is None else significant(amount / 1e6) for amount in estimates)
        kept = f"{row['kept_of_read']:.1%}"
        table.add_row(escape(name), significant(row["bytes"] / 1e6), share, kept, *sizes, escape(why))
    console.print(table)
    say(f"Sampled: the first {SAMPLE:,} characters of each source. Duplicates were not looked for.")
    say(f"Estimates: of all that would be written, weights included; {CHARACTERS_PER_TOKEN:g} characters in a token.")
    time = f"about {duration(facts['seconds'])}" if facts["seconds"] else "less than a second"
    busy = f" (it is busy: {facts['busy']})" if facts["busy"] else ""
    say(f"Time for the whole corpus on this machine: {time}{busy}")
