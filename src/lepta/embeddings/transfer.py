"""The transfer matrix T between two vocabularies (paper 2.1.2): each new token as a mix of old ones.

Row t of T holds 1 / K at the K old tokens that the bytes of t split into, so rows sum to 1. A token that exists in both
vocabularies is a unit row. Everything later is linear algebra on T.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import AnyVocabulary, vocabulary_of
from lepta.vocabulary.tokens import Kind, Vocabulary


@dataclass(frozen=True)
class Transfer:
    """T with the rows that are exact told apart.

    `matrix` is T (new rows x old rows, float64); a row is empty where nothing old corresponds: padding rows that the
    old matrix did not have. `change.old_id_of` has an entry for each new row; `exact` is the same where the old matrix
    has that row, else -1.
    """

    matrix: sparse.csr_array
    change: VocabularyChange
    exact: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """Count what T does: rows, exact rows, mixed rows, empty rows, mean and largest number of old tokens mixed."""
        fan_in = np.diff(self.matrix.indptr)
        mixed = fan_in[self.exact < 0]
        return {
            "rows": len(fan_in),
            "exact": int((self.exact >= 0).sum()),
            "mixed": int((mixed > 0).sum()),
            "empty": int((fan_in == 0).sum()),
            "mean_fan_in": float(mixed[mixed > 0].mean()) if (mixed > 0).any() else 1.0,
            "max_fan_in": int(fan_in.max(initial=0)),
        }


def rows_needed(vocabulary: Vocabulary) -> int:
    """Rows that a model cannot do without: up to the last token of text.

    Special tokens can be in the tokenizer alone, as the image token of Gemma 3 1B is.
    """
    text = np.isin(vocabulary.kinds, (Kind.TEXT, Kind.BYTE))
    return 1 + int(np.flatnonzero(text).max(initial=-1))


@step("relating the two vocabularies")
def transfer_matrix(old: AnyVocabulary, new: AnyVocabulary, old_rows: int, new_rows: int) -> Transfer:
    """Compute T between two vocabularies of any families.

    Rows of the embedding matrices include padding; special tokens of the old vocabulary may be without. LeptaError if a
    matrix has fewer rows than its vocabulary needs.
    """
    old, new = vocabulary_of(old), vocabulary_of(new)
    for needed, rows, which in ((rows_needed(old), old_rows, "old"), (new.size, new_rows, "new")):
        if needed > rows:
            raise LeptaError(
                f"{which} tokenizer: ids go up to {needed - 1} but the embedding matrix has {rows} rows; "
                "this tokenizer does not belong to this model"
            )
    change = VocabularyChange.between(old, new, (old_rows, new_rows))
    exact = np.where(change.old_id_of < old_rows, change.old_id_of, -1)
    to_split = [i for i in range(new.size) if exact[i] < 0 and new.bytes_of[i] is not None]
    splits = old.split([new.bytes_of[i] or b"" for i in to_split])
    pieces: list[Sequence[int]] = [() if i < 0 else (i,) for i in exact.tolist()]
    for i, split in zip(to_split, splits, strict=True):
        pieces[i] = split
    return Transfer(_mixes(pieces, old_rows), change, exact)


def stand_in_rows(vocabulary: Vocabulary, rows: int) -> sparse.csr_array | None:
    """What each token of a vocabulary would be mixed of if it were new: the two tokens that merge into it.

    A square matrix whose rows sum to 1; those of bytes and special tokens, which nothing merges into, hold the token
    itself. None for a vocabulary without merges.
    """
    if "merges" not in vocabulary.spec["model"]:
        return None
    return _mixes([vocabulary.merge_parts.get(i) or (i,) for i in range(rows)], rows)


def _mixes(pieces: Sequence[Sequence[int]], old_rows: int) -> sparse.csr_array:
    """A row for each list of old tokens, with 1 / K at its K tokens; one that occurs twice counts twice."""
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    columns = np.fromiter(itertools.chain.from_iterable(pieces), np.int64, int(lengths.sum()))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
    matrix = sparse.csr_array((data, columns, indptr), shape=(len(pieces), old_rows))
    matrix.sum_duplicates()
    return matrix
