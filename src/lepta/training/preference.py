"""A preference step (KTO, DPO, SimPO) by TRL; data and merging are ours."""

import heapq
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from lepta.core.errors import LeptaError, optional
from lepta.inference.chat import render_chat
from lepta.inference.thinking import switches
from lepta.models.folder import Checkpoint
from lepta.models.load import fast_dtype, load_model, load_tokenizer
from lepta.models.precision import name_of
from lepta.stages import CHECKPOINTS
from lepta.text.formats import read_rows
from lepta.text.sources import text_files
from lepta.training.conversations import calls_tools, messages_of
from lepta.training.distributed import processes
from lepta.training.merge import prepare_merge, write_merged
from lepta.training.precision import agreed_dtype
from lepta.training.settings import PreferenceMethod, PreferenceSettings, split_batch
from lepta.training.trainable import lora_config, trained_weights
from lepta.training.trainer import last_checkpoint

Example = dict[str, Any]
LOGGED = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "kl")  # of what TRL logs


def read_preferences(sources: Iterable[str], method: PreferenceMethod) -> Iterator[Example]:
    """Stream examples: `prompt` (a string, or `messages`) with `chosen` and `rejected`, or with `answer` and `label`.

    KTO takes a pair as one good and one bad answer; DPO and SimPO need pairs. LeptaError names the file and line of a
    row that is no such example.
    """
    for source in sources:
        for file in text_files(source):
            for row in read_rows(file):
                yield from _examples(row.value, row.where, method)


def _examples(row: dict[str, Any], where: str, method: PreferenceMethod) -> list[Example]:
    prompt = messages_of({name: row[name] for name in row if name != "answer"}, where)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    answer, label = row.get("answer"), row.get("label")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if method != "kto":
            return [{"prompt": prompt, "chosen": _turn(chosen), "rejected": _turn(rejected)}]
        pair = ((chosen, True), (rejected, False))
        return [{"prompt": prompt, "completion": _turn(text), "label": good} for text, good in pair]
    if method == "kto" and isinstance(answer, str) and isinstance(label, bool):
        return [{"prompt": prompt, "completion": _turn(answer), "label": label}]
    raise LeptaError(
        f"{where}: no preference; expected strings 'chosen' and 'rejected'"
        + (", or 'answer' with a 'label' that is true or false" if method == "kto" else f", which {method} compares")
        + f"; it has {', '.join(row) or 'no fields'}"
    )


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def prefer_folder(
    source: Path, examples: Iterable[Example], settings: PreferenceSettings, seed: int, folder: Path
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train a tuned model on preferences, as `read_preferences` gives them, and write the result as a plain folder.

    Checkpoints found in `folder` are resumed from. The facts say how many examples there are, how many were left out as
    `too_long` or `refused` (by the template, or because they call tools), and the error of merging; the curve has
    `step`, `loss`, and what TRL says of rewards. LeptaError if TRL is missing, or too few examples are left.
    """
    dtype = agreed_dtype(folder / CHECKPOINTS, lambda: fast_dtype(source))
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    counts: Counter[str] = Counter()
    fitting = [example for example in examples if _fits(example, tokenizer, settings.max_length, counts)]
    if len(fitting) < settings.micro_batch:
        raise LeptaError(f"preference: {len(fitting)} examples left of {counts.total()}; expected more")
    if settings.method == "kto":
        fitting = spread(fitting, settings.micro_batch, seed)
    torch.manual_seed(seed)  # LoRA starts from random numbers
    trainer = _trainer(model, tokenizer, fitting, settings, seed, folder / CHECKPOINTS)
    prepare_merge(model, Checkpoint(source))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / CHECKPOINTS))
    curve: list[dict[str, float]] = []
    for entry in trainer.state.log_history:
        if "loss" in entry:
            curve.append({"step": entry["step"], **{name: float(entry[name]) for name in LOGGED if name in entry}})
    model.eval()
    facts: dict[str, Any] = {
        "examples": len(fitting),
        "too_long": counts["too_long"],
        "refused": counts["refused"],
        "body_dtype": name_of(dtype),
    }
    if processes().is_main_process:
        facts |= write_merged(model, trained_weights(model), source, folder)
    processes().wait_for_everyone()
    return facts, curve


def spread(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """Put examples into a random order in which no micro-batch of this size has a prompt twice, if that can be.

    For KTO: TRL trains in the order given, and measures how far the model has moved on answers to other prompts, which
    it takes from the same micro-batch.
    """
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    answers: dict[str, list[Example]] = {}
    for example in shuffled:
        answers.setdefault(json.dumps(example["prompt"]), []).append(example)
    lists, ordered = list(answers.values()), list[Example]()
    waiting = [(-len(of_prompt), number) for number, of_prompt in enumerate(lists)]
    heapq.heapify(waiting)
    while waiting:  # prompts with most answers come first, or these would be left over
        free = size - len(ordered) % size  # places in the micro-batch
        taken = [heapq.heappop(waiting) for _ in range(min(free, len(waiting)))]
        ordered += [lists[number].pop() for _, number in taken]
        for left, number in taken:
            if left < -1:
                heapq.heappush(waiting, (left + 1, number))
    return ordered


def _fits(example: Example, tokenizer: Any, max_length: int, counts: Counter[str]) -> bool:
    if calls_tools(example["prompt"]):
        counts["refused"] += 1
        return False
    answers = [example[name] for name in ("chosen", "rejected", "completion") if name in example]
    try:
        texts = [render_chat(tokenizer, [*example["prompt"], *answer]) for answer in answers]
    except LeptaError:
        counts["refused"] += 1
        return False
    longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    counts["too_long" if longest > max_length else "examples"] += 1
    return longest <= max_length


def _trainer(
    model: Any, tokenizer: Any, examples: list[Example], settings: PreferenceSettings, seed: int, work: Path
) -> Any:
    with optional("preference step", "preference"):
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    micro_batch, accumulation = split_batch(settings.batch, settings.micro_batch, processes().num_processes)
    kinds = {"kto": (KTOConfig, KTOTrainer), "dpo": (DPOConfig, DPOTrainer), "simpo": (CPOConfig, CPOTrainer)}
    config, trainer = kinds[settings.method]
    own: dict[str, Any] = {}
    if settings.method == "simpo":  # in TRL a loss of CPO, which adds one of its own unless cpo_alpha is 0
        own = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": settings.gamma}
    arguments = config(
        output_dir=str(work),
        beta=settings.strength,
        max_length=settings.max_length,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(len(examples) / settings.batch) * settings.epochs // 10,
        logging_steps=1,
        save_steps=settings.save_every,
        save_total_limit=1,
        seed=seed,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=processes().device.type == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **own,
    )
    made = trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{**example, "chat_template_kwargs": switches(False)} for example in examples]),
        processing_class=tokenizer,
        peft_config=lora_config(model, settings.lora),
    )
    made.remove_callback(PrinterCallback)
    return made
