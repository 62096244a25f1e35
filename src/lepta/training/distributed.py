"""Several processes as one run: who they are, who of them writes, and stages in which all take part."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env

from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST, partial_of, read_manifest, write_json
from lepta.stages import Pipeline, Stage

# The others wait while the first process tokenises a corpus or runs another stage. A run that hangs is stopped by hand.
TIMEOUT = timedelta(days=2)
CURVE = "training_curve.json"


def processes() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` started; one if the command was started alone."""
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    if state.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # accelerate 1.15 shards on accelerators only, and silently not on CPUs, though torch can (gloo)
        state.distributed_type = DistributedType.MULTI_GPU
    return cast(PartialState, state)


def announce(stage: str | None) -> None:
    """Tell the other processes which stage they take part in now; None: no stage is left."""
    if processes().num_processes > 1:
        broadcast_object_list([stage])


def run_together(
    pipeline: Pipeline, start: str | None = None, force: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Run a pipeline that has `announce`; the first process runs all stages, the others those that are `together`."""
    if processes().is_main_process:
        pipeline.run(start, force, report)
        announce(None)
        return
    stages = {stage.name: stage for stage in pipeline.stages}
    box: list[str | None] = [None]
    broadcast_object_list(box)
    while name := box[0]:
        stages[name].run(partial_of(pipeline.output / name))
        broadcast_object_list(box)


def run_stages(output: Path, stages: list[Stage], force: bool) -> None:
    """Run the stages of a single command to folders below `output`; `force` starts over what was interrupted."""
    run_together(Pipeline(output, stages, announce, remember=False), force=force)


def check_steps(output: Path, stages: list[Stage]) -> None:
    """LeptaError if a command with a folder for each step would write over what it reads, or what another has made."""
    if output.exists() and not output.is_dir():
        raise LeptaError(f"{output}: is a file; --output is a folder that gets one for each step")
    to_be_made = {(output / stage.name).resolve() for stage in stages}
    for stage in stages:
        folder = output / stage.name
        for label, path in stage.inputs.items():
            if path.resolve() in {output.resolve(), *to_be_made}:
                raise LeptaError(f"{path}: is read ({label}), and would be written over; give another --output")
        if folder.exists() and not _made_by(stage, folder):
            raise LeptaError(f"{folder}: exists and is none of this command's; give another --output")
        to_be_made.discard(folder.resolve())


def _made_by(stage: Stage, folder: Path) -> bool:
    """Whether a stage of this name and with these inputs made a folder."""
    if not (folder / MANIFEST).is_file():
        return False
    key = read_manifest(folder)["key"]
    return bool(key["stage"] == stage.name and stage.inputs.keys() <= key["inputs"].keys())


def with_curve(folder: Path, trained: tuple[dict[str, Any], list[Any]]) -> dict[str, Any]:
    """Write the curve of a training beside its model, and give its facts."""
    facts, curve = trained
    if processes().is_main_process:
        write_json(folder / CURVE, {"curve": curve})
    return facts
