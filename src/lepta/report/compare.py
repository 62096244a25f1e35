"""Tokenizers side by side: one self-contained HTML page with numbers for each source and example texts in pieces."""

from collections import Counter, defaultdict
from collections.abc import Sequence
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

Measured = dict[str, tuple[Measure, dict[str, Measure]]]  # tokenizer -> all text, and each source


def write_comparison(
    tokenizers: Sequence[str], texts: Sequence[str], output: Path, examples: int = 6, force: bool = False
) -> dict[str, Any]:
    """Write a page that compares tokenizers on text. The same tokenizers and texts give the same bytes.

    `examples` texts are shown in pieces, no two from one document. `force` replaces a page that exists. Gives `output`,
    and the `summaries` of the `tokenizers`. LeptaError if the page exists or cannot be written, or if a tokenizer or
    text cannot be read.
    """
    refuse_existing(output, force, for_file=True)
    vocabularies = {name: open_tokenizer(name).vocabulary() for name in tokenizers}
    documents = list(read_labelled(texts))
    measured = {name: measure_sources(vocabulary, documents) for name, vocabulary in vocabularies.items()}
    view = _view(vocabularies, measured) | {"texts": texts, "documents": len(documents), "examples": []}
    for source, text in choose_examples(documents, examples):
        cuts = [pieces(vocabulary, text) for vocabulary in vocabularies.values()]
        view["examples"].append({"source": source, "characters": len(text), "cuts": cuts})
    write_page(TEMPLATE, view, output)
    return {"output": str(output), "tokenizers": summaries(measured)}


def summaries(measured: Measured) -> dict[str, dict[str, Any]]:
    """Name -> `Measure.summary` of all text, with `sources`: source -> the same."""
    found: dict[str, dict[str, Any]] = {}
    for name, (total, sources) in measured.items():
        parts = {source: part.summary() for source, part in sources.items()}
        found[name] = total.summary() | {"sources": parts}
    return found


def _view(vocabularies: dict[str, Vocabulary], measured: Measured) -> dict[str, Any]:
    """What the page shows of all text, and of each source."""
    shown = summaries(measured)
    for (name, vocabulary), label in zip(vocabularies.items(), short_names(list(vocabularies)), strict=True):
        shown[name] |= {"name": name, "label": label, "family": vocabulary.family}
    total, sources = next(iter(measured.values()))
    largest = sorted(sources, key=lambda source: -sources[source].characters)
    rows: list[dict[str, Any]] = []
    for source in largest[:SHOWN_SOURCES]:
        densities = [tokenizer["sources"][source]["characters_per_token"] for tokenizer in shown.values()]
        rows.append({"name": source, "characters": sources[source].characters, "densities": densities})
    return {
        "tokenizers": list(shown.values()),
        "headline": _headline({row["label"]: row["characters_per_token"] for row in shown.values()}),
        "characters": total.characters,
        "words": total.words,
        "sources": rows,
        "more_sources": len(largest) - len(rows),
        "scale": max(max(row["densities"]) for row in rows) or 1,  # the longest bar
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Ends of paths, as long as it takes to tell them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)


def _headline(densities: dict[str, float]) -> str:
    last, first = min(densities, key=densities.__getitem__), max(densities, key=densities.__getitem__)
    low, high = densities[last], densities[first]
    if high == low:
        return f"A token of {' and of '.join(densities)} holds {high:.2f} characters of this text on average."
    return (
        f"A token of {first} holds {high:.2f} characters of this text on average, a token of {last} only {low:.2f}: "
        f"the same text takes {1 - low / high:.0%} fewer tokens."
    )


# --- examples ---------------------------------------------------------------------------------------------------------


def choose_examples(documents: Sequence[Document], number: int) -> list[tuple[str, str]]:
    """Choose sources and excerpts of about `EXAMPLE_CHARACTERS`, no two from one document.

    Sources take turns, the largest first. The documents of one source are far apart, since neighbours are often alike.
    """
    by_source: defaultdict[str, list[str]] = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document.text)
    order = sorted(by_source, key=lambda source: -sum(map(len, by_source[source])))
    number = min(number, len(documents))
    wanted: Counter[str] = Counter()
    while wanted.total() < number:
        for source in order:
            if wanted[source] < len(by_source[source]) and wanted.total() < number:
                wanted[source] += 1
    chosen = []
    for source in order:
        texts = by_source[source]
        for place in range(wanted[source]):
            middle = (2 * place + 1) * len(texts) // (2 * wanted[source])  # of one of so many equal parts
            chosen.append((source, excerpt(texts[middle])))
    return chosen


def excerpt(text: str) -> str:
    """Cut a passage out of the middle of a text: from the start of a line, to the end of a word if there is one."""
    if len(text) <= EXAMPLE_CHARACTERS:
        return text.strip()
    start = text.rfind("\n", 0, (len(text) - EXAMPLE_CHARACTERS) // 2 + 1) + 1
    cut = text[start : start + EXAMPLE_CHARACTERS]
    return (cut.rsplit(maxsplit=1) or [""])[0].strip()
