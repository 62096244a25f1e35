"""How many new tokens text on this machine can teach, told from its different words without a tokenizer."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import regex

from lepta.plan.text import is_absent
from lepta.text.sources import DATASET, Document, is_word_list, read_labelled
from lepta.vocabulary.extend import dominant_script, words_of_script
from lepta.vocabulary.families import WORDS
from lepta.vocabulary.tokenizer_json import split
from lepta.vocabulary.words import WordCounter, weigh

READ = 1 << 23  # characters; of more text, the beginning
LETTERS = regex.compile(r"[\p{L}\p{M}]{2,}")


class Words(NamedTuple):
    """Different words of one script in some text."""

    script: str
    number: int  # of two letters or more, whatever stands before them: most can become new tokens
    most: int  # new tokens that all of them can give
    whole: bool  # all of the text was read


def words_in(sources: Sequence[str], script: str = "auto") -> Words | None:
    """Count the words of text; None if some of it is not on this machine, or there is a word list too.

    LeptaError if it cannot be read, or has no word in the script.
    """
    if any(is_word_list(source) or source.startswith(DATASET) or is_absent(source) for source in sources):
        return None
    documents: list[Document] = []
    left = READ
    for document in read_labelled(sources):
        documents.append(document)
        left -= len(document.text)
        if left <= 0:
            break
    counter = WordCounter({"pre_tokenizer": split(WORDS)})
    counter.add(documents)
    table = counter.table()
    if script == "auto":
        script = dominant_script(table.words, weigh(table))
    words = words_of_script(table, script).words
    letters: set[str] = set()
    for word in words:
        letters.update(LETTERS.findall(word))
    # A merge makes one symbol of two; a word begins as its characters, and those as their bytes at most.
    merges = sum(len(word) - 1 for word in words)
    for character in set(itertools.chain.from_iterable(words)):
        merges += len(character.encode()) - 1
    return Words(script, len(letters), merges, left > 0)
