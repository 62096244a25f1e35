"""The words that the benchmark asks in: templates for each task, written for this project.

A template is filled by `str.format` with the fields of one item, so braces inside an item stay as they are. Each is
plain text that stands alone; `lepta.darumeru.tasks` puts examples before it and the answer's lead-in after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lepta.darumeru.rows import (
    LETTERS,
    ArticleRow,
    CauseRow,
    ChoiceRow,
    CopyRow,
    DomainRow,
    ExamRow,
    InferenceRow,
    PronounRow,
    QuestionRow,
    SentenceRow,
    SubjectRow,
)
from lepta.darumeru.subjects import RUSSIAN_NAMES


@dataclass(frozen=True)
class Prompt:
    """How items of a task are asked.

    Attributes
    ----------
    templates : tuple of str
        With `{fields}`; of several, each item has one of its own, chosen by its id.
    fields : callable
        From a row and `words` to the values of the fields.
    lead_in : str
        How the answer starts; never ends with a space. Empty if the answer starts with its own first word.
    words : mapping
        Phrases that `fields` chooses from.
    headline : str
        Template that stands before the first turn, or empty.
    """

    templates: tuple[str, ...]
    fields: Callable[[Any, Mapping[str, str]], dict[str, str]]
    lead_in: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    headline: str = ""


def _lettered(choices: tuple[str, ...]) -> str:
    return "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))


def _choice(row: ChoiceRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"question": row.question, "choices": _lettered(row.choices)}


def _domain(row: DomainRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"question": row.question, "choices": _lettered(row.choices)}


def _subject_ru(row: SubjectRow, words: Mapping[str, str]) -> dict[str, str]:
    return _choice(row, words) | {"subject": RUSSIAN_NAMES[row.subject]}


def _subject_en(row: SubjectRow, words: Mapping[str, str]) -> dict[str, str]:
    return _choice(row, words) | {"subject": row.subject.replace("_", " ")}


def _question(row: QuestionRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"context": row.context, "question": row.question}


def _cause(row: CauseRow, words: Mapping[str, str]) -> dict[str, str]:
    first, second = row.choices
    return {"premise": row.premise, "asked": words[row.question], "first": first, "second": second}


def _inference(row: InferenceRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"premise": row.premise, "hypothesis": row.hypothesis}


def _pronoun(row: PronounRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"text": row.text, "span1": row.span1, "span2": row.span2}


def _sentence(row: SentenceRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"sentence": row.sentence}


def _exam(row: ExamRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"question": "\n".join([row.question, *row.choices]), "form": words[row.kind]}


def _article(row: ArticleRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"text": " ".join(row.sentences)}


def _copy(row: CopyRow, words: Mapping[str, str]) -> dict[str, str]:
    return {"text": row.text}


SCIENCE = Prompt(
    (
        "Вопрос по школьному курсу естественных наук. К нему даны четыре варианта, подходит только один; назовите его "
        "букву.\n\n{question}\n{choices}",
    ),
    _choice,
    "Буква верного варианта:",
)
COMMON_SENSE = Prompt(
    (
        "Прочитайте вопрос об окружающем мире и решите, какой из четырёх вариантов подходит лучше других. В ответе "
        "нужна одна буква.\n\n{question}\n{choices}",
    ),
    _choice,
    "Лучше всего подходит:",
)
RUMMLU = Prompt(
    (
        "Перед вами вопрос с четырьмя вариантами ответа. Укажите букву правильного.\n\n{question}\n{choices}",
        "Решите тестовое задание: верен один вариант из четырёх. Назовите только его букву.\n\n{question}\n{choices}",
        "{question}\n{choices}\n\nКакой из этих вариантов верен? Ответьте буквой A, B, C или D.",
        "Проверка знаний. Вопрос: {question}\nВарианты:\n{choices}\nВыберите один и напишите его букву.",
        "Задание для специалиста:\n{question}\n\nОдин из вариантов ниже правильный, найдите его.\n{choices}",
    ),
    _domain,
    "Ответ:",
)
MMLU_RU = Prompt(
    ("{question}\n{choices}",),
    _subject_ru,
    "Правильный вариант:",
    headline="Тест с одним правильным вариантом из четырёх. Раздел: {subject}.\n\n",
)
MMLU_EN = Prompt(
    ("{question}\n{choices}",),
    _subject_en,
    "Correct option:",
    headline="A test with one correct option out of four. Section: {subject}.\n\n",
)
MULTIQ = Prompt(
    (
        "{context}\n\nОтветьте на вопрос по тексту выше. Ответ — несколько слов из текста, без пояснений.\nВопрос: "
        "{question}",
    ),
    _question,
    "Ответ:",
)
PARUS = Prompt(
    ("{premise}\n\n{asked}\n1) {first}\n2) {second}\nНапишите номер.",),
    _cause,
    "Номер:",
    {
        "cause": "Почему так вышло? Выберите более правдоподобную причину.",
        "effect": "К чему это привело? Выберите более правдоподобное последствие.",
    },
)
RCB = Prompt(
    (
        "Текст: {premise}\nУтверждение: {hypothesis}\n\nКак утверждение связано с текстом?\n1) следует из текста\n"
        "2) противоречит тексту\n3) ни то ни другое\nНапишите номер.",
    ),
    _inference,
    "Номер:",
)
RWSD = Prompt(
    ("{text}\n\nВерно ли, что слова «{span2}» относятся в этом тексте к словам «{span1}»? Ответьте: Да или Нет.",),
    _pronoun,
    "Ответ:",
)
RUCOLA = Prompt(
    (
        "Скажет ли так грамотный носитель русского языка? Если предложение построено верно, поставьте 1, если в нём "
        "нарушены нормы языка или смысл — 0.\n\n{sentence}",
    ),
    _sentence,
    "Оценка:",
)
USE = Prompt(
    ("Задание экзамена по русскому языку.\n\n{question}\n\n{form}",),
    _exam,
    "Ответ:",
    {
        "text": "В ответе напишите только нужное слово (или слова).",
        "choice": "В ответе перечислите номера через запятую, больше ничего не пишите.",
        "matching": "В ответе напишите через запятую номера по порядку букв, больше ничего не пишите.",
    },
)
ABSTRACTIVE = Prompt(
    ("{text}\n\nКоротко перескажите эту статью своими словами: главное в двух-трёх предложениях.",),
    _article,
    "Коротко о главном:",
)
EXTRACTIVE = Prompt(
    ("{text}\n\nПередайте главное в этой статье одним предложением из неё.",),
    _article,
    "Главное:",
)
COPY_RU = Prompt(
    ("Повторите текст слово в слово, ничего не пропуская и не добавляя.\n\n{text}",),
    _copy,
)
COPY_EN = Prompt(
    ("Repeat the text word for word, leaving nothing out and adding nothing.\n\n{text}",),
    _copy,
)
