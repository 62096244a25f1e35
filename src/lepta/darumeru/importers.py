"""Public file formats into our datasets.

A format is a converter from one record of a file to the fields of a row, or to the reason why it is left out. What was
left out, and the hashes of the files, go into the dataset's `source.json`.
"""

import hashlib
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.data import Dataset, apart, checked, set_aside
from lepta.darumeru.hub import MERA_FIELDS
from lepta.darumeru.metrics import exam_numbers, lemmas, most_exam_points, ngrams, rouge_of_counts
from lepta.darumeru.records import Record, read_records
from lepta.darumeru.rows import LETTERS, Row, make_row, row_type
from lepta.darumeru.sentences import sentences
from lepta.darumeru.subjects import SUBJECTS

SHOTS_DEFAULT = 5
COPIES = 100
SENTENCE_LENGTH = (60, 250)  # characters, so that most tokenizers need fewer than the task's 128 tokens
PARAGRAPH_LENGTH = (300, 1500)
LEAST_SENTENCES = 3  # of a paragraph to copy, and of an article to summarise
LEAST_WORDS = 3  # of a line that counts as a sentence of an article
MOST_EXTRACTED = 5
NUMBER = re.compile(r"^\s*(\d+)\s*[).](?!\d)\s*")  # before an option; 3.5 is none
MMLU_FILE = re.compile(r"(?P<subject>\w+?)_(test|dev|val|train)")

Fields = dict[str, Any]


class LeaveOut(Exception):
    """A record that has no place in the dataset; the message is the reason."""


@dataclass
class Imported:
    """Rows of a dataset, made from files.

    Attributes
    ----------
    rows : list of Row
    left_out : Counter
        Reason -> number of records.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes
    ----------
    datasets : tuple of str
        Datasets that it can become.
    convert : callable
        From a record and the dataset's name to fields of a row without `id`; raises LeaveOut.
    about : str
        What files look like, for help and documentation.
    note : str
        What should be known about scores on such data.
    """

    datasets: tuple[str, ...]
    convert: Callable[[Record, str], Fields]
    about: str
    note: str = ""


def import_dataset(
    format_name: str,
    files: Sequence[Path],
    dataset: str,
    shots_files: Sequence[Path] = (),
    shots: int = SHOTS_DEFAULT,
    rows: int = COPIES,
    seed: int = 1,
) -> tuple[Dataset, Fields]:
    """Make a dataset from files.

    Parameters
    ----------
    format_name : str
        One of `FORMATS`.
    files : sequence of Path
    dataset : str
        One of the format's datasets.
    shots_files : sequence of Path
        Files with solved examples; without them the first rows of `files` are set aside.
    shots : int
        How many examples (MMLU: of each subject), with each label in turn.
    rows, seed : int
        Texts to copy are drawn at random: so many of each kind.

    Returns
    -------
    Dataset, and a dict of what it was made from, for `lepta.darumeru.data.write_dataset`.

    Raises
    ------
    LeptaError
        Naming file, line and field of what is wrong.
    """
    kind = _format(format_name, dataset)
    made = read_format(format_name, files, dataset)
    options: Fields = {"shots": shots}
    if dataset.startswith("copy"):
        options |= {"rows": rows, "seed": seed}
        made.rows = _drawn(made.rows, rows + shots, seed)
    if shots_files:
        pool = read_format(format_name, shots_files, dataset)
        examples = [row.model_copy(update={"id": f"shot-{row.id}"}) for row in set_aside(pool.rows, shots)[1]]
        test = apart(made.rows, examples)
    elif dataset.startswith("copy"):
        test, examples = _shots_of_each_kind(made.rows, shots)
    else:
        test, examples = set_aside(made.rows, shots)
    if near := len({row.id for row in made.rows} - {row.id for row in (*test, *examples)}):
        made.left_out["shares its text or exam with an example"] += near
    where = ", ".join(path.name for path in files)
    facts: Fields = {
        "format": format_name,
        "files": {path.name: _file_hash(path) for path in [*files, *shots_files]},
        "options": options,
        "left_out": dict(made.left_out),
    }
    return checked(dataset, where, test, examples), facts | ({"note": kind.note} if kind.note else {})


def read_format(format_name: str, files: Sequence[Path], dataset: str) -> Imported:
    """Convert all records of files; the first record with a wrong field is a LeptaError."""
    kind = _format(format_name, dataset)
    made = Imported()
    for file in files:
        for record in read_records(file):
            try:
                fields = kind.convert(record, dataset)
            except LeaveOut as reason:
                made.left_out[str(reason)] += 1
                continue
            for part in fields.pop("rows", [fields]):
                number = len(made.rows) + 1
                made.rows.append(make_row(dataset, {"id": f"{dataset}-{number:05}", **part}, record.where))
    if not made.rows:
        raise LeptaError(f"{', '.join(map(str, files))}: no row for {dataset}; left out: {dict(made.left_out)}")
    return made


