"""Commands on a whole recipe: run it, tell what is up to date, print its report."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lepta.cli.common import AsJson, DryRun, check_places, console, print_json, result
from lepta.recipe import read_recipe
from lepta.stages import Verdict


def adapt(
    recipe: Annotated[Path, typer.Argument(help="YAML file; recipes/demo.yaml is one to start from.")],
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it in any case.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run all stages in any case.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: vocabulary, initialisation, pre-training, propagation, evaluation, report.

    What is up to date is skipped; what was interrupted goes on where it stopped.
    """
    plan = read_recipe(recipe)
    models = [variant.model for variant in plan.variants.values() if variant.model]
    check_places([plan.base, *models], [], force)  # before the imports below, which take seconds
    from lepta.pipeline import adapt as run_recipe
    from lepta.pipeline import pipeline_of
    from lepta.plan.plan import cost_here

    if dry_run:
        print_status(pipeline_of(plan).status(start, force), as_json, cost_here(plan))
        return
    log = Console(stderr=True)
    run_recipe(plan, start, force, lambda line: log.print(f"[dim]lepta[/] {line}", highlight=False))
    report(plan.output, as_json)
    if not as_json:
        made = "calibrated" if plan.calibrate else "propagated"
        for name in plan.variants:
            console.print(f"Model:  {plan.output / made / name}", highlight=False)


def status(recipe: Annotated[Path, typer.Argument(help="YAML file.")], as_json: AsJson = False) -> None:
    """Tell which stages of a recipe are up to date, and why the others are not."""
    plan = read_recipe(recipe)
    from lepta.pipeline import pipeline_of

    print_status(pipeline_of(plan).status(), as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a recipe that has run.")], as_json: AsJson = False
) -> None:
    """Print the numbers of a finished run and say where its page is."""
    from lepta.pipeline import report_data
    from lepta.report.run import print_summary

    data = report_data(folder)
    if as_json:
        print_json(data)
        return
    print_summary(data, console)
    console.print(f"\nReport: {folder / 'report' / 'report.html'}", highlight=False)


def print_status(verdicts: list[Verdict], as_json: bool, cost: dict[str, Any] | None = None) -> None:
    """Print which stages would run, and what pre-training would cost."""
    if as_json:
        rows = [{"stage": v.stage.name, "current": v.current, "reason": v.reason} for v in verdicts]
        print_json({"stages": rows} | ({"cost": cost} if cost else {}))
        return
    table = Table("stage", "", "why")
    for verdict in verdicts:
        table.add_row(
            verdict.stage.name, "[green]current[/]" if verdict.current else "[yellow]to run[/]", verdict.reason
        )
    console.print(table)
    if cost:
        console.print("\nEstimated cost of pre-training, if it runs:", highlight=False)
        result(cost, as_json=False)
