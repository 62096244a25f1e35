"""Conversations as text, by a model's chat template: one way for calibration, tuning, the benchmark and reports."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lepta.core.errors import LeptaError
from lepta.inference.thinking import block_of, needed_block, switches

# `role` and `content`, strings; `tool_calls` and `reasoning_content` (what was thought before) where a turn has such.
Message = dict[str, Any]

SECONDS = 10  # for one conversation; a template of a real model takes milliseconds


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block of Python that runs too long; only in the main thread, and not on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def render_chat(tokenizer: Any, messages: Sequence[Message], thinking: bool = False, **options: Any) -> str:
    """Write a conversation by the chat template; LeptaError if the template refuses it.

    `thinking` turns the thinking of hybrid models on or off. `options` go to the template too, such as
    `add_generation_prompt`.
    """
    try:
        with time_limit(SECONDS):
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **switches(thinking), **options))
    except Exception as error:  # a template is a program: Jinja and `raise_exception` have no common class
        raise LeptaError(f"chat template: refuses a conversation ({error})") from error


def begun_answer(tokenizer: Any, messages: Sequence[Message], thinking: bool = False) -> str:
    """Write a conversation up to where the model goes on: in the last turn if that is the assistant's.

    With `thinking` there is an empty block of it before the answer, to be filled in by `think`; without, templates that
    begin one by themselves get it ended at once. LeptaError if the template refuses the conversation, or there is to be
    a block and it has none.
    """
    block = needed_block(tokenizer.chat_template) if thinking else block_of(tokenizer.chat_template)
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    if begun and not thinking:
        return render_chat(tokenizer, messages, continue_final_message=True)
    asked = messages[:-1] if begun else messages
    text = render_chat(tokenizer, asked, thinking, add_generation_prompt=True)
    if block and (thinking or block.always or text.rstrip().endswith(block.start.rstrip())):
        text = block.put_behind(text)
    return text + begun


def chat_prompt(tokenizer: Any, messages: Sequence[Message], thinking: bool = False) -> str:
    """`begun_answer`; LeptaError also if the template leaves a turn out."""
    text = begun_answer(tokenizer, messages, thinking)
    contents = [message["content"].strip() for message in messages]  # many templates trim
    for message, content in zip(messages, contents, strict=True):
        # Examples may have equal answers, and one turn may contain another: each must be there as often as given.
        expected = sum(other.count(content) for other in contents)
        if text.count(content) < expected:
            raise LeptaError(f"chat template: leaves out a turn of the {message['role']} ({content[:40]!r})")
    return text
