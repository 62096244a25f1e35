"""One resumable `transformers.Trainer` run over prepared examples: pre-training, tuning, distillation."""

import math
import operator
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
import transformers
from pydantic import BaseModel, Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lepta.core.errors import LeptaError, explained
from lepta.core.journal import REMEDY, read_record
from lepta.core.output import replacing
from lepta.core.progress import console, progress
from lepta.models.loss import IGNORED, patch_chunked_loss
from lepta.models.precision import autocast_of, low_dtype
from lepta.training.distributed import processes
from lepta.training.settings import split_batch
from lepta.training.trainable import load_trained, trained_weights

TRAINED, BEST = "trained.safetensors", "best.safetensors"
AVERAGED = 20  # last steps whose mean loss is shown: batches of several languages differ much
PROBE_SECTION = 8  # tokens of a segment in the probe for leaks between packed documents
LEAK, LOW_LEAK = 1e-3, 2e-2  # change of logits, relative to the largest, beyond rounding in float32 and in 16 bits
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # what CUDA and the CPU allocator say


class Step(BaseModel):
    """An entry of a log."""

    step: Annotated[int, Field(ge=0)]


class State(BaseModel):
    """The fields of a `trainer_state.json` that decide how a run goes on."""

    epoch: float
    global_step: Annotated[int, Field(strict=True, ge=0)]
    save_steps: Annotated[int, Field(strict=True, ge=1)]
    logging_steps: Annotated[int, Field(strict=True, ge=1)]
    train_batch_size: Annotated[int, Field(strict=True, ge=1)]
    max_steps: Annotated[int, Field(strict=True, ge=1)]
    num_input_tokens_seen: int
    total_flos: float
    log_history: list[Step]


class Examples(Protocol):
    """Examples by number: dicts of lists or arrays, each with a number for each token (see `collate`)."""

    @property
    def sizes(self) -> Sequence[int] | np.ndarray:
        """Tokens of each example."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, number: Any, /) -> Any:
        """One of them."""


@dataclass(frozen=True)
class Watch:
    """What is measured while a model trains, and what follows from it."""

    measure: Callable[[], dict[str, float]]  # called before the first step, every `every` steps and after the last
    every: int
    keep_best: str | None = None  # keep the weights with the lowest such measurement; the initial weights count too
    limits: tuple[tuple[str, float], ...] = ()  # stop where a measurement rises so much; such weights are never best


@dataclass(frozen=True)
class Run:
    """One pass over the examples in their order: what trains, how, and where its checkpoints are."""

    model: Any  # a transformers causal LM, or a module with the same call
    examples: Examples
    groups: list[dict[str, Any]]  # parameter groups of AdamW, with the peak `lr` and `weight_decay`
    work: Path  # checkpoints; the newest whole one found here is resumed from
    batch: int  # examples per step, over all processes
    seed: int
    description: str = "training, steps"  # for the progress bar
    pad_id: int = 0
    micro_batch: int | None = None  # examples that one process holds at once; None: its whole share of a step
    warmup_steps: int = 0
    decay_share: float | None = None  # of the steps, the last ones, in which the rate falls; None: a cosine all along
    adam_epsilon: float = 1e-8
    save_every: int = 0  # steps between checkpoints; 0: none
    dtype: torch.dtype = torch.float32  # of the body's matrix products
    gradient_checkpointing: bool = False
    report_to: Sequence[str] = ()  # trackers
    watch: Watch | None = None


@dataclass(frozen=True)
class Trained:
    """What training gave."""

    curve: list[dict[str, float]]  # entries of `step`, `tokens`, and `loss` (nats per token) or what was measured
    weights: dict[str, torch.Tensor]  # parameter name -> trained tensor on the CPU: the last, or the best if kept
    stopped: str = ""  # why training ended before its last step
    kept_step: int | None = None  # step of the weights if the best are kept; 0: those before the first step


class Diverged(LeptaError):
    """The loss or its gradient is NaN or infinite."""


def padding_id(tokenizer: Any) -> int:
    """A token for `Run.pad_id`: the one for padding, or one that every tokenizer has."""
    return (tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id) or 0


def collate(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad a batch on the right to its longest example.

    Padding is not predicted, and under causal attention nothing before it sees it, so no attention mask is needed.
    """
    fills = {"input_ids": pad_id, "labels": IGNORED, "chunks": -1, "old_chunks": -1}  # of all others: 0
    batch = {}
    for name in examples[0]:
        rows = [torch.as_tensor(example[name]) for example in examples]
        if name.endswith("position_ids"):
            # Positions count from 0 again: padding is a document of its own.
            width = max(map(len, rows))
            rows = [torch.cat([row, torch.arange(width - len(row))]) for row in rows]
        batch[name] = pad_sequence(rows, batch_first=True, padding_value=fills.get(name, 0))
    return batch


