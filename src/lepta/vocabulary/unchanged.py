"""Where a new tokenizer splits text otherwise than the one that it was made from."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import regex

from lepta.core.progress import step
from lepta.text.sources import read_documents
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.extend import SCRIPTS
from lepta.vocabulary.tokens import Vocabulary

Spans = set[tuple[int, int, int]]  # start, end (in bytes) and id of each token
SHOWN = 40  # characters of a document
MEASURED = 30_000_000  # characters of text that is to stay: some seconds, and enough to know a share of 1 %
BATCH, LISTED = 100, 20  # documents at a time, and that are named


class Changed(NamedTuple):
    """A document whose ids are others, and where they are so outside words with letters of the new tokens."""

    document: str
    lost: list[str]  # by old tokens that gave up their ids
    others: list[str]  # without such a reason

    def shown(self, stretch: str) -> str:
        """One of the stretches, and the document that it is in."""
        return f"{stretch!r} in {self.document[:SHOWN]!r}"


def changed_texts(old: Vocabulary, new: Vocabulary, documents: Sequence[str]) -> Iterator[Changed]:
    """Those documents whose ids are others, one after the other."""
    change = VocabularyChange.between(old, new)
    kept = set(change.moved)
    added = "".join(map(_text, map(new.data, change.new_ids.tolist())))
    patterns = (rf"\p{{Script={script}}}" for script in ("Latin", *SCRIPTS))
    letters = regex.compile("|".join(pattern for pattern in patterns if regex.search(pattern, added)) or r"(?!)")
    for document, after, before in zip(documents, new.encode(documents), old.encode(documents), strict=True):
        if after == before:
            continue
        found = Changed(document, [], [])
        data = b"".join(map(new.data, after))
        old_spans = _spans(old, before)
        gone = [start for start, _, i in old_spans if i not in kept]
        for start, end in _changed_spans(_spans(new, after), old_spans):
            text = _text(_whole_characters(data, start, end))
            if letters.search(text):
                continue
            if any(start <= place < end for place in gone):
                found.lost.append(text)
            else:
                found.others.append(text)
        yield found


@step("counting documents whose ids change")
def changes(old: Vocabulary, new: Vocabulary, sources: Sequence[str]) -> dict[str, Any]:
    """What changes in text that is to stay: of how many documents, their share, and where in the first ones.

    Words with letters of the new tokens do not count. The first `MEASURED` characters are read.
    """
    documents, changed, characters, first = 0, 0, 0, list[str]()
    texts = read_documents(sources)
    while characters < MEASURED and (batch := list(itertools.islice(texts, BATCH))):
        found = [one for one in changed_texts(old, new, batch) if one.lost or one.others]
        first += [one.shown((one.lost + one.others)[0]) for one in found]
        changed, documents = changed + len(found), documents + len(batch)
        characters += sum(map(len, batch))
    return {"documents": documents, "changed": changed, "share": changed / max(documents, 1), "first": first[:LISTED]}


def _text(data: bytes) -> str:
    return data.decode(errors="ignore")


def _whole_characters(data: bytes, start: int, end: int) -> bytes:
    """A stretch of UTF-8, with all of the characters that it begins and ends in."""
    while 0 < start < len(data) and data[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return data[start:end]


def _spans(vocabulary: Vocabulary, ids: Sequence[int]) -> Spans:
    ends = list(itertools.accumulate(map(len, map(vocabulary.data, ids))))
    return set(zip([0, *ends[:-1]], ends, ids, strict=True))


def _changed_spans(new: Spans, old: Spans) -> list[tuple[int, int]]:
    """Stretches of bytes that are split in another way, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for start, end, _ in sorted(new ^ old):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
