"""Writes the benchmark as a task folder of lm-evaluation-harness (see `lepta.darumeru.lm_eval_tasks`).

FOLDER/TASK.yaml           name, settings and hashes of a task
FOLDER/COLUMN.yaml         group of a column's tasks; its score is their plain mean
FOLDER/darumeru.yaml       group of all tasks; its score is Micro-Avg
FOLDER/data/DATASET/       rows and examples
FOLDER/tokenizer/          of the model that is measured, for the tasks that count tokens
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lepta.core.errors import LeptaError
from lepta.core.output import publishing
from lepta.darumeru.aggregate import conditions_of
from lepta.darumeru.data import Dataset, load_dataset, write_dataset
from lepta.darumeru.metrics import COLUMN_SIZES
from lepta.darumeru.tasks import Definition, Task, named_tasks
from lepta.stages import write_manifest
from lepta.vocabulary.source import open_tokenizer

DATA, TOKENIZER = "data", "tokenizer"
PREFIX = "darumeru"
CLASS = "lepta.darumeru.lm_eval_tasks.DarumeruTask"


class _Function(str):
    """Name of something in Python, as lm-evaluation-harness marks it in YAML."""


class _Dumper(yaml.SafeDumper):
    """Of its own, so that the representer below is nobody else's."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", name))


def counts_tokens(task: Task) -> bool:
    """Whether a task's score needs the tokenizer of the model: copies, and means per token."""
    return task.method == "loglikelihood" or task.name.startswith("copy")


def export(
    output: Path,
    source: str = "builtin",
    shots: int = 0,
    definition: Definition = "current",
    tokenizer: str | Path | None = None,
    names: Sequence[str] = (),
    force: bool = False,
) -> list[str]:
    """Write the folder atomically; the names of tasks that were left out because they need a tokenizer.

    `source` is that of the data, `tokenizer` any source of the model that is to be measured. Examples (`shots`) are not
    left out where they do not fit, since no model is known here.
    """
    wanted = named_tasks(names, definition)
    chosen = [task for task in wanted if tokenizer is not None or not counts_tokens(task)]
    if not chosen:
        raise LeptaError(f"{', '.join(task.name for task in wanted)}: counts tokens; give --tokenizer MODEL")
    with publishing(output, force) as folder:
        if tokenizer is not None:
            (folder / TOKENIZER).mkdir()
            open_tokenizer(tokenizer).save(folder / TOKENIZER)
        loaded: dict[str, Dataset] = {}
        for task in chosen:
            if task.dataset not in loaded:
                loaded[task.dataset] = load_dataset(task.dataset, source)
                write_dataset(folder / DATA / task.dataset, loaded[task.dataset], {"format": source})
            _write(folder / f"{task.name}.yaml", _task(task, loaded[task.dataset], shots))
        _write_groups(folder, chosen, whole=len(chosen) == sum(COLUMN_SIZES.values()))
        settings = {"shots": shots, "definition": definition, "tasks": [task.name for task in chosen]}
        write_manifest("darumeru export", folder, {}, settings, {}, {"data": source, "tokenizer": str(tokenizer or "")})
    return [task.name for task in wanted if task not in chosen]


def _task(task: Task, dataset: Dataset, shots: int) -> dict[str, Any]:
    conditions = conditions_of(task, dataset, shots)
    facts = {"name": task.name, "definition": task.definition, "shots": shots, **conditions}
    return {"task": f"{PREFIX}_{task.name}", "class": _Function(CLASS), "metadata": facts}


def check(folder: Path, task: Task, dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """An error if another version of the task wrote the folder, or its data was changed since."""
    conditions = conditions_of(task, dataset, facts["shots"])
    unlike = [name for name, value in conditions.items() if facts.get(name) != value]
    if unlike:
        raise LeptaError(
            f"{folder}, {task.name}: {', '.join(unlike)} changed since the folder was written; write it anew with "
            "`lepta darumeru export`"
        )


def _write_groups(folder: Path, chosen: Sequence[Task], whole: bool) -> None:
    """Columns, and all of them; a score only where nothing is missing."""
    columns = []
    for column, size in COLUMN_SIZES.items():
        names = [f"{PREFIX}_{task.name}" for task in chosen if task.column == column]
        if names:
            name = f"{PREFIX}_{column.removeprefix('Daru').replace(' ', '_').lower()}"
            _write(folder / f"{name}.yaml", _group(name, column, names, len(names) == size))
            columns.append(name)
    title = "Darumeru (Micro-Avg)" if whole else "Darumeru"
    _write(folder / f"{PREFIX}.yaml", _group(PREFIX, title, columns, whole))


def _group(name: str, title: str, members: Sequence[str], whole: bool) -> dict[str, Any]:
    group: dict[str, Any] = {"group": name, "group_alias": title, "task": list(members)}
    if whole:
        # Not weighted by size, since Micro-Avg is the plain mean of tasks.
        group["aggregate_metric_list"] = [{"metric": "score", "aggregation": "mean", "weight_by_size": False}]
    return group


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")
