"""Commands on a whole recipe: run it, tell what is up to date, print its report."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Column
from rich.text import Text

from lepta.cli.common import AsJson, DryRun, check_places, console, log, print_json, result, say
from lepta.core.errors import LeptaError, explained, suggestion
from lepta.core.fields import FieldText, field_texts, sections
from lepta.core.output import write_new_file
from lepta.core.settings import Section
from lepta.core.shipped import FOLDER, shipped_file, shipped_files, summary_of
from lepta.core.tables import narrow_table
from lepta.corpora.settings import CorpusSettings
from lepta.recipe import Recipe, read_recipe
from lepta.stages import Verdict

RecipeFile = Annotated[
    Path, typer.Argument(help="YAML file, or the name of one that comes with LEPTA (lepta recipes list).")
]
Name = Annotated[str, typer.Argument(help="Name of a recipe, as lepta recipes list shows it.")]

LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")  # of Markdown
CORPUS = "corpus_"  # how names of corpus files begin

recipes = typer.Typer(no_args_is_help=True, help="List, show and copy the recipes that come with LEPTA.")


@recipes.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes that come with LEPTA, and what each is for.

    Try: lepta recipes list
    """
    summaries = {name: summary_of(file) for name, file in shipped_files().items()}
    if as_json:
        print_json(summaries)
        return
    corpora = {name: summaries.pop(name) for name in list(summaries) if name.startswith(CORPUS)}
    _print_summaries("Recipes, for lepta adapt:", summaries)
    _print_summaries("\nCorpus files, for lepta corpus prepare:", corpora)


def _print_summaries(title: str, summaries: dict[str, str]) -> None:
    say(title)
    for name, summary in summaries.items():
        console.print(f"[bold]{name}[/]", highlight=False)
        console.print(Padding(Text(summary), (0, 0, 0, 4), expand=False))


@recipes.command("show")
def show_recipe(name: Name) -> None:
    """Print a recipe.

    Try: lepta recipes show demo
    """
    typer.echo(shipped_file(name).read_text(encoding="utf-8"), nl=False)


@recipes.command("guide")
def guide() -> None:
    """Print which recipe is for what, what each costs, the text it needs, and how to run it on several GPUs.

    Try: lepta recipes guide
    """
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    typer.echo(LINK.sub(r"\1", page), nl=False)  # a wheel has no pages to link to


@recipes.command("fields")
def fields(
    section: Annotated[
        str, typer.Argument(help="Section, for example pretrain, variants.NAME.tune or corpus (default: list all).")
    ] = "",
) -> None:
    """Say what may stand in a section of a recipe or of a corpus file: fields, values, defaults.

    Try: lepta recipes fields pretrain
    """
    known = dict(all_sections())
    if section not in known:
        raise LeptaError(f"{section}: no such section; {suggestion(section, known, 'lepta recipes fields lists them')}")
    say(f"{section or 'Top level of a recipe'}: {_first_line(known[section])}")
    for field in field_texts(known[section]):
        say(f"  {field.name}: {field.takes}{_default(field)}")
        if field.meaning:
            console.print(Padding(Text(field.meaning), (0, 0, 0, 6), expand=False))
    inside = f"{section}." if section else ""
    inner = {path: _first_line(model) for path, model in known.items() if path.startswith(inside) and path != section}
    if inner:
        _print_summaries("\nSections:", inner)


def _default(field: FieldText) -> str:
    if field.required:
        return ", required"
    return f" (default: {field.default})" if field.default else ""


def all_sections() -> list[tuple[str, type[Section]]]:
    """The sections of recipes, each with the fields that lead to it; below `corpus` those of corpus files."""
    return [*sections(Recipe), *sections(CorpusSettings, "corpus")]


def _first_line(model: type[Section]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


@recipes.command("copy")
def copy_recipe(
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="File to write (default: the recipe's own name, here).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a recipe to a file of your own, to change it.

    Try: lepta recipes copy mistral-7b/extended my.yaml
    """
    source = shipped_file(name)
    place = file or Path(source.name)
    write_new_file(place, source.read_text(encoding="utf-8"), force)
    say(f"recipe: {place}")


def adapt(
    recipe: RecipeFile,
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it in any case.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run all stages in any case.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: vocabulary, initialisation, distillation, training, propagation, report.

    What is up to date is skipped; what was interrupted goes on where it stopped.

    Try: lepta adapt demo
    """
    plan = read_recipe(recipe)
    models = [variant.model for variant in plan.variants.values() if variant.model]
    check_places([plan.base, *models])  # before the imports below, which take seconds
    from lepta.pipeline import adapt as run_recipe
    from lepta.pipeline import pipeline_of
    from lepta.plan.notes import beyond_text, few_words, short_runs
    from lepta.plan.outline import outline_of
    from lepta.plan.plan import cost_here
    from lepta.plan.text import count_text

    if dry_run:
        verdicts, outline = pipeline_of(plan).status(start, force), outline_of(plan)
        beyond = beyond_text(plan.distill, plan.pretrain, count_text(plan.text.target.train).characters)
        for note in (*few_words(outline), *short_runs(plan), *beyond):
            log(note)
        print_status(verdicts, as_json, cost_here(outline))
        return
    run_recipe(plan, start, force, log)
    report(plan.output, as_json)
    if not as_json:
        made = "propagated"
        if plan.calibrate:
            made = "calibrated"
        elif plan.repair:
            made = "repaired"
        for name in plan.variants:
            say(f"Model:  {plan.output / made / name}")


def status(recipe: RecipeFile, as_json: AsJson = False) -> None:
    """Tell which stages of a recipe are up to date, and why the others are not.

    Try: lepta status demo
    """
    plan = read_recipe(recipe)
    from lepta.pipeline import pipeline_of

    print_status(pipeline_of(plan).status(), as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a recipe that has run.")], as_json: AsJson = False
) -> None:
    """Print the numbers of a finished run and say where its page is.

    Try: lepta report runs/demo
    """
    from lepta.report.run import NUMBERS, print_summary, report_data

    data = report_data(folder)
    if as_json:
        print_json(data)
        return
    with explained(folder / "report" / NUMBERS, "not as LEPTA writes it", "run lepta adapt RECIPE --from report"):
        print_summary(data, console)
    say(f"\nReport: {folder / 'report' / 'report.html'}")


def print_status(verdicts: list[Verdict], as_json: bool, cost: dict[str, Any] | None = None) -> None:
    """Print which stages would run, and what distillation and pre-training would cost."""
    if as_json:
        rows = [{"stage": v.stage.name, "current": v.current, "reason": v.reason} for v in verdicts]
        facts: dict[str, Any] = {"stages": rows}
        if cost:
            facts["cost"] = cost
        print_json(facts)
        return
    table = narrow_table(Column("stage", no_wrap=True), "", Column("why", overflow="fold"))
    for verdict in verdicts:
        mark = "[green]current[/]" if verdict.current else "[yellow]to run[/]"
        table.add_row(verdict.stage.name, mark, verdict.reason)
    console.print(table)
    if cost:
        say("\nEstimated cost on this machine, of a run from its beginning:")
        result(cost, False, "cost")
