"""What continued pre-training and tuning share: one `transformers.Trainer` run over prepared blocks, resumable."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lepta.checkpoints.load import device
from lepta.errors import LeptaError
from lepta.progress import progress
from lepta.training.loss import IGNORED, linear_cross_entropy

Example = dict[str, list[int]]  # input_ids and labels


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad a batch on the right to its longest example; padding is neither attended to nor predicted."""
    width = max(len(example["input_ids"]) for example in examples)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": padded([example["input_ids"] for example in examples], pad_id),
        "labels": padded([example["labels"] for example in examples], IGNORED),
        "attention_mask": padded([[1] * len(example["input_ids"]) for example in examples], 0),
    }


class _Watch(TrainerCallback):
    """Shows progress, keeps the curve, and runs a measurement every so many steps."""

    def __init__(self, bar: Any, tokens_per_step: list[int], measure: Callable[[], dict] | None, every: int) -> None:
        self.bar, self.tokens, self.measure, self.every = bar, tokens_per_step, measure, every
        self.started, self.start_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.measure and not state.global_step:
            state.log_history.append({"step": 0, **self.measure()})
        self.started, self.start_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
            raise LeptaError(f"training: the loss is {loss} at step {state.global_step}; lower the learning rate")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seen = sum(self.tokens[self.start_step : state.global_step])
        rate = seen / max(time.monotonic() - self.started, 1e-9)
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        note = f"{rate:.0f} tokens/s" + (f", loss {float(loss):.3f}" if loss is not None else "")
        self.bar.set(state.global_step, note)
        if self.measure and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            state.log_history.append({"step": state.global_step, **self.measure()})


class _Trainer(Trainer):
    """A Trainer whose loss never has all logits at once."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean loss of the batch, nats per predicted token."""
        head, labels = model.get_output_embeddings(), inputs["labels"]
        body = {name: value for name, value in inputs.items() if name != "labels"}
        hidden = model.base_model(**body).last_hidden_state[:, :-1]
        return linear_cross_entropy(hidden.flatten(0, 1), head.weight, labels[:, 1:].flatten(), head.bias)


@torch.no_grad()
def has_plain_head(model: Any, ids: list[int]) -> bool:
    """Tell whether a model's logits are its head applied to its last hidden states, and nothing more.

    Some families cap or scale them (Gemma 2, Cohere, Granite); those keep the loss that transformers gives them.
    """
    inputs = torch.tensor([ids[:16]], device=model.device)
    expected = model(input_ids=inputs).logits
    found = model.get_output_embeddings()(model.base_model(input_ids=inputs).last_hidden_state)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def train(
    model: Any,
    examples: list[Example],
    pad_id: int,
    work: Path,
    description: str,
    *,
    batch: int,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    seed: int,
    save_every: int,
    schedule: str = "cosine",
    measure: Callable[[], dict] | None = None,
    measure_every: int = 1,
) -> list[dict[str, float]]:
    """Train on the examples once, in the order given.

    Parameters
    ----------
    model : transformers model
        Trained in place; what has `requires_grad` is trained.
    examples : list
        Dicts with `input_ids` and `labels`.
    pad_id : int
    work : Path
        Folder for checkpoints. Whole ones found there are resumed from: the run then ends as it would have without
        the interruption.
    description : str
        What the progress bar says.
    batch : int
        Examples per step.
    learning_rate, warmup_steps, weight_decay, schedule
        AdamW with betas 0.9 and 0.95 as in the paper's runs.
    seed : int
    save_every : int
        Steps between checkpoints; 0 for none.
    measure : callable, optional
        Called before the first step, every `measure_every` steps and after the last; what it returns joins the curve.

    Returns
    -------
    list of dict
        The curve: entries with `step`, `tokens` and `loss` (nats per token) or what `measure` returned.
    """
    tokens = [
        sum(len(example["input_ids"]) for example in examples[start : start + batch])
        for start in range(0, len(examples), batch)
    ]
    cpu = device().type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        use_cpu=cpu,
        bf16=not cpu,  # activations; the trained weights stay float32
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    with progress(description, len(tokens)) as bar:
        kind = _Trainer if has_plain_head(model, examples[0]["input_ids"]) else Trainer
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=lambda rows: collate(rows, pad_id),
            callbacks=[_Watch(bar, tokens, measure, measure_every)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
    model.eval()
    curve = []
    for entry in trainer.state.log_history:
        step = int(entry["step"])
        kept = {key: float(value) for key, value in entry.items() if key == "loss" or key.endswith("bits_per_byte")}
        if kept:
            curve.append({"step": step, "tokens": sum(tokens[:step]), **kept})
    return curve


def last_checkpoint(work: Path) -> str | None:
    """Find the newest whole checkpoint and delete half-written ones.

    Trainer writes `trainer_state.json` last, so a checkpoint that has a readable one is whole.
    """
    whole = []
    for folder in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            whole.append((json.loads((folder / "trainer_state.json").read_bytes())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder)
    return str(max(whole)[1]) if whole else None
