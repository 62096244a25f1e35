"""Which precision this machine multiplies matrices fastest in.

CPUs with instructions for bfloat16 (AVX512-BF16, AMX, some ARM) are two to four times as fast in it as in float32; on
others it is emulated, up to 200 times slower. Nothing but a product tells which.
"""

import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import console

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 1 << 18  # weights of a matrix; with less, a call costs about as much as its product, whatever the precision
SIDE = 2048  # larger matrices are as fast as a part of this size
FEW, MANY = 2, 256  # tokens: to see whether bfloat16 is emulated, and to choose
ROUNDS = 4
HOPELESS = 4.0  # times the seconds of float32 for a few tokens: no bfloat16 here, and many tokens would take long
GAIN = 1.2  # times the speed of float32, or the digits are worth more
MOST_SAID = 300  # characters of another library's message


def name_of(dtype: torch.dtype) -> str:
    """A precision as settings and manifests call it."""
    return str(dtype).removeprefix("torch.")


def low_dtype(model: Any) -> torch.dtype | None:
    """The 16-bit precision that a model has weights in; None if it has none."""
    return next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)


def autocast_of(model: Any) -> torch.autocast:
    """The context in which the Trainer calls a model: mixed precision, if its body is in 16 bits."""
    low = low_dtype(model)
    return torch.autocast(model.device.type, low, enabled=low is not None)


def fastest_on_cpu(config: Any) -> torch.dtype:
    """float32, or bfloat16 where this CPU is faster in it; matrices of the shape in the model's config tell."""
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None) or SIDE
    inner = getattr(text, "intermediate_size", None)
    return faster_on_cpu(width, inner if isinstance(inner, int) else 4 * width)


def config_of(folder: Path) -> Any:
    """The config of a model folder, as transformers reads it; LeptaError if it cannot."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a class of configs raises what it likes
        raise unloadable(folder, error) from error


def unloadable(where: Path, error: Exception) -> LeptaError:
    """What to say of a model that transformers cannot load."""
    reason = " ".join(str(error).split())[:MOST_SAID]
    if isinstance(error, ImportError):
        return LeptaError(
            f"{where}: transformers needs another package to load this model ({reason}); install it, or take the model "
            "as it was before it was quantised"
        )
    return LeptaError(f"{where}: transformers cannot load this model ({reason})")


def cpu_speeds() -> dict[str, float]:
    """GFLOP/s of one core of this CPU in float32 and in bfloat16, by the same product."""
    tokens, exact, fast = _timed(SIDE, SIDE)
    operations = 2 * tokens * SIDE * SIDE / 1e9
    return {"float32": operations / exact, "bfloat16": operations / fast}


@cache
def faster_on_cpu(width: int, inner: int) -> torch.dtype:
    """The same for one shape, once in a process: what is compared is then in one precision."""
    if width * inner < SMALL:
        return torch.float32
    # A line, no spinner: what is timed shares the processor with nothing.
    console.print("  timing a matrix product in float32 and bfloat16", highlight=False)
    _, exact, fast = _timed(min(width, SIDE), min(inner, SIDE))
    return torch.bfloat16 if fast * GAIN < exact else torch.float32


def _timed(width: int, inner: int) -> tuple[int, float, float]:
    """Tokens of a product, and its seconds in float32 and bfloat16: of many tokens, unless a few show it hopeless."""
    exact, fast = _seconds(FEW, width, inner)
    if fast > HOPELESS * exact:
        return FEW, exact, fast
    return MANY, *_seconds(MANY, width, inner)


@torch.inference_mode()
def _seconds(tokens: int, width: int, inner: int) -> tuple[float, float]:
    """Least processor time of a product in float32 and in bfloat16 on one core; they take turns, the first not counted.

    Whatever else runs on the machine makes a product slower, never faster; threads that wait for each other would show
    that and little else.
    """
    states, weight = torch.ones(tokens, width), torch.ones(inner, width)
    pairs = [(states.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    times: list[list[float]] = [[], []]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS + 1):
            for (left, right), of_dtype in zip(pairs, times, strict=True):
                started = time.thread_time()  # waiting for a core that other work has does not count
                torch.nn.functional.linear(left, right)
                of_dtype.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    exact, fast = times
    return min(exact[1:]), min(fast[1:])
