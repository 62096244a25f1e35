"""How the benchmark asks: the words are in `data/darumeru/prompts.yaml`, the values that fill them come from a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lepta.core.shipped import shipped_data
from lepta.darumeru.rows import LETTERS, ArticleRow, CauseRow, ChoiceRow, ExamRow, Row, SubjectRow
from lepta.darumeru.subjects import RUSSIAN_NAMES


@dataclass(frozen=True)
class Prompt:
    """How items of a task are asked; `lepta.darumeru.tasks` puts examples before, and the answer's lead-in after it."""

    templates: tuple[str, ...]  # with `{fields}`; of several, each item has one of its own, chosen by its id
    lead_in: str = ""  # how the answer starts; never ends with a space; empty if it starts with its own first word
    words: Mapping[str, str] = field(default_factory=dict)  # phrases that a row chooses from
    headline: str = ""  # template that stands before the first turn
    language: str = "ru"  # that subjects are named in

    def fill(self, template: str, row: Row) -> str:
        """Put a row's values into a template; braces inside a value stay as they are."""
        values: dict[str, Any] = dict(row)
        if isinstance(row, ChoiceRow):
            pairs = zip(LETTERS, row.choices, strict=True)
            values["choices"] = "\n".join(f"{letter}) {choice}" for letter, choice in pairs)
        if isinstance(row, SubjectRow):
            values["subject"] = RUSSIAN_NAMES[row.subject] if self.language == "ru" else row.subject.replace("_", " ")
        if isinstance(row, CauseRow):
            values |= {"asked": self.words[row.question], "first": row.choices[0], "second": row.choices[1]}
        if isinstance(row, ExamRow):
            values |= {"question": "\n".join([row.question, *row.choices]), "form": self.words[row.kind]}
        if isinstance(row, ArticleRow):
            values["text"] = " ".join(row.sentences)
        return template.format(**values)


PROMPTS = {
    name: Prompt(**parts | {"templates": tuple(parts["templates"])})
    for name, parts in shipped_data("darumeru/prompts.yaml").items()
}
