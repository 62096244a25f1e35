"""Hostile input out of valid files: values of the wrong kind or size at any place of a JSON value, damage to bytes."""

import copy
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from lepta.core.errors import LeptaError

SECONDS = 60
MEMORY = 4 << 30
LONGEST_LINE = 2_000
NUMBERS: list[Any] = [-1, 0, 1, 7, 10**6, 10**9, 2**31, 2**32, 2**63, 10**12, 10**4000, -0.5, 0.5, 1e30, 1e308]
WORDS = ["", "7", "-1", "x" * 5000, "../../etc/passwd", "/", "\x1b[2J", "\0", "é", "▁", "Ġ", "null", "((((", "(a+)+$"]
DEEP: list[Any] = []
for _ in range(210):  # more levels than any reader takes
    DEEP = [DEEP]
NUMBERS += [float("nan"), float("inf")]
WORDS += ["\ud800", "~nobody-of-this-name/x", "x" * 300 + "/../x"]
HOSTILE: list[Any] = [
    None,
    True,
    False,
    *NUMBERS,
    *WORDS,
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["a", 1],
    {"type": "x"},
    DEEP,
]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three changes: a part replaced, left out, doubled, wrapped, or put at another place."""
    result = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = result
        key: Any = ""
        while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 7)):
            holder = holder[key]
            key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        _change(draw, holder, key)
    return result.get("", {})


def _change(draw: st.DrawFn, holder: Any, key: Any) -> None:
    match draw(st.integers(0, 6)):
        case 0 if key != "":
            del holder[key]
        case 1:
            holder[key] = [holder[key]]
        case 2 if isinstance(holder[key], list) and holder[key]:
            holder[key] = [*holder[key], draw(st.sampled_from(holder[key]))]
        case 3 if isinstance(holder[key], dict):
            holder[key] = holder[key] | {draw(st.sampled_from(WORDS)): _hostile(draw)}
        case 4 if isinstance(holder[key], int):
            holder[key] += draw(st.sampled_from([-1, 1, 100, -1000]))
        case _:
            holder[key] = _hostile(draw)


def _hostile(draw: st.DrawFn) -> Any:
    """One of `HOSTILE`; a copy, as a later change of the same value is made in place."""
    return copy.deepcopy(draw(st.sampled_from(HOSTILE)))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one to three changes: some replaced, taken out or put in, the end cut off."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(result)))
        length = draw(st.sampled_from([1, 1, 4, 8, 100]))
        match draw(st.integers(0, 3)):
            case 0:
                del result[place : place + length]
            case 1:
                result[place:place] = draw(st.binary(min_size=1, max_size=length))
            case 2:
                result[place : place + length] = draw(st.sampled_from([b"\xff", b"\0", b"\x7f"])) * length
            case _:
                del result[place:]
    return bytes(result)


def accepted(read: Callable[[], Any], name: str) -> bool:
    """Whether a reader takes an input. It may refuse it in one line that says `name`, and do nothing else."""
    try:
        with limits():
            read()
    except LeptaError as error:
        message = str(error)
        assert name in message, message
        assert len(message) < LONGEST_LINE, message
        return False
    return True


@contextmanager
def limits() -> Iterator[None]:
    """Fail where a block takes longer than `SECONDS` or more memory than `MEMORY`."""

    def late(*_: Any) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing: other work on the machine does not count
    signal.alarm(10 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < MEMORY, f"{grown / 1e9:.1f} GB"
