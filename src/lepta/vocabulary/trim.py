"""Leave out new tokens that text uses too seldom for their rows to be learned.

A token that goes gives its occurrences to the two tokens it was merged from, so the text is split again until nothing
rare is left. What a frequent token is merged from stays, however rare it is by itself: it could not be reached without.
"""

import numpy as np

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.text.sources import is_word_list
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.start import closure
from lepta.vocabulary.tokenizer_json import Spec, model_with
from lepta.vocabulary.words import WordTable


@step("counting rare new tokens")
def without_rare(spec: Spec, first_new: int, table: WordTable, least: int) -> Spec:
    """The tokenizer without new tokens, those from id `first_new` on, that text uses fewer than `least` times.

    Word lists of the table do not count. Ids of new tokens stay dense and in order. LeptaError if there is no text, or
    no new token would be left.
    """
    of_text = ~np.array(list(map(is_word_list, table.names)), dtype=np.bool_)[table.sources]
    if not of_text.any():
        raise LeptaError("`trim`: the corpus has word lists alone; expected text, whose tokens can be counted")
    counts = np.asarray(table.counts[:, np.flatnonzero(of_text)].sum(axis=1)).ravel()
    while True:
        vocabulary = read_vocabulary(spec, "trim")
        usage, parts = vocabulary.usage(table.words, counts), vocabulary.merge_parts
        kept: set[int] = set()
        for i in vocabulary.spec["model"]["vocab"].values():
            if i < first_new or usage[i] >= least:
                kept |= closure(i, parts, kept)
        if len(kept) == len(vocabulary.spec["model"]["vocab"]):
            return spec
        if max(kept) < first_new:
            raise LeptaError(
                f"`trim` {least}: no new token is in the text so often; give more text, or a smaller number"
            )
        spec = _only(spec, first_new, kept)


def _only(spec: Spec, first_new: int, kept: set[int]) -> Spec:
    """The tokenizer with some of its new tokens, and the merges that they and the old ones need."""
    model = spec["model"]
    new = sorted(i for i in kept if i >= first_new)
    id_of = dict(zip(new, range(first_new, first_new + len(new)), strict=True))
    vocab = {token: id_of.get(i, i) for token, i in model["vocab"].items() if i in kept}
    return spec | {"model": model_with(model, vocab)}
