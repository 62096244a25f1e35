"""Build a new vocabulary from a tokenizer and text: the scenarios of the paper (2.4.1)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lepta.core.errors import LeptaError
from lepta.core.progress import progress, step
from lepta.core.settings import validated
from lepta.stages import write_manifest
from lepta.text.locate import locate
from lepta.text.sources import is_word_list, read_labelled, word_frequencies
from lepta.vocabulary import unigram
from lepta.vocabulary.budget import Point, Weights, cheapest, curve
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.donors import Candidates, donor_places, with_donors
from lepta.vocabulary.extend import dominant_script, extend, words_of_script
from lepta.vocabulary.families import SentencePieceUnigram, read_vocabulary
from lepta.vocabulary.merges import TooFewTokens
from lepta.vocabulary.replaced import into_freed_ids, without_least_useful
from lepta.vocabulary.settings import Scenario, VocabularySettings
from lepta.vocabulary.source import TOKENIZER_FILES, AnyTokenizer, TokenizerSource, open_tokenizer, vocabulary_of
from lepta.vocabulary.start import alphabet, kept_tokens, number_to_keep
from lepta.vocabulary.tokenizer_json import Spec, config_with_ids
from lepta.vocabulary.tokens import Kind, Vocabulary
from lepta.vocabulary.trim import without_rare
from lepta.vocabulary.unchanged import changes
from lepta.vocabulary.words import WordCounter, WordTable, weigh, words_of_frequencies

# A word list stands for this many times the running text beside it: it has the breadth that a small corpus lacks, the
# corpus has the style. (Starter corpus, SmolLM2 with 12,000 more, characters per token on its held-out part / on news:
# 2 times 3.353 / 3.36, 9 times 3.321 / 3.42, 90 times 3.277 / 3.45.)
WORD_LIST_WEIGHT = 2
WORD_LIST_ALONE = 1_000_000  # words, if there is no running text
MOST_ADDED = 128_000  # tokens that size "auto" goes up to


def count_corpus(rules: dict[str, Any], corpus: Sequence[str]) -> WordTable:
    """Count the words of text sources (see `lepta.text.sources`) and word lists; `rules`: `Vocabulary.word_rules`."""
    counter = WordCounter(rules)
    if texts := [source for source in corpus if not is_word_list(source)]:
        with progress("counting words, million characters", None) as meter:
            counter.add(read_labelled(texts), meter)
    lists = list(filter(is_word_list, corpus))
    total = 0.0
    if lists:
        total = float(counter.table().counts.sum()) * WORD_LIST_WEIGHT or WORD_LIST_ALONE
    for source in lists:
        with step(f"counting the words of {source}"):
            counter.add_counts(source, words_of_frequencies(word_frequencies(source), total))
    return counter.table()


def build_vocabulary(
    source: AnyTokenizer, corpus: Sequence[str], scenario: Scenario = "extended", **settings: Any
) -> TokenizerSource:
    """Build the tokenizer of a scenario, with the original's special tokens and chat template.

    `extended` keeps the original vocabulary and adds to it; `replaced` gives the ids of its least useful tokens to new
    ones; `optimized` keeps its most useful part and adds to that; `bpe` and `unigram` replace it whole. `corpus` are
    text sources of the target language; for `optimized` and full replacement, of all languages to serve.

    `settings` are the other fields of `VocabularySettings`, as a recipe and `lepta vocab build` name them: `add` new
    tokens, or `size` of the whole new vocabulary, and what some scenarios take besides. LeptaError if they do not fit
    the scenario, the corpus does not hold that many tokens, or too many documents of `keep_text` change.
    """
    given = {"corpus": [corpus] if isinstance(corpus, str) else list(corpus), "scenario": scenario, **settings}
    return build(open_tokenizer(source), validated(VocabularySettings, given, "vocabulary"))


def build(source: TokenizerSource, settings: VocabularySettings) -> TokenizerSource:
    """As `build_vocabulary`, of settings whose size is a number."""
    return replace(_built(source, settings), settings=settings)


def _built(source: TokenizerSource, settings: VocabularySettings) -> TokenizerSource:
    vocabulary, scenario, corpus = source.vocabulary(), settings.scenario, settings.corpus
    size = settings.size if isinstance(settings.size, int) else None
    if scenario == "unigram":
        assert size is not None
        table = count_corpus(unigram.word_rules(vocabulary), corpus)
        candidates = _candidates(table, table, vocabulary, settings)
        spec = unigram.train_unigram(vocabulary, candidates.words, candidates.weights, size)
        return _with_spec(source, spec, candidates=candidates)
    _needs_merges(vocabulary, source, scenario)
    if size is not None:  # said before the corpus is counted, which can take hours
        _refuse_small(size, _least_start(vocabulary, scenario, settings.keep))
    table = count_corpus(vocabulary.word_rules(), corpus)
    if scenario == "replaced":
        return _replaced(source, vocabulary, table, settings)
    start = vocabulary
    if scenario == "bpe":
        start = read_vocabulary(alphabet(vocabulary, table.words, weigh(table)), source.origin)
    elif scenario == "optimized":
        kept = kept_tokens(vocabulary, table.words, weigh(table), settings.keep, settings.keep_by)
        start = read_vocabulary(kept, source.origin)
    if size is not None:
        _refuse_small(size, start.size)
    number = settings.add or (size or 0) - start.size
    if scenario == "bpe":
        candidates = _candidates(table, table, vocabulary, settings)
        spec = extend(start, candidates.words, candidates.weights, number)
        return _with_spec(source, _trimmed(spec, start, table, settings), candidates=candidates)
    return _extended(source, start, table, settings, number)


def _replaced(
    source: TokenizerSource, vocabulary: Vocabulary, table: WordTable, settings: VocabularySettings
) -> TokenizerSource:
    """The tokenizer with new tokens at the ids of its least useful ones; LeptaError if too much text changes."""
    assert settings.add is not None
    words, weights = table.words, weigh(table)
    own_script: str | None = _script_of(table, settings.script)
    if settings.keep_text:
        kept = count_corpus(vocabulary.word_rules(), settings.keep_text)
        words, weights, own_script = [*words, *kept.words], np.concatenate([weights, weigh(kept)]), None
    rest = without_least_useful(vocabulary, settings.add, words, weights, own_script)
    start = read_vocabulary(rest, source.origin)
    extended = _extended(source, start, table, settings, settings.add)
    built = _with_spec(source, into_freed_ids(vocabulary, start, extended.spec))
    facts: dict[str, Any] = extended.facts | {"most_changed": settings.most_changed}
    if texts := [text for text in settings.keep_text if not is_word_list(text)]:
        facts["kept_text"] = changes(vocabulary, built.vocabulary(), texts)
        if facts["kept_text"]["share"] > settings.most_changed:
            raise LeptaError(_too_much_changes(facts["kept_text"], settings.most_changed))
    return replace(built, facts=facts)


def _too_much_changes(found: dict[str, Any], limit: float) -> str:
    return (
        f"keep_text: {found['changed']:,} of {found['documents']:,} documents ({found['share']:.2%}) use tokens that "
        f"would give up their ids, first {found['first'][0]}; expected at most {limit:.2%} (`most_changed`). Ask for "
        "fewer new tokens, or allow more"
    )


def _least_start(vocabulary: Vocabulary, scenario: Scenario, keep: int | None) -> int:
    """How many tokens a scenario starts from at least, before any text was read."""
    specials = len(vocabulary.ids_of(Kind.SPECIAL))
    match scenario:
        case "bpe":
            return 256 + specials
        case "optimized":
            return number_to_keep(vocabulary, keep) + specials
        case _:
            return vocabulary.size


def _refuse_small(size: int, start: int) -> None:
    if size <= start:
        raise LeptaError(f"size: {size}; the vocabulary to start from has {start:,} tokens already; expected more")


def _needs_merges(vocabulary: Vocabulary, source: TokenizerSource, scenario: Scenario) -> None:
    if isinstance(vocabulary, SentencePieceUnigram):
        raise LeptaError(
            f"{source.origin}: scenario {scenario} needs merges to build on, a Unigram vocabulary has none; "
            "expected a BPE tokenizer, or scenario unigram"
        )


def choose_size(
    source: TokenizerSource, settings: VocabularySettings, model: Weights
) -> tuple[TokenizerSource, list[Point], Point]:
    """Extend a vocabulary by as many tokens as make text cheapest, judged on documents held out of the learning.

    Gives the new tokenizer, what every thousand tokens bring, and the point of that curve that was taken.
    """
    vocabulary = source.vocabulary()
    _needs_merges(vocabulary, source, "extended")
    table = count_corpus(vocabulary.word_rules(), settings.corpus)
    script = _script_of(table, settings.script)
    kept, held_out = words_of_script(table, script).hold_out()
    candidates = _candidates(kept, table, vocabulary, settings)
    try:
        spec = extend(vocabulary, candidates.words, candidates.weights, MOST_ADDED, script)
    except TooFewTokens as error:
        spec = extend(vocabulary, candidates.words, candidates.weights, error.available, script)
    extended = read_vocabulary(spec, source.origin)
    points = curve(vocabulary, extended, held_out.words, weigh(held_out), model)
    chosen = cheapest(points)
    if not chosen.added:
        raise LeptaError("size: auto, but no new token pays for its row in this model; name a size, or give other text")
    built = _extended(source, vocabulary, table, settings, chosen.added)
    facts = {"added": chosen.added, "cost_of_text": chosen.compute, **built.facts}
    return replace(built, facts=facts, settings=settings), points, chosen


def _extended(
    source: TokenizerSource, start: Vocabulary, table: WordTable, settings: VocabularySettings, number: int
) -> TokenizerSource:
    """The tokenizer with tokens of one script added to those that are kept."""
    script = _script_of(table, settings.script)
    candidates = _candidates(words_of_script(table, script), table, start, settings)
    try:
        spec = extend(start, candidates.words, candidates.weights, number, script)
    except TooFewTokens as error:
        raise TooFewTokens(error.available, number, script) from error
    return _with_spec(source, _trimmed(spec, start, table, settings), script, candidates)


def _trimmed(spec: Spec, start: Vocabulary, table: WordTable, settings: VocabularySettings) -> Spec:
    """A tokenizer without the new tokens that are too rare for the settings."""
    return spec if settings.trim is None else without_rare(spec, start.size, table, settings.trim)


def _candidates(words: WordTable, table: WordTable, vocabulary: Vocabulary, settings: VocabularySettings) -> Candidates:
    """What tokens are learned from: some words of the corpus, and the donors' tokens."""
    weights = weigh(words)
    if not settings.donor:
        return Candidates(words.words, weights, {})
    rules = unigram.word_rules(vocabulary) if settings.scenario == "unigram" else vocabulary.word_rules()
    return with_donors(words, weights, settings.donor, _script_of(table, settings.script), rules)


