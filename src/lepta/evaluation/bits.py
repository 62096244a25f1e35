"""Bits per byte: the one measure of a language model that means the same under every vocabulary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex
import torch

from lepta.errors import LeptaError
from lepta.progress import track
from lepta.training.loss import give_loss

WINDOW = 1500  # characters that a model sees at once, where no recipe says otherwise


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text, and how long the text is in each unit."""

    bits: float
    utf8_bytes: int
    characters: int
    tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of UTF-8; lower is better."""
        return self.bits / self.utf8_bytes

    @property
    def characters_per_token(self) -> float:
        """Characters in a token of this vocabulary; higher is cheaper."""
        return self.characters / self.tokens


def windows(documents: Sequence[str], length: int, total: int) -> list[str]:
    """Cut documents into windows of about `length` characters at line breaks, and keep the first `total` characters.

    Windows are measured in characters, not tokens, so that every vocabulary sees the same context. Documents take
    turns, one window each, so that a small total still has all of them in it.
    """
    cut = [regex.findall(rf"(?s).{{1,{length}}}(?:\n|$)|.{{{length}}}", document.strip()) for document in documents]
    turns = [pieces[n] for n in range(max(map(len, cut), default=0)) for pieces in cut if n < len(pieces)]
    kept, characters = [], 0
    for window in turns:
        if characters >= total:
            break
        kept.append(window)
        characters += len(window)
    return kept


@torch.no_grad()
def score_text(model: Any, tokenizer: Any, texts: Sequence[str], description: str = "bits per byte") -> TextScore:
    """Score texts, each one by itself after the token that starts a text.

    Parameters
    ----------
    model : transformers causal LM
    tokenizer : transformers tokenizer
    texts : sequence of str
        Every byte of them counts, the first ones too.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise LeptaError("tokenizer: neither bos_token nor eos_token; bits per byte need a token that starts a text")
    give_loss(model)
    nats, tokens = 0.0, 0
    for text in track(texts, description, len(texts)):
        ids = torch.tensor([[start, *tokenizer(text, add_special_tokens=False)["input_ids"]]], device=model.device)
        predicted = ids.shape[1] - 1
        nats += float(model(input_ids=ids, labels=ids).loss) * predicted
        tokens += predicted
    return TextScore(
        bits=nats / math.log(2),
        utf8_bytes=sum(len(text.encode()) for text in texts),
        characters=sum(map(len, texts)),
        tokens=tokens,
    )
