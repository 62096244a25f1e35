"""Bits per byte of any model on any text: what `lepta measure` prints."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lepta.core.errors import LeptaError
from lepta.inference.bits import WINDOW, score_text, windows
from lepta.models.load import load_model, load_tokenizer, opened
from lepta.models.precision import DTYPES, name_of
from lepta.text.sources import read_documents

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


def measure_model(
    model: str | Path,
    text: Sequence[str],
    window: int = WINDOW,
    characters: int | None = None,
    dtype: Dtype = "auto",
) -> ModelMeasure:
    """Measure a model on text.

    Parameters
    ----------
    model : str or Path
        A folder, a GGUF file, `package:NAME/FILE` or a hub id.
    text : sequence of str
        Text sources (see `lepta.text.sources`).
    window : int
        Characters that the model sees at once.
    characters : int, optional
        How much of the text; default: all of it.
    dtype : {"auto", "float32", "bfloat16"}
        Precision of products; auto: bfloat16 on a GPU, on a CPU what it is faster in.

    Raises
    ------
    LeptaError
        If the model or a text cannot be read, or there is no text in it.
    """
    return score_windows(model, text_windows(text, window, characters), window, dtype)


def text_windows(text: Sequence[str], window: int = WINDOW, characters: int | None = None) -> list[str]:
    """Read text in windows; LeptaError if there is none."""
    found = windows(list(read_documents(text)), window, characters or sys.maxsize)
    if not found:
        raise LeptaError(f"{', '.join(text)}: no text to measure on; expected at least one character")
    return found


def score_windows(model: str | Path, texts: Sequence[str], window: int, dtype: Dtype) -> ModelMeasure:
    """Measure a model on windows of text; parameters are those of `measure_model`."""
    with opened(model) as checkpoint:
        loaded, tokenizer = load_model(checkpoint.folder, DTYPES.get(dtype)), load_tokenizer(checkpoint.folder)
        started = time.perf_counter()
        score = score_text(loaded, tokenizer, texts, str(model))
        return ModelMeasure(
            model=str(model),
            bits_per_byte=score.bits_per_byte,
            characters_per_token=score.characters_per_token,
            characters=score.characters,
            utf8_bytes=score.utf8_bytes,
            tokens=score.tokens,
            window=window,
            dtype=name_of(loaded.dtype),
            seconds=round(time.perf_counter() - started, 3),
        )
