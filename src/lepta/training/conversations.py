"""Conversations into training examples, streamed to disk: the loss counts what the assistant says, turn by turn."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import RootModel

from lepta.core.errors import LeptaError
from lepta.core.journal import read_record
from lepta.core.output import write_json
from lepta.core.progress import progress
from lepta.inference.chat import Message, begun_answer, render_chat
from lepta.inference.thinking import filled, needed_block, split_thinking
from lepta.models.loss import IGNORED
from lepta.text.formats import ROW_SUFFIXES, read_rows
from lepta.text.sources import text_files
from lepta.training.blocks import SECTIONS, TOKENS, WINDOW, TokenStore, example_of, fit

COUNTED = np.uint32(1 << 31)  # of a stored token: the loss counts it
COUNTS = "counts.json"


class Counts(RootModel[dict[str, int]]):
    """A `counts.json`."""


def read_conversations(sources: Iterable[str]) -> Iterator[list[Message]]:
    """Stream conversations of files and folders of rows; LeptaError names file and line of a row that is none."""
    for source in sources:
        for file in text_files(source):
            if not file.name.endswith(ROW_SUFFIXES):
                raise LeptaError(
                    f"{file}: no rows; expected conversations in a file ending in {', '.join(ROW_SUFFIXES)}"
                )
            for row in read_rows(file):
                yield messages_of(row.value, row.where)


def messages_of(row: dict[str, Any], where: str) -> list[Message]:
    """The conversation in a row: `messages`, a list of {"role", "content"}; or `prompt`, `answer` and `system`."""
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str):
        fields = (("system", "system"), ("user", "prompt"), ("assistant", "answer"))
        messages = [{"role": role, "content": row[field]} for role, field in fields if row.get(field) is not None]
    plain: list[Message] = []
    with suppress(AttributeError, KeyError, TypeError):
        plain = list(map(_turn, messages or []))
    texts: list[Any] = []
    for turn in plain:
        texts += [turn["role"], turn["content"], turn.get("reasoning_content", "")]
    if set(map(type, texts)) != {str}:  # empty if there is no turn
        raise LeptaError(
            f'{where}: no conversation; expected "messages": [{{"role": ..., "content": ...}}, ...] or "prompt" and '
            f'"answer", all of them strings; it has {", ".join(row) or "no fields"}'
        )
    return plain


def _turn(message: dict[str, Any]) -> Message:
    role = message["role"]
    if role == "bot":  # as the Saiga sets write it
        role = "assistant"
    if calls := message.get("tool_calls"):
        return {"role": role, "content": message.get("content") or "", "tool_calls": calls}
    thinking, content = message.get("reasoning_content"), message["content"]
    if role == "assistant" and not thinking:
        thinking, content = split_thinking(content)
    turn = {"role": role, "content": content}
    if thinking:
        turn["reasoning_content"] = thinking
    return turn


def conversation_example(tokenizer: Any, messages: Sequence[Message], thinking: bool = False) -> dict[str, list[int]]:
    """Tokenise a conversation; the loss counts each answer of the assistant and the end of its turn.

    With `thinking`, the last answer is learned with the thinking before it, if it has such, and no other one.

    A turn counts only if the conversation up to it, as the model is asked, is how the whole conversation begins: some
    templates write earlier turns otherwise (without their reasoning). Gives `input_ids` and `labels`, of which none
    counts if nothing is to be learned. LeptaError if the template refuses the conversation.
    """
    if thinking and messages[-1].get("reasoning_content"):
        return _encoded(tokenizer, *_with_thinking(tokenizer, messages))
    messages = list(map(_without_thinking, messages))
    answers = [n for n, turn in enumerate(messages) if turn["role"] == "assistant" and turn["content"].strip()]
    whole = render_chat(tokenizer, messages)
    spans = []
    for number in answers:
        before = render_chat(tokenizer, messages[:number], add_generation_prompt=True)
        through = render_chat(tokenizer, messages[: number + 1]).rstrip("\n")
        if whole.startswith(through) and through.startswith(before):
            spans.append((len(before), len(through)))
    if answers and not spans:
        raise LeptaError("chat template: no prompt is how the whole conversation begins; it cannot be tuned on")
    if spans:
        whole = whole[: spans[-1][1]]
    return _encoded(tokenizer, whole, spans)


def _without_thinking(turn: Message) -> Message:
    return {name: value for name, value in turn.items() if name != "reasoning_content"}


def _with_thinking(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation whose last turn has its thinking, and what the model has to write of it.

    Templates differ in what they take as thinking, so the block is put into the prompt here, as when a model is asked.
    """
    asked, answer = list(map(_without_thinking, messages[:-1])), messages[-1]
    given = render_chat(tokenizer, asked, thinking=True, add_generation_prompt=True)
    block = needed_block(tokenizer.chat_template)
    text = filled(begun_answer(tokenizer, asked, thinking=True), block, f"\n{answer['reasoning_content'].strip()}\n")
    plain = render_chat(tokenizer, [*asked, _without_thinking(answer)]).rstrip("\n")
    end_of_turn = plain.rpartition(answer["content"].strip())[2]
    text += answer["content"].strip() + end_of_turn
    return text, [(len(given), len(text))]


