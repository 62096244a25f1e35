"""Public formats as tables: for each field of our rows, where a record of theirs has its value.

A converter is such a table, or a function where a table does not do. A value is the name of a field ("inputs.text" is
one inside another) or a function of the record. Records that have no place in a dataset raise `LeaveOut`.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.metrics import exam_numbers, lemmas, most_exam_points, ngrams, rouge
from lepta.darumeru.records import Fields, Record
from lepta.darumeru.rows import LETTERS
from lepta.darumeru.sentences import sentences
from lepta.darumeru.subjects import SUBJECTS

SENTENCE_LENGTH = (60, 250)  # characters, so that most tokenizers need fewer than the task's 128 tokens
PARAGRAPH_LENGTH = (300, 1500)
LEAST_SENTENCES = 3  # of a paragraph to copy, and of an article to summarise
LEAST_WORDS = 3  # of a line that counts as a sentence of an article
MOST_EXTRACTED = 5
WORD = re.compile(r"\w*[^\W\d_]\w*")  # with a letter in it
PRONOUN = re.compile(r"<b>(.*?)</b>")
OPTION_NUMBER = re.compile(r"^\s*(\d+)\s*[).](?!\d)\s*")  # before an option; 3.5 is none
OPTION_LINE = re.compile(r"\n+(?=\s*\d+[).])")
MMLU_FILE = re.compile(r"(?P<subject>\w+?)_(test|dev|val|train)")

# What published files write, in lower case, and what we write.
QUESTIONS = {
    "cause": "cause",
    "effect": "effect",
    "что стало причиной этого?": "cause",
    "что случилось в результате?": "effect",
}
REFERS = {"true": "Да", "1": "Да", "да": "Да", "false": "Нет", "0": "Нет", "нет": "Нет"}
ENTAILMENT = {"entailment": "1", "contradiction": "2", "neutral": "3", "not_entailment": "3"}

Value = str | Callable[[Record], Any]
Table = Mapping[str, Value]
Converter = Table | Callable[[Record], Fields | list[Fields]]


class LeaveOut(Exception):
    """A record that has no place in the dataset; the message is the reason."""


def convert(record: Record, converter: Converter) -> list[Fields]:
    """Fields of the rows that a record makes, one row for most; LeptaError if it is not what the format says."""
    try:
        made = _by_table(record, converter) if isinstance(converter, Mapping) else converter(record)
        rows = made if isinstance(made, list) else [made]
        for row in rows:
            if not any(row.get("answers", [row.get("answer", "none is needed")])):
                raise LeaveOut("the answer is not published")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise LeptaError(
            f"{record.where}: {type(error).__name__} {error}; expected the fields that docs/darumeru.md names"
        ) from error
    return rows


def _by_table(record: Record, table: Table) -> Fields:
    return {name: record[value] if isinstance(value, str) else value(record) for name, value in table.items()}


def _stripped(name: str) -> Callable[[Record], str]:
    return lambda record: record[name].strip()


def _one_of(name: str, known: Mapping[str, str]) -> Callable[[Record], str]:
    """Our value for that of a field: no value is no published answer, an unknown one is an error."""

    def value(record: Record) -> str:
        found = record[name]
        if found in (None, ""):
            raise LeaveOut(f"{name} is not published")
        if str(found).strip().lower() not in known:
            raise LeptaError(f"{record.where}: {name}: {found!r}; expected one of {', '.join(known)}")
        return known[str(found).strip().lower()]

    return value


def _acceptable(record: Record) -> str:
    label = record.get("acceptable", "label")
    if label is None:
        return ""
    return str(int(label)) if isinstance(label, bool) else str(label)


def letter(record: Record) -> str:
    """The right letter, given as a letter or as an index from 0."""
    answer = record.get("answer", "label")
    if answer in LETTERS:
        return str(answer)
    if str(answer) not in ("0", "1", "2", "3"):
        raise LeptaError(f"{record.where}: answer or label: {answer!r}; expected A to D, or 0 to 3")
    return LETTERS[int(answer)]


def _four_choices(record: Record) -> list[str]:
    choices = record.get("options", "choices") or [record[name] for name in LETTERS]
    if len(choices) != len(LETTERS):
        raise LeaveOut(f"{len(choices)} choices, not 4")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise LeaveOut("a choice is empty")
    return list(choices)


def _mmlu(name: str) -> Converter:
    """Questions of MMLU, with their subject in the field of this name."""

    def fields(record: Record) -> Fields:
        mark = record.get("error_type") or "ok"
        if mark != "ok":
            raise LeaveOut(f"marked as wrong: {mark.replace('_', ' ')}")
        return _by_table(record, CHOICE) | {name: record.get("subject") or _subject_of_file(record)}

    return fields


def _subject_of_file(record: Record) -> str:
    """MMLU has a file for each subject, named SUBJECT_test.csv."""
    match = MMLU_FILE.match(record.file)
    if match is None or match["subject"] not in SUBJECTS:
        raise LeptaError(f"{record.where}: no subject; expected a field `subject` or a file named SUBJECT_test.csv")
    return match["subject"]


def _answers_in_context(record: Record) -> list[str]:
    texts = [answer["text"] if isinstance(answer, dict) else answer for answer in record["answers"]]
    if not texts:
        raise LeaveOut("no answer in the text")
    if not any(text in record["context"] for text in texts):
        raise LeaveOut("the answer is not in the text")
    return list(dict.fromkeys(map(str.strip, texts)))


def _marked_pronoun(record: Record) -> Fields:
    marked = set(PRONOUN.findall(record["text"]))
    if len(marked) != 1:
        raise LeaveOut("not exactly one pronoun is marked")
    text = re.sub(r"</?b>", "", record["text"])
    if record["span"].lower() not in text.lower():
        raise LeaveOut("the span is not in the text")
    answer = _one_of("refers", REFERS)(record)
    return {"text": text, "span1": record["span"], "span2": marked.pop().strip(), "answer": answer}


def _exam(variant: int, task: int, kind: str, question: str, choices: Sequence[str], answers: Sequence[str]) -> Fields:
    return {
        "variant": variant,
        "task": task,
        "kind": kind,
        "question": question,
        "choices": list(choices),
        "answers": answers,
        "points": most_exam_points(kind, task, answers),
    }


def _exam_item(record: Record) -> Fields:
    question = record["text"].strip()
    choices: Sequence[str] = ()
    if "correct" in record.fields:
        options = _numbered(record["options"])
        kind, answers = "choice", [_numbers(right, options, record.where) for right in record["correct"]]
        if _squeezed(options[-1]) not in _squeezed(question):  # else the question shows them
            choices = options
    else:
        kind, answers = "text", [answer for answer in record["answers"] if answer.strip()]
        if not all(any(map(str.isalpha, answer)) for answer in answers):
            if not all(answer.replace(",", "").isdecimal() for answer in answers):
                raise LeaveOut("the answer is neither words nor numbers")
            kind, answers = "choice", [",".join(exam_numbers(answer)[-1]) for answer in answers]
    if not answers:
        raise LeaveOut("no answer")
    variant = _variant(str(record["id"]))
    return _exam(variant, int(record["task"]), kind, question, choices, list(dict.fromkeys(answers)))


def _variant(identity: str) -> int:
    """A number for the exam in an item's id EXAM/TASK: the digits of its name, or a hash of it."""
    exam = identity.rsplit("/", 1)[0]
    digits = re.sub(r"\D", "", exam)
    return int(digits or zlib.crc32(exam.encode()))


