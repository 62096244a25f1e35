"""The published datasets on the Hugging Face hub: where their rows are, and how they become ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.converters import MERA, RUCOLA, Converter, LeaveOut, convert, letter
from lepta.darumeru.examples import set_aside
from lepta.darumeru.records import Record
from lepta.darumeru.rows import Row, make_row
from lepta.darumeru.subjects import SUBJECTS

MERA_REPOSITORY = "RefalMachine/darumeru"
MMLU_REPOSITORY = "NLPCoreTeam/mmlu_ru"
RUCOLA_REPOSITORY = "RussianNLP/rucola"
ARTICLES_REPOSITORY = "dichspace/daru_treeway_eval"
ARTICLES_ASKED = 500  # the benchmark takes the first so many
RUCOLA_SHOTS = 5  # RuCoLA has no examples of its own: training sentences

ARTICLE: Converter = {
    "sentences": "src_sents",
    "summary": lambda record: " ".join(record["summary_sents"]),
    "extractive": "extractive_summary",
}
COPY: Converter = {"text": "inputs.text"}


@dataclass(frozen=True)
class Split:
    """A published split, and how its rows become ours: their id begins with `prefix`, `constants` are fields of all."""

    repository: str
    config: str | None
    name: str
    converter: Converter
    prefix: str = ""
    identity: str = ""
    constants: Mapping[str, str] = field(default_factory=dict)
    most: int | None = None


def fetch(name: str) -> tuple[list[Row], list[Row]]:
    """Download a dataset: rows to ask, and solved examples.

    LeptaError if the package `datasets` or the network is missing, or a row has not the fields it should have.
    """
    asked, solved = _splits(name)
    test = [row for split in asked for row in _rows(name, split)]
    shots = [row for split in solved for row in _rows(name, split)]
    return test, set_aside(shots, RUCOLA_SHOTS)[1] if name == "rucola" else shots


def _splits(name: str) -> tuple[list[Split], list[Split]]:
    """Where rows to ask and examples are. Published ids start anew in each split, so examples have a prefix."""
    match name:
        case "mmlu_ru" | "mmlu_en":
            return _mmlu(name, "test"), _mmlu(name, "dev")
        case "copy_ru" | "copy_en":
            return _copies(name, "test"), _copies(name, "prompt")
        case "rucola":
            return (
                [Split(RUCOLA_REPOSITORY, "main", "validation", RUCOLA, identity="id")],
                [Split(RUCOLA_REPOSITORY, "main", "train", RUCOLA, "train-", "id")],
            )
        case "gazeta":
            return (
                [Split(ARTICLES_REPOSITORY, None, "test", ARTICLE, most=ARTICLES_ASKED)],
                [Split(ARTICLES_REPOSITORY, None, "prompt", ARTICLE, "prompt-")],
            )
        case _:
            return (
                [Split(MERA_REPOSITORY, name, "test", MERA[name], identity="meta.id")],
                [Split(MERA_REPOSITORY, name, "prompt", MERA[name], "prompt-", "meta.id")],
            )


def _mmlu(name: str, split: str) -> list[Split]:
    """A question has the same id in both languages, so that both are drawn together in a bootstrap."""
    language = name.removeprefix("mmlu_")
    fields: Converter = {"question": f"question_{language}", "choices": f"choices_{language}", "answer": letter}
    return [
        Split(MMLU_REPOSITORY, subject, split, fields, f"{subject}-{split}-", constants={"subject": subject})
        for subject in SUBJECTS
    ]


def _copies(name: str, split: str) -> list[Split]:
    language = name.removeprefix("copy_")
    return [
        Split(MERA_REPOSITORY, f"cp_{short}_{language}", split, COPY, f"{split}-{kind}-", constants={"kind": kind})
        for short, kind in (("sent", "sentence"), ("para", "paragraph"))
    ]


def _rows(name: str, split: Split) -> Iterator[Row]:
    place = " ".join(filter(None, (split.repository, split.config, split.name)))
    for number, fields in enumerate(_published(split.repository, split.config, split.name)[: split.most]):
        record = Record(fields, f"{place}, row {number}", number)
        try:
            [values] = convert(record, split.converter)
        except LeaveOut as reason:
            raise LeptaError(f"{record.where}: {reason}") from reason
        identity = split.prefix + record.identity(split.identity)
        yield make_row(name, {"id": identity, **values, **split.constants}, record.where)


def _published(repository: str, config: str | None, split: str) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise LeptaError(f"{repository}: the package datasets is missing; pip install 'lepta[datasets]'") from error
    try:
        try:
            return list(datasets.load_dataset(repository, config, split=split))
        except RuntimeError:
            # A dataset with a script, which `datasets` runs no more; the hub keeps its rows as Parquet.
            return list(datasets.load_dataset(repository, config, split=split, revision="refs/convert/parquet"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LeptaError(
            f"{repository} {config or ''} {split}: the hub does not give it ({reason}); use builtin data or a folder"
        ) from error
