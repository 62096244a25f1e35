"""Which rows learn: those of new tokens, and old ones that only text in the script of the new tokens uses.

The first old piece of a new token keeps its probability where its row is frozen, so greedy decoding goes on spelling.
Rows of such pieces may move where text of other scripts never meets them.
"""

from collections import Counter

import numpy as np

from lepta.vocabulary.extend import dominant_script
from lepta.vocabulary.tokens import Kind, Vocabulary

LETTER_BYTES = 0x80  # ASCII is below it


def target_rows(vocabulary: Vocabulary, new: np.ndarray) -> np.ndarray:
    """Ids of old tokens that only text in the script of the new tokens uses.

    A token counts if it has a letter that new tokens are written in, or the first byte of one, and no other letter. New
    tokens in Latin have none: text of every language uses those.

    Parameters
    ----------
    vocabulary : Vocabulary
        The new one.
    new : int64 array
        Ids of its new tokens.

    Returns
    -------
    int64 array
        In order, without `new`.
    """
    texts = [vocabulary.data(int(i)).decode("utf-8", errors="ignore") for i in new]
    script = dominant_script(texts, np.ones(len(texts)))
    if script == "Latin":
        return np.zeros(0, dtype=np.int64)
    letters = Counter(character for text in texts for character in text if ord(character) >= LETTER_BYTES)
    written = {character.encode() for character in letters if character.isalpha()}
    first_bytes = {encoded[:1] for encoded in written}
    fresh = set(new.tolist())
    chosen = [
        i
        for i in range(vocabulary.size)
        if i not in fresh and vocabulary.kinds[i] == Kind.TEXT and _is_of(vocabulary.data(i), written, first_bytes)
    ]
    return np.asarray(chosen, dtype=np.int64)


def _is_of(data: bytes, written: set[bytes], first_bytes: set[bytes]) -> bool:
    """Tell whether bytes hold letters, whole or begun, and all of them are among those given."""
    whole = data.decode("utf-8", errors="ignore")
    letters = [character for character in whole if character.isalpha()]
    rest = data[len(whole.encode()) :]
    begun = [rest[:1]] if rest and data.startswith(whole.encode()) else []
    if rest and not begun:
        return False  # bytes of two characters that are both incomplete
    known = all(letter.encode() in written for letter in letters) and all(byte in first_bytes for byte in begun)
    return known and bool(letters or begun)
