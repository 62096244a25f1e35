"""What continued pre-training and tuning share: one `transformers.Trainer` run over prepared examples, resumable."""

import json
import math
import operator
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lepta.core.errors import LeptaError
from lepta.core.progress import progress
from lepta.models.loss import IGNORED, give_loss
from lepta.training.distributed import processes
from lepta.training.settings import split_batch
from lepta.training.trainable import load_trained, trained_weights

TRAINED, BEST = "trained.safetensors", "best.safetensors"
SECTION = 8  # tokens that are looked at from another section
ROUNDING, LOW_ROUNDING = 1e-3, 2e-2  # of logits, to the largest: in float32, and where weights have 16 bits
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # what CUDA and the CPU allocator say


class Examples(Protocol):
    """Examples by number: dicts with `input_ids`, `labels` and perhaps `position_ids`, each a list or array of ints."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, number: Any, /) -> Any:
        """One of them."""


@dataclass(frozen=True)
class Run:
    """How a model is trained.

    Attributes
    ----------
    batch : int
        Examples per step, over all processes.
    micro_batch : int or None
        Examples that one process holds at once; None: its whole share of a step.
    groups : list of dict
        Parameters that train, as groups for AdamW with `lr` (at the peak) and `weight_decay`.
    warmup_steps : int
    seed : int
    schedule : str
        After warm-up, of transformers' learning rate schedules.
    adam_epsilon : float
        Betas are 0.9 and 0.95, as in the paper's runs.
    save_every : int
        Steps between checkpoints; 0 for none.
    dtype : torch.dtype
        Of the body's products.
    gradient_checkpointing : bool
    report_to : tuple of str
        Trackers.
    """

    batch: int
    groups: list[dict[str, Any]]
    warmup_steps: int
    seed: int
    micro_batch: int | None = None
    schedule: str = "cosine"
    adam_epsilon: float = 1e-8
    save_every: int = 0
    dtype: torch.dtype = torch.float32
    gradient_checkpointing: bool = False
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watch:
    """What is measured while a model trains, and what follows from it.

    Attributes
    ----------
    measure : callable
        Returns name -> number; called before the first step, every `every` steps and after the last.
    every : int
    keep_best : str or None
        Keep the weights for which this measurement is lowest, those before the first step among them.
    limits : dict
        Measurement -> how much it may rise above its start; training stops beyond, and such weights are never the best.
    """

    measure: Callable[[], dict[str, float]]
    every: int
    keep_best: str | None = None
    limits: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes
    ----------
    curve : list of dict
        Entries with `step`, `tokens` and `loss` (nats per token) or what `watch.measure` returned.
    weights : dict
        Parameter name -> trained tensor on the CPU: the last ones, or the best if `watch` keeps them.
    stopped : str
        Why training ended before its last step; empty if it did not.
    kept_step : int or None
        Step that the weights are of, if `watch` keeps the best; 0: those before the first.
    """

    curve: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    stopped: str = ""
    kept_step: int | None = None


class Diverged(LeptaError):
    """The loss or its gradient is no number."""


