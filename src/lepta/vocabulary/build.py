"""Build a new vocabulary from a tokenizer and text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lepta.corpus import is_word_list, read_documents, word_frequencies
from lepta.errors import LeptaError
from lepta.vocabulary.extend import count_words, dominant_script, extend, words_from_frequencies, words_of_script
from lepta.vocabulary.source import TokenizerSource
from lepta.vocabulary.tokens import Vocabulary

# A word list stands for this many times the running text beside it: it has the breadth that a small corpus lacks, the
# corpus has the style. (Starter corpus, 12,000 tokens, characters per token on its held-out part: 1 x 3.36, 3 x 3.34,
# 10 x 3.28; on news, law and technical text: 3.43, 3.48, 3.49.)
WORD_LIST_WEIGHT = 2
WORD_LIST_ALONE = 1_000_000  # words, if there is no running text


def corpus_words(vocabulary: Vocabulary, corpus: Sequence[str]) -> Counter[str]:
    """Count the pre-tokens of text sources and word lists together.

    Parameters
    ----------
    vocabulary : Vocabulary
        Its pre-tokenizer decides what a word is.
    corpus : sequence of str
        Text sources (see `lepta.corpus`).
    """
    texts = [source for source in corpus if not is_word_list(source)]
    words = count_words(vocabulary, read_documents(texts)) if texts else Counter()
    total = words.total() * WORD_LIST_WEIGHT or WORD_LIST_ALONE
    for source in filter(is_word_list, corpus):
        words.update(words_from_frequencies(word_frequencies(source), total))
    return words


def build_vocabulary(
    source: TokenizerSource, corpus: Sequence[str], scenario: str, add: int, script: str = "auto"
) -> TokenizerSource:
    """Build the tokenizer of a scenario (paper 2.4.1).

    Parameters
    ----------
    source : TokenizerSource
        The original tokenizer.
    corpus : sequence of str
        Text sources of the target language.
    scenario : {"extended"}
        `extended` keeps the original vocabulary and adds to it.
    add : int
        Number of new tokens.
    script : str
        Unicode script of the new tokens, or `auto`.

    Returns
    -------
    TokenizerSource
        The new tokenizer with the original's special tokens and chat template.
    """
    if scenario != "extended":
        raise LeptaError(f"scenario {scenario!r}: unknown; known is extended")
    vocabulary = source.vocabulary()
    words = corpus_words(vocabulary, corpus)
    script = dominant_script(words) if script == "auto" else script
    return replace(source, spec=extend(vocabulary, words_of_script(words, script), add))
