"""Is a new tokenizer safe to put in the old one's place? Each check passes or fails with the evidence."""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.core.reading import read_json
from lepta.core.settings import as_list
from lepta.core.tables import counted
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.families import ByteLevelBPE, SentencePieceUnigram
from lepta.vocabulary.llama_cpp import PLACE, patch, recognise, rule_of
from lepta.vocabulary.loading import MODEL_CONFIG, OTHER_TEXT, first_difference, load_beside, sample_text
from lepta.vocabulary.settings import KEEP_IDS
from lepta.vocabulary.source import SPECIAL_ROLES, AnyTokenizer, TokenizerSource, content_of, open_tokenizer
from lepta.vocabulary.tokens import Kind, Vocabulary
from lepta.vocabulary.unchanged import changed_texts

LAST_OF_SCRIPTS, BLOCK = 0x1FFFF, 256  # two planes have all scripts; what follows are more characters of Han
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
# Control characters, and the first bytes of planes without characters: a tokenizer without them reads all text.
SELDOM = {*range(0x20)} - {*b"\t\n\r"} | {0x7F, 0xF1, 0xF2}
BYTES_NAMED = 4
SHOWN_BEFORE = 4  # characters that are the same, before a difference


@dataclass(frozen=True)
class Check:
    """One check and its evidence."""

    name: str
    passed: bool
    evidence: str


@step("checking the vocabulary")
def check_vocabulary(
    new: AnyTokenizer, old: AnyTokenizer | None = None, target: Sequence[str] = (), other: Sequence[str] = ()
) -> list[Check]:
    """Check a tokenizer, alone or against the one that it was made from.

    Without the original, `old`, only what needs no comparison is checked. `target` are texts of the target language,
    `other` of other languages, whose ids must not change unless the scenario took tokens away (`optimized`, `bpe`,
    `unigram`).
    """
    new = open_tokenizer(new)
    old = open_tokenizer(old) if old else None
    vocabulary = new.vocabulary()
    original = old.vocabulary() if old else None
    others = [*other, *OTHER_TEXT]
    made = new.id_map or {"scenario": "extended"}
    scenario = made.get("scenario")
    keeps_ids = scenario in KEEP_IDS
    checks = [
        check_dense(vocabulary),
        _reachable(vocabulary, original, keeps_ids),
        check_bytes(vocabulary, original),
        check_round_trip(vocabulary, original, [*target, *others]),
        _transformers(new, vocabulary, [*target, *others]),
    ]
    if old and original:
        checks.append(_special_tokens(new, old, vocabulary, original, same_ids=keeps_ids))
        if keeps_ids:
            limit = made.get("most_changed", 0.0)
            checks.append(_old_ids(vocabulary, original, all_stay=scenario == "extended"))
            checks.append(_unchanged(vocabulary, original, other, limit))
    checks.append(check_llama_cpp(vocabulary, original))
    if (Path(new.origin) / MODEL_CONFIG).is_file():
        checks.append(check_config(new, vocabulary))
    return checks


def check_dense(vocabulary: Vocabulary) -> Check:
    """All ids up to the largest are of a token."""
    holes = vocabulary.ids_of(Kind.HOLE)
    found = "no holes"
    if len(holes) == 1:
        found = f"1 hole, first {holes[0]}"
    elif holes:
        found = f"{len(holes)} holes, first {holes[0]}"
    return Check("ids are dense", not holes, f"{vocabulary.size:,} ids, {found}")


def _reachable(vocabulary: Vocabulary, old: Vocabulary | None, keeps_ids: bool) -> Check:
    """A token is reachable if its own bytes come back as that token. Old tokens are what they are: new ones count.

    Where old ids move, so do added tokens that the old vocabulary spells: text must lead to them as before.
    """
    ids, what = vocabulary.ids_of(Kind.TEXT), "tokens"
    if old and keeps_ids:
        ids, what = VocabularyChange.between(old, vocabulary).new_ids.tolist(), "new tokens"
    elif old:
        spelled = old.spelled_specials()
        ids += [i for data, i in vocabulary.ids_by_bytes(Kind.SPECIAL).items() if data.decode() in spelled]
    lost = _unreached(vocabulary, ids)
    evidence = f"{len(ids) - len(lost):,} of {len(ids):,} {what}"
    if lost:
        evidence += f"; unreachable: {', '.join(map(repr, map(vocabulary.data, lost[:5])))}"
    return Check("every token is reachable", not lost, evidence)


