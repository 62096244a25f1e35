"""Bits per byte: the one measure of a language model that means the same under every vocabulary."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex
import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import progress
from lepta.inference.scoring import in_batches, padded, token_ids
from lepta.models.loss import IGNORED, patch_chunked_loss
from lepta.text.sources import read_documents

WINDOW = 1500  # characters that a model sees at once, where no recipe says otherwise
CPU_TOKENS, GPU_TOKENS = 1024, 8192  # of one pass, padding included


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
    turns = itertools.chain.from_iterable(itertools.zip_longest(*cut))
    kept, characters = [], 0
    for window in filter(None, turns):
        if characters >= total:
            break
        kept.append(window)
        characters += len(window)
    return kept


def read_windows(sources: Sequence[str], length: int, total: int) -> list[str]:
    """`windows` of text sources; none of no sources."""
    return windows(list(read_documents(sources)), length, total) if sources else []


def start_of_text(tokenizer: Any, where: object = "tokenizer") -> int:
    """Id of the token that the first one of a text is predicted from; LeptaError, of `where`, if there is none."""
    for start in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if start is not None:
            return int(start)
    raise LeptaError(f"{where}: neither bos_token nor eos_token; expected one in tokenizer_config.json")


@torch.no_grad()
def score_text(model: Any, tokenizer: Any, texts: Sequence[str], description: str = "reading text") -> TextScore:
    """Score every byte of texts, each by itself after the token that starts a text."""
    start = start_of_text(tokenizer)
    patch_chunked_loss(model)
    rows = sorted(token_ids(tokenizer, texts, (start,)), key=len)
    nats, done, total = 0.0, 0, sum(map(len, rows))
    with progress(f"{description}, tokens", total) as bar:
        for batch in in_batches(rows, _tokens_at_once(model)):
            ids, labels = padded(batch, start, model.device), padded(batch, IGNORED, model.device)
            nats += _loss(model, ids, labels) * _predicted(batch)
            done += sum(map(len, batch))
            bar.set(done)
    return TextScore(
        bits=nats / math.log(2),
        utf8_bytes=sum(map(len, map(str.encode, texts))),
        characters=sum(map(len, texts)),
        tokens=_predicted(rows),
    )


def _tokens_at_once(model: Any) -> int:
    """Tokens of one pass: a GPU is faster with many; a model that keeps its own loss has all logits of them."""
    if getattr(model, "keeps_own_loss", False):
        return 1
    return GPU_TOKENS if model.device.type == "cuda" else CPU_TOKENS


def _loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean loss of a batch; LeptaError if a text is longer than a model with learned positions can be."""
    try:
        return float(model(input_ids=ids, labels=labels).loss)
    except IndexError as error:
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or "fewer"
        raise LeptaError(
            f"a text of {ids.shape[1]} tokens, and the model has positions for {longest}; give a smaller window"
        ) from error


def _predicted(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that a model predicts: all but the one that starts a text."""
    return sum(map(len, rows)) - len(rows)
