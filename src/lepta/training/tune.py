"""Tune a model on conversations: how the demo makes the instruct variant that no package carries."""

import random
from pathlib import Path
from typing import Any

from lepta.errors import LeptaError
from lepta.training.loss import IGNORED
from lepta.training.trainer import Run, train


def conversation_example(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Tokenise one conversation; the loss counts the last answer and the end of its turn.

    Parameters
    ----------
    tokenizer : transformers tokenizer with a chat template
    messages : list of {"role", "content"}, the last one by the assistant
    """
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    if not whole.startswith(prompt):
        raise LeptaError("chat template: the prompt is no prefix of the whole conversation; it cannot be tuned on")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt_ids + answer_ids, "labels": [IGNORED] * len(prompt_ids) + answer_ids}


def tune(
    model: Any,
    tokenizer: Any,
    dialogues: list[list[dict[str, str]]],
    work: Path,
    *,
    learning_rate: float,
    batch: int,
    seed: int,
) -> list[dict[str, float]]:
    """Tune all weights of a model (float32, in place) on conversations, once through in random order.

    Returns
    -------
    list of dict
        The training curve.
    """
    if tokenizer.chat_template is None:
        raise LeptaError("tune: the model has no chat template; give an instruct model or add chat_template.jinja")
    examples = [conversation_example(tokenizer, dialogue) for dialogue in dialogues]
    random.Random(seed).shuffle(examples)
    model.requires_grad_(True)
    run = Run(
        batch=batch,
        groups=[{"params": list(model.parameters()), "lr": learning_rate, "weight_decay": 0.0}],
        warmup_steps=max(1, len(examples) // batch // 10),
        seed=seed,
    )
    sizes = [len(example["input_ids"]) for example in examples]
    curve, _ = train(model, examples, sizes, tokenizer.pad_token_id, work, "tuning the variant", run)
    return curve
