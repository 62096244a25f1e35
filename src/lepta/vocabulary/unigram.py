"""Scenario `unigram` (paper 2.4.1): a new vocabulary of the kind whose pieces follow Russian morphology better.

SentencePiece trains it, on words with their weights; rare characters fall to bytes. Nothing is normalised away: line
breaks, indentation and signs such as "№" or "…" come back as they were (the reference loses all of these to NFKC).
"""

import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import regex
import sentencepiece
from tokenizers import models

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.vocabulary import tokenizer_json as parts
from lepta.vocabulary.families import WORDS, byte_token
from lepta.vocabulary.merges import whole_numbers
from lepta.vocabulary.sentencepiece_file import NORMAL, empty_model
from lepta.vocabulary.start import CHARACTER_COVERAGE
from lepta.vocabulary.tokenizer_json import NEVER, SPACE, Part, Spec
from lepta.vocabulary.tokens import Vocabulary

# SentencePiece reads lines, so words with line breaks and tabs are not for it: the most frequent get a token each.
LINE_WORD = regex.compile(r".*[\t\r\n\0].*|\s{2,}", regex.DOTALL)
LINE_TOKENS, LINE_SCORE = 100, -1.0
# Pieces trained beyond those asked for: some are never the best way to write anything, not even themselves.
SURPLUS = 0.02
# SentencePiece wants whole numbers as weights, and writes each word out as often as it counts.
OCCURRENCES = 5_000_000
UNKNOWN = "<unk>"
SEED_WORDS, SEEDS_PER_PIECE = 150_000, 12
LONGEST_PIECE = 24
# Signs that have a piece in any case. llama.cpp and transformers.js do not write what has none as bytes: it is lost.
SIGNS = "".join(map(chr, range(0x21, 0x7F))) + "\t\n\r«»„“”‘’‚–—…‐‑−№§©°·•×€₽"


@step("learning new tokens")
def train_unigram(vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray, size: int) -> Spec:
    """Train a Unigram vocabulary of `size` tokens, with the special tokens of an old vocabulary of any family.

    Words are as `WORDS` cuts them in training alone: the tokenizer finds the best pieces of the whole text, which are
    the same, as SentencePiece itself does. LeptaError if the words do not hold that many pieces, or the size has no
    room for them.
    """
    before, after = vocabulary.special_layout()
    if UNKNOWN not in (*before, *after):
        before = [UNKNOWN, *before]
    specials = dict.fromkeys((*before, *after), NEVER)
    for token in specials.keys() & vocabulary.spelled_specials():
        specials[token] = LINE_SCORE
    lines = {token: LINE_SCORE for token in _line_tokens(words, weights) if token not in specials}
    number = size - len(before) - len(after) - 256 - len(lines)
    if number <= 0:
        raise LeptaError(
            f"size: {size}; special tokens, bytes and line breaks alone are {size - number}; expected more"
        )
    trained = _train(words, weights, number + int(number * SURPLUS))
    signs = [sign for sign in SIGNS if sign not in trained and sign not in lines]
    if len(signs) >= number:
        raise LeptaError(f"--size {size}: no room for pieces of text; expected more than {size - number + len(signs)}")
    pieces = _reachable(trained, number - len(signs)) | dict.fromkeys(signs, min(trained.values()))
    tokens = {token: specials[token] for token in before}
    tokens |= dict.fromkeys(map(byte_token, range(256)), NEVER)
    tokens |= lines | pieces | {token: specials[token] for token in after}
    vocab = list(map(list, tokens.items()))
    ids = parts.ids_of(vocab)
    model = {"type": "Unigram", "unk_id": ids[UNKNOWN], "byte_fallback": True, "vocab": vocab}
    spaces = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
    spec = parts.rebuild(
        vocabulary.spec,
        ids,
        model,
        normalizer=_normalizer(vocabulary),
        pre_tokenizer=spaces,
        decoder=parts.sentencepiece_decoder(strips=False),
    )
    if UNKNOWN not in dict(parts.added_tokens_of(spec)):
        spec["added_tokens"].insert(0, parts.added_token(ids[UNKNOWN], UNKNOWN))
    return spec


