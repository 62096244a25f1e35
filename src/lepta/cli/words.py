"""What the facts of a result are called where people read them, and their units; `--json` has the facts themselves."""

from collections.abc import Callable, Mapping
from typing import Any

from lepta.core.tables import duration

Words = Mapping[str, tuple[str, Callable[[Any], str]]]  # fact -> its name for people, and its value as text

SIDES = ("target", "source")  # texts of a run, in its order


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


def counted(number: int, one: str) -> str:
    """A number and what it counts: 1 token, 2 tokens."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{share:.0%}" if share in (0, 1) or 0.1 <= share <= 0.99 else f"{share:.1%}"


def _of(one: str) -> Callable[[Any], str]:
    return lambda number: counted(number, one)


def _transfer(value: dict[str, Any]) -> str:
    parts = [f"{value['exact']:,} copied"]
    if value["mixed"]:
        mean, most = value["mean_fan_in"], value["max_fan_in"]
        parts.append(f"{value['mixed']:,} the mean of {mean:.1f} old rows on average ({most} at most)")
    if value["empty"]:
        parts.append(f"{value['empty']:,} of padding")
    return ", ".join(parts)


def _passes(value: list[float]) -> str:
    return ", ".join(f"{part:.2f} passes of the {side} text" for part, side in zip(value, SIDES, strict=False))


def _text_used(whole: bool) -> str:
    if whole:
        return "all but what is put aside (give more text to reach more new tokens)"
    return "a part, as much as --tokens pays for (raise --tokens to reach more new tokens)"


def _kept_rows(step: str) -> str:
    if not step.startswith("one matrix"):
        return step
    return f"{step} (the best of these: embeddings and head of this model are one matrix; --untie makes them two)"


def _bits(value: dict[str, float] | list[float]) -> str:
    named = value if isinstance(value, dict) else dict(zip(("before", "after"), value, strict=True))
    return ", ".join(f"{name} {bits:.3f}" for name, bits in named.items()) + " bits per byte"


def _curve(value: list[dict[str, Any]]) -> str:
    return "; ".join(map(_measured, value))


def _measured(entry: dict[str, Any]) -> str:
    """What was measured at one step of a training."""
    said = [f"step {entry['step']:,} ({counted(entry['tokens'], 'token')})"]
    for side in SIDES:
        if (bits := entry.get(f"{side}_bits_per_byte")) is not None:
            said.append(f"{side} {bits:.3f} bits per byte")
    if (share := entry.get("new_token_share")) is not None:
        said.append(f"{percent(share)} of the tokens that the model writes are new")
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


VOCABULARY: Words = {
    "old_size": ("original vocabulary", _of("token")),
    "new_size": ("new vocabulary", _of("token")),
    "kept": ("kept of the original", _of("token")),
    "added": ("added", _of("token")),
    "cost_of_text": ("computation for the same text", lambda share: f"{percent(share)} of the original's"),
    "donors": ("tokens of donors taken", _donors),
    "most_changed": ("text to keep, split otherwise at most", lambda share: f"{percent(share)} of the documents"),
    "kept_text": ("text to keep, split otherwise", _kept_text),
}
ROWS: Words = {
    "old_rows": ("rows before", short),
    "new_rows": ("rows now", short),
    "rows": ("rows", short),
    "rows_carried": ("rows in the patch", short),
    "transfer": ("rows of the result", _transfer),
}
TRAINED: Words = {
    "tokens": ("trained on", _of("token")),
    "source_tokens": ("trained on, of the source text", _of("token")),
    "full": ("blocks filled", percent),
    "passes": ("text used", _passes),
    "body_dtype": ("precision of the body", str),
    "auto_learning_rate": ("learning rate chosen by auto", short),
    "rows_rms": ("size of a row's numbers (root mean square)", short),
    "warmup_steps": ("warm-up", _of("step")),
    "kept_step": ("weights kept", lambda step: f"those of step {step:,}"),
    "unreached": ("not changed by LoRA", short),
    "sweep": ("learning rates tried", _sweep),
    "held_out": ("held-out text", _curve),
    "learned_rows": ("rows that learned", short),
    "new_rows": ("rows of new tokens", short),
    "layer": ("layer whose hidden states are learned from", short),
    "passages": ("learned from", _of("passage")),
    "whole_text": ("text used", _text_used),
    "tokens_below_occurrences": ("in these passages fewer than --occurrences times", _of("new token")),
    "tokens_absent": ("of which in none of these passages", _of("new token")),
    "absent": ("the first of these", lambda texts: ", ".join(map(repr, texts))),
    "held_out_bits_per_byte": ("passages put aside", _bits),
    "source_bits_per_byte": ("source passages put aside", _bits),
    "kept": ("rows kept", _kept_rows),
    "rows": ("rows of training, over all epochs", short),
    "duplicate": ("left out, there twice", _of("conversation")),
    "refused": ("left out, refused by the chat template", _of("conversation")),
    "too_long": ("left out, longer than --max-length", _of("conversation")),
    "answer_tokens": ("of answers", _of("token")),
    "merged_error": ("error of the written weights", lambda error: f"{error:.2g} of the logits"),
}


def _minutes(value: float) -> str:
    return f"about {duration(value / 60)}"


def _about(number: int) -> str:
    return f"about {number:,}"


COST: Words = {
    "weights": ("weights of the model", short),
    "gigaflops_here": ("speed now, by one matrix product", lambda speed: f"{speed:,} GFLOP/s"),
    "memory_gib": ("memory, about", lambda size: f"{size:g} GiB"),
    "gigaflops_in_training": ("of which training reaches", lambda speed: f"{speed:,} GFLOP/s"),
    "steps": ("steps", _about),
    "tokens": ("tokens", _about),
    "gigaflop": ("operations", lambda number: f"{number:,} GFLOP"),
    "minutes": ("time", _minutes),
    "distillation_tokens": ("distillation tokens", _about),
    "distillation_gigaflop": ("distillation operations", lambda number: f"{number:,} GFLOP"),
    "distillation_minutes": ("distillation time", _minutes),
}
CALIBRATION_COST: Words = {
    "prompts": ("prompts read", short),
    "shown": ("put aside for the report", _of("prompt")),
    "duplicate": ("left out, there twice", _of("prompt")),
    "answers": ("to be written at most", _of("answer")),
    "answer_tokens_at_most": ("of answers, at most", _of("token")),
    "grades": ("to be given", _of("grade")),
    "copies": ("texts to repeat", short),
    "steps_at_most": ("training, at most", _of("step")),
    "training_tokens_at_most": ("trained on, at most", _of("token")),
    "hours_of_answers_at_full_speed": ("time for the answers, at least", duration),
    "hours_of_training_at_full_speed": ("time for training, at least", duration),
}
CALIBRATION_PARTS = {  # of the result: stages, then what was measured
    "answers": "Answers of the original",
    "grades": "Grades",
    "examples": "Examples",
    "model": "Training",
    "propagated": "Measured before",
    "calibrated": "Measured after",
}
CALIBRATED: Words = {
    **TRAINED,
    "prompts": ("prompts read", short),
    "shown": ("put aside for the report", _of("prompt")),
    "duplicate": ("left out, there twice", short),
    "answered": ("with an answer to learn from", _of("prompt")),
    "refused": ("refused by the chat template", short),
    "empty": ("with empty answers alone", _of("prompt")),
    "unfinished": ("with answers cut short alone", _of("prompt")),
    "low_grades": ("left out, low grade", _of("answer")),
    "unreadable_grades": ("left out, grade not readable", _of("answer")),
    "kept": ("kept", _of("answer")),
    "drawn": ("texts drawn to repeat", short),
    "known": ("of these left out, in other text", short),
    "copied": ("texts to repeat", short),
    "examples": ("learned from", _of("example")),
    "bits_per_byte": ("held-out text", _bits),
    "tasks": ("Darumeru", _tasks),
    "new_token_share": ("new tokens in its answers", percent),
}
DATASET: Words = {
    "test": ("questions", short),
    "shots": ("solved examples", short),
    "left_out": ("left out", short),
}