def _format(name: str, dataset: str) -> Format:
    row_type(dataset)
    if name not in FORMATS:
        raise LeptaError(f"{name}: no such format; there are {', '.join(FORMATS)}")
    if dataset not in FORMATS[name].datasets:
        raise LeptaError(f"{name} makes {', '.join(FORMATS[name].datasets)}, not {dataset}")
    return FORMATS[name]


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _from_mera(record: Record, dataset: str) -> Fields:
    try:
        fields = MERA_FIELDS[dataset](record.fields, record.number)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LeptaError(f"{record.where}: {type(error).__name__} {error}; not a MERA row of {dataset}") from error
    if not any(fields.get("answers") or [fields.get("answer")]):
        raise LeaveOut("the answer is not published")
    return fields | {"id": f"{dataset}-{fields['id']}"}


def _from_rucola(record: Record, dataset: str) -> Fields:
    label = record.get("acceptable", record.get("label"))
    if label in (None, ""):
        raise LeaveOut("the answer is not published")
    return {"sentence": record["sentence"].strip(), "answer": str(label)}


def _letter(record: Record) -> str:
    """The right letter, given as a letter or as an index from 0."""
    answer = record.get("answer", record.get("label"))
    if answer in LETTERS:
        return str(answer)
    if str(answer) not in ("0", "1", "2", "3"):
        raise LeptaError(f"{record.where}: answer or label: {answer!r}; expected A to D, or 0 to 3")
    return LETTERS[int(answer)]


def _choices(record: Record) -> list[str]:
    choices = record.get("options", record.get("choices")) or [record[letter] for letter in LETTERS]
    if len(choices) != len(LETTERS):
        raise LeaveOut(f"{len(choices)} choices, not 4")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise LeaveOut("a choice is empty")
    return list(choices)


def _from_choice(record: Record, dataset: str) -> Fields:
    return {"question": record["question"].strip(), "choices": _choices(record), "answer": _letter(record)}


def _from_mmlu(record: Record, dataset: str) -> Fields:
    if (kind := record.get("error_type", "ok")) not in ("ok", "", None):
        raise LeaveOut(f"marked as wrong: {kind.replace('_', ' ')}")
    fields = _from_choice(record, dataset)
    subject = record.get("subject") or _subject_of(record)
    return fields | {"domain" if dataset == "rummlu" else "subject": subject}


def _subject_of(record: Record) -> str:
    """MMLU has a file for each subject, named SUBJECT_test.csv."""
    match = MMLU_FILE.match(record.file.name)
    if match is None or match["subject"] not in SUBJECTS:
        raise LeptaError(f"{record.where}: no subject; expected a field `subject` or a file named SUBJECT_test.csv")
    return match["subject"]


def _from_squad(record: Record, dataset: str) -> Fields:
    answers = record["answers"]
    texts = [answer["text"] if isinstance(answer, dict) else answer for answer in answers]
    if not texts:
        raise LeaveOut("no answer in the text")
    if not any(text in record["context"] for text in texts):
        raise LeaveOut("the answer is not in the text")
    return {
        "context": record["context"],
        "question": record["question"].strip(),
        "answers": list(dict.fromkeys(text.strip() for text in texts)),
    }


# What published files write, in lower case, and what we write.
QUESTIONS = {
    "cause": "cause",
    "effect": "effect",
    "что стало причиной этого?": "cause",
    "что случилось в результате?": "effect",
}
REFERS = {"true": "Да", "1": "Да", "да": "Да", "false": "Нет", "0": "Нет", "нет": "Нет"}
ENTAILMENT = {"entailment": "1", "contradiction": "2", "neutral": "3", "not_entailment": "3"}


def _one_of(record: Record, name: str, known: Mapping[str, str]) -> str:
    """Our value for that of a field: no value is no published answer, an unknown one is an error."""
    value = record[name]
    if value in (None, ""):
        raise LeaveOut(f"{name} is not published")
    if str(value).strip().lower() not in known:
        raise LeptaError(f"{record.where}: {name}: {value!r}; expected one of {', '.join(known)}")
    return known[str(value).strip().lower()]


def _from_parus(record: Record, dataset: str) -> Fields:
    question = _one_of(record, "question", QUESTIONS)
    choices = record.get("options") or [record["choice1"], record["choice2"]]
    answer = _one_of(record, "label", {"0": "1", "1": "2"})
    return {"premise": record["premise"], "question": question, "choices": list(choices), "answer": answer}