def collate(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad a batch on the right to its longest example; padding is not predicted, and nothing before it can see it."""
    width = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, fill: Callable[[int], np.ndarray]) -> torch.Tensor:
        rows = [np.asarray(example[name], dtype=np.int64) for example in examples]
        return torch.from_numpy(np.stack([np.concatenate([row, fill(width - len(row))]) for row in rows]))

    batch = {
        "input_ids": padded("input_ids", lambda length: np.full(length, pad_id)),
        "labels": padded("labels", lambda length: np.full(length, IGNORED)),
    }
    if "position_ids" in examples[0]:
        batch["position_ids"] = padded("position_ids", np.arange)  # from 0 again: a document of its own
    return batch


class _Callback(TrainerCallback):
    """Shows progress, keeps the curve, measures, keeps the best weights and stops."""

    def __init__(self, model: Any, bar: Any, tokens_after: np.ndarray, watch: Watch | None, work: Path) -> None:
        self.model, self.bar, self.tokens_after, self.watch, self.work = model, bar, tokens_after, watch, work
        self.started, self.start_step, self.stopped = time.monotonic(), 0, ""
        self.log: Callable[[dict[str, float]], None] = lambda found: None  # to the history and the trackers

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.watch and not state.global_step:
            self._measure(self.watch, control)
            if self.watch.keep_best:
                save_weights(trained_weights(self.model), self.work / BEST)  # those that training has to better
        self.started, self.start_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        # In float16 a step whose gradients overflow is left out, and the next is scaled down.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):  # before this step's checkpoint is written
                good = last_checkpoint(self.work)
                kept = f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"
                raise Diverged(
                    f"training: {name} is {value} at step {state.global_step} of {state.max_steps}; {kept}. "
                    "Lower learning_rate, or give more warmup_steps"
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seen = self.tokens_after[state.global_step] - self.tokens_after[self.start_step]
        rate = seen / max(time.monotonic() - self.started, 1e-9)
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        note = f"{rate:.0f} tokens/s" + (f", loss {float(loss):.3f}" if loss is not None else "")
        self.bar.set(state.global_step, note)
        if self.watch and (state.global_step % self.watch.every == 0 or state.global_step == state.max_steps):
            self._judge(self.watch, self._measure(self.watch, control), state, control)

    def _measure(self, watch: Watch, control: Any) -> dict[str, float]:
        found, loss_comes = watch.measure(), control.should_log
        self.log(dict(found))
        control.should_log = loss_comes  # logging has taken it for done
        return found

    def _judge(self, watch: Watch, entry: dict[str, float], state: Any, control: Any) -> None:
        measured = [old for old in state.log_history if "loss" not in old]
        for name, limit in watch.limits:
            rise = entry[name] - measured[0][name]
            if rise > limit:
                self.stopped = f"{name} rose by {rise:.3f}, more than {limit:g}, at step {state.global_step}"
                control.should_training_stop = True
                return
        best = watch.keep_best
        if best and all(entry[best] < old[best] for old in measured[:-1]):
            save_weights(trained_weights(self.model), self.work / BEST)


class _Trainer(Trainer):
    """A Trainer with our groups of parameters, whose checkpoints hold what trains and nothing else."""

    def __init__(self, run: Run, **arguments: Any) -> None:
        self.run = run
        super().__init__(**arguments)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW as in the paper's runs, each group with its own rate."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                self.run.groups, betas=(0.9, 0.95), eps=self.run.adam_epsilon, fused=True
            )
        return self.optimizer

    def _save(self, output_dir: Any = None, state_dict: dict | None = None) -> None:
        save_weights(trained_weights(self.model), Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        file = Path(resume_from_checkpoint) / TRAINED
        load_trained(self.model, load_file(file), str(file))


@torch.no_grad()
def check_apart(model: Any, setting: str) -> None:
    """Raise unless a section of a row, whose positions begin from 0 again, sees nothing of what stands before it.

    transformers makes masks of the positions, but not every architecture has those masks: some need no positions, some
    carry a state along.

    Parameters
    ----------
    model : transformers causal LM
    setting : str
        What asks for it, for the message.

    Raises
    ------
    LeptaError
        If the second section's logits change with the first.
    """
    rows, training = model.get_input_embeddings().weight.shape[0], model.training
    before, instead, section = (torch.arange(3 * SECTION, device=model.device) % rows).split(SECTION)
    positions = torch.arange(SECTION, device=model.device).repeat(2)[None]
    low = next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
    model.eval()
    with torch.autocast(model.device.type, low, enabled=low is not None):
        packed = [torch.cat([first, section])[None] for first in (before, instead)]
        logits = [model(input_ids=ids, position_ids=positions, use_cache=False).logits for ids in packed]
    one, other = (of_row[0, SECTION:].float() for of_row in logits)
    model.train(training)
    if (one - other).abs().max() > (LOW_ROUNDING if low else ROUNDING) * one.abs().max():
        raise LeptaError(
            f"{setting}: {type(model).__name__} sees from one document of a row into the next, whatever their "
            f"positions; train it without {setting}"
        )


def save_weights(weights: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors beside their place and rename them in; only the first process does."""
    if processes().is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)
        partial.replace(file)


