"""The words that the benchmark asks in: templates for each task, written for this project.

A template is filled by `str.format` with the fields of one item, so braces inside an item stay as they are. Each is
plain text that stands alone; `lepta.darumeru.tasks` puts examples before it and the answer's lead-in after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lepta.darumeru.rows import LETTERS, ArticleRow, CauseRow, ChoiceRow, ExamRow, Row, SubjectRow
from lepta.darumeru.subjects import RUSSIAN_NAMES

Words = Mapping[str, str]
Values = dict[str, Any]


def _own_fields(row: Row, words: Words) -> Values:
    return dict(row)


@dataclass(frozen=True)
class Prompt:
    """How items of a task are asked."""

    templates: tuple[str, ...]  # with `{fields}`; of several, each item has one of its own, chosen by its id
    lead_in: str = ""  # how the answer starts; never ends with a space; empty if it starts with its own first word
    fields: Callable[[Any, Words], Values] = _own_fields  # from a row and `words` to the values of the fields
    words: Words = field(default_factory=dict)  # phrases that `fields` chooses from
    headline: str = ""  # template that stands before the first turn


def _lettered(row: ChoiceRow, words: Words) -> Values:
    choices = "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, row.choices, strict=True))
    return {"question": row.question, "choices": choices}


def _subject_ru(row: SubjectRow, words: Words) -> Values:
    return _lettered(row, words) | {"subject": RUSSIAN_NAMES[row.subject]}


def _subject_en(row: SubjectRow, words: Words) -> Values:
    return _lettered(row, words) | {"subject": row.subject.replace("_", " ")}


def _cause(row: CauseRow, words: Words) -> Values:
    first, second = row.choices
    return {"premise": row.premise, "asked": words[row.question], "first": first, "second": second}


def _exam(row: ExamRow, words: Words) -> Values:
    return {"question": "\n".join([row.question, *row.choices]), "form": words[row.kind]}


def _article(row: ArticleRow, words: Words) -> Values:
    return {"text": " ".join(row.sentences)}


SCIENCE = Prompt(
    (
        "Вопрос по школьному курсу естественных наук. К нему даны четыре варианта, подходит только один; назовите его "
        "букву.\n\n{question}\n{choices}",
    ),
    "Буква верного варианта:",
    _lettered,
)
COMMON_SENSE = Prompt(
    (
        "Прочитайте вопрос об окружающем мире и решите, какой из четырёх вариантов подходит лучше других. В ответе "
        "нужна одна буква.\n\n{question}\n{choices}",
    ),
    "Лучше всего подходит:",
    _lettered,
)
RUMMLU = Prompt(
    (
        "Перед вами вопрос с четырьмя вариантами ответа. Укажите букву правильного.\n\n{question}\n{choices}",
        "Решите тестовое задание: верен один вариант из четырёх. Назовите только его букву.\n\n{question}\n{choices}",
        "{question}\n{choices}\n\nКакой из этих вариантов верен? Ответьте буквой A, B, C или D.",
        "Проверка знаний. Вопрос: {question}\nВарианты:\n{choices}\nВыберите один и напишите его букву.",
        "Задание для специалиста:\n{question}\n\nОдин из вариантов ниже правильный, найдите его.\n{choices}",
    ),
    "Ответ:",
    _lettered,
)
MMLU_RU = Prompt(
    ("{question}\n{choices}",),
    "Правильный вариант:",
    _subject_ru,
    headline="Тест с одним правильным вариантом из четырёх. Раздел: {subject}.\n\n",
)
MMLU_EN = Prompt(
    ("{question}\n{choices}",),
    "Correct option:",
    _subject_en,
    headline="A test with one correct option out of four. Section: {subject}.\n\n",
)
MULTIQ = Prompt(
    (
        "{context}\n\nОтветьте на вопрос по тексту выше. Ответ — несколько слов из текста, без пояснений.\nВопрос: "
        "{question}",
    ),
    "Ответ:",
)
PARUS = Prompt(
    ("{premise}\n\n{asked}\n1) {first}\n2) {second}\nНапишите номер.",),
    "Номер:",
    _cause,
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
    "Номер:",
)
RWSD = Prompt(
    ("{text}\n\nВерно ли, что слова «{span2}» относятся в этом тексте к словам «{span1}»? Ответьте: Да или Нет.",),
    "Ответ:",
)
RUCOLA = Prompt(
    (
        "Скажет ли так грамотный носитель русского языка? Если предложение построено верно, поставьте 1, если в нём "
        "нарушены нормы языка или смысл — 0.\n\n{sentence}",
    ),
    "Оценка:",
)
USE = Prompt(
    ("Задание экзамена по русскому языку.\n\n{question}\n\n{form}",),
    "Ответ:",
    _exam,
    {
        "text": "В ответе напишите только нужное слово (или слова).",
        "choice": "В ответе перечислите номера через запятую, больше ничего не пишите.",
        "matching": "В ответе напишите через запятую номера по порядку букв, больше ничего не пишите.",
    },
)
ABSTRACTIVE = Prompt(
    ("{text}\n\nКоротко перескажите эту статью своими словами: главное в двух-трёх предложениях.",),
    "Коротко о главном:",
    _article,
)
EXTRACTIVE = Prompt(
    ("{text}\n\nПередайте главное в этой статье одним предложением из неё.",),
    "Главное:",
    _article,
)
COPY_RU = Prompt(
    ("Повторите текст слово в слово, ничего не пропуская и не добавляя.\n\n{text}",),
)
COPY_EN = Prompt(
    ("Repeat the text word for word, leaving nothing out and adding nothing.\n\n{text}",),
)
