"""What a model must be able to do to take the benchmark. The runner knows this class and no library."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.tasks import Message
from lepta.inference.chat import chat_prompt
from lepta.inference.generation import start_tokens
from lepta.inference.scoring import Branch, Question, branches_of, token_ids

CONTEXT = 4096  # of the paper's runs


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt as `Backend.render` wrote it, to be continued."""

    prompt: str
    # The text ends before the first of these that has something but spaces and line breaks before it.
    stops: tuple[str, ...] = ()
    longest: int | None = None  # characters after which the text is cut

    def cut(self, text: str) -> str:
        """A text up to where it ends."""
        begun = len(text) - len(text.lstrip())
        ends = [len(text) if self.longest is None else self.longest]
        for stop in self.stops:
            place = text.find(stop, begun)
            if place >= 0:
                ends.append(place)
        return text[: min(ends)]


@dataclass(frozen=True)
class Completion:
    """What a model wrote, up to where the request says that it ends."""

    text: str  # without special tokens and spaces around it
    emitted: int  # tokens that the text took, the one that ends a turn not counted


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    `chat`: turns are written by the model's chat template, else as plain text with blank lines; None: if there is a
    template. `context`: most tokens of prompt and answer together. `thinking`: most tokens of thinking before that.
    """

    chat: bool | None = None
    context: int = CONTEXT
    thinking: int = 0


USUAL = Asking()


class Backend(ABC):
    """A model, however it is run, and its tokenizer (of transformers). Results are in the order of what was asked.

    `facts` tell what decides its answers beside how it is asked: how it is run, and which weights it has.
    """

    def __init__(self, tokenizer: Any, facts: Mapping[str, str], how: Asking) -> None:
        if how.chat and not tokenizer.chat_template:
            raise LeptaError("chat: the tokenizer has no chat template; ask with plain text (--plain)")
        self._tokenizer, self._facts = tokenizer, facts
        self.chat = how.chat is not False and bool(tokenizer.chat_template)
        self.context, self.thinking = how.context, how.thinking
        if self.thinking and not self.chat:
            raise LeptaError("thinking: needs a chat template; plain text has no thinking in it")
        # Chat templates write the token that starts a text themselves.
        self._start = () if self.chat else tuple(start_tokens(tokenizer))

    @property
    def identity(self) -> Mapping[str, str | int]:
        """All that decides its answers, the hash of its chat template too (empty for plain text)."""
        template = hashlib.sha256(self._tokenizer.chat_template.encode()).hexdigest() if self.chat else ""
        thinking = {"thinking": self.thinking} if self.thinking else {}
        return {**self._facts, "template": template, "context": self.context, **thinking}

    def think(self, prompts: Sequence[str]) -> list[str]:
        """Rendered prompts with the model's thinking in them, if it is to think; its answers come after that."""
        return list(prompts)

    @abstractmethod
    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Log-likelihood of each continuation of each question, over all its tokens, in nats.

        None at all for a question where the model was to write a continuation and wrote none of them.
        """

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[Completion]:
        """Continue greedily."""

    @abstractmethod
    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Mean log-probability per token of each continuation, in nats."""

    def share(self, prompts: Sequence[str]) -> None:  # noqa: B027 (servers and lm-evaluation-harness share by themselves)
        """Announce the prompts that come next: what they all start with may be read once."""

    def render(self, messages: Sequence[Message]) -> str:
        """Write a conversation up to where the model goes on: in its unfinished turn if that is the last message."""
        if not self.chat:
            return render_plain(messages)
        try:
            return chat_prompt(self._tokenizer, messages, self.thinking > 0)
        except LeptaError as error:
            raise LeptaError(f"{error}; ask with plain text (--plain)") from error

    def tokens(self, text: str) -> tuple[int, ...]:
        """Ids of a text by itself, without special tokens."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def count_tokens(self, prompt: str) -> int:
        """How many tokens a rendered prompt has, the one that starts a text included."""
        return len(self._start) + len(self.tokens(prompt))

    def ids(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of rendered prompts."""
        return token_ids(self._tokenizer, prompts, self._start)

    def branches(self, question: Question, together: bool) -> list[Branch]:
        """Exact ids of prompt and continuation; see `branches_of`."""
        return branches_of(self._tokenizer, question, together, self._start)


def render_plain(messages: Sequence[Message]) -> str:
    """Write a conversation with blank lines between turns, up to where the model goes on."""
    turns = [message["content"] for message in messages]
    if messages[-1]["role"] != "assistant":
        turns.append("")
    return "\n\n".join(turns)