def word_rules(vocabulary: Vocabulary) -> dict[str, Part | None]:
    """What a word is to a new Unigram vocabulary; see `Vocabulary.word_rules`."""
    return {"normalizer": _normalizer(vocabulary), "pre_tokenizer": parts.split(WORDS)}


def _normalizer(vocabulary: Vocabulary) -> Part | None:
    """Only NFC is kept of the old normalisation: it loses nothing that is seen."""
    for part in parts.components(vocabulary.spec.get("normalizer")):
        if part["type"] == "NFC":
            return {"type": "NFC"}
    return None


def _line_tokens(words: Sequence[str], weights: np.ndarray) -> list[str]:
    """The most frequent words with line breaks, and runs of spaces; as words they win over any split of them."""
    lines = {word: weight for word, weight in zip(words, weights.tolist(), strict=True) if LINE_WORD.fullmatch(word)}
    best = sorted(lines, key=lambda word: (-lines[word], word))[:LINE_TOKENS]
    return [word.replace(" ", SPACE) for word in best]


def _train(words: Sequence[str], weights: np.ndarray, number: int) -> dict[str, float]:
    """Piece -> logarithm of its probability, as SentencePiece trains them."""
    scaled = whole_numbers(weights * (OCCURRENCES / weights.sum()))
    usable = []
    for word, times in zip(words, scaled.tolist(), strict=True):
        if times and SPACE not in word and not LINE_WORD.fullmatch(word):
            usable.append((word.replace(" ", SPACE), times))
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        corpus, seeds = Path(folder) / "words.tsv", Path(folder) / "seeds.tsv"
        corpus.write_text("".join(f"{word}\t{times}\n" for word, times in usable), encoding="utf-8")
        best = _seeds(usable, number * SEEDS_PER_PIECE)
        seeds.write_text("".join(f"{piece}\t{times}\n" for piece, times in best), encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(corpus),
                seed_sentencepieces_file=str(seeds),
                input_format="tsv",
                model_writer=model,
                model_type="unigram",
                vocab_size=number + 1,
                character_coverage=CHARACTER_COVERAGE,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_by_unicode_script=False,
                split_by_whitespace=False,
                split_by_number=False,
                max_sentencepiece_length=LONGEST_PIECE,
                num_threads=1,  # sums in a fixed order: the same corpus gives the same vocabulary
                unk_id=0,
                unk_piece=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            few = str(error)
            if most := regex.search(r"<= (\d+)", few):
                few = f"it holds {int(most[1]):,} pieces at most, {number:,} are needed"
            raise LeptaError(f"corpus: {few}; give more text or ask for a smaller vocabulary") from error
    proto = empty_model()
    proto.ParseFromString(model.getvalue())
    return {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}


def _seeds(words: Sequence[tuple[str, int]], number: int) -> list[tuple[str, int]]:
    """The pieces to choose from: parts of the most frequent words that cover most text.

    SentencePiece's own seeds are parts of text that different letters follow. A word that comes alone, as here, is
    followed by nothing else, so whole words would not be among them (3.70 characters per token instead of 4.2).
    """
    counts: Counter[str] = Counter()
    for word, times in sorted(words, key=lambda entry: -entry[1])[:SEED_WORDS]:
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                counts[word[start:end]] += times
    return sorted(counts.items(), key=lambda entry: (-entry[1] * len(entry[0]), entry[0]))[:number]


def _reachable(pieces: dict[str, float], number: int) -> dict[str, float]:
    """The best pieces that are the best way to write themselves; characters are kept in any case."""
    model = models.Unigram([(UNKNOWN, 0.0), *pieces.items()], unk_id=0)
    reached = [piece for piece in pieces if len(model.tokenize(piece)) == 1]
    best = sorted(reached, key=lambda piece: (len(piece) > 1, -pieces[piece], piece))[:number]
    return {piece: pieces[piece] for piece in sorted(best, key=lambda piece: (-pieces[piece], piece))}
