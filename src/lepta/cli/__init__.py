"""The command line: recipes here, single steps in `lepta.cli`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lepta.cli import models, tuning
from lepta.cli.common import AsJson, console, print_json, result
from lepta.cli.corpus import corpus
from lepta.cli.darumeru import darumeru
from lepta.cli.measure import measure
from lepta.cli.plan import HELP as PLAN_HELP
from lepta.cli.plan import plan as plan_command
from lepta.cli.vocabulary import vocab
from lepta.core.errors import LeptaError
from lepta.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give an open LLM, and all its instruct variants, a vocabulary for another language.\n\n"
    "Start with: lepta adapt recipes/demo.yaml",
)


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def adapt(
    recipe: Annotated[Path, typer.Argument(help="YAML file; recipes/demo.yaml is one to start from.")],
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it in any case.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run all stages in any case.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and what it costs; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: vocabulary, initialisation, pre-training, propagation, evaluation, report.

    What is up to date is skipped; what was interrupted goes on where it stopped.
    """
    from lepta.adapt import adapt as run_recipe
    from lepta.adapt import pipeline_of, report_data
    from lepta.plan.plan import cost_here
    from lepta.recipe import read_recipe
    from lepta.report.page import print_summary

    plan = read_recipe(recipe)
    if dry_run:
        verdicts = pipeline_of(plan).status(start, force)
        _print_status(verdicts, as_json, {"cost": cost_here(plan)})
        return
    run_recipe(plan, start, force, lambda line: Console(stderr=True).print(f"[dim]lepta[/] {line}", highlight=False))
    data = report_data(plan.output)
    if as_json:
        print_json(data)
    else:
        print_summary(data, console)
        console.print(f"\nReport: {plan.output / 'report' / 'report.html'}", highlight=False)
        for name in plan.variants:
            made = "calibrated" if plan.calibrate else "propagated"
            console.print(f"Model:  {plan.output / made / name}", highlight=False)


@app.command()
def status(recipe: Annotated[Path, typer.Argument(help="YAML file.")], as_json: AsJson = False) -> None:
    """Tell which stages of a recipe are up to date, and why the others are not."""
    from lepta.adapt import pipeline_of
    from lepta.recipe import read_recipe

    _print_status(pipeline_of(read_recipe(recipe)).status(), as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a recipe that has run.")], as_json: AsJson = False
) -> None:
    """Print the numbers of a finished run and say where its page is."""
    from lepta.adapt import report_data
    from lepta.report.page import print_summary

    data = report_data(folder)
    if as_json:
        print_json(data)
    else:
        print_summary(data, console)
        console.print(f"\nReport: {folder / 'report' / 'report.html'}", highlight=False)


def _print_status(verdicts: list[Any], as_json: bool, extra: dict[str, Any] | None = None) -> None:
    rows = [{"stage": v.stage.name, "current": v.current, "reason": v.reason} for v in verdicts]
    if as_json:
        print_json({"stages": rows, **(extra or {})})
        return
    table = Table("stage", "", "why")
    for row in rows:
        table.add_row(row["stage"], "[green]current[/]" if row["current"] else "[yellow]to run[/]", row["reason"])
    console.print(table)
    for name, value in (extra or {}).items():
        console.print(f"\nEstimated {name} of pre-training, if it runs:", highlight=False)
        result(value, as_json=False)


app.add_typer(corpus, name="corpus")
app.add_typer(vocab, name="vocab")
app.command("plan", help=PLAN_HELP)(plan_command)
for command in (
    models.init,
    models.distill,
    models.pretrain,
    models.propagate,
    tuning.calibrate,
    tuning.tune,
    measure,
):
    app.command()(command)
app.add_typer(models.patch, name="patch")
app.add_typer(darumeru, name="darumeru")


def main() -> None:
    """Run the command line; errors that users can mend end in one line and exit code 2."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _quiet_libraries()
        app()
    except LeptaError as error:
        if debug:
            raise
        sys.stderr.write(f"lepta: {' '.join(str(error).split())}\n")
        sys.exit(2)


def _quiet_libraries() -> None:
    """Warnings and bars of the libraries below say nothing that a user can act on."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
