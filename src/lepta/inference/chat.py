"""Conversations as text, by a model's chat template: one way for calibration, tuning, the benchmark and reports."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from lepta.core.errors import LeptaError, reason_of
from lepta.inference.generation import start_tokens
from lepta.inference.thinking import block_of, needed_block, switches

# `role` and `content`, strings; `tool_calls` and `reasoning_content` (what was thought before) where a turn has such.
Message = dict[str, Any]

SECONDS = 10  # for one conversation; a template of a real model takes milliseconds
MEMORY = 2 << 30  # bytes for the same: a template can double a text until nothing is left
MOST_OF_TEMPLATE = 1_000_000  # characters that a template writes of its own; 10,000 are many
LONGEST_ESCAPE = 12  # characters that may stand for one: two of \\ud83d
REPEATED = 30  # lines of a message that shows where a template puts it: some cut long ones


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


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Raise MemoryError in a block that takes so many bytes more than there are in use: on Linux, in the main thread.

    The limit is that of the process, so two threads could leave each other's behind.
    """
    if threading.current_thread() is not threading.main_thread() or not Path("/proc/self/statm").exists():
        yield
        return
    import resource

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    smallest = min({in_use + size, soft, hard} - {resource.RLIM_INFINITY})
    resource.setrlimit(resource.RLIMIT_AS, (smallest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@lru_cache
def _refuse_powers(template: str) -> None:
    """ValueError for a template that raises to a power, which no limit of time interrupts and no model needs."""
    if any(operator == "**" for _, _, operator in Environment().lex(template)):
        raise ValueError("it has the operator **, which can compute for ever")


def render_chat(tokenizer: Any, messages: Sequence[Message], thinking: bool = False, **options: Any) -> str:
    """Write a conversation by the chat template; LeptaError if the template refuses it, or has no end.

    `thinking` turns the thinking of hybrid models on or off. `options` go to the template too, such as
    `add_generation_prompt`.
    """
    templates = options.get("chat_template") or tokenizer.chat_template or ""
    if not isinstance(templates, dict):
        templates = {"default": templates}
    longest = MOST_OF_TEMPLATE + LONGEST_ESCAPE * sum(map(len, map(str, messages)))
    try:
        for template in templates.values():
            _refuse_powers(template)
        with time_limit(SECONDS), memory_limit(MEMORY):
            options |= switches(thinking)
            text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        if len(text) > longest:
            raise ValueError(f"{len(text):,} characters of one conversation")
        text.encode()  # half of a UTF-16 pair, which a template can write, is no text for tokenizers
    except Exception as error:  # a template is a program: Jinja and `raise_exception` have no common class
        raise LeptaError(f"chat template: refuses a conversation ({reason_of(error)})") from error
    return text


def around_turns(tokenizer: Any) -> tuple[str, str, str]:
    """What the chat template writes before a message, between it and its answer, and behind that.

    A token that the tokenizer puts before every text by itself is left out. LeptaError if the template does not write
    both as they are.
    """
    message, answer = "A Message\n" * REPEATED + "ends", "An Answer\n" * REPEATED + "ends"
    turns = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    text = render_chat(tokenizer, turns)
    if start_tokens(tokenizer):
        text = text.removeprefix(tokenizer.bos_token)
    before, _, rest = text.partition(message)
    between, found, behind = rest.partition(answer)
    if not found or message in rest or answer in behind:
        raise LeptaError("chat template: does not write a message and its answer once each, as they are")
    return before, between, behind


def begun_answer(tokenizer: Any, messages: Sequence[Message], thinking: bool = False) -> str:
    """Write a conversation up to where the model goes on: in the last turn if that is the assistant's.

    With `thinking` there is an empty block of it before the answer, to be filled in by `think`; without, templates that
    begin one by themselves get it ended at once. LeptaError if the template refuses the conversation, or there is to be
    a block and it has none.
    """
    block = needed_block(tokenizer.chat_template) if thinking else block_of(tokenizer.chat_template)
    begun, asked = "", messages
    if messages[-1]["role"] == "assistant" and messages[-1]["content"]:
        begun, asked = messages[-1]["content"], messages[:-1]
    if begun and not thinking:
        return render_chat(tokenizer, messages, continue_final_message=True)
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