def _from_rwsd(record: Record, dataset: str) -> Fields:
    marked = set(re.findall(r"<b>(.*?)</b>", record["text"]))
    if len(marked) != 1:
        raise LeaveOut("not exactly one pronoun is marked")
    text = re.sub(r"</?b>", "", record["text"])
    if record["span"].lower() not in text.lower():
        raise LeaveOut("the span is not in the text")
    answer = _one_of(record, "refers", REFERS)
    return {"text": text, "span1": record["span"], "span2": marked.pop().strip(), "answer": answer}


def _from_nli(record: Record, dataset: str) -> Fields:
    answer = _one_of(record, "label", ENTAILMENT)
    return {"premise": record["premise"], "hypothesis": record["hypothesis"], "answer": answer}


def _variant(identity: str) -> int:
    """A number for the exam in an item's id EXAM/TASK: the digits of its name, or a hash of it."""
    exam = identity.rsplit("/", 1)[0]
    digits = re.sub(r"\D", "", exam)
    return int(digits) if digits else zlib.crc32(exam.encode())


def _from_use(record: Record, dataset: str) -> Fields:
    task = int(record["task"])
    text = record["text"].strip()
    if "correct" in record.fields:
        options = _numbered(record["options"])
        kind, answers = "choice", [_numbers(right, options, record.where) for right in record["correct"]]
        choices = [] if _squeezed(options[-1]) in _squeezed(text) else list(options)
    else:
        kind, choices, answers = "text", [], [answer for answer in record["answers"] if answer.strip()]
        if not all(any(map(str.isalpha, answer)) for answer in answers):
            if not all(answer.replace(",", "").isdecimal() for answer in answers):
                raise LeaveOut("the answer is neither words nor numbers")
            kind, answers = "choice", [",".join(exam_numbers(answer)[-1]) for answer in answers]
    if not answers:
        raise LeaveOut("no answer")
    answers = list(dict.fromkeys(answers))
    return {
        "variant": _variant(str(record["id"])),
        "task": task,
        "kind": kind,
        "question": text,
        "choices": choices,
        "answers": answers,
        "points": most_exam_points(kind, task, answers),
    }


