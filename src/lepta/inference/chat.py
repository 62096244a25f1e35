"""Conversations as text, by a model's chat template: one way for calibration, tuning, the benchmark and reports."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lepta.core.errors import LeptaError

Message = dict[str, Any]  # `role` and `content`, strings; `tool_calls` where a turn has such
# Hybrid thinking models are always asked without thinking: an answer then means the same when it is generated, learned
# from and scored. Templates of other models ignore the option.
TEMPLATE_OPTIONS = {"enable_thinking": False}

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


def render_chat(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """Write a conversation by the chat template; LeptaError if the template refuses it.

    `options` go to the template, such as `add_generation_prompt`.
    """
    try:
        with time_limit(SECONDS):
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **TEMPLATE_OPTIONS, **options))
    except Exception as error:  # a template is a program: Jinja and `raise_exception` have no common class
        raise LeptaError(f"chat template: refuses a conversation ({error})") from error


def chat_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Write a conversation up to where the model goes on: in the last turn if that is the assistant's.

    LeptaError if the template refuses the conversation or leaves a turn out.
    """
    if messages[-1]["role"] == "assistant":
        text = render_chat(tokenizer, messages, continue_final_message=True)
    else:
        text = render_chat(tokenizer, messages, add_generation_prompt=True)
    contents = [message["content"].strip() for message in messages]  # many templates trim
    for message, content in zip(messages, contents, strict=True):
        # Examples may have equal answers, and one turn may contain another: each must be there as often as given.
        expected = sum(other.count(content) for other in contents)
        if text.count(content) < expected:
            raise LeptaError(f"chat template: leaves out a turn of the {message['role']} ({content[:40]!r})")
    return text
