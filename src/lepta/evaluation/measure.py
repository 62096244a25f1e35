"""Bits per byte of any model, of text and of answers: what `lepta measure` prints."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import track
from lepta.inference.bits import WINDOW, read_windows, score_text
from lepta.inference.chat import Message
from lepta.models.load import load_model, load_tokenizer, opened
from lepta.models.loss import IGNORED, patch_chunked_loss
from lepta.models.precision import DTYPES, name_of
from lepta.training.conversations import conversation_example, read_conversations

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class ModelMeasure:
    """How well a model predicts a text, in how many tokens, and how long that took without loading.

    `window` are the characters that the model saw at once, `dtype` is the precision of its products.
    """

    model: str
    bits_per_byte: float
    characters_per_token: float
    characters: int
    utf8_bytes: int
    tokens: int
    window: int
    dtype: str
    seconds: float
    answers_bits_per_byte: float | None = None  # if conversations are given


def measure_model(
    model: str | Path,
    text: Sequence[str],
    window: int = WINDOW,
    characters: int | None = None,
    dtype: Dtype = "auto",
    answers: Sequence[str] = (),
) -> ModelMeasure:
    """Measure a model (a folder, a GGUF file, `package:NAME/FILE` or a hub id) on text sources.

    `window` are the characters that the model sees at once, `characters` how much of the text is read (default: all),
    `dtype` is the precision of products; auto: bfloat16 on a GPU, on a CPU what it is faster in. `answers` are files of
    conversations (`messages`, or `prompt` and `answer`, a row each) whose answers are measured too. LeptaError if the
    model, a text or a conversation cannot be read, or there is no text in it.
    """
    conversations = list(read_conversations(answers))
    return score_windows(model, text_windows(text, window, characters), window, dtype, conversations)


def text_windows(text: Sequence[str], window: int = WINDOW, characters: int | None = None) -> list[str]:
    """Read text in windows; LeptaError if there is none."""
    found = read_windows(text, window, characters or sys.maxsize)
    if not found:
        raise LeptaError(f"{', '.join(text)}: no text to measure on; expected at least one character")
    return found


def score_windows(
    model: str | Path, texts: Sequence[str], window: int, dtype: Dtype, conversations: Sequence[list[Message]] = ()
) -> ModelMeasure:
    """Measure a model on windows of text and on conversations; parameters are those of `measure_model`."""
    with opened(model) as checkpoint:
        loaded, tokenizer = load_model(checkpoint.folder, DTYPES.get(dtype)), load_tokenizer(checkpoint.folder)
        started = time.perf_counter()
        score = score_text(loaded, tokenizer, texts, f"{model}: held-out text")
        seconds = time.perf_counter() - started
        answers = answer_bits(loaded, tokenizer, conversations) if conversations else None
        return ModelMeasure(
            model=str(model),
            bits_per_byte=score.bits_per_byte,
            characters_per_token=score.characters_per_token,
            characters=score.characters,
            utf8_bytes=score.utf8_bytes,
            tokens=score.tokens,
            window=window,
            dtype=name_of(loaded.dtype),
            seconds=round(seconds, 3),
            answers_bits_per_byte=answers,
        )


@torch.no_grad()
def answer_bits(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    description: str = "reading answers, conversations",
) -> float:
    """Bits per byte of the assistant's turns, each after all that stands before it, with the ends of turns."""
    patch_chunked_loss(model)
    nats, size = 0.0, 0
    for messages in track(conversations, description, len(conversations)):
        example = conversation_example(tokenizer, messages)
        ids = torch.tensor([example["input_ids"]], device=model.device)
        labels = torch.tensor([example["labels"]], device=model.device)
        if counted := int((labels[:, 1:] != IGNORED).sum()):
            nats += float(model(input_ids=ids, labels=labels).loss) * counted
            size += sum(len(turn["content"].encode()) for turn in messages if turn["role"] == "assistant")
    if not size:
        raise LeptaError("answers: the conversations have no turn of an assistant; expected some to judge by")
    return nats / math.log(2) / size
