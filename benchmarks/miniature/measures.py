"""What is measured of each model, by language: text, held-out instructions, copies."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lepta.darumeru.metrics import copied_share
from lepta.inference.bits import score_text
from lepta.inference.chat import chat_prompt
from lepta.inference.generation import generate
from lepta.inference.speed import characters_per_second, read, write
from lepta.models.load import load_model, load_tokenizer
from lepta.models.loss import IGNORED, patch_chunked_loss
from lepta.training.conversations import conversation_example
from lepta.training.trainer import collate

BATCH = 32
MORE = 4  # tokens that an answer may have beyond the longest reference
COPIES = {"copied": 80, "copied_paragraph": 160}  # measure -> most characters of a held-out passage to be copied


def measure(
    folder: Path, held_out: dict[str, list[str]], items: list[dict[str, Any]], batch: int
) -> dict[str, dict[str, float]]:
    """Measure one model.

    Parameters
    ----------
    folder : Path
    held_out : dict
        Language -> windows of text.
    items : list of dict
        Held-out instructions: `task`, `language`, `messages`, `answer`.
    batch : int
        Answers written together.

    Returns
    -------
    dict
        Language -> `text` and `answers` (bits per byte), `characters_per_token`, `accuracy` (mean over tasks of
        answers that are exactly right), the measures of `COPIES` (see `copied_share`) and the accuracy in each task.
    """
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    return {
        language: _text(model, tokenizer, texts)
        | _instructions(model, tokenizer, [item for item in items if item["language"] == language], batch)
        for language, texts in held_out.items()
    }


def speeds(original: Path, propagated: Path, text: str, repeats: int = 3) -> dict[str, float]:
    """How many times as fast the propagated model reads and writes a text as the original, in characters per second."""
    models = {name: (load_model(folder), load_tokenizer(folder)) for name, folder in enumerate((original, propagated))}
    found = {name: characters_per_second(models, text, work, repeats) for name, work in WORK.items()}
    return {name: rates[1] / rates[0] for name, rates in found.items()}


WORK = {"read": read, "write": write}


def _text(model: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, float]:
    score = score_text(model, tokenizer, texts)
    return {"text": score.bits_per_byte, "characters_per_token": score.characters_per_token}


def _instructions(model: Any, tokenizer: Any, items: list[dict[str, Any]], batch: int) -> dict[str, float]:
    tests = [item for item in items if item["task"] not in COPIES]
    found = {"answers": answer_bits(model, tokenizer, tests)}
    right: dict[str, list[float]] = {}
    for item, answer in zip(items, _answers(model, tokenizer, items, batch), strict=True):
        reference = item["answer"]
        task = item["task"]
        right.setdefault(task, []).append(
            copied_share(reference, answer) if task in COPIES else float(answer == reference)
        )
    by_task = {task: sum(scores) / len(scores) for task, scores in right.items()}
    copied = {name: by_task.pop(name) for name in COPIES}
    return found | {"accuracy": sum(by_task.values()) / len(by_task)} | copied | by_task


def _answers(model: Any, tokenizer: Any, items: list[dict[str, Any]], batch: int) -> list[str]:
    """Greedy answers; those whose references have about one length are made together."""
    prompts = [chat_prompt(tokenizer, item["messages"][:-1]) for item in items]
    lengths = [len(tokenizer(item["answer"], add_special_tokens=False)["input_ids"]) for item in items]
    order = sorted(range(len(items)), key=lambda n: lengths[n])
    found = [""] * len(items)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        most = lengths[chosen[-1]] + MORE
        texts = generate(model, tokenizer, [prompts[n] for n in chosen], most, "answers", batch).texts
        for n, text in zip(chosen, texts, strict=True):
            found[n] = text.strip()
    return found


@torch.no_grad()
def answer_bits(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> float:
    """Bits per byte of the reference answers, the end of the turn included in the bits."""
    patch_chunked_loss(model)
    examples = [conversation_example(tokenizer, item["messages"]) for item in items]
    examples.sort(key=lambda example: len(example["input_ids"]))
    nats = 0.0
    for start in range(0, len(examples), BATCH):
        batch = collate(examples[start : start + BATCH], tokenizer.pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        nats += float(model(**batch).loss) * int((batch["labels"] != IGNORED).sum())
    return nats / math.log(2) / sum(len(item["answer"].encode()) for item in items)
