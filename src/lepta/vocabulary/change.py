"""Which tokens of a vocabulary are new, and which id an old token has now: one answer for all rooms.

change = VocabularyChange.between(old, new)
change.new_ids           # ids of tokens that the old vocabulary lacks: rows to train, to distil, to count
change.old_id_of[i]      # old id of token i, -1 if it is new: rows to copy
change.moved             # old id -> new id: ids in configs that follow their tokens
"""

import operator
from dataclasses import dataclass

import numpy as np

from lepta.vocabulary.source import AnyTokenizer, open_tokenizer
from lepta.vocabulary.tokens import Kind, Vocabulary

# Kinds that may stand in for each other, the best first: a single byte can be text in one family and a byte token in
# another. Special tokens only correspond to special tokens.
EQUIVALENT = {
    Kind.TEXT: (Kind.TEXT, Kind.BYTE),
    Kind.BYTE: (Kind.BYTE, Kind.TEXT),
    Kind.SPECIAL: (Kind.SPECIAL,),
}


@dataclass(frozen=True)
class VocabularyChange:
    """What became of the tokens from an old vocabulary to a new one.

    `old_id_of` is an int64 array with one entry for each new id (or row): the old id of the same token, else -1.
    `new_ids` is an int64 array, ascending: tokens that the old vocabulary lacks. Holes are not new.
    """

    old_id_of: np.ndarray
    new_ids: np.ndarray

    @classmethod
    def between(cls, old: Vocabulary, new: Vocabulary, rows: tuple[int, int] | None = None) -> "VocabularyChange":
        """Compare two vocabularies of any families by the bytes of their tokens.

        With `rows` (of the old and of the new matrix), `old_id_of` has an entry for each row of the new matrix; holes
        and padding rows correspond to those of the same number.
        """
        old_id_of = _same_tokens(old, new)
        new_ids = np.flatnonzero((old_id_of < 0) & (new.kinds != Kind.HOLE))
        if rows:
            old_rows, new_rows = rows
            padding = np.full(new_rows - new.size, -1, dtype=np.int64)
            old_id_of = np.concatenate([old_id_of, padding])
            holes = [i for i in range(min(old_rows, new_rows)) if old.is_hole(i) and new.is_hole(i)]
            old_id_of[holes] = holes
        return cls(old_id_of, new_ids)

    @property
    def moved(self) -> dict[int, int]:
        """Old id -> new id of everything in both."""
        new_ids = np.flatnonzero(self.old_id_of >= 0)
        return dict(zip(self.old_id_of[new_ids].tolist(), new_ids.tolist(), strict=True))


def new_ids(original: AnyTokenizer, changed: AnyTokenizer) -> frozenset[int]:
    """Ids of the tokens that an original vocabulary lacks."""
    old, new = open_tokenizer(original).vocabulary(), open_tokenizer(changed).vocabulary()
    return frozenset(VocabularyChange.between(old, new).new_ids.tolist())


def first_other_token(base: Vocabulary, own: Vocabulary) -> int | None:
    """The first id that is another token in a vocabulary than in its base; special tokens may come on top."""
    for i in range(max(base.size, own.size)):
        here, there = own.token(i), base.token(i)
        if here != there and (there is not None or own.kinds[i] != Kind.SPECIAL):
            return i
    return None


def _same_tokens(old: Vocabulary, new: Vocabulary) -> np.ndarray:
    """Old id of each new id, -1 for new tokens and holes."""
    same = np.full(new.size, -1, dtype=np.int64)
    # The same id comes first: an unchanged vocabulary maps to itself even where two tokens have the same bytes.
    shared = min(old.size, new.size)
    equal_bytes = np.fromiter(map(operator.eq, old.bytes_of, new.bytes_of), bool, shared)
    equal_kind = (old.kinds[:shared] == new.kinds[:shared]) & (new.kinds[:shared] != Kind.HOLE)
    unchanged = np.flatnonzero(equal_bytes & equal_kind)
    same[unchanged] = unchanged

    ids_of = {kind: old.ids_by_bytes(kind) for kind in EQUIVALENT}
    for i in np.flatnonzero((same < 0) & (new.kinds != Kind.HOLE)).tolist():
        for kind in EQUIVALENT[Kind(new.kinds[i])]:
            old_id = ids_of[kind].get(new.data(i))
            if old_id is not None:
                same[i] = old_id
                break
    return same
