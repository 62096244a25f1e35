"""`lepta darumeru`: the benchmark."""

from pathlib import Path
from typing import Annotated

import typer

from lepta.commands.common import AsJson, Force, result

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
    from lepta.darumeru.data import write_dataset
    from lepta.darumeru.importers import import_dataset
    from lepta.pipeline import publishing, refuse_existing

    place = output / task
    refuse_existing(place, force)
    dataset, facts = import_dataset(format_name, files, task, shots_file or [], shots, rows, seed)
    with publishing(place, force) as folder:
        write_dataset(folder, dataset, facts)
    shown = {"output": str(place), "test": len(dataset.test), "shots": len(dataset.shots)}
    extra = {key: facts[key] for key in ("left_out", "note") if facts.get(key)}
    result({**shown, **extra, "sha256": dataset.sha256}, as_json)
