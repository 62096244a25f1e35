"""Two models side by side: a judge says which answer is better, in both orders, so that a place wins nothing."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lepta.calibration.calibrate import Place, opened_writer
from lepta.calibration.prompts import Prompt, read_prompts
from lepta.calibration.settings import AnswerSettings
from lepta.calibration.writers import Form, Refusal, Sampling
from lepta.core.errors import LeptaError
from lepta.core.intervals import Share
from lepta.core.progress import progress
from lepta.core.shipped import shipped_data
from lepta.inference.chat import Message
from lepta.inference.thinking import split_thinking

BETTER = Form(("better",), (1, 2))
VERDICT = re.compile(r"(?i)\bbetter\b[\s\"'*:=_-]{1,8}([12])\b")
REPLY = 64  # tokens


@dataclass(frozen=True)
class Comparison:
    """How often the first model's answer is better.

    `first`, `second`: judged better in both orders; `undecided`: the order decided, or a verdict could not be read
    (`unreadable`). `share` counts undecided ones half. `agreement` is the share judged alike in both orders, of those
    whose verdicts could be read.
    """

    first: int
    second: int
    undecided: int
    unreadable: int
    share: Share
    agreement: Share | None
    rows: list[dict[str, Any]]


def read_verdict(reply: str) -> int | None:
    """1 or 2, as the judge says it; None if it says neither, or both."""
    found = set(VERDICT.findall(split_thinking(reply)[1]))
    return int(found.pop()) if len(found) == 1 else None


def compare_models(
    first: Place,
    second: Place,
    judge: Place,
    prompts: Sequence[str],
    settings: AnswerSettings | None = None,
    limit: int | None = None,
) -> Comparison:
    """Have two models answer the same prompts, greedily, and a judge say which answer is better.

    `prompts` are files of conversations; the last answer of each is left out. `limit` takes the first so many
    different ones. `settings` are those of the two models. LeptaError if a model cannot be read or refuses a prompt, or
    there is no prompt.
    """
    settings = settings or AnswerSettings()
    asked = list(read_prompts(prompts, limit, Counter[str]()))
    if not asked:
        raise LeptaError(f"{', '.join(prompts)}: no prompt in it")
    conversations = [list(prompt.messages) for prompt in asked]
    sampling = Sampling(settings.max_tokens, thinking=settings.budget)
    sides = [texts_of(place, conversations, sampling, settings) for place in (first, second)]
    shown = [*map(_case, asked, *sides), *map(_case, asked, *reversed(sides))]
    replies = texts_of(judge, shown, Sampling(REPLY), settings, BETTER)
    verdicts = list(map(read_verdict, replies))
    swapped = [verdict and 3 - verdict for verdict in verdicts[len(asked) :]]
    rows = []
    for prompt, mine, theirs, one, other in zip(asked, *sides, verdicts, swapped, strict=False):
        row = {"prompt": prompt.messages[-1]["content"], "first": mine, "second": theirs, "verdicts": [one, other]}
        rows.append(row)
    return _comparison(rows)


def _comparison(rows: list[dict[str, Any]]) -> Comparison:
    pairs = [tuple(row["verdicts"]) for row in rows]
    wins, losses = pairs.count((1, 1)), pairs.count((2, 2))
    read = [pair for pair in pairs if None not in pair]
    undecided = len(pairs) - wins - losses
    agreement = Share.of(wins + losses, len(read)) if read else None
    share = Share.of(wins + undecided / 2, len(pairs))
    return Comparison(wins, losses, undecided, len(pairs) - len(read), share, agreement, rows)


def texts_of(
    place: Place,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    settings: AnswerSettings,
    form: Form | None = None,
    description: str = "",
) -> list[str]:
    """What a model writes; a judge (`form`) that refuses leaves its reply empty, for any other it is a LeptaError."""
    texts: list[str] = []
    description = description or f"{place.model}: writing answers"
    with opened_writer(place, settings) as writer, progress(description, len(conversations)) as bar:
        for start in range(0, len(conversations), writer.at_once):
            for written in writer.write(conversations[start : start + writer.at_once], sampling, form):
                if not isinstance(written, Refusal):
                    texts.append(written[0].text)
                elif form:
                    texts.append("")
                else:
                    raise LeptaError(f"{place.model}: {written.reason}")
            bar.set(len(texts))
    return texts


def _case(prompt: Prompt, first: str, second: str) -> list[Message]:
    """What the judge is asked."""
    conversation = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)
    case = shipped_data("evaluation/pairwise.yaml")["case"].format(
        conversation=conversation, first=first, second=second
    )
    return [{"role": "user", "content": case.strip()}]
