"""Tokenizers side by side: one self-contained HTML page with numbers for each source and example texts in pieces."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lepta.core.output import refuse_existing
from lepta.report.page import write_page
from lepta.text.sources import Document, read_labelled
from lepta.vocabulary.measure import Measure, measure_sources, pieces
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Vocabulary

TEMPLATE = "compare.html.j2"
EXAMPLE_CHARACTERS = 320
SHOWN_SOURCES = 40


def write_comparison(
    tokenizers: Sequence[str], texts: Sequence[str], output: Path, examples: int = 6, force: bool = False
) -> dict[str, Any]:
    """Write a page that compares tokenizers on text. The same tokenizers and texts give the same bytes.

    Parameters
    ----------
    tokenizers : sequence of str
        As `open_tokenizer` takes them; one that is named twice is shown once.
    texts : sequence of str
        Text sources.
    output : Path
        The page: written beside its place and renamed in.
    examples : int
        Number of texts to show in pieces; fewer if there are fewer documents.
    force : bool
        Replace the page if it exists.

    Returns
    -------
    dict
        `output`, and `tokenizers`: name -> `Measure.summary` with `sources`: source -> the same.

    Raises
    ------
    LeptaError
        If the page exists and `force` is not set, if it cannot be written, or if a tokenizer or text cannot be read.
    """
    refuse_existing(output, force)
    vocabularies = {name: open_tokenizer(name).vocabulary() for name in tokenizers}
    documents = list(read_labelled(texts))
    measured = {name: measure_sources(vocabulary, documents) for name, vocabulary in vocabularies.items()}
    write_page(TEMPLATE, _view(vocabularies, documents, measured, list(texts), examples), output)
    return {"output": str(output), "tokenizers": summaries(measured)}


def summaries(measured: dict[str, tuple[Measure, dict[str, Measure]]]) -> dict[str, dict[str, Any]]:
    """Name -> `Measure.summary` of all text, with `sources`: source -> the same."""
    return {
        name: {**total.summary(), "sources": {source: part.summary() for source, part in sources.items()}}
        for name, (total, sources) in measured.items()
    }


def _view(
    vocabularies: dict[str, Vocabulary],
    documents: Sequence[Document],
    measured: dict[str, tuple[Measure, dict[str, Measure]]],
    texts: list[str],
    examples: int,
) -> dict[str, Any]:
    """Everything that the template shows."""
    totals = [total for total, _ in measured.values()]
    labels = short_names(list(vocabularies))
    return {
        "tokenizers": [
            {"name": name, "label": label, "family": vocabulary.family, **total.summary()}
            for (name, vocabulary), label, total in zip(vocabularies.items(), labels, totals, strict=True)
        ],
        "headline": _headline(labels, [total.summary()["characters_per_token"] for total in totals]),
        "texts": texts,
        "documents": len(documents),
        "characters": totals[0].characters,
        "words": totals[0].words,
        **_bars([sources for _, sources in measured.values()]),
        "examples": [
            {
                "source": source,
                "characters": len(text),
                "cuts": [pieces(vocabulary, text) for vocabulary in vocabularies.values()],
            }
            for source, text in choose_examples(documents, examples)
        ],
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Ends of paths, as long as it takes to tell them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)


def _headline(labels: Sequence[str], densities: Sequence[float]) -> str:
    low, high = min(densities), max(densities)
    last, first = labels[densities.index(low)], labels[densities.index(high)]
    if high == low:
        return f"A token of {' and of '.join(labels)} holds {high:.2f} characters of this text on average."
    return (
        f"A token of {first} holds {high:.2f} characters of this text on average, a token of {last} only {low:.2f}: "
        f"the same text takes {1 - low / high:.0%} fewer tokens."
    )


def _bars(measured: Sequence[dict[str, Measure]]) -> dict[str, Any]:
    """Characters per token of each source, the largest sources first; `scale` is the longest bar."""
    largest = sorted(measured[0], key=lambda source: -measured[0][source].characters)
    shown = largest[:SHOWN_SOURCES]
    values = [[sources[source].summary()["characters_per_token"] for sources in measured] for source in shown]
    return {
        "sources": [
            {"name": source, "characters": measured[0][source].characters, "densities": densities}
            for source, densities in zip(shown, values, strict=True)
        ],
        "more_sources": len(largest) - len(shown),
        "scale": max(map(max, values)) or 1,
    }


# --- examples ---------------------------------------------------------------------------------------------------------


def choose_examples(documents: Sequence[Document], number: int) -> list[tuple[str, str]]:
    """Choose excerpts of about `EXAMPLE_CHARACTERS`: sources take turns, the largest first; documents are far apart.

    Returns
    -------
    list of (source, excerpt)
        No two from one document.
    """
    by_source: defaultdict[str, list[str]] = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document.text)
    order = sorted(by_source, key=lambda source: -sum(map(len, by_source[source])))
    rounds = range(max(map(len, by_source.values()), default=0))
    turns = list(islice((source for n in rounds for source in order if n < len(by_source[source])), number))
    chosen = []
    for source in order:
        texts, wanted = by_source[source], turns.count(source)
        chosen += [(source, excerpt(texts[(2 * n + 1) * len(texts) // (2 * wanted)])) for n in range(wanted)]
    return chosen


def excerpt(text: str) -> str:
    """Cut a passage out of the middle of a text: from the start of a line, to the end of a word if there is one."""
    if len(text) <= EXAMPLE_CHARACTERS:
        return text.strip()
    start = text.rfind("\n", 0, (len(text) - EXAMPLE_CHARACTERS) // 2 + 1) + 1
    cut = text[start : start + EXAMPLE_CHARACTERS]
    return (cut.rsplit(maxsplit=1) or [""])[0].strip()
