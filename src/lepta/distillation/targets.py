"""Which rows learn: those of new tokens, and old ones that only text in the script of the new tokens uses.

The first old piece of a new token keeps its probability where its row is frozen, so greedy decoding goes on spelling.
Rows of such pieces may move where text of other scripts never meets them.
"""

from dataclasses import dataclass

import numpy as np

from lepta.vocabulary.extend import dominant_script
from lepta.vocabulary.tokens import Kind, Vocabulary

LETTER_BYTES = 0x80  # ASCII is below it


@dataclass(frozen=True)
class LearnedRows:
    """Ids in the new vocabulary of the rows that a run has in float32, int64, all in order."""

    moving: np.ndarray  # tokens whose rows change
    inputs: np.ndarray  # rows of the embeddings; those of the head if both are one matrix
    outputs: np.ndarray  # rows of the head, which has first pieces of new tokens besides those that move
    paths: list[list[int]]  # old ids that each token of `outputs` splits into
    # Place in `outputs` of a new token's first piece; -1 for old tokens, and where text of another script uses the
    # piece too: it is likely there, and so would be a token whose row begins as that of the piece.
    first: np.ndarray


def learned_rows(
    old: Vocabulary, new: Vocabulary, fresh: np.ndarray, old_id_of: np.ndarray, move_targets: bool, tied: bool
) -> LearnedRows:
    """Which rows learn.

    `fresh` are the ids of new tokens, in order; `old_id_of` has the old id of each new id, -1 for tokens that the old
    vocabulary lacks. `move_targets` moves first pieces of new tokens that only text in their script uses.
    """
    splits = old.split(list(map(new.data, fresh.tolist())))
    new_id_of = np.full(old.size, -1)
    kept = np.flatnonzero(old_id_of >= 0)
    kept = kept[old_id_of[kept] < old.size]
    new_id_of[old_id_of[kept]] = kept
    first_of = new_id_of[[split[0] for split in splits]]
    pieces = np.unique(first_of[first_of >= 0])
    targets = np.intersect1d(target_rows(new, fresh), pieces)
    moving, inputs, outputs = fresh, fresh, np.union1d(fresh, pieces)
    if move_targets:
        moving = np.union1d(fresh, targets)
    if tied:
        inputs = outputs
    split_of = dict(zip(fresh.tolist(), splits, strict=True))
    paths = [split_of.get(i) or [int(old_id_of[i])] for i in outputs.tolist()]
    first = np.full(len(outputs), -1)
    of_script = np.isin(first_of, targets)
    first[np.searchsorted(outputs, fresh[of_script])] = np.searchsorted(outputs, first_of[of_script])
    return LearnedRows(moving, inputs, outputs, paths, first)


def target_rows(vocabulary: Vocabulary, new: np.ndarray) -> np.ndarray:
    """Ids of old tokens, in order, that only text in the script of the new tokens uses; both in the new vocabulary.

    A token counts if it has a letter that new tokens are written in, or the first byte of one, and no other letter. New
    tokens in Latin have none: text of every language uses those.
    """
    texts = [vocabulary.data(int(i)).decode("utf-8", errors="ignore") for i in new]
    script = dominant_script(texts, np.ones(len(texts)))
    if script == "Latin":
        return np.zeros(0, dtype=np.int64)
    written = {c.encode() for c in "".join(texts) if ord(c) >= LETTER_BYTES and c.isalpha()}
    first_bytes = {encoded[:1] for encoded in written}
    old_texts = sorted(set(vocabulary.ids_of(Kind.TEXT)).difference(new.tolist()))
    chosen = [i for i in old_texts if _is_of(vocabulary.data(i), written, first_bytes)]
    return np.asarray(chosen, dtype=np.int64)


def _is_of(data: bytes, written: set[bytes], first_bytes: set[bytes]) -> bool:
    """Tell whether bytes hold letters, whole or begun, and all of them are among those given."""
    whole = data.decode("utf-8", errors="ignore")
    rest = data[len(whole.encode()) :]
    if not data.startswith(whole.encode()):
        return False  # bytes of two characters that are both incomplete
    letters = [character.encode() for character in whole if character.isalpha()]
    begun = [rest[:1]] if rest else []
    return bool(letters or begun) and written.issuperset(letters) and first_bytes.issuperset(begun)
