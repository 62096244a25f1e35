"""A folder of Darumeru datasets from public evaluation sets, for runs without the network. One command:

    python benchmarks/darumeru_data.py --eval DIR --output FOLDER

DIR holds the sets as JSONL.gz files with the fields that `lepta darumeru import` reads (docs/darumeru.md). Datasets
that it has no file for are filled from the few items that come with the package; the table says which.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lepta.core.output import publishing
from lepta.darumeru.data import load_dataset, write_dataset
from lepta.darumeru.importers import import_dataset
from lepta.darumeru.rows import DATASETS


@dataclass(frozen=True)
class Recipe:
    """Files of one dataset, and their format."""

    format: str
    files: tuple[str, ...]
    shots: tuple[str, ...] = ()


RECIPES = {
    "rucola": Recipe("rucola", ("rucola_in_domain_dev", "rucola_out_of_domain_dev"), ("rucola_in_domain_train",)),
    "ruworldtree": Recipe("choice", ("ruworldtree_crowd_ru",)),
    "parus": Recipe("parus", ("parus_crowd_ru",)),
    "rwsd": Recipe("rwsd", ("rwsd_crowd_ru",)),
    "rcb": Recipe("nli", ("lidirus_nli_crowd_ru",)),
    "use": Recipe("use", ("use_choice_ru", "use_text_ru")),
    "multiq": Recipe("squad", ("xquad_ru",)),
    "mmlu_en": Recipe("mmlu", ("mmlu_redux_en",)),
    "gazeta": Recipe("summaries", ("summ_docs_ru",)),
    "copy_ru": Recipe("text", ("xquad_ru",)),
    "copy_en": Recipe("text", ("xquad_en",)),
}


def build(source: Path, output: Path, force: bool) -> list[dict[str, Any]]:
    """Write all datasets; one row of the table for each."""
    table = []
    with publishing(output, force) as folder:
        for name in DATASETS:
            recipe = RECIPES.get(name)
            files, shots = ([source / f"{file}.jsonl.gz" for file in part] for part in _parts(recipe))
            if recipe and all(file.is_file() for file in [*files, *shots]):
                dataset, facts = import_dataset(recipe.format, files, name, shots)
                origin = ", ".join(recipe.files)
            else:
                dataset, facts, origin = load_dataset(name), {"format": "builtin"}, "built-in items"
            write_dataset(folder / name, dataset, facts)
            left_out = sum(facts.get("left_out", {}).values())
            row = {"dataset": name, "from": origin, "test": len(dataset.test), "shots": len(dataset.shots)}
            table.append(row | {"left out": left_out, "note": facts.get("note", "")})
    return table


def _parts(recipe: Recipe | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (recipe.files, recipe.shots) if recipe else ((), ())


def main() -> None:
    """Parse the command line, write the folder, print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--eval", type=Path, required=True, help="Folder of evaluation sets.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to write.")
    parser.add_argument("--force", action="store_true", help="Replace the folder if it exists.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    arguments = parser.parse_args()
    rows = build(arguments.eval, arguments.output, arguments.force)
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
