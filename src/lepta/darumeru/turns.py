"""Conversations as tokens: by a chat template or as plain text with blank lines, and the exact ids of continuations."""

import hashlib
from collections.abc import Sequence
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.tasks import Message
from lepta.inference.chat import chat_prompt
from lepta.inference.scoring import Branch, Question, branches_of, token_ids


class Turns:
    """The half of a backend that needs a tokenizer only.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    chat : bool or None
        Write turns by the chat template, else as plain text with blank lines; None: if there is a template.
    context : int
        Most tokens of prompt and answer.
    """

    def __init__(self, tokenizer: Any, chat: bool | None, context: int) -> None:
        if chat and not tokenizer.chat_template:
            raise LeptaError("chat: the tokenizer has no chat template; ask with plain text (--plain)")
        self._tokenizer, self._context = tokenizer, context
        self._chat = bool(tokenizer.chat_template) if chat is None else chat
        starts = tokenizer("").get("input_ids", [])
        self._start = (starts[0],) if starts and starts[0] == tokenizer.bos_token_id and not self._chat else ()

    @property
    def chat(self) -> bool:
        """Whether turns are written by the model's chat template."""
        return self._chat

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._context

    @property
    def template(self) -> str:
        """Hash of the chat template, empty for plain text."""
        return hashlib.sha256(self._tokenizer.chat_template.encode()).hexdigest() if self._chat else ""

    def render(self, messages: Sequence[Message]) -> str:
        """Write a conversation up to where the model goes on."""
        if not self._chat:
            return render_plain(messages)
        try:
            return chat_prompt(self._tokenizer, messages)
        except LeptaError as error:
            raise LeptaError(f"{error}; ask with plain text (--plain)") from error

    def tokens(self, text: str) -> tuple[int, ...]:
        """Ids of a text by itself."""
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
    begun = messages[-1]["role"] == "assistant"
    return "\n\n".join([message["content"] for message in messages] + ([] if begun else [""]))
