"""Is a new tokenizer safe to put in the old one's place? Each check passes or fails with the evidence."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lepta.vocabulary.source import TokenizerSource
from lepta.vocabulary.tokens import Kind, Vocabulary


@dataclass(frozen=True)
class Check:
    """One check and its evidence."""

    name: str
    passed: bool
    evidence: str


def check_vocabulary(
    new: TokenizerSource, old: TokenizerSource | None, target: Sequence[str], other: Sequence[str]
) -> list[Check]:
    """Check a tokenizer, alone or against the one that it was made from.

    Parameters
    ----------
    new : TokenizerSource
    old : TokenizerSource, optional
        The original; without it only what needs no comparison is checked.
    target : documents of the target language
    other : documents of other languages, whose ids must not change
    """
    vocabulary = new.vocabulary()
    checks = [_dense(vocabulary), _reachable(vocabulary, old.vocabulary() if old else None)]
    checks += [_round_trip(vocabulary, [*target, *other]), _transformers(new, [*target, *other])]
    if old:
        original = old.vocabulary()
        checks += [_old_ids(vocabulary, original), _specials(vocabulary, original)]
        if other:
            checks.append(_unchanged(vocabulary, original, other))
    return checks


def _dense(vocabulary: Vocabulary) -> Check:
    holes = np.flatnonzero(vocabulary.kinds == Kind.HOLE)
    evidence = f"{vocabulary.size:,} ids" + (f", {len(holes)} holes, first {holes[0]}" if len(holes) else ", no holes")
    return Check("ids are dense", len(holes) == 0, evidence)


def _reachable(vocabulary: Vocabulary, old: Vocabulary | None) -> Check:
    """A token is reachable if its own bytes come back as that token. Old tokens are what they are: new ones count."""
    ids = [i for i in range(old.size if old else 0, vocabulary.size) if vocabulary.kinds[i] == Kind.TEXT]
    splits = vocabulary.split([vocabulary.bytes_of[i] or b"" for i in ids])
    lost = [i for i, split in zip(ids, splits, strict=True) if split != [i]]
    which = "new tokens" if old else "tokens"
    evidence = f"{len(ids) - len(lost):,} of {len(ids):,} {which}"
    if lost:
        evidence += f"; unreachable: {', '.join(repr(vocabulary.bytes_of[i]) for i in lost[:5])}"
    return Check("every token is reachable", not lost, evidence)


def _round_trip(vocabulary: Vocabulary, documents: Sequence[str]) -> Check:
    decoded = vocabulary.tokenizer.decode_batch(vocabulary.encode(documents), skip_special_tokens=False)
    normalizer = vocabulary.tokenizer.normalizer
    expected = [normalizer.normalize_str(d) if normalizer else d for d in documents]
    wrong = sum(a != b for a, b in zip(decoded, expected, strict=True))
    return Check(
        "text survives encoding and decoding", wrong == 0, f"{len(documents) - wrong:,} of {len(documents):,} documents"
    )


def _transformers(source: TokenizerSource, documents: Sequence[str]) -> Check:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        source.save(Path(folder))
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    expected = source.vocabulary().encode(documents)
    actual = loaded(list(documents), add_special_tokens=False)["input_ids"] if documents else []
    same = sum(a == b for a, b in zip(actual, expected, strict=True))
    name = "same ids in tokenizers and transformers"
    return Check(name, same == len(expected), f"{same:,} of {len(expected):,} documents as {type(loaded).__name__}")


def _old_ids(vocabulary: Vocabulary, original: Vocabulary) -> Check:
    same = sum(
        vocabulary.bytes_of[i] == original.bytes_of[i] if i < vocabulary.size else False for i in range(original.size)
    )
    return Check("old ids keep their meaning", same == original.size, f"{same:,} of {original.size:,} ids")


def _specials(vocabulary: Vocabulary, original: Vocabulary) -> Check:
    before, after = original.ids_by_bytes(Kind.SPECIAL), vocabulary.ids_by_bytes(Kind.SPECIAL)
    lost = [token.decode() for token, i in before.items() if after.get(token) != i]
    evidence = f"lost or moved: {', '.join(lost[:5])}" if lost else f"{len(before)} special tokens"
    return Check("special tokens keep their ids", not lost, evidence)


def _unchanged(vocabulary: Vocabulary, original: Vocabulary, documents: Sequence[str]) -> Check:
    pairs = zip(vocabulary.encode(documents), original.encode(documents), strict=True)
    same = sum(a == b for a, b in pairs)
    return Check("ids of other text unchanged", same == len(documents), f"{same:,} of {len(documents):,} documents")
