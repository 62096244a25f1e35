"""Instructions that models of a few million weights can learn, in two languages, made from the words of a text.

Words, names and sentences of held-out instructions occur in no instruction that a model is tuned on.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import regex

WORD = regex.compile(r"(?<![\w'-])\p{Ll}{3,9}(?![\w'-])")
WORDS = 1500  # most frequent ones
HELD_OUT = 5  # one word in so many is kept for held-out instructions
LONGEST_SENTENCE = 35

NAMES = {
    "en": "Anna Peter Mary John Alice Robert Helen George Emma Henry Laura Thomas Julia Frank Sarah David Martha Simon "
    "Clara Edward Rose Arthur Lucy Walter Nora Oliver Grace Philip Ruth Daniel Edith Martin Jane Harold Susan Victor",
    "ru": "Анна Пётр Мария Иван Алиса Роман Елена Юрий Эмма Андрей Лариса Фёдор Юлия Борис Софья Давид Марфа Семён "
    "Клара Эдуард Роза Артур Люся Виктор Нора Олег Галя Филипп Раиса Данила Дарья Мартин Жанна Харитон Нина Глеб",
}
ASK = {
    "en": {
        "repeat": "Repeat: {}",
        "sentence": "Copy the sentence: {}",
        "first": "First word: {}",
        "last": "Last word: {}",
        "twice": "Say twice: {}",
        "name": "Find the name: {}",
        "named": "Is there a name: {}",
        "next": "Continue: {}",
    },
    "ru": {
        "repeat": "Повтори: {}",
        "sentence": "Перепиши предложение: {}",
        "first": "Первое слово: {}",
        "last": "Последнее слово: {}",
        "twice": "Скажи дважды: {}",
        "name": "Найди имя: {}",
        "named": "Есть ли имя: {}",
        "next": "Продолжи: {}",
    },
}
YES_NO = {"en": ("yes", "no"), "ru": ("да", "нет")}
TASKS = tuple(ASK["en"])


@dataclass(frozen=True)
class Item:
    """One instruction: `task` of `TASKS`, `language`, what is asked, and the right answer."""

    task: str
    language: str
    prompt: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        """The instruction as a conversation."""
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


@dataclass(frozen=True)
class Pool:
    """What the instructions of one language are made from: either those to tune on, or held-out ones."""

    language: str
    words: list[str]
    names: list[str]
    sentences: list[str]


def pools(language: str, passages: Sequence[str], seed: int) -> tuple[Pool, Pool]:
    """Words, names and sentences to tune on, and others that are held out; the seed decides which is which."""
    counts = Counter(word for passage in passages for word in WORD.findall(passage))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS]]
    sentences = sorted({text for passage in passages for text in _sentences(passage)})
    draw = random.Random(f"pools {language} {seed}")
    parts: list[list[list]] = []
    for values in (words, NAMES[language].split(), sentences):
        values = draw.sample(values, len(values))
        cut = -(-len(values) // HELD_OUT)
        parts.append([values[cut:], values[:cut]])
    tune, held_out = (Pool(language, *(part[side] for part in parts)) for side in (0, 1))
    return tune, held_out


def _sentences(passage: str) -> Iterable[str]:
    for text in regex.findall(r"(?<=[.!?]\s)\p{Lu}[\p{Ll} ,]+[.!?]", passage):
        if 15 <= len(text) <= LONGEST_SENTENCE and text.count(" ") >= 2:
            yield text


def make(task: str, pool: Pool, draw: random.Random) -> Item:
    """One instruction of a task."""
    prompt, answer = MAKERS[task](pool, draw)
    return Item(task, pool.language, ASK[pool.language][task].format(*prompt), answer)


def _phrase(pool: Pool, draw: random.Random, least: int, most: int) -> list[str]:
    return draw.sample(pool.words, draw.randint(least, most))


def _repeat(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    phrase = " ".join(_phrase(pool, draw, 1, 3))
    return [phrase], phrase


def _sentence(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    text = draw.choice(pool.sentences)
    return [text], text


def _first(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    words = _phrase(pool, draw, 2, 5)
    return [" ".join(words)], words[0]


def _last(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    words = _phrase(pool, draw, 2, 5)
    return [" ".join(words)], words[-1]


def _twice(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    word = draw.choice(pool.words)
    return [word], f"{word} {word}"


def _name(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    words, name = _phrase(pool, draw, 2, 4), draw.choice(pool.names)
    words.insert(draw.randint(0, len(words)), name)
    return [" ".join(words)], name


def _named(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    words = _phrase(pool, draw, 3, 5)
    named = draw.random() < 0.5
    if named:
        words[draw.randrange(len(words))] = draw.choice(pool.names)
    yes, no = YES_NO[pool.language]
    return [" ".join(words)], yes if named else no


def _next(pool: Pool, draw: random.Random) -> tuple[list[str], str]:
    """Words that take turns, cut anywhere in the last turn: what comes next?"""
    words = _phrase(pool, draw, 2, 3)
    *shown, answer = (words * 3)[: 2 * len(words) + draw.randint(1, len(words))]
    return [" ".join(shown)], answer


MAKERS: dict[str, Callable[[Pool, random.Random], tuple[list[str], str]]] = {
    "repeat": _repeat,
    "sentence": _sentence,
    "first": _first,
    "last": _last,
    "twice": _twice,
    "name": _name,
    "named": _named,
    "next": _next,
}


def to_tune_on(english: Pool, russian: Pool, number: int, share: float, seed: int) -> list[Item]:
    """So many instructions, that share of them in Russian; tasks take turns."""
    draw = random.Random(f"tune {seed}")
    return [make(TASKS[n % len(TASKS)], russian if draw.random() < share else english, draw) for n in range(number)]


def held_out(pool: Pool, number: int, seed: int) -> list[Item]:
    """So many different instructions of each task, fewer where there are no more."""
    draw = random.Random(f"held out {pool.language} {seed}")
    items: dict[Item, None] = {}
    for task in TASKS:
        made = (make(task, pool, draw) for _ in range(20 * number))
        items |= dict.fromkeys(list(dict.fromkeys(made))[:number])
    return list(items)
