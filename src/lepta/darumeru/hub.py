"""The published datasets on the Hugging Face hub: where their rows are, and how they become ours."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lepta.core.errors import LeptaError, optional
from lepta.darumeru.converters import MERA, RUCOLA, Converter, LeaveOut, convert, letter
from lepta.darumeru.examples import set_aside
from lepta.darumeru.records import Record
from lepta.darumeru.rows import Row, make_row
from lepta.darumeru.subjects import SUBJECTS
from lepta.text.locate import hub_fault

MERA_REPOSITORY = "RefalMachine/darumeru"
RUCOLA_SHOTS = 5  # RuCoLA has no examples of its own: training sentences

ARTICLE: Converter = {
    "sentences": "src_sents",
    "summary": lambda record: " ".join(record["summary_sents"]),
    "extractive": "extractive_summary",
}


@dataclass(frozen=True)
class Published:
    """A published dataset, and how its rows become ours."""

    repository: str
    converter: Converter
    configs: Mapping[str, Mapping[str, str]]  # name of a config ("": there is one only) -> fields that its rows get
    test: str = "test"  # split to ask
    shots: str = "prompt"  # split of solved examples
    identity: str = ""  # field that ids are taken from, else the row's number
    # Before an id, since ids start anew in each split and config; of examples always at least the split.
    prefix: str = ""
    most: int | None = None  # rows to ask


def _mmlu(language: str) -> Published:
    """A question has the same id in both languages, so that both are drawn together in a bootstrap."""
    fields: Converter = {"question": f"question_{language}", "choices": f"choices_{language}", "answer": letter}
    subjects = {subject: {"subject": subject} for subject in SUBJECTS}
    return Published("NLPCoreTeam/mmlu_ru", fields, subjects, shots="dev", prefix="{subject}-{split}-")


def _copies(language: str) -> Published:
    kinds = {f"cp_{kind[:4]}_{language}": {"kind": kind} for kind in ("sentence", "paragraph")}
    return Published(MERA_REPOSITORY, {"text": "inputs.text"}, kinds, prefix="{split}-{kind}-")


PUBLISHED = {name: Published(MERA_REPOSITORY, MERA[name], {name: {}}, identity="meta.id") for name in MERA} | {
    "mmlu_ru": _mmlu("ru"),
    "mmlu_en": _mmlu("en"),
    "copy_ru": _copies("ru"),
    "copy_en": _copies("en"),
    "rucola": Published("RussianNLP/rucola", RUCOLA, {"main": {}}, "validation", "train", identity="id"),
    "gazeta": Published("dichspace/daru_treeway_eval", ARTICLE, {"": {}}, most=500),  # as the benchmark has it
}


def fetch(name: str) -> tuple[list[Row], list[Row]]:
    """Download a dataset: rows to ask, and solved examples.

    LeptaError if the package `datasets` or the network is missing, or a row has not the fields it should have.
    """
    published = PUBLISHED[name]
    test = list(itertools.islice(_rows(name, published, published.test, published.prefix), published.most))
    shots = list(_rows(name, published, published.shots, published.prefix or "{split}-"))
    if name == "rucola":
        _, shots = set_aside(shots, RUCOLA_SHOTS)
    return test, shots


def _rows(name: str, published: Published, split: str, prefix: str) -> Iterator[Row]:
    for config, constants in published.configs.items():
        place = " ".join(filter(None, (published.repository, config, split)))
        for number, fields in enumerate(_published(published.repository, config or None, split)):
            record = Record(fields, f"{place}, row {number}", number)
            try:
                [values] = convert(record, published.converter)
            except LeaveOut as reason:
                raise LeptaError(f"{record.where}: {reason}") from reason
            identity = prefix.format(split=split, **constants) + record.identity(published.identity)
            yield make_row(name, {"id": identity, **values, **constants}, record.where)


def _published(repository: str, config: str | None, split: str) -> list[dict[str, Any]]:
    with optional(repository, "datasets"):
        import datasets
    try:
        try:
            return list(datasets.load_dataset(repository, config, split=split))
        except RuntimeError:
            # A dataset with a script, which `datasets` runs no more; the hub keeps its rows as Parquet.
            return list(datasets.load_dataset(repository, config, split=split, revision="refs/convert/parquet"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise LeptaError(f"{repository} {config or ''} {split}: {hub_fault(error)}, or use builtin data") from error