def _encoded(tokenizer: Any, whole: str, spans: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """Ids of a text, and labels of what lies in the spans of characters."""
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [IGNORED] * len(ids)
    for number, (start, end) in enumerate(offsets):
        if any(start < last and end > first for first, last in spans):
            labels[number] = ids[number]
    return {"input_ids": ids, "labels": labels}


LEFT_OUT = {  # why a conversation cannot be learned from
    "duplicate": "there already",
    "refused": "refused by the chat template",
    "unanswered": "without an answer",
    "too_long": "longer than max_length",
    "tool_calls": "with tool calls",
}


def calls_tools(messages: Sequence[Message]) -> bool:
    """Tell whether a turn calls tools: not every template writes such calls, and the loss would not count them."""
    return any("tool_calls" in turn for turn in messages)


def write_examples(
    conversations: Iterable[Sequence[Message]], tokenizer: Any, max_length: int, folder: Path, thinking: bool = False
) -> tuple[TokenStore, dict[str, int]]:
    """Tokenise conversations to disk, unless that was done already; those that cannot be learned from are counted.

    The store has a section for each example of at most `max_length` tokens; those that the loss counts have `COUNTED`
    set. The counts tell how many conversations were read, and how many were left out as `duplicate`, `refused` by the
    chat template, `unanswered`, `too_long` or because of `tool_calls`; of the rest (`examples`) the tokens and those of
    answers. `thinking`: see `conversation_example`.
    """
    if tokenizer.chat_template is None:
        raise LeptaError("tune: the model has no chat template; give an instruct model or add chat_template.jinja")
    if not (folder / COUNTS).is_file():
        _write(conversations, tokenizer, max_length, folder, thinking)
    return TokenStore.open(folder), read_record(folder / COUNTS, Counts).root


def _write(
    conversations: Iterable[Sequence[Message]], tokenizer: Any, max_length: int, folder: Path, thinking: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counter(dict.fromkeys(("conversations", *LEFT_OUT, "answer_tokens"), 0))
    seen: set[bytes] = set()
    starts, reason = array("q", [0]), ""
    with (folder / TOKENS).open("wb") as out, progress("tokenising, conversations", None) as bar:
        for messages in conversations:
            counts["conversations"] += 1
            digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).digest()
            if calls_tools(messages):
                fault = "tool_calls"
            elif digest in seen:
                fault = "duplicate"
            else:
                try:
                    example = conversation_example(tokenizer, messages, thinking)
                    fault = _fault(example, max_length)
                except LeptaError as error:
                    fault, reason = "refused", str(error)
            seen.add(digest)
            if fault:
                counts[fault] += 1
                continue
            ids, labels = np.asarray([example["input_ids"], example["labels"]], np.int64)
            kept = labels != IGNORED
            out.write((ids.astype(np.uint32) | kept * COUNTED).astype(np.uint32).tobytes())
            starts.append(starts[-1] + len(ids))
            counts["answer_tokens"] += int(kept.sum())
            bar.set(counts["conversations"])
    facts = {**counts, "examples": len(starts) - 1, "tokens": starts[-1]}
    if not facts["examples"]:
        left_out = ", ".join(f"{facts[name]} {why}" for name, why in LEFT_OUT.items() if facts[name])
        why = "; ".join(filter(None, (left_out or "the files have none", reason)))
        raise LeptaError(f"tune: none of {facts['conversations']} conversations can be learned from: {why}")
    np.save(folder / SECTIONS, np.asarray(starts, np.int64))
    write_json(folder / COUNTS, facts)


def _fault(example: dict[str, list[int]], max_length: int) -> str:
    """Why an example cannot be learned from; empty if it can."""
    if set(example["labels"]) <= {IGNORED}:
        return "unanswered"
    if len(example["input_ids"]) > max_length:
        return "too_long"
    return ""


class ConversationRows:
    """Rows of one or more conversations in training order; `rows[n]` is an example for training."""

    def __init__(self, store: TokenStore, members: list[list[int]]) -> None:
        self._store, self.members = store, members  # numbers of the conversations in each row
        # Tokens of each row.
        self.sizes = np.asarray([store.lengths[row].sum() for row in members], np.int64)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        parts = [self._store.section(n) for n in self.members[number]]
        stored = np.concatenate(parts)
        ids = (stored & ~COUNTED).astype(np.int64)
        return example_of(ids, np.where(stored & COUNTED, ids, IGNORED), list(map(len, parts)))


def lay_out_rows(
    store: TokenStore, epochs: int, batch: int, seed: int, length: int | None = None, others: int = 1
) -> ConversationRows:
    """Go through all conversations in another random order each time; rows of a step stand by length, to pad little.

    With `length`, conversations are packed into rows of so many tokens. `others`: processes that share a batch; the
    last one is filled up with the first conversations, to come out even.
    """
    generator, rows, lengths = np.random.default_rng(seed), [], store.lengths
    for _ in range(epochs):
        numbers = generator.permutation(len(lengths))
        if length is None:
            rows += numbers[:, None].tolist()
            continue
        for start in range(0, len(numbers), WINDOW):
            window = numbers[start : start + WINDOW]
            fitted = [window[row].tolist() for row in fit(lengths[window], length)]
            rows += [fitted[n] for n in generator.permutation(len(fitted))]
    rows += rows[: -len(rows) % others]
    for start in range(0, len(rows), batch):
        rows[start : start + batch] = sorted(rows[start : start + batch], key=lambda row: -int(lengths[row].sum()))
    return ConversationRows(store, rows)