class _Callback(TrainerCallback):
    """Shows progress, measures, keeps the best weights, and stops what diverges or forgets."""

    def __init__(self, run: Run, bar: Any, tokens_after: np.ndarray) -> None:
        self.run, self.bar, self.tokens_after = run, bar, tokens_after
        self.started, self.start_step, self.stopped = time.monotonic(), 0, ""
        self.log: Callable[[dict[str, float]], None] = lambda found: None  # to the history and the trackers

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        watch = self.run.watch
        if watch and not state.global_step:
            self._measure(watch, control)
            if watch.keep_best:
                self._keep_weights()  # those that training has to improve on
        self.started, self.start_step = time.monotonic(), state.global_step
        # Neither the first measurement nor the steps before a resumption count for the rate.
        self.bar.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Raise before a checkpoint of a diverged step is written."""
        # In float16 gradients that overflow are no fault: the GradScaler skips the step and lowers its scale.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                good = last_checkpoint(self.run.work)
                kept = f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"
                raise Diverged(
                    f"training: {name} is {value} at step {state.global_step} of {state.max_steps}; {kept}. "
                    "Lower `learning_rate`"
                )
        if "loss" in (logs or {}):
            self._show(state)

    def _show(self, state: Any) -> None:
        seen = self.tokens_after[state.global_step] - self.tokens_after[self.start_step]
        note = f"{seen / max(time.monotonic() - self.started, 1e-9):.0f} tokens/s"
        loss = np.mean([entry["loss"] for entry in state.log_history[-AVERAGED:] if "loss" in entry])
        # Batches of text that distillation is to leave as it is begin at 0, which says nothing of what is learned.
        self.bar.set(state.global_step, note + (f", loss {loss:.3f}" if loss else ""))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        watch = self.run.watch
        if watch and (state.global_step % watch.every == 0 or state.global_step == state.max_steps):
            self._judge(watch, self._measure(watch, control), state, control)

    def _measure(self, watch: Watch, control: Any) -> dict[str, float]:
        # All processes measure: they compute the same numbers, so they stop at the same step without asking each other.
        found, loss_is_due = watch.measure(), control.should_log
        self.log(dict(found))
        control.should_log = loss_is_due  # `log` has reset it
        return found

    def _judge(self, watch: Watch, entry: dict[str, float], state: Any, control: Any) -> None:
        earlier = [old for old in state.log_history if "loss" not in old][:-1]
        for name, limit in watch.limits:
            rise = entry[name] - earlier[0][name]
            if rise > limit:
                self.stopped = f"{name} rose by {rise:.3f}, more than {limit:g}, at step {state.global_step}"
                control.should_training_stop = True
                return
        best = watch.keep_best
        if best and all(entry[best] < old[best] for old in earlier):
            self._keep_weights()

    def _keep_weights(self) -> None:
        save_weights(trained_weights(self.run.model), self.run.work / BEST)


class _Trainer(Trainer):
    """A Trainer whose checkpoints hold what trains and nothing else."""

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
    """Raise unless a section of a row, whose positions restart from 0, sees nothing of what stands before it.

    transformers derives such masks from the positions, but not for every architecture: some need no positions, some
    carry a state along. So two rows that differ in their first section only are compared. `setting` is what asks for
    it, for the message.
    """
    rows, training = model.get_input_embeddings().weight.shape[0], model.training
    before, instead, section = (torch.arange(3 * PROBE_SECTION, device=model.device) % rows).split(PROBE_SECTION)
    positions = torch.arange(PROBE_SECTION, device=model.device).repeat(2)[None]
    model.eval()
    logits = []
    with autocast_of(model):
        for first in (before, instead):
            ids = torch.cat([first, section])[None]
            of_row = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
            logits.append(of_row[PROBE_SECTION:].float())
    model.train(training)
    one, other = logits
    tolerance = LEAK if low_dtype(model) is None else LOW_LEAK
    if (one - other).abs().max() > tolerance * one.abs().max():
        raise LeptaError(
            f"{setting}: {type(model).__name__} sees from one document of a row into the next, whatever their "
            f"positions; train it without {setting}"
        )


def save_weights(weights: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors atomically; only the first process does."""
    if processes().is_main_process:
        with replacing(file) as written:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, written)


