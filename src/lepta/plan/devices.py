"""Accelerators by name, and how fast this machine is."""

import os
import time
from dataclasses import dataclass
from functools import cache

from lepta.core.errors import LeptaError, suggestion
from lepta.core.machine import load_above_cores, usable_cores
from lepta.core.shipped import shipped_data
from lepta.core.tables import counted

MFU = 0.4  # share of peak that well-fed training of 7B models reaches; reports of large runs lie between 0.3 and 0.5
# Share of a large float32 product's speed that training reaches on a CPU. The demo's 22,900 GFLOP took 268 s on 2
# cores, loading and held-out measurements included, where the product ran at 145 GFLOP/s.
CPU_SHARE = 0.6
# The same of a bfloat16 product, where that is faster: 2.6 times its speed makes training 1.7 times as fast.
LOW_CPU_SHARE = 0.4
SPARE = 0.1  # of a device's memory that must stay free: what is needed is an estimate
SIDES, REPEATS = {"cpu": 2048, "cuda": 8192}, 4  # of the product that is timed


@dataclass(frozen=True)
class Device:
    """Something that trains."""

    name: str
    tflops: float  # peak of dense bfloat16 products; of this machine's CPU, measured with float32
    memory: float  # GiB
    share: float | None = None  # of the peak that training reaches; None where it is for the user to say
    busy: str = ""  # with what else, when its speed was measured

    @property
    def usable(self) -> float:
        """GiB that an estimate may take."""
        return (1 - SPARE) * self.memory

    @property
    def gigaflops(self) -> dict[str, int]:
        """GFLOP/s of one matrix product and of training here, for `--dry-run`."""
        reached = self.tflops * (self.share or MFU)
        return {"gigaflops_here": round(self.tflops * 1e3), "gigaflops_in_training": round(reached * 1e3)}

    def hours(self, operations: float, number: int = 1, mfu: float = MFU) -> float:
        """Hours that so many of them take; `mfu` is the share of the peak where that is for the user to say."""
        return operations / (self.tflops * 1e12 * (self.share or mfu) * number) / 3600


@cache
def known_devices() -> dict[str, Device]:
    """Devices of data/plan/devices.yaml by name."""
    return {name: Device(name, **row) for name, row in shipped_data("plan/devices.yaml").items()}


def devices_named(names: list[str] | None) -> list[Device]:
    """Find devices by name, whatever its case and hyphens; all of them if no name is given."""
    known = {_plain(name): device for name, device in known_devices().items()}
    found = []
    for name in names or ():
        device = known.get(_plain(name))
        if device is None:
            hint = suggestion(name.upper(), known_devices(), f"known are {', '.join(known_devices())}")
            raise LeptaError(f"--gpu {name}: not in the table; {hint}")
        found.append(device)
    return found or list(known.values())


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def this_machine() -> Device:
    """The GPU or CPU of this machine, its speed measured by one matrix product (about a second)."""
    import torch

    from lepta.models.precision import faster_on_cpu

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, _speed("cuda", torch.bfloat16), properties.total_memory / 2**30)
    dtype = faster_on_cpu(SIDES["cpu"], SIDES["cpu"])
    share = CPU_SHARE if dtype == torch.float32 else LOW_CPU_SHARE
    name = f"this CPU ({counted(usable_cores(), 'core')})"
    busy = load_above_cores()
    if busy and "OMP_NUM_THREADS" not in os.environ:
        busy += ", try OMP_NUM_THREADS=1"
    return Device(name, _speed("cpu", dtype), memory_of_machine(), share, busy)


def memory_of_machine() -> float:
    """GiB of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _speed(device: str, dtype: object) -> float:
    """TFLOP/s of a square product, the fastest of a few."""
    import torch

    side = SIDES[device]
    matrix = torch.rand(side, side, device=device).to(dtype)  # type: ignore[call-overload]
    float((matrix @ matrix)[0, 0])  # warm-up
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for a GPU to finish
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds) / 1e12  # the fastest: other work on the machine slows the others