def train(
    model: Any,
    examples: Examples,
    sizes: Sequence[int] | np.ndarray,
    pad_id: int,
    work: Path,
    description: str,
    run: Run,
    watch: Watch | None = None,
    collator: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]] | None = None,
) -> Trained:
    """Train on the examples once, in the order given, on all processes that were launched.

    Parameters
    ----------
    model : transformers model
        Trained in place; what has `requires_grad` is trained.
    examples : Examples
    sizes : sequence of int
        Tokens of each example.
    pad_id : int
    work : Path
        Folder for checkpoints. Whole ones found there are resumed from: the run then ends as it would have without
        the interruption.
    description : str
        What the progress bar says.
    run : Run
    watch : Watch, optional
    collator : callable, optional
        Makes a batch of examples; default: `collate`.

    Raises
    ------
    LeptaError
        If the loss or its gradient is no number, memory runs out, or the settings do not fit together.
    """
    trackers = get_available_reporting_integrations()
    if missing := [name for name in run.report_to if name not in trackers]:
        raise LeptaError(
            f"report_to: {missing[0]} is not installed here; installed are {', '.join(trackers) or 'none'}"
        )
    micro_batch, accumulation = split_batch(run.batch, run.micro_batch, processes().num_processes)
    tokens_after = np.cumsum([0, *np.add.reduceat(np.asarray(sizes), range(0, len(sizes), run.batch))])  # each step
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=run.groups[0]["lr"],
        lr_scheduler_type=run.schedule,
        warmup_steps=run.warmup_steps,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if run.save_every else "no",
        save_steps=run.save_every or 500,
        save_total_limit=1,
        seed=run.seed,
        data_seed=run.seed,
        use_cpu=processes().device.type == "cpu",
        bf16=run.dtype == torch.bfloat16,
        fp16=run.dtype == torch.float16,
        ddp_find_unused_parameters=False,
        report_to=list(run.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    processes()  # TrainingArguments has forgotten what they are
    give_loss(model)
    forward = model.forward
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with progress(description, len(tokens_after) - 1) as bar:
        callback = _Callback(model, bar, tokens_after, watch, work)
        trainer = _Trainer(
            run,
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=collator or (lambda rows: collate(rows, pad_id)),
            callbacks=[callback],
        )
        callback.log = trainer.log
        trainer.remove_callback(transformers.PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(work))
        except RuntimeError as error:
            if not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            raise LeptaError(_out_of_memory(micro_batch, run, error)) from error
    model.forward = forward  # accelerate has put it into the products' precision, which would round what is asked next
    model.eval()
    weights, kept_step = trained_weights(model), None
    if watch and watch.keep_best and (work / BEST).is_file():
        weights = load_file(work / BEST)
        measured = [entry for entry in trainer.state.log_history if watch.keep_best in entry]
        allowed = measured[:-1] if callback.stopped else measured
        kept_step = int(min(allowed, key=operator.itemgetter(watch.keep_best))["step"])
    return Trained(_curve(trainer.state.log_history, tokens_after), weights, callback.stopped, kept_step)


def _out_of_memory(micro_batch: int, run: Run, error: Exception) -> str:
    knobs = []
    if micro_batch > 1:
        knobs.append(f"micro_batch below {micro_batch} (the batch stays {run.batch}, in more parts)")
    if not run.gradient_checkpointing:
        knobs.append("gradient_checkpointing: true")
    knobs += ["a shorter block", "body_dtype: 4bit", "more GPUs with FSDP2"]
    return f"training: out of memory ({str(error).splitlines()[0]}); in this order, give {', '.join(knobs)}"


def _curve(history: list[dict[str, Any]], tokens_after: np.ndarray) -> list[dict[str, float]]:
    curve = []
    for entry in history:
        kept = {"loss": float(entry["loss"])} if "loss" in entry else {}
        if "train_loss" not in entry and "loss" not in entry:
            names = sorted(set(entry) - {"step", "epoch"})  # sorted, as when resumed
            kept = {name: float(entry[name]) for name in names}
        if kept:
            step = int(entry["step"])
            curve.append({"step": step, "tokens": int(tokens_after[step]), **kept})
    return curve


def last_checkpoint(work: Path) -> str | None:
    """Find the newest whole checkpoint; the first process deletes half-written ones.

    Trainer writes `trainer_state.json` last, so a checkpoint that has a readable one is whole.
    """
    whole = []
    for folder in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            whole.append((json.loads((folder / "trainer_state.json").read_bytes())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            if processes().is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole)[1]) if whole else None
