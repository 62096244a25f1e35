"""What of this machine a process may use."""

import os
from importlib import metadata

from lepta.core.tables import counted

OWN_JITTER = 0.5  # load that the threads of one program, one for each core, may show beyond the cores


def usable_cores() -> int:
    """Cores that this process may run on: a container, a batch system or taskset may leave it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def launched_processes() -> int:
    """Processes that `torchrun` or `accelerate launch` started as one run; this asks no library."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def versions_of(*libraries: str) -> dict[str, str]:
    """The versions of libraries that are installed."""
    return dict(zip(libraries, map(metadata.version, libraries), strict=True))


def load_above_cores() -> str:
    """How busy this machine was in the last minute, if other programs slow what is timed now; empty if they do not."""
    load, cores = os.getloadavg()[0], usable_cores()
    if load <= cores + OWN_JITTER:
        return ""
    return f"load {load:.1f} on {counted(cores, 'core')}"
