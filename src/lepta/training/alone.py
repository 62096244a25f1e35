"""Stages of a single command, run as those of a recipe are: they go on, and all processes take part."""

from pathlib import Path
from typing import Any

from lepta.core.output import MANIFEST, partial_of
from lepta.core.stages import Pipeline, Stage
from lepta.text.locate import read_json
from lepta.training.distributed import announce, announced, processes


def run_stages(output: Path, stages: list[Stage], force: bool) -> None:
    """Run stages to folders below `output`; all processes come here and leave when all is done.

    Parameters
    ----------
    output : Path
    stages : list of Stage
    force : bool
        Start over where another run was interrupted.
    """
    if processes().is_main_process:
        Pipeline(output, stages, announce, remember=False).run(force=force)
        announce(None)
        return
    by_name = {stage.name: stage for stage in stages}
    while name := announced():
        by_name[name].run(partial_of(output / name))


def facts_of(folder: Path) -> dict[str, Any]:
    """What a stage found."""
    return read_json(folder / MANIFEST)["facts"]
