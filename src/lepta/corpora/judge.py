"""Why a cleaned document is no text to learn from: limits of its form, Gopher's rules where they hold for any language.

Gopher: Rae et al. 2021, arXiv 2112.11446, table A1, as datatrove has them.
"""

from collections.abc import Callable

import numpy as np
import regex
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from lepta.corpora.clean import Cleaned, count_letters
from lepta.corpora.overlap import WORDS, ngram_hashes, word_hashes
from lepta.corpora.settings import Clean, Filters

JUDGED = 1 << 20  # characters: of a longer document the rules about words and repeats see only so much
NEXT_TO_NONE = 1e-9
# datatrove's name of a rule -> what the report says
REASONS = {
    "gopher_short_doc": "few words",
    "gopher_long_doc": "many words",
    "gopher_below_avg_threshold": "short words",
    "gopher_above_avg_threshold": "long words",
    "gopher_too_many_hashes": "many hashes",
    "gopher_too_many_ellipsis": "many ellipses",
    "gopher_too_many_bullets": "bullet lines",
    "gopher_too_many_end_ellipsis": "cut lines",
    "gopher_below_alpha_threshold": "words without letters",
    "gopher_enough_stop_words": "no stop words",
    "dup_para_frac": "repeated paragraphs",
    "dup_para_char_frac": "repeated paragraphs",
    "dup_line_frac": "repeated lines",
    "dup_line_char_frac": "repeated lines",
}
Rule = Callable[[str], str | None]


class Judge:
    """Tells why a document is dropped, as the settings say."""

    def __init__(self, filters: Filters, clean: Clean) -> None:
        self._filters, self._foreign_share = filters, clean.foreign_share
        self._rules: list[Rule] = [self._form, _gopher_quality(filters), _gopher_lines(filters), self._repeats]

    def reason(self, document: Cleaned) -> str | None:
        """Say why a document is dropped; None keeps it."""
        if document.foreign_share > self._foreign_share:
            return "foreign"
        if not document.text:
            return "empty"
        return next((reason for rule in self._rules if (reason := rule(document.text))), None)

    def _form(self, text: str) -> str | None:
        limits = self._filters
        if limits.min_characters and len(text) < limits.min_characters:
            return "short"
        if limits.max_characters and len(text) > limits.max_characters:
            return "long"
        if limits.max_line and len(text) > limits.max_line and max(map(len, text.split("\n"))) > limits.max_line:
            return "long line"
        text = text[:JUDGED]
        solid = sum(map(len, text.split()))
        if limits.min_letters and count_letters(text) < limits.min_letters * solid:
            return "few letters"
        return None

    def _repeats(self, text: str) -> str | None:
        if not self._filters.max_repeated_ngrams:
            return None
        words = word_hashes(text[:JUDGED])
        for n, limit in self._filters.max_repeated_ngrams.items():
            if repeated_share(words, n) > limit:
                return "repeated runs of words"
        return None


def repeated_share(words: np.ndarray, n: int) -> float:
    """Compute the share of words that lie in runs of n words met earlier in the text.

    Gopher's rule by words instead of characters, and in numpy: datatrove's own takes a second for 4 MB of text.
    """
    runs = ngram_hashes(words, n)
    first = np.zeros(len(runs), bool)
    first[np.unique(runs, return_index=True)[1]] = True
    if first.all():
        return 0.0
    edges = np.zeros(len(words) + 1, np.int64)
    again = np.flatnonzero(~first)
    edges[again] += 1
    edges[again + n] -= 1
    return float((np.cumsum(edges[:-1]) > 0).mean())


def _gopher_quality(limits: Filters) -> Rule:
    rules = GopherQualityFilter(
        min_doc_words=limits.min_words,
        max_doc_words=None,  # counted in the whole document instead, see below
        min_avg_word_length=limits.min_word_length,
        max_avg_word_length=limits.max_word_length,
        max_symbol_word_ratio=_most(limits.max_symbols),
        max_bullet_lines_ratio=_most(limits.max_bullet_lines),
        max_ellipsis_lines_ratio=_most(limits.max_cut_lines),
        max_non_alpha_words_ratio=limits.min_words_with_letters,
        min_stop_words=limits.min_stop_words if limits.stop_words else 0,
        stop_words=limits.stop_words,
        language=WORDS,
    )

    def rule(text: str) -> str | None:
        if limits.max_words and len(text) > limits.max_words and len(word_hashes(text)) > limits.max_words:
            return "many words"
        if not regex.search(r"\w", text[:JUDGED]):
            return "few words"  # the filter would divide by the number of words
        return _name(rules.filter(Document(text[:JUDGED].strip(), "")))

    return rule


def _gopher_lines(limits: Filters) -> Rule:
    rules = GopherRepetitionFilter(
        dup_line_frac=_most(limits.max_repeated_lines),
        dup_para_frac=_most(limits.max_repeated_lines),
        dup_line_char_frac=_most(limits.max_repeated_line_characters),
        dup_para_char_frac=_most(limits.max_repeated_line_characters),
        top_n_grams=(),
        dup_n_grams=(),
        language=WORDS,
    )
    return lambda text: _name(rules.filter(Document(text[:JUDGED], "")))


def _most(limit: float | None) -> float | None:
    """A limit for datatrove, which takes 0 for none: any share above 0 is above this."""
    return limit if limit is None else limit or NEXT_TO_NONE


def _name(verdict: bool | tuple[bool, str]) -> str | None:
    return REASONS.get(verdict[1], verdict[1]) if isinstance(verdict, tuple) else None
