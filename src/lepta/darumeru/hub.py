"""The published datasets on the Hugging Face hub, converted to our schema.

The converters take one row of a published dataset and give the fields of ours; they need no network.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.data import set_aside
from lepta.darumeru.metrics import most_exam_points
from lepta.darumeru.rows import LETTERS, Row, make_row
from lepta.darumeru.subjects import SUBJECTS

DARUMERU = "RefalMachine/darumeru"
MMLU = "NLPCoreTeam/mmlu_ru"
RUCOLA = "RussianNLP/rucola"
SUMMARIES = "dichspace/daru_treeway_eval"
ARTICLES = 500  # the benchmark takes the first so many
RUCOLA_SHOTS = 5

Fields = dict[str, Any]
Record = Mapping[str, Any]
NUMBERED = re.compile(r"\n+(?=\s*\d+[).])")


def fetch(name: str) -> tuple[list[Row], list[Row]]:
    """Download a dataset and convert it.

    Returns
    -------
    lists of Row
        Rows to ask, and solved examples.

    Raises
    ------
    LeptaError
        If the package `datasets` or the network is missing, or a row has not the fields it should have.
    """
    if name in ("mmlu_ru", "mmlu_en"):
        language = name.removeprefix("mmlu_")
        test, shots = (
            [row for subject in SUBJECTS for row in _mmlu(name, subject, split, language)] for split in ("test", "dev")
        )
        return test, shots
    if name == "rucola":
        test = converted(name, _split(RUCOLA, "main", "validation"), rucola_fields, f"{RUCOLA} validation")
        train = converted(name, _split(RUCOLA, "main", "train"), _named("train", rucola_fields), f"{RUCOLA} train")
        return test, set_aside(train, RUCOLA_SHOTS)[1]
    if name == "gazeta":
        test = converted(name, _split(SUMMARIES, None, "test")[:ARTICLES], article_fields, f"{SUMMARIES} test")
        prompt = _split(SUMMARIES, None, "prompt")
        return test, converted(name, prompt, _named("prompt", article_fields), f"{SUMMARIES} prompt")
    if name in ("copy_ru", "copy_en"):
        configs = {"sentence": f"cp_sent_{name[-2:]}", "paragraph": f"cp_para_{name[-2:]}"}
        return _copies(name, configs, "test"), _copies(name, configs, "prompt")
    fields = MERA_FIELDS[name]
    test = converted(name, _split(DARUMERU, name, "test"), fields, f"{DARUMERU} {name} test")
    prompt = _split(DARUMERU, name, "prompt")
    return test, converted(name, prompt, _named("prompt", fields), f"{DARUMERU} {name} prompt")


def converted(name: str, records: Iterable[Record], fields: Callable[[Record, int], Fields], where: str) -> list[Row]:
    """Convert published rows.

    Parameters
    ----------
    name : str
        Dataset of ours.
    records : iterable of mappings
    fields : callable
        From a published row and its number (from 0) to the fields of ours.
    where : str
        What the message of an error begins with.
    """
    rows = []
    for number, record in enumerate(records):
        try:
            values = fields(record, number)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LeptaError(
                f"{where}, row {number}: {type(error).__name__} {error}; it has {_shape(record)}, not the fields that "
                "docs/darumeru.md names"
            ) from error
        rows.append(make_row(name, values, f"{where}, row {number}"))
    return rows


def _shape(record: Record) -> str:
    return ", ".join(f"{key} ({', '.join(value)})" if isinstance(value, dict) else key for key, value in record.items())


def _named(split: str, fields: Callable[[Record, int], Fields]) -> Callable[[Record, int], Fields]:
    """The same converter with the split in the id: published ids start anew in each split."""

    def with_split(record: Record, number: int) -> Fields:
        values = fields(record, number)
        return values | {"id": f"{split}-{values['id']}"}

    return with_split


def _mmlu(name: str, subject: str, split: str, language: str) -> list[Row]:
    fields = mmlu_fields(subject, split, language)
    return converted(name, _split(MMLU, subject, split), fields, f"{MMLU} {subject} {split}")


def _copies(name: str, configs: dict[str, str], split: str) -> list[Row]:
    rows: list[Row] = []
    for kind, config in configs.items():
        where = f"{DARUMERU} {config} {split}"
        rows += converted(name, _split(DARUMERU, config, split), copy_fields(kind, split), where)
    return rows


def _split(repository: str, config: str | None, split: str) -> list[Record]:
    try:
        import datasets
    except ImportError as error:
        raise LeptaError(f"{repository}: the package datasets is missing; pip install 'lepta[datasets]'") from error
    try:
        try:
            return list(datasets.load_dataset(repository, config, split=split))
        except (
            RuntimeError
        ):  # a dataset with a script, which `datasets` runs no more; the hub keeps its rows as Parquet
            return list(datasets.load_dataset(repository, config, split=split, revision="refs/convert/parquet"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LeptaError(
            f"{repository} {config or ''} {split}: the hub does not give it ({reason}); use builtin data or a folder"
        ) from error


def _identity(record: Record, number: int) -> str:
    meta = record.get("meta") or {}
    return str(meta.get("id", number))


def _lettered(inputs: Record) -> list[str]:
    return [str(inputs[f"option_{letter.lower()}"]) for letter in LETTERS]


def choice_fields(record: Record, number: int) -> Fields:
    """Convert a row of ruOpenBookQA or ruWorldTree as MERA has them."""
    inputs = record["inputs"]
    return {
        "id": _identity(record, number),
        "question": inputs["question"],
        "choices": _lettered(inputs),
        "answer": record["outputs"],
    }


def rummlu_fields(record: Record, number: int) -> Fields:
    """Convert a row of ruMMLU as MERA has it."""
    inputs = record["inputs"]
    domain = (record.get("meta") or {}).get("domain") or inputs["subject"]
    return {
        "id": _identity(record, number),
        "domain": domain,
        "question": inputs["text"],
        "choices": _lettered(inputs),
        "answer": record["outputs"],
    }


def multiq_fields(record: Record, number: int) -> Fields:
    """Convert a row of MultiQ: two texts, and answers as segments of them."""
    inputs = record["inputs"]
    texts = [inputs.get("support_text", ""), inputs["text"]]
    return {
        "id": _identity(record, number),
        "context": "\n\n".join(text for text in texts if text),
        "question": inputs["question"],
        "answers": list(dict.fromkeys(answer["segment"] for answer in record["outputs"])),
    }


def parus_fields(record: Record, number: int) -> Fields:
    """Convert a row of PARus."""
    inputs = record["inputs"]
    return {
        "id": _identity(record, number),
        "premise": inputs["premise"],
        "question": record["meta"]["task"],
        "choices": [inputs["choice1"], inputs["choice2"]],
        "answer": record["outputs"],
    }


def rcb_fields(record: Record, number: int) -> Fields:
    """Convert a row of RCB."""
    inputs = record["inputs"]
    return {
        "id": _identity(record, number),
        "premise": inputs["premise"],
        "hypothesis": inputs["hypothesis"],
        "answer": record["outputs"],
    }


def rwsd_fields(record: Record, number: int) -> Fields:
    """Convert a row of RWSD."""
    inputs = record["inputs"]
    return {
        "id": _identity(record, number),
        "text": inputs["text"],
        "span1": inputs["span1_text"],
        "span2": inputs["span2_text"],
        "answer": record["outputs"],
    }


def use_fields(record: Record, number: int) -> Fields:
    """Convert a row of USE: the parts of an item become one question, the points follow from the answer."""
    inputs, meta = record["inputs"], record["meta"]
    outputs = record["outputs"]
    golds = outputs.split(",") if meta["type"] == "text" else [outputs.replace(" ", "")]
    kind = {"text": "text", "matching": "matching"}.get(meta["type"], "choice")
    if kind == "text" and not any(map(str.isalpha, outputs)):
        kind, golds = "choice", [outputs.replace(" ", "")]
    parts = [inputs["task"], inputs.get("text"), inputs.get("additional_text")]
    choices = [choice.strip() for choice in NUMBERED.split(inputs.get("choices") or "") if choice.strip()]
    task = int(meta["id_task"])
    return {
        "id": _identity(record, number),
        "variant": int(meta["variant"]),
        "task": task,
        "kind": kind,
        "question": "\n".join(part for part in parts if part),
        "choices": choices,
        "answers": golds,
        "points": most_exam_points(kind, task, golds),
    }


MERA_FIELDS: dict[str, Callable[[Record, int], Fields]] = {
    "rummlu": rummlu_fields,
    "multiq": multiq_fields,
    "parus": parus_fields,
    "rcb": rcb_fields,
    "ruopenbookqa": choice_fields,
    "ruworldtree": choice_fields,
    "rwsd": rwsd_fields,
    "use": use_fields,
}


def copy_fields(kind: str, split: str) -> Callable[[Record, int], Fields]:
    """Converter of the copying tasks; `kind` is sentence or paragraph."""

    def fields(record: Record, number: int) -> Fields:
        return {"id": f"{split}-{kind}-{number}", "text": record["inputs"]["text"], "kind": kind}

    return fields


def mmlu_fields(subject: str, split: str, language: str) -> Callable[[Record, int], Fields]:
    """Converter of MMLU; a question has the same id in both languages, so that both are drawn together."""

    def fields(record: Record, number: int) -> Fields:
        answer = record["answer"]
        return {
            "id": f"{subject}-{split}-{number}",
            "subject": subject,
            "question": record[f"question_{language}"],
            "choices": list(record[f"choices_{language}"]),
            "answer": answer if answer in LETTERS else LETTERS[int(answer)],
        }

    return fields


def rucola_fields(record: Record, number: int) -> Fields:
    """Convert a row of RuCoLA."""
    label = record["label"] if "label" in record else record["acceptable"]
    return {"id": str(record.get("id", number)), "sentence": record["sentence"], "answer": str(int(label))}


def article_fields(record: Record, number: int) -> Fields:
    """Convert an article with its summary and extractive summary."""
    return {
        "id": str(number),
        "sentences": list(record["src_sents"]),
        "summary": " ".join(record["summary_sents"]),
        "extractive": list(record["extractive_summary"]),
    }
