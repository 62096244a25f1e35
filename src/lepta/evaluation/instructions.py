"""Instruction following with rules that a program can check: no judge, and no language in the code.

A file has prompts, each with the rules that its answer must keep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator, Field, model_validator

from lepta.calibration.calibrate import Place
from lepta.calibration.settings import AnswerSettings
from lepta.calibration.writers import Sampling
from lepta.core.errors import LeptaError
from lepta.core.intervals import Share, shares_of
from lepta.core.reading import parse_json, read_yaml
from lepta.core.settings import Section, known_script, validated
from lepta.evaluation.pairwise import texts_of
from lepta.evaluation.shipped import evaluation_file

SCRIPT_SHARE = 0.95  # of the letters, for a name or a formula may be in another script
POINT = regex.compile(r"(?m)^\s*(?:[-*•–—]|\d+[.)])\s+\S")
END_OF_SENTENCE, IN_WORDS = regex.compile(r"[.!?…]+"), regex.compile(r"[\w'’-]+")
FENCE = regex.compile(r"(?s)^```\w*\n(.*)\n```$")

Words = Annotated[str, Field(min_length=1)]


class Count(Section):
    """How many there must be."""

    exactly: int | None = Field(default=None, ge=0)
    at_least: int | None = Field(default=None, ge=0)
    at_most: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> "Count":
        if not self.model_fields_set or None in self.model_dump(include=self.model_fields_set).values():
            raise ValueError("give exactly, at_least or at_most, as a number")
        if self.exactly is not None and len(self.model_fields_set) > 1:
            raise ValueError("exactly stands alone")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        return self

    def holds(self, number: int) -> bool:
        """Whether a number is as it must be."""
        if self.exactly is not None:
            return number == self.exactly
        return (self.at_least or 0) <= number and (self.at_most is None or number <= self.at_most)


class Rules(Section):
    """What an answer must keep; a rule that is not given is not checked."""

    characters: Count | None = None
    words: Count | None = None
    sentences: Count | None = None
    paragraphs: Count | None = Field(default=None, description="Parts with an empty line between them")
    points: Count | None = Field(default=None, description="Lines that begin with a dash, a star or a number")
    contains: list[Words] | None = Field(default=None, min_length=1, description="Texts in it, in any case")
    lacks: list[Words] | None = Field(default=None, min_length=1, description="Texts not in it, in any case")
    starts: Words | None = Field(default=None, description="How it begins, in any case")
    ends: Words | None = Field(default=None, description="How it ends, in any case")
    script: Annotated[str, AfterValidator(known_script)] | None = Field(
        default=None, description="Unicode script of its letters"
    )
    case: Literal["upper", "lower"] | None = Field(default=None, description="Of all letters")
    format: Literal["json"] | None = Field(default=None, description="json: nothing else, a fence around it allowed")

    @model_validator(mode="after")
    def _one_at_least(self) -> "Rules":
        if not self.model_fields_set:
            raise ValueError("give at least one rule")
        if empty := [name for name in sorted(self.model_fields_set) if getattr(self, name) is None]:
            raise ValueError(f"{empty[0]} says nothing; give it a value, or leave it out")
        return self


class Instruction(Section):
    """A prompt, and what its answer must keep."""

    prompt: str = Field(min_length=1)
    rules: Rules


@dataclass(frozen=True)
class Followed:
    """How far a model follows instructions.

    `all_rules`: answers that keep all their rules; `rules`: of each rule the answers that keep it; `answers`: of each
    instruction `prompt`, `answer` and `kept` (rule -> whether it is kept).
    """

    all_rules: Share
    rules: dict[str, Share]
    answers: list[dict[str, Any]]


class Instructions(Section):
    """A file of instructions."""

    instructions: list[Instruction] = Field(min_length=1)


def _in_script(text: str, script: str) -> bool:
    letters = regex.findall(r"\p{L}", text)
    return bool(letters) and len(regex.findall(rf"\p{{{script}}}", "".join(letters))) >= SCRIPT_SHARE * len(letters)


def _is_json(text: str) -> bool:
    fenced = FENCE.match(text)
    try:
        parse_json(fenced[1] if fenced else text, "answer")
    except LeptaError:
        return False
    return True


def _with_letters(parts: list[str]) -> int:
    """How many of the parts have a letter or digit; one pass, for a model may write a long line of dashes."""
    return sum(regex.search(r"\w", part) is not None for part in parts)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "characters": lambda text, count: count.holds(len(text)),
    "words": lambda text, count: count.holds(_with_letters(IN_WORDS.findall(text))),
    "sentences": lambda text, count: count.holds(_with_letters(END_OF_SENTENCE.split(text))),
    "paragraphs": lambda text, count: count.holds(len(regex.split(r"\n\s*\n", text)) if text else 0),
    "points": lambda text, count: count.holds(len(POINT.findall(text))),
    "contains": lambda text, parts: all(part.casefold() in text.casefold() for part in parts),
    "lacks": lambda text, parts: not any(part.casefold() in text.casefold() for part in parts),
    "starts": lambda text, start: text.casefold().startswith(start.casefold()),
    "ends": lambda text, end: text.casefold().endswith(end.casefold()),
    "script": _in_script,
    "case": lambda text, case: text == (text.upper() if case == "upper" else text.lower()),
    "format": lambda text, _: _is_json(text),
}


def kept_rules(rules: Rules, answer: str) -> dict[str, bool]:
    """Which rules an answer keeps, spaces around it left out; an empty one keeps none."""
    text = answer.strip()
    return {name: bool(text) and CHECKS[name](text, getattr(rules, name)) for name in sorted(rules.model_fields_set)}


def read_instructions(source: str | Path) -> list[Instruction]:
    """Instructions of a YAML file, or those that come with LEPTA (`ru`); LeptaError names what is wrong in it."""
    file = evaluation_file(source, "instructions", ".yaml")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise LeptaError(f"{file}: expected `instructions`, a list of prompts with rules")
    return validated(Instructions, content, str(file)).instructions


def instruction_following(
    model: Place, instructions: Sequence[Instruction], settings: AnswerSettings | None = None
) -> Followed:
    """Ask an instruct model, greedily, and check its answers; LeptaError if it cannot be read or refuses a prompt."""
    settings = settings or AnswerSettings()
    asked = [[{"role": "user", "content": one.prompt}] for one in instructions]
    sampling = Sampling(settings.max_tokens, thinking=settings.budget)
    texts = texts_of(model, asked, sampling, settings, description="writing answers to instructions")
    rows: list[dict[str, Any]] = []
    kept: list[tuple[str, bool]] = []
    for one, text in zip(instructions, texts, strict=True):
        marks = kept_rules(one.rules, text)
        rows.append({"prompt": one.prompt, "answer": text, "kept": marks})
        kept += marks.items()
    whole = sum(all(row["kept"].values()) for row in rows)
    return Followed(Share.of(whole, len(rows)), shares_of(kept), rows)
