"""Darumeru inside a recipe: of finished models, and of a model while it trains."""

import tempfile
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Asking
from lepta.darumeru.log import UNFORESEEN, read_results
from lepta.darumeru.runner import run
from lepta.darumeru.settings import Benchmark
from lepta.darumeru.transformers_backend import TransformersBackend, opened_backend
from lepta.evaluation.evaluate import Model
from lepta.models.precision import autocast_of
from lepta.report.darumeru import write_run_page
from lepta.stages import CHECKPOINTS

ASKED = "darumeru"  # the runner's output, until it is whole


def ask(model: Model, settings: Benchmark, seed: int, folder: Path) -> dict[str, Any]:
    """Ask a model the benchmark: a base model with plain text, a variant by its chat template if it has one.

    `folder` gets `samples/`, `summary.json` and `report.html`; answers of an interrupted run, among its checkpoints,
    are not asked for again. `seed` is that of the intervals. Gives `model`, `shots`, `micro_avg` (or None) and
    `refused` (task -> why it does not count). LeptaError if samples failed for a reason that may pass, such as memory.
    """
    work = folder / CHECKPOINTS / ASKED
    asking = Asking(chat=False)
    if model.chat:
        asking = Asking(thinking=settings.budget)
    with opened_backend(model.folder, asking, work) as backend:
        shots = 0 if backend.chat else settings.shots
        summary = run(backend, settings.data, work, settings.tasks, shots, limit=settings.limit, seed=seed)
    for name, (_, records) in read_results(work).items():
        if failed := [record["error"] for record in records if UNFORESEEN in record]:
            raise LeptaError(
                f"darumeru of {model.name}: {len(failed)} samples of {name} failed, the first with {failed[0]}; "
                "run again to ask these only, or leave the task out of evaluate.darumeru.tasks"
            )
    write_run_page(work, model.name)
    for path in work.iterdir():
        path.rename(folder / path.name)
    refused = {name: reason for name, reason in summary.refused.items() if reason != "missing"}
    total = summary.micro_avg.value if summary.micro_avg else None
    return {"model": model.name, "shots": shots, "micro_avg": total, "refused": refused}


def scores_of(model: Any, tokenizer: Any, settings: Benchmark) -> dict[str, float]:
    """Ask a base model in memory, for example one that trains: plain text, answers are not kept.

    Gives `darumeru/TASK` -> score, and `darumeru/Micro-Avg` if all tasks are asked. LeptaError if a task could not be
    asked as a whole.
    """
    with tempfile.TemporaryDirectory(prefix="lepta-") as folder, autocast_of(model):
        backend = TransformersBackend(model, tokenizer, "in training", Asking(chat=False))
        summary = run(backend, settings.data, Path(folder), settings.tasks, settings.shots, limit=settings.limit)
    for name in settings.tasks or summary.refused:
        if name in summary.refused:
            raise LeptaError(f"pretrain.darumeru: {name}: {summary.refused[name]}; change tasks, limit or shots")
    scores = {f"darumeru/{name}": task.score.value for name, task in summary.tasks.items()}
    if summary.micro_avg:
        scores["darumeru/Micro-Avg"] = summary.micro_avg.value
    return scores
