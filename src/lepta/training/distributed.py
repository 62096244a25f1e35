"""Several processes as one run: who they are, and who of them writes."""

from datetime import timedelta
from typing import cast

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env

# The others wait while the first process tokenises a corpus or runs another stage; what hangs is stopped by people.
PATIENCE = timedelta(days=2)


def processes() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` started; one if the command was started alone."""
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if state.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # accelerate 1.15 shards on accelerators only, and silently not on CPUs, though torch can (gloo)
        state.distributed_type = DistributedType.MULTI_GPU
    return cast(PartialState, state)


def announce(stage: str | None) -> None:
    """Tell the other processes which stage they are to take part in now; None: there is none any more."""
    if processes().num_processes > 1:
        broadcast_object_list([stage])


def announced() -> str | None:
    """Wait for what the first process announces."""
    box: list[str | None] = [None]
    broadcast_object_list(box)
    return box[0]