def _unreached(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    splits = vocabulary.split(list(map(vocabulary.data, ids)))
    return [i for i, split in zip(ids, splits, strict=True) if split != [i]]


def check_bytes(vocabulary: Vocabulary, original: Vocabulary | None) -> Check:
    """Any byte has a token, so no text is unknown.

    Bytes that the original has no token for either are forgiven, and without it those that hardly any text has.
    """
    forgiven, reason = SELDOM, "text hardly has those"
    if original:
        forgiven, reason = _missing_bytes(original), "as in the original"
    missing = _missing_bytes(vocabulary)
    lost = missing - forgiven
    evidence = f"{256 - len(missing)} of 256"
    if missing:
        named = sorted(lost or missing)
        evidence += f"; none for {', '.join(f'0x{byte:02X}' for byte in named[:BYTES_NAMED])}"
        if len(named) > BYTES_NAMED:
            evidence += f" and {len(named) - BYTES_NAMED} more"
    if missing and not lost:
        evidence += f"; {reason}"
    return Check("bytes have tokens", not lost, evidence)


def _missing_bytes(vocabulary: Vocabulary) -> set[int]:
    known = {*vocabulary.ids_by_bytes(Kind.TEXT), *vocabulary.ids_by_bytes(Kind.BYTE)}
    return {byte for byte in range(256) if bytes([byte]) not in known and byte not in NEVER_IN_UTF8}


def check_round_trip(vocabulary: Vocabulary, original: Vocabulary | None, documents: Sequence[str]) -> Check:
    """Text comes back as it was, or as the tokenizer's own normalisation has it.

    What the original loses just so is forgiven: an added token may take the spaces beside it.
    """
    decoded = _decoded(vocabulary, documents)
    composed = _normalized(vocabulary, documents)
    wrong = [n for n, (a, b) in enumerate(zip(decoded, composed, strict=True)) if a != b]
    if original and wrong:
        before = _decoded(original, documents)
        wrong = [n for n in wrong if decoded[n] != before[n]]
    evidence = f"{len(documents) - len(wrong):,} of {len(documents):,} documents"
    if wrong:
        evidence += f"; first lost: {_difference(composed[wrong[0]], decoded[wrong[0]])}"
    return Check("text survives encoding and decoding", not wrong, evidence)


def _decoded(vocabulary: Vocabulary, documents: Sequence[str]) -> list[str]:
    texts: list[str] = vocabulary.tokenizer.decode_batch(vocabulary.encode(documents), skip_special_tokens=False)
    return texts


def _normalized(vocabulary: Vocabulary, texts: Sequence[str]) -> list[str]:
    """Texts as a normalizer that tokens cannot undo leaves them; marks for spaces are undone by the decoder."""
    from tokenizers import Tokenizer, models

    rules = vocabulary.word_rules()["normalizer"]
    if not rules:
        return list(texts)
    plain = json.loads(Tokenizer(models.BPE()).to_str()) | {"normalizer": rules}
    return list(map(Tokenizer.from_str(json.dumps(plain)).normalizer.normalize_str, texts))


def _difference(expected: str, actual: str) -> str:
    pairs = enumerate(zip(expected, actual, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(expected), len(actual)))
    start = max(0, first - SHOWN_BEFORE)
    return f"{expected[start : start + 12]!r} became {actual[start : start + 12]!r}"


def _transformers(source: TokenizerSource, vocabulary: Vocabulary, documents: Sequence[str]) -> Check:
    """In the model folder that it is from, with the `config.json` there, which tells transformers the class to take."""
    name = "same ids in tokenizers and transformers"
    try:
        loaded = load_beside(source, Path(source.origin))
    except LeptaError as error:
        return Check(name, False, str(error).replace(f"{source.origin}: ", ""))
    texts = [*documents, *sample_text(vocabulary)]
    same, other = first_difference(loaded, vocabulary, texts)
    evidence = f"{same:,} of {len(texts):,} texts as {type(loaded).__name__}"
    if other:
        evidence += f"; first other: {other!r}"
    return Check(name, other is None, evidence)


def _old_ids(vocabulary: Vocabulary, original: Vocabulary, all_stay: bool) -> Check:
    """Old tokens have their old ids, all of them or those that are still there, and text leads to them as before."""
    moved = VocabularyChange.between(original, vocabulary).moved
    same = [i for i, new in moved.items() if i == new]
    expected = len(original.ids_of(Kind.TEXT, Kind.BYTE, Kind.SPECIAL)) if all_stay else len(moved)
    text = [i for i in same if original.kinds[i] == Kind.TEXT]
    lost = set(_unreached(vocabulary, text)) - set(_unreached(original, text))
    evidence = f"{len(same):,} of {expected:,} ids"
    if lost:
        evidence += f"; no text leads any more to {', '.join(map(repr, map(original.data, sorted(lost)[:5])))}"
    return Check("old ids keep their meaning", len(same) == expected and not lost, evidence)


def _special_tokens(
    new: TokenizerSource, old: TokenizerSource, vocabulary: Vocabulary, original: Vocabulary, same_ids: bool
) -> Check:
    """All special tokens are there (with their ids, if tokens were only added), and play the same roles."""
    before, after = original.ids_by_bytes(Kind.SPECIAL), vocabulary.ids_by_bytes(Kind.SPECIAL)
    lost = [token.decode() for token, i in before.items() if token not in after or (same_ids and after[token] != i)]
    roles = [role for role in SPECIAL_ROLES if content_of(old.config.get(role)) != content_of(new.config.get(role))]
    if lost:
        evidence = f"lost or moved: {', '.join(lost[:5])}"
    elif roles:
        evidence = f"{roles[0]} was {content_of(old.config.get(roles[0]))}, is {content_of(new.config.get(roles[0]))}"
    else:
        evidence = f"{len(before)} special tokens"
    return Check("special tokens are kept", not lost and not roles, evidence)


@cache
def all_scripts() -> list[str]:
    """All letters, marks, digits and signs of Unicode's scripts, up to 256 a text: side by side, and after spaces."""
    texts = []
    for first in range(0, LAST_OF_SCRIPTS, BLOCK):
        characters = [c for c in map(chr, range(first, first + BLOCK)) if unicodedata.category(c)[0] in "LMNPS"]
        if characters:
            texts.append(f"{''.join(characters)} {' '.join(characters)}")
    return texts


def _unchanged(vocabulary: Vocabulary, original: Vocabulary, given: Sequence[str], limit: float) -> Check:
    """Text keeps its ids but for words with letters of the new tokens, and for tokens that gave up their ids.

    Of the texts that are given, at most a share of `limit` may have such tokens.
    """
    ours = [*OTHER_TEXT, *all_scripts()]
    of_given = list(changed_texts(original, vocabulary, given))
    of_ours = list(changed_texts(original, vocabulary, ours))
    changed = [*of_given, *of_ours]
    wrong = [one.shown(one.others[0]) for one in changed if one.others]
    lost = [one.shown(one.lost[0]) for one in of_given if one.lost]
    evidence = f"all ids of {len(ours) - len(of_ours):,} of {counted(len(ours), 'built-in sample')}"
    if given:
        evidence += f", and of {len(given) - len(of_given):,} of {counted(len(given), 'document')} given"
    if wrong:
        evidence += f"; first changed: {wrong[0]}"
    elif any(one.lost for one in changed):
        evidence += "; in the others words with letters of the new tokens, and tokens that gave up their ids"
        evidence += f" (documents given with those: {len(lost):,})"
        evidence += "\n  ".join(["", *lost])
    elif changed:
        evidence += "; in the others only words with letters of the new tokens"
    return Check("ids of other text unchanged", not wrong and len(lost) <= limit * len(given), evidence)


BY_EXPORT = f"by lepta export gguf as it is; for its own converter, add to {PLACE}:"


def check_llama_cpp(vocabulary: Vocabulary, original: Vocabulary | None) -> Check:
    """Whether llama.cpp's converter knows the tokenizer, or what to add to it."""
    name = "llama.cpp can convert it"
    if isinstance(vocabulary, SentencePieceUnigram):
        return Check(name, False, "Unigram: only by lepta export gguf, and characters without a piece become <unk>")
    if not isinstance(vocabulary, ByteLevelBPE):
        return Check(name, True, f"{vocabulary.family}: by tokenizer.model, which lies beside it")
    found = recognise(vocabulary.tokenizer)
    if found.name:
        return Check(name, True, f"pre-tokenizer {found.name} ({found.hash[:8]}…)")
    rule = rule_of(vocabulary.spec)
    if not rule and original and vocabulary.spec["pre_tokenizer"] == original.spec["pre_tokenizer"]:
        rule = recognise(original.tokenizer).name  # a rule that is not known here, by the hash of the original
    if rule:
        return Check(name, True, f"{BY_EXPORT}\n{patch(found, rule)}")
    return Check(name, False, f"pre-tokenizer hash {found.hash} is not known here; see {PLACE} of llama.cpp")


def check_config(source: TokenizerSource, vocabulary: Vocabulary) -> Check:
    """The model beside the tokenizer has a row for each id, and means the same special tokens."""
    config = read_json(Path(source.origin) / MODEL_CONFIG)
    config = config.get("text_config") or config
    rows = config.get("vocab_size") or 0
    specials = vocabulary.ids_by_bytes(Kind.SPECIAL)
    wrong = []
    for role in SPECIAL_ROLES:
        token, ids = content_of(source.config.get(role)), config.get(f"{role}_id")
        if token is None or ids is None:
            continue
        token_id = specials.get(token.encode())
        if token_id not in as_list(ids):
            wrong.append(f"{role}_id is {ids}, {token} is {token_id}")
    evidence = f"{rows:,} rows for {vocabulary.size:,} ids ({rows - vocabulary.size} of padding)"
    if wrong:
        evidence += f"; {wrong[0]}"
    return Check("the model's config agrees", rows >= vocabulary.size and not wrong, evidence)
