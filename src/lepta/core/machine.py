"""What of this machine a process may use."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: a container, a batch system or taskset may leave it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