def _squeezed(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


def _numbered(options: Sequence[str]) -> list[str]:
    """Options with their own numbers or, if one has none, with their places counted from 1."""
    if all(map(NUMBER.match, options)):
        return list(options)
    return [f"{place}) {NUMBER.sub('', option, 1)}" for place, option in enumerate(options, 1)]


def _numbers(right: Sequence[int], options: Sequence[str], where: str) -> str:
    """Numbers of the right ones of numbered options."""
    if any(not 0 <= place < len(options) for place in right):
        raise LeptaError(f"{where}: correct: {list(right)} for {len(options)} options; indices count from 0")
    return ",".join(number for place in right for number in NUMBER.findall(options[place]))


def _from_summaries(record: Record, dataset: str) -> Fields:
    lines = [line for line in sentences(record["text"]) if len(re.findall(r"\w*[^\W\d_]\w*", line)) >= LEAST_WORDS]
    lines = list(dict.fromkeys(lines))
    if len(lines) < LEAST_SENTENCES:
        raise LeaveOut(f"fewer than {LEAST_SENTENCES} sentences")
    chosen = oracle_sentences(lines, record["summary"])
    if not chosen or len(chosen) == len(lines):
        raise LeaveOut("no sentences stand for the summary")
    return {"sentences": lines, "summary": record["summary"].strip(), "extractive": chosen}


def oracle_sentences(document: Sequence[str], summary: str) -> list[int]:
    """Choose sentences that are together most like a summary: greedily, by ROUGE-1 plus ROUGE-2 on lemmas (F-measure).

    Source: Nallapati et al. 2017, SummaRuNNer. Stops when no sentence makes it better, or after five.

    Parameters
    ----------
    document : sequence of str
        Sentences.
    summary : str

    Returns
    -------
    list of int
        Indices in the order of the document.
    """
    gold = [ngrams(lemmas(summary), n) for n in (1, 2)]
    counted = [[ngrams(words, n) for n in (1, 2)] for words in map(lemmas, document)]
    chosen: list[int] = []
    reached, together = 0.0, [Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()]
    while len(chosen) < MOST_EXTRACTED:
        scores = {
            i: sum(
                rouge_of_counts(have + new, wanted).f1 for have, new, wanted in zip(together, mine, gold, strict=True)
            )
            for i, mine in enumerate(counted)
            if i not in chosen
        }
        place = max(scores, key=lambda i: scores[i], default=-1)
        if place < 0 or scores[place] <= reached:
            break
        chosen.append(place)
        reached, together = scores[place], [have + new for have, new in zip(together, counted[place], strict=True)]
    return sorted(chosen)


def _from_text(record: Record, dataset: str) -> Fields:
    """All paragraphs and sentences of a document that are fit to be copied; some are drawn later."""
    text = record.get("text") or record.get("context")
    if not isinstance(text, str):
        raise LeptaError(f"{record.where}: no field 'text' or 'context' with a text")
    rows = []
    for number, paragraph in enumerate(re.split(r"\s*\n\s*", text)):
        paragraph = " ".join(paragraph.split())
        parts = sentences(paragraph)
        name = f"{record.file.name}-{record.number}-{number}"
        if _within(paragraph, PARAGRAPH_LENGTH) and len(parts) >= LEAST_SENTENCES and paragraph[-1] in '.!?…»”"':
            rows.append({"id": f"{name}-p", "text": paragraph, "kind": "paragraph"})
        good = [i for i, part in enumerate(parts) if _within(part, SENTENCE_LENGTH) and part[-1] in ".!?…"]
        rows += [{"id": f"{name}-s{i}", "text": parts[i], "kind": "sentence"} for i in good]
    if not rows:
        raise LeaveOut("no paragraph or sentence of a fit length")
    return {"rows": rows}


def _within(text: str, limits: tuple[int, int]) -> bool:
    return limits[0] <= len(text) <= limits[1]


def _of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    return [row for row in rows if getattr(row, "kind", None) == kind]


def _drawn(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """So many paragraphs and so many sentences, none from a paragraph that was drawn, no text twice."""
    different = list({getattr(row, "text", ""): row for row in rows}.values())
    generator = random.Random(seed)
    paragraphs = _of_kind(different, "paragraph")
    taken = generator.sample(paragraphs, min(number, len(paragraphs)))
    places = {row.id.rsplit("-", 1)[0] for row in taken}
    free = [row for row in _of_kind(different, "sentence") if row.id.rsplit("-", 1)[0] not in places]
    if len(taken) < number or len(free) < number:
        raise LeptaError(f"{len(taken)} paragraphs and {len(free)} sentences to copy; expected {number} of each")
    return [*taken, *generator.sample(free, number)]


def _shots_of_each_kind(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    parts = [set_aside(_of_kind(rows, kind), number) for kind in ("paragraph", "sentence")]
    return [row for test, _ in parts for row in test], [row for _, shots in parts for row in shots]


FORMATS: dict[str, Format] = {
    "mera": Format(tuple(MERA_FIELDS), _from_mera, "MERA: JSON or JSONL with inputs, outputs, meta"),
    "rucola": Format(("rucola",), _from_rucola, "RuCoLA: CSV or JSONL with sentence, acceptable (0, 1)"),
    "mmlu": Format(
        ("mmlu_en", "mmlu_ru", "rummlu"),
        _from_mmlu,
        "MMLU: SUBJECT_test.csv without header; or JSONL with subject, question, options, label (0-3); rows whose "
        "error_type is not ok are left out (MMLU-Redux)",
    ),
    "squad": Format(
        ("multiq",),
        _from_squad,
        "SQuAD, XQuAD: JSON, or JSONL with context, question, answers",
        "questions on one text, where MultiQ needs two: easier than MultiQ",
    ),
    "choice": Format(
        ("ruworldtree", "ruopenbookqa"), _from_choice, "JSONL or CSV with question, options (4), label (0-3 or A-D)"
    ),
    "parus": Format(
        ("parus",), _from_parus, "JSONL with premise, question, options (2) or choice1, choice2, label (0, 1)"
    ),
    "rwsd": Format(("rwsd",), _from_rwsd, "JSONL with text (pronoun in <b>), span, refers (true, false)"),
    "nli": Format(
        ("rcb",),
        _from_nli,
        "JSONL with premise, hypothesis, label (entailment, contradiction, neutral, not_entailment)",
        "not_entailment says nothing about contradiction and stands as 3 (neither): scores are not those of RCB",
    ),
    "use": Format(
        ("use",),
        _from_use,
        "JSONL with id (EXAM/TASK), task, text and options, correct ([[indices], ...]) or answers",
        "points are normalised by what each exam here can give, not by 34",
    ),
    "summaries": Format(
        ("gazeta",),
        _from_summaries,
        "JSONL with text, summary; sentences and the extractive summary are found here",
        "the extractive summary is the greedy choice by ROUGE, not people's",
    ),
    "text": Format(("copy_ru", "copy_en"), _from_text, "text to copy: .txt, or JSONL with text or context"),
}
