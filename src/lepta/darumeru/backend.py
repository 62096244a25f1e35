"""What a model must be able to do to take the benchmark: the runner knows this protocol and no library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lepta.darumeru.tasks import Message
from lepta.inference.scoring import Question


@dataclass(frozen=True)
class Order:
    """A prompt to go on from.

    Attributes
    ----------
    prompt : str
        As `Backend.render` wrote it.
    stops : tuple of str
        The text ends before the first of them that has something but spaces and line breaks before it.
    longest : int or None
        Characters after which the text is cut.
    """

    prompt: str
    stops: tuple[str, ...] = ()
    longest: int | None = None

    def cut(self, text: str) -> str:
        """A text up to where it ends."""
        begun = len(text) - len(text.lstrip())
        places = [place for stop in self.stops if (place := text.find(stop, begun)) >= 0]
        return text[: min([*places, len(text) if self.longest is None else self.longest])]


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes
    ----------
    text : str
        Without special tokens and spaces around it, up to where the order says that it ends.
    emitted : int
        Tokens that the text took, the one that ends a turn not counted.
    """

    text: str
    emitted: int


class Backend(Protocol):
    """A model, however it is run. Results of all methods are in the order of what was asked."""

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """What decides its answers: content hash of its files, how turns are written, the context."""

    @property
    def chat(self) -> bool:
        """Whether turns are written by the model's chat template; else they are plain text with blank lines."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""

    def render(self, messages: Sequence[Message]) -> str:
        """Write a conversation up to where the model goes on: in its unfinished turn if that is the last message."""

    def count_tokens(self, prompt: str) -> int:
        """How many tokens a rendered prompt has."""

    def tokens(self, text: str) -> tuple[int, ...]:
        """Ids of a text by itself, without special tokens."""

    def share(self, prompts: Sequence[str]) -> None:
        """Announce the prompts that come next: what they all start with may be read once."""

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Log-likelihood of each continuation of each question, over all its tokens, in nats.

        None at all for a question where the model was to write a continuation and wrote none of them.
        """

    def generate(self, orders: Sequence[Order], max_tokens: int) -> list[Written]:
        """Go on greedily."""

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Mean log-probability per token of each continuation, in nats."""
