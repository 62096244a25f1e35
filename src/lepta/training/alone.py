"""Pipelines run by one process or several: the first runs the stages, the others join where a model is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepta.core.output import MANIFEST, partial_of
from lepta.core.stages import Pipeline, Stage
from lepta.text.locate import read_json
from lepta.training.distributed import announce, announced, processes


def run_together(
    pipeline: Pipeline,
    start: str | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a pipeline (see `Pipeline.run`); all processes come here and leave when all is done."""
    if processes().is_main_process:
        pipeline.run(start, force, report)
        announce(None)
        return
    stages = {stage.name: stage for stage in pipeline.stages}
    while name := announced():
        stages[name].run(partial_of(pipeline.output / name))


def run_stages(output: Path, stages: list[Stage], force: bool) -> None:
    """Run the stages of a single command to folders below `output`; `force` starts over what was interrupted."""
    run_together(Pipeline(output, stages, announce, remember=False), force=force)


def facts_of(folder: Path) -> dict[str, Any]:
    """What a stage found."""
    return read_json(folder / MANIFEST)["facts"]
