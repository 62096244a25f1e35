"""How much of a body's change to carry into a variant: try several scales and measure each."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lepta.embeddings.propagate import propagate
from lepta.embeddings.settings import AnyMethod
from lepta.inference.bits import score_text
from lepta.models.folder import Checkpoint
from lepta.models.load import exact_dtype, load_model, load_tokenizer


def sweep_body_delta(
    base: Checkpoint,
    adapted: Checkpoint,
    instruct: Checkpoint,
    method: AnyMethod,
    scales: Sequence[float],
    texts: Sequence[str],
    place: Path,
) -> dict[float, float]:
    """Bits per byte of held-out text, of both languages as they are to count, for each scale of the body's change.

    `place` is a folder with room for one model at a time. See `lepta.embeddings.body`.
    """
    scores = {}
    for scale in scales:
        with tempfile.TemporaryDirectory(dir=place, prefix=".scale-") as folder:
            trial = Path(folder)
            propagate(base, adapted, [(instruct, trial)], method, body_deltas=[scale])
            model, tokenizer = load_model(trial, exact_dtype()), load_tokenizer(trial)
            scores[scale] = score_text(model, tokenizer, texts, f"body delta {scale:g}").bits_per_byte
            del model
    return scores
