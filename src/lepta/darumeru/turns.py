"""Conversations as tokens: by a chat template or as plain text with blank lines, and the exact ids of continuations."""

import hashlib
from collections.abc import Sequence
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Question
from lepta.darumeru.tasks import Message
from lepta.inference.scoring import Branch, common


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
        return render_chat(self._tokenizer, messages) if self._chat else render_plain(messages)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Ids of a text by itself."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def count_tokens(self, prompt: str) -> int:
        """How many tokens a rendered prompt has, the one that starts a text included."""
        return len(self._start) + len(self.tokens(prompt))

    def ids(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of rendered prompts."""
        encoded = self._tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        return [(*self._start, *row) for row in encoded]

    def branches(self, question: Question, together: bool) -> list[Branch]:
        """Exact ids of prompt and continuation; asked for are those that the prompt alone, or all texts, do not have.

        A tokenizer may write the end of the prompt otherwise before a continuation, or cut off the space.
        """
        prompt, *texts = self.ids(
            [question.prompt, *(question.prompt + continuation for continuation in question.continuations)]
        )
        if len(set(texts)) < len(texts) and together:
            labels = ", ".join(repr(text) for text in question.continuations)
            raise LeptaError(f"labels {labels}: two of them have the same tokens; the tokenizer cannot tell them apart")
        start = common([prompt, *texts])
        starts = [max(1, start if together else common([prompt, text])) for text in texts]
        return [Branch(text, place) for text, place in zip(texts, starts, strict=True)]


def render_plain(messages: Sequence[Message]) -> str:
    """Write a conversation with blank lines between turns, up to where the model goes on."""
    begun = messages[-1]["role"] == "assistant"
    return "\n\n".join([message["content"] for message in messages] + ([] if begun else [""]))


def render_chat(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Write a conversation by a chat template, up to where the model goes on.

    Raises
    ------
    LeptaError
        If the template refuses it, or leaves out what a message says.
    """
    begun = messages[-1]["role"] == "assistant"
    options = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, enable_thinking=False, **options)
    except Exception as error:  # whatever a template raises
        raise LeptaError(f"chat template: refuses a conversation ({error}); ask with plain text (--plain)") from error
    contents = [message["content"].strip() for message in messages]  # many templates trim
    for message, content in zip(messages, contents, strict=True):
        often = sum(other.count(content) for other in contents)  # one may hold another, and examples have like answers
        if text.count(content) < often:
            raise LeptaError(
                f"chat template: leaves out a turn of the {message['role']} ({content[:40]!r}); "
                "ask with plain text (--plain)"
            )
    return text
