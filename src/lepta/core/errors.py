"""The one error that users are meant to see, and how what libraries raise becomes one.

Try: lepta init --model nowhere --tokenizer nowhere --output out
"""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Control characters, among them what begins an escape sequence; marks that turn a line around; halves of UTF-16 pairs.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_REASON = 300
LONGEST_MESSAGE = 1500  # characters: a message may show a value from a file, and values may have millions
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# How safetensors and torch.save report that; the latter loses the number.
FULL_WORDS = (
    *(f"(os error {number})" for number in FULL),
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
)


class LeptaError(Exception):
    """Something the user can mend: says where it is, what was expected and what to do.

    The command line prints the message on one line and exits with code 2; the traceback stays behind `--debug`. Of a
    message that is too long to be read the middle is left out, as its beginning says where, and its end what to do.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"
        super().__init__(message)


@contextmanager
def explained(where: object, fault: str, remedy: str) -> Iterator[None]:
    """Make whatever is raised in the block one LeptaError: "where: fault (what was raised); remedy".

    For calls into libraries with data from outside: each has errors of its own, and those in Rust also panic, which is
    a BaseException that no module exports.
    """
    try:
        yield
    except (LeptaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except OSError as error:
        if error.errno in FULL:  # the disk's fault, not the input's
            raise
        raise LeptaError(f"{where}: {fault} ({reason_of(error)}); {remedy}") from error
    except BaseException as error:
        raise LeptaError(f"{where}: {fault} ({reason_of(error)}); {remedy}") from error


@contextmanager
def optional(where: object, extra: str) -> Iterator[None]:
    """For imports of what only an extra of LEPTA installs: LeptaError with the command if a package is missing."""
    try:
        yield
    except ImportError as error:
        raise LeptaError(f"{where}: the package {error.name} is missing; pip install 'lepta[{extra}]'") from error


def disk_is_full(error: BaseException) -> bool:
    """Whether a library says, in an exception that is no OSError, that a file could not be written."""
    return any(words in str(error) for words in FULL_WORDS)


def reason_of(error: BaseException) -> str:
    """What an exception says, in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]}..."


def said_of(place: str | None, message: str) -> str:
    """A message with the place that it is about, if it is about one."""
    return f"{place}: {message}" if place else message


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """The known name that an unknown one is most like, as a question; else the other words."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else otherwise


def printable(text: str) -> str:
    r"""Text from files as a terminal may show it: "\x1b" for the escape character, and so on; line breaks stay."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
