"""What the facts of a result are called where people read them, and their units: `data/words.yaml`."""

from collections.abc import Callable
from functools import cache
from typing import Any

from lepta.core.shipped import shipped_data
from lepta.core.tables import beside_original, counted, duration

QUOTED = 8  # texts of a list that are shown; the manifest has all of them
SIDES = ("target", "source")  # texts of a run, in its order


def line(kind: str, name: str, value: Any) -> str:
    """A fact of a kind of result (`vocabulary`, `rows`, ...) as people read it; without words it has its own name."""
    if name in words_of(kind):
        return words_of(kind)[name].format(_Value(value))
    return f"{spelt(name)}: {short(value)}"


@cache
def words_of(kind: str) -> dict[str, str]:
    """Fact -> the line that is printed; none for a kind that has no words."""
    return shipped_data("words.yaml").get(kind, {})


class _Value:
    """A value that is written as a line asks for."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __format__(self, form: str) -> str:
        if form in FORMS:
            return FORMS[form](self._value)
        if form[0].isalpha():
            return counted(self._value, form)
        return format(self._value, form)


def short(value: Any) -> str:
    """Any value, with names of facts in words."""
    match value:
        case dict():
            return ", ".join(f"{spelt(key)} {short(part)}" for key, part in value.items())
        case list():
            return "; ".join(map(short, value))
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def spelt(name: str) -> str:
    """A fact that has no other name; names of tensors stay as they are."""
    return name if "." in name else name.replace("_", " ")


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{share:.0%}" if share in (0, 1) or 0.1 <= share <= 0.99 else f"{share:.1%}"


def _transfer(value: dict[str, Any]) -> str:
    parts = [f"{value['exact']:,} copied"]
    if value["mixed"]:
        mean, most = value["mean_fan_in"], value["max_fan_in"]
        parts.append(f"{value['mixed']:,} the mean of {mean:.1f} old rows on average ({most} at most)")
    if value["empty"]:
        parts.append(f"{value['empty']:,} of padding")
    return ", ".join(parts)


def _passes(value: list[float]) -> str:
    return ", ".join(f"{part:.2g} passes of the {side} text" for part, side in zip(value, SIDES, strict=False))


def _text_used(whole: bool) -> str:
    if whole:
        return "all but what is put aside (give more text to reach more new tokens)"
    return "a part, as many tokens as were asked for (more --tokens reach more new tokens)"


def _kept_rows(step: str) -> str:
    if not step.startswith("one matrix"):
        return step
    return f"{step} (the best of these: embeddings and head of this model are one matrix; --untie makes them two)"


def _bits(value: dict[str, float] | list[float]) -> str:
    named = value if isinstance(value, dict) else dict(zip(("before", "after"), value, strict=True))
    return ", ".join(f"{name} {bits:.3f}" for name, bits in named.items()) + " bits per byte"


def _measured(entry: dict[str, Any]) -> str:
    """What was measured at one step of a training."""
    said = [f"step {entry['step']:,} ({counted(entry['tokens'], 'token')})"]
    for side in SIDES:
        if (bits := entry.get(f"{side}_bits_per_byte")) is not None:
            said.append(f"{side} {bits:.3f} bits per byte")
    if (share := entry.get("new_token_share")) is not None:
        said.append(f"{percent(share)} of a few tokens that it wrote are new")
    return ", ".join(said)


def _sweep(value: dict[str, float | None]) -> str:
    scores = {rate: "diverged or forgot" if bits is None else f"{bits:.3f}" for rate, bits in value.items()}
    return ", ".join(f"{rate}: {score}" for rate, score in scores.items()) + " bits per byte"


def _donors(value: dict[str, dict[str, int]]) -> str:
    taken = (f"{part['taken']:,} of {part['candidates']:,} from {donor}" for donor, part in value.items())
    return ", ".join(taken)


def _kept_text(value: dict[str, Any]) -> str:
    said = f"{value['changed']:,} of {counted(value['documents'], 'document')} ({percent(value['share'])})"
    return ", first in ".join([said, *value["first"][:1]])


def _tasks(value: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{task} {part['value']:.3f} ({counted(part['samples'], 'sample')})" for task, part in value.items()
    )


FORMS: dict[str, Callable[[Any], str]] = {
    "": short,
    "percent": percent,
    "transfer": _transfer,
    "passes": _passes,
    "text_used": _text_used,
    "kept_rows": _kept_rows,
    "bits": _bits,
    "beside_original": lambda value: beside_original(*value),
    "curve": lambda value: "; ".join(map(_measured, value)),
    "sweep": _sweep,
    "donors": _donors,
    "kept_text": _kept_text,
    "tasks": _tasks,
    "quoted": lambda texts: ", ".join(map(repr, texts[:QUOTED])),
    "minutes": lambda minutes: duration(minutes / 60),
    "hours": duration,
}
