"""Prompts of instruction sets, streamed, each once."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lepta.calibration.settings import CalibrateSettings
from lepta.core.errors import LeptaError
from lepta.inference.chat import Message
from lepta.training.conversations import read_conversations


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the user's last turn; its id is a hash of it."""

    id: str
    messages: tuple[Message, ...]


def read_prompts(sources: Sequence[str], limit: int | None, counts: Counter[str]) -> Iterator[Prompt]:
    """Stream the different prompts of files of conversations, without the answers that follow them; at most `limit`.

    `counts` gets `read`, `duplicate`, `no_question` and `prompts`.
    """
    seen: set[bytes] = set()
    for messages in read_conversations(sources):
        if limit is not None and counts["prompts"] >= limit:
            return
        counts["read"] += 1
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages or not messages[-1]["content"].strip():
            counts["no_question"] += 1
            continue
        digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=12)
        if digest.digest() in seen:
            counts["duplicate"] += 1
            continue
        seen.add(digest.digest())
        counts["prompts"] += 1
        yield Prompt(digest.hexdigest(), tuple(messages))


def check_asked(settings: CalibrateSettings, prompts: int, asked: int) -> None:
    """LeptaError if there are files of prompts, but of so many prompts none is left to be answered."""
    if settings.prompts and not asked:
        raise LeptaError(
            f"calibrate: {prompts} different prompts in {', '.join(settings.prompts)}, and the first {settings.shown} "
            "are put aside (`shown`), so none is left to be answered; give more prompts, or a smaller `shown`"
        )