def _squeezed(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


def _numbered(options: Sequence[str]) -> list[str]:
    """Options with their own numbers or, if one has none, with their places counted from 1."""
    if all(map(OPTION_NUMBER.match, options)):
        return list(options)
    return [f"{place}) {OPTION_NUMBER.sub('', option, 1)}" for place, option in enumerate(options, 1)]


def _numbers(right: Sequence[int], options: Sequence[str], where: str) -> str:
    """Numbers of the right ones of numbered options."""
    if any(not 0 <= place < len(options) for place in right):
        raise LeptaError(f"{where}: correct: {list(right)} for {len(options)} options; indices count from 0")
    return ",".join(OPTION_NUMBER.findall(options[place])[0] for place in right)


def _article(record: Record) -> Fields:
    lines = [line for line in sentences(record["text"]) if len(WORD.findall(line)) >= LEAST_WORDS]
    lines = list(dict.fromkeys(lines))
    if len(lines) < LEAST_SENTENCES:
        raise LeaveOut(f"fewer than {LEAST_SENTENCES} sentences")
    chosen = oracle_sentences(lines, record["summary"])
    if not chosen or len(chosen) == len(lines):
        raise LeaveOut("no sentences stand for the summary")
    return {"sentences": lines, "summary": record["summary"].strip(), "extractive": chosen}


def oracle_sentences(document: Sequence[str], summary: str) -> list[int]:
    """Indices of the sentences that are together most like a summary, in the document's order.

    Greedy, by ROUGE-1 plus ROUGE-2 on lemmas (F-measure), until no sentence makes it better or there are five
    (Nallapati et al. 2017, SummaRuNNer).
    """
    gold, *counted = map(_counted, [summary, *document])
    chosen: list[int] = []
    reached, together = 0.0, [Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()]
    while len(chosen) < MOST_EXTRACTED:
        best, score, best_counts = -1, reached, together
        for place, mine in enumerate(counted):
            if place in chosen:
                continue
            counts = [have + new for have, new in zip(together, mine, strict=True)]
            likeness = sum(rouge(have, wanted).f1 for have, wanted in zip(counts, gold, strict=True))
            if likeness > score:
                best, score, best_counts = place, likeness, counts
        if best < 0:
            break
        chosen.append(best)
        reached, together = score, best_counts
    return sorted(chosen)


def _counted(text: str) -> list[Counter[tuple[str, ...]]]:
    words = lemmas(text)
    return [ngrams(words, 1), ngrams(words, 2)]


def _texts_to_copy(record: Record) -> list[Fields]:
    """All paragraphs and sentences of a document that are fit to be copied; some are drawn later."""
    text = record.get("text", "context")
    if not isinstance(text, str):
        raise LeptaError(f"{record.where}: no field 'text' or 'context' with a text")
    rows = []
    for number, paragraph in enumerate(re.split(r"\s*\n\s*", text)):
        paragraph = " ".join(paragraph.split())
        parts = sentences(paragraph)
        name = f"{record.file}-{record.number}-{number}"
        if _within(paragraph, PARAGRAPH_LENGTH) and len(parts) >= LEAST_SENTENCES and paragraph[-1] in '.!?…»”"':
            rows.append({"id": f"{name}-p", "text": paragraph, "kind": "paragraph"})
        for place, part in enumerate(parts):
            if _within(part, SENTENCE_LENGTH) and part[-1] in ".!?…":
                rows.append({"id": f"{name}-s{place}", "text": part, "kind": "sentence"})
    if not rows:
        raise LeaveOut("no paragraph or sentence of a fit length")
    return rows


def _within(text: str, limits: tuple[int, int]) -> bool:
    return limits[0] <= len(text) <= limits[1]


def _mera_choices(record: Record) -> list[str]:
    return [str(record[f"inputs.option_{name}"]) for name in "abcd"]


def _mera_context(record: Record) -> str:
    """MultiQ has two texts; older rows have only one."""
    return "\n\n".join(filter(None, [record.get("inputs.support_text"), record["inputs.text"]]))


def _mera_exam(record: Record) -> Fields:
    """The parts of an item become one question, the points follow from the answer."""
    answer = record["outputs"]
    kind = {"text": "text", "matching": "matching"}.get(record["meta.type"], "choice")
    if kind == "text" and not any(map(str.isalpha, answer)):
        kind = "choice"
    answers = answer.split(",") if kind == "text" else [answer.replace(" ", "")]
    parts = [record["inputs.task"], record.get("inputs.text"), record.get("inputs.additional_text")]
    question = "\n".join(filter(None, parts))
    choices = list(filter(None, map(str.strip, OPTION_LINE.split(record.get("inputs.choices") or ""))))
    return _exam(int(record["meta.variant"]), int(record["meta.id_task"]), kind, question, choices, answers)


MERA_CHOICE: Table = {"question": "inputs.question", "choices": _mera_choices, "answer": "outputs"}
MERA: dict[str, Converter] = {
    "rummlu": {
        "domain": lambda record: record.get("meta.domain") or record["inputs.subject"],
        "question": "inputs.text",
        "choices": _mera_choices,
        "answer": "outputs",
    },
    "multiq": {
        "context": _mera_context,
        "question": "inputs.question",
        "answers": lambda record: list(dict.fromkeys(answer["segment"] for answer in record["outputs"])),
    },
    "parus": {
        "premise": "inputs.premise",
        "question": "meta.task",
        "choices": lambda record: [record["inputs.choice1"], record["inputs.choice2"]],
        "answer": "outputs",
    },
    "rcb": {"premise": "inputs.premise", "hypothesis": "inputs.hypothesis", "answer": "outputs"},
    "ruopenbookqa": MERA_CHOICE,
    "ruworldtree": MERA_CHOICE,
    "rwsd": {"text": "inputs.text", "span1": "inputs.span1_text", "span2": "inputs.span2_text", "answer": "outputs"},
    "use": _mera_exam,
}
RUCOLA: Converter = {"sentence": _stripped("sentence"), "answer": _acceptable}
CHOICE: Table = {"question": _stripped("question"), "choices": _four_choices, "answer": letter}
SQUAD: Converter = {"context": "context", "question": _stripped("question"), "answers": _answers_in_context}
PARUS: Converter = {
    "premise": "premise",
    "question": _one_of("question", QUESTIONS),
    "choices": lambda record: record.get("options") or [record["choice1"], record["choice2"]],
    "answer": _one_of("label", {"0": "1", "1": "2"}),
}
NLI: Converter = {"premise": "premise", "hypothesis": "hypothesis", "answer": _one_of("label", ENTAILMENT)}


@dataclass(frozen=True)
class Format:
    """A file format: a converter for each dataset that it can become.

    `note` is what should be known about scores on such data, `identity` the field that ids are taken from.
    """

    converters: Mapping[str, Converter]
    note: str = ""
    identity: str = ""


FORMATS: dict[str, Format] = {
    "mera": Format(MERA, identity="meta.id"),
    "rucola": Format({"rucola": RUCOLA}),
    "mmlu": Format({"mmlu_en": _mmlu("subject"), "mmlu_ru": _mmlu("subject"), "rummlu": _mmlu("domain")}),
    "squad": Format({"multiq": SQUAD}, "questions on one text, where MultiQ needs two: easier than MultiQ"),
    "choice": Format({"ruworldtree": CHOICE, "ruopenbookqa": CHOICE}),
    "parus": Format({"parus": PARUS}),
    "rwsd": Format({"rwsd": _marked_pronoun}),
    "nli": Format(
        {"rcb": NLI},
        "not_entailment says nothing about contradiction and stands as 3 (neither): scores are not those of RCB",
    ),
    "use": Format({"use": _exam_item}, "points are normalised by what each exam here can give, not by 34"),
    "summaries": Format({"gazeta": _article}, "the extractive summary is the greedy choice by ROUGE, not people's"),
    "text": Format({"copy_ru": _texts_to_copy, "copy_en": _texts_to_copy}),
}
