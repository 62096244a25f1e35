"""Files of settings and facts, read one way: UTF-8, JSON and YAML, within limits, checked by pydantic models.

JSON is read by pydantic's parser: it refuses lone surrogates, more than 200 levels and integers of over 4,300
digits, each with its line, where the standard library accepts them or ends in an exception of another kind.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from lepta.core.errors import LeptaError, reason_of, said_of

# Bytes of a JSON file; reading it takes 35 times as many. The largest known tokenizer.json has 34 MB.
LARGEST = 1 << 26
BLOCK = 1 << 20  # bytes of a read
LARGEST_YAML = 1 << 20  # bytes; PyYAML reads about 100 KB a second
YAML_VALUES = 100_000  # in a file, aliases followed: a few lines of aliases to aliases can stand for billions

Model = TypeVar("Model", bound=BaseModel)


def expanded(place: str | Path) -> Path:
    """A path with its `~` replaced; one of a user that does not exist stays as it is."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


def is_there(place: str | Path) -> bool:
    """Whether a text from outside is a place that exists; one too long for a path is none."""
    try:
        return expanded(place).exists()
    except (OSError, ValueError):
        return False


def read_most(data: IO[bytes], largest: int) -> bytes:
    """What is left of a stream, and of one with more than `largest` bytes at least one more than that.

    A single read of the largest size would allocate as much, however short the stream is.
    """
    content = bytearray()
    while len(content) <= largest and (block := data.read(BLOCK)):
        content += block
    return bytes(content)


def read_bytes(file: Path, largest: int = LARGEST) -> bytes:
    """A whole file; LeptaError if it cannot be read or is larger than such a file can be."""
    try:
        with file.open("rb") as data:
            content = read_most(data, largest)
    except FileNotFoundError as error:
        raise LeptaError(f"{file}: no such file") from error
    except (OSError, ValueError) as error:
        raise LeptaError(f"{file}: cannot be read ({reason_of(error)})") from error
    if len(content) > largest:
        raise LeptaError(f"{file}: larger than {largest >> 20} MiB, which no such file is; download it again")
    return content


def read_utf8(file: Path) -> str:
    """A whole text file, such as a template."""
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LeptaError(f"{file}: byte {error.start} is not UTF-8; save it as UTF-8, or download it again") from error


def parse_json(data: str | bytes, where: object, remedy: str = "the file is damaged; download it again") -> Any:
    """A JSON value; LeptaError, which begins with `where` and ends with `remedy`, if it is none."""
    if len(data) > LARGEST:
        raise LeptaError(f"{where}: longer than {LARGEST >> 20} MiB, which no JSON here is; {remedy}")
    try:
        return from_json(data)
    except ValueError as error:
        reason = reason_of(error).replace(" at line 1 column ", " at column ")  # of a line, its number is in `where`
        raise LeptaError(f"{where}: not JSON ({reason}); {remedy}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; LeptaError names the file, and the line of a fault."""
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, dict):
        raise LeptaError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def conform(model: type[Model], value: Any, where: object, remedy: str) -> Model:
    """A value as a pydantic model; LeptaError names the first fields that are not as they should be."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise LeptaError(f"{where}: {'; '.join(map(_fault, error.errors()[:3]))}; {remedy}") from error


def _fault(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    said = fault["msg"].removeprefix("Value error, ")
    message = said[:1].lower() + said[1:]
    return said_of(place, message)


def read_yaml(file: Path) -> Any:
    """Read a YAML file; LeptaError names the file, and the line of a fault."""
    return parse_yaml(read_bytes(file, LARGEST_YAML), file)


def parse_yaml(data: str | bytes, where: object) -> Any:
    """A YAML value without tags of programs; LeptaError, which begins with `where`, if it is none."""
    try:
        value = yaml.load(data, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise LeptaError(f"{where}{line}: not YAML ({getattr(error, 'problem', None) or reason_of(error)})") from error
    except (ValueError, OverflowError, RecursionError, TypeError) as error:  # dates, numbers, depth
        raise LeptaError(f"{where}: not YAML ({reason_of(error)})") from error
    _refuse_endless(value, where)
    return value


class _Loader(yaml.SafeLoader):
    """The safe loader, for which a key that is there twice is an error: the first would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
            seen.add(name if isinstance(name, str) else id(key))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """Text with its UTF-16 pairs as characters, as in JSON, which is YAML too; half of a pair is an error."""
        try:
            return super().construct_scalar(node).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise yaml.constructor.ConstructorError(None, None, "half of a UTF-16 pair", node.start_mark) from error


def _refuse_endless(value: Any, where: object) -> None:
    """LeptaError for aliases that stand for themselves, or for more than a file of settings can hold."""
    left, number = [value], 0
    while left:
        part = left.pop()
        number += 1
        if number > YAML_VALUES:
            raise LeptaError(f"{where}: more than {YAML_VALUES:,} values, aliases followed; write it without aliases")
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part