def _script_of(table: WordTable, script: str) -> str:
    return dominant_script(table.words, weigh(table)) if script == "auto" else script


def _with_spec(
    source: TokenizerSource, spec: Spec, script: str | None = None, candidates: Candidates | None = None
) -> TokenizerSource:
    config = config_with_ids(source.config, spec)
    facts: dict[str, Any] = {"script": script} if script else {}
    if candidates and candidates.of_donors:
        facts["donors"] = candidates.taken(source.vocabulary(), read_vocabulary(spec, source.origin))
    return replace(source, spec=spec, config=config, facts=facts, id_map=None)


def save_vocabulary(
    built: TokenizerSource, original: AnyTokenizer, scenario: Scenario, folder: str | Path, model: str | None = None
) -> dict[str, Any]:
    """Write a new tokenizer as `lepta vocab build` does: see `write_vocabulary`, with a manifest of what it is made of.

    `original` is what it was built from; `model` is the one that `size: auto` was judged by, if it is another.
    """
    facts = write_vocabulary(built, original, scenario, folder)
    if settings := built.settings:
        named = original.origin if isinstance(original, TokenizerSource) else str(original)
        inputs = donor_places(settings.donor)
        if named != TokenizerSource.origin:  # one that was read from no place
            inputs["tokenizer"] = locate(named, hub_files=TOKENIZER_FILES)
        sources = {"tokenizer": named, "model": model, "donor": settings.donor, **settings.texts}
        write_manifest("vocab build", Path(folder), inputs, settings.key, facts, sources, settings.texts)
    return facts


def write_vocabulary(
    built: TokenizerSource, original: AnyTokenizer, scenario: Scenario, folder: str | Path
) -> dict[str, Any]:
    """Write a new tokenizer with the map from old ids to new ones (`id_map.json`); facts for the manifest.

    `kept` counts the old tokens that the new vocabulary has; beside it is what building found (`built.facts`).
    """
    old, new = vocabulary_of(original), built.vocabulary()
    # From new to old: of two old tokens that are one now, both have a new id.
    new_id_of = VocabularyChange.between(new, old).old_id_of
    id_map: dict[str, Any] = {"scenario": scenario}
    if "most_changed" in built.facts:
        id_map["most_changed"] = built.facts["most_changed"]
    id_map["ids"] = [new_id if new_id >= 0 else None for new_id in new_id_of.tolist()]
    replace(built, id_map=id_map).save(Path(folder))
    kept = old.size - id_map["ids"].count(None)
    return {"old_size": old.size, "new_size": new.size, "kept": kept, **built.facts}