def train(run: Run) -> Trained:
    """Train on all processes that were launched; a resumed run ends in the same bytes as one without interruption.

    LeptaError if the loss or its gradient is NaN or infinite (`Diverged`), memory runs out, a tracker is not
    installed, or the batch cannot be shared by the processes.
    """
    model, arguments = run.model, _arguments(run)
    processes()  # TrainingArguments has reset what accelerate knows of them
    patch_chunked_loss(model)
    forward = model.forward
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sizes = np.asarray(run.examples.sizes)
    tokens_after = np.cumsum([0, *np.add.reduceat(sizes, range(0, len(sizes), run.batch))])  # each step
    # The betas are those of the paper's runs; each group has its own rate.
    adam = {"params": run.groups, "betas": (0.9, 0.95), "eps": run.adam_epsilon, "fused": True}
    with progress(run.description, len(tokens_after) - 1) as bar:
        callback = _Callback(run, bar, tokens_after)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=run.examples,
            data_collator=partial(collate, pad_id=run.pad_id),
            callbacks=[callback],
            optimizer_cls_and_kwargs=(torch.optim.AdamW, adam),
        )
        callback.log = trainer.log
        trainer.remove_callback(transformers.PrinterCallback)
        try:
            checkpoint = last_checkpoint(run.work)
            if checkpoint:
                console.print(f"  goes on from {Path(checkpoint).name}", highlight=False)
            trainer.train(resume_from_checkpoint=checkpoint)
        except RuntimeError as error:
            if not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            raise LeptaError(_out_of_memory(run, arguments.per_device_train_batch_size, error)) from error
    model.forward = forward  # accelerate has wrapped it in autocast, which would round what is asked of it later
    model.eval()
    history = trainer.state.log_history
    weights, kept_step = trained_weights(model), None
    if run.watch and run.watch.keep_best and (run.work / BEST).is_file():
        with explained(run.work, "the best weights, or the log, of an interrupted run are damaged", REMEDY):
            weights = load_file(run.work / BEST)
            measured = [entry for entry in history if run.watch.keep_best in entry]
            if callback.stopped:
                measured.pop()  # it passed the limit
            kept_step = int(min(measured, key=operator.itemgetter(run.watch.keep_best))["step"])
    return Trained(_curve(history, tokens_after), weights, callback.stopped, kept_step)


def _arguments(run: Run) -> TrainingArguments:
    trackers = get_available_reporting_integrations()
    if missing := [name for name in run.report_to if name not in trackers]:
        raise LeptaError(
            f"report_to: {missing[0]} is not installed here; installed are {', '.join(trackers) or 'none'}"
        )
    micro_batch, accumulation = split_batch(run.batch, run.micro_batch, processes().num_processes)
    schedule: dict[str, Any] = {"lr_scheduler_type": "cosine"}
    if run.decay_share is not None:
        steps = math.ceil(len(run.examples) / run.batch)
        decay = min(max(1, round(steps * run.decay_share)), steps - run.warmup_steps)
        # 1 - sqrt ends lower than a straight line or a cosine (arXiv 2405.18392).
        kinds = {"num_decay_steps": decay, "decay_type": "1-sqrt"}
        schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": kinds}
    return TrainingArguments(
        output_dir=str(run.work),
        num_train_epochs=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=run.groups[0]["lr"],
        **schedule,
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


def _out_of_memory(run: Run, micro_batch: int, error: Exception) -> str:
    remedies = []
    if micro_batch > 1:
        remedies.append(f"micro_batch below {micro_batch} (the batch stays {run.batch}, in more parts)")
    if not run.gradient_checkpointing:
        remedies.append("gradient_checkpointing: true")
    remedies += ["a shorter block", "body_dtype: 4bit", "more GPUs with FSDP2"]
    return f"training: out of memory ({str(error).splitlines()[0]}); in this order, give {', '.join(remedies)}"


def _curve(history: list[dict[str, Any]], tokens_after: np.ndarray) -> list[dict[str, float]]:
    """The losses and measurements in the Trainer's history; its last entry, a summary, is neither."""
    curve = []
    for entry in history:
        if "train_loss" in entry:
            continue
        # Sorted: a history that was read from a checkpoint has its names in another order.
        names = ["loss"] if "loss" in entry else sorted(set(entry) - {"step", "epoch"})
        if names:
            step = int(entry["step"])
            values = {name: float(entry[name]) for name in names}
            curve.append({"step": step, "tokens": int(tokens_after[step]), **values})
    return curve


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint; the first process deletes those that an interruption left half-written.

    Trainer writes `trainer_state.json` last, but a machine that goes down may lose the end of any file.
    """
    whole = []
    for folder in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if _is_whole(folder):
            whole.append((int(folder.name.rpartition("-")[2]), folder))
        elif processes().is_main_process:
            console.print(f"  {folder.name} is cut short; it is deleted, and training goes on without it")
            shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


def _is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint can be read: safetensors know their length, archives of torch have sums."""
    state = folder / "trainer_state.json"
    try:
        with explained(folder, "no checkpoint", REMEDY):
            TrainerState.load_from_json(str(state))
            read_record(state, State)
            for file in folder.glob("*.safetensors"):
                with safe_open(file, "pt"):
                    pass
            return all(map(_sums_agree, folder.glob("*.pt*")))
    except LeptaError:
        return False


def _sums_agree(file: Path) -> bool:
    with zipfile.ZipFile(file) as archive:
        return archive.testzip() is None
