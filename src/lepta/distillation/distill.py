"""Token distillation of a model folder: passages, rows that learn, two phases, and the folder that is written.

The first phase compares hidden states of a lower layer, which costs a third of the body and no head: input rows learn.
Then counting puts the head's rows where they are right on average, and the second phase trains them on the next token,
together with the hidden states. Try it:

    lepta distill --original ORIGINAL --model INITIALISED --text starter:ru/train --tokens 20000 --output OUT
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lepta.card import PASSAGES_BESIDE_ORIGINAL
from lepta.core.errors import LeptaError
from lepta.distillation.best import BestRows, bits_of_original, bits_per_byte, held_out_states
from lepta.distillation.head import Expectations, calibrate, collect_states, collect_targets, fit
from lepta.distillation.pair import Pair, open_pair
from lepta.distillation.passages import Examples, Passages, choose_passages, draw_passages
from lepta.distillation.pieces import PieceTree
from lepta.distillation.settings import HELD_OUT, DistillSettings
from lepta.distillation.student import Distiller
from lepta.distillation.targets import LearnedRows
from lepta.distillation.tie import tie
from lepta.inference.bits import start_of_text
from lepta.models.load import load_model, load_tokenizer
from lepta.models.precision import DTYPES
from lepta.models.rows import ComputedRows, with_parts
from lepta.models.write import write_model
from lepta.stages import CHECKPOINTS
from lepta.training.distributed import processes
from lepta.training.merge import changed_tensors
from lepta.training.precision import resolved_body_dtype
from lepta.training.settings import checkpoint_steps
from lepta.training.trainable import load_trained
from lepta.training.trainer import Run, train
from lepta.vocabulary.alignment import Aligner, Alignment
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Vocabulary

LISTED = 50  # tokens without a passage that the manifest names
HEAD = "lm_head.weight"


def distill_folder(
    original: str | Path,
    initialised: str | Path,
    documents: Callable[[], Iterable[str]],
    settings: DistillSettings,
    seed: int,
    folder: str | Path,
    source_documents: Callable[[], Iterable[str]] | None = None,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Learn the rows of new tokens from the original model and write the result.

    `original` is the model folder before its vocabulary changed (the teacher), `initialised` the same model with the
    new vocabulary. `documents` streams text; `source_documents` text of the language that the model knows, which is
    needed where `settings.reads_source`. `folder` exists; checkpoints found in it are resumed from. Gives facts
    and the curve. LeptaError if the models do not belong together, or the text has none of the tokens.
    """
    pair = open_pair(Path(original), Path(initialised), settings)
    folder = Path(folder)
    passages = _choose_passages(pair, documents, source_documents, settings, seed)
    distiller, facts = _load_distiller(pair, passages, settings, seed, folder / CHECKPOINTS)
    facts |= _coverage(passages, pair.fresh, pair.new, settings.occurrences)
    best = BestRows(distiller, passages.held_out)
    begun = "before" if settings.head_only else "initialised"
    best.measure(begun)
    source_bits = [_source_bits(distiller, passages, begun)] if passages.source_held_out else []
    curve: list[dict[str, float]] = []
    if not settings.head_only:
        curve = _learn_inputs(distiller, pair, passages, settings, seed, facts["rows_rms"], folder / CHECKPOINTS)
    if processes().is_main_process:
        if not settings.head_only:
            best.measure("inputs learned")
        states = _learn_head(distiller, passages, settings, seed, facts["rows_rms"], pair.learned, best)
        best.restore()
        if pair.tied:
            tie(distiller, states, best)
            best.restore()
        facts |= _outcome(best)
        if best.bits and distiller.head.bias is None:  # the original's biases are not read
            bits = best.bits[best.kept], bits_of_original(distiller, passages.held_out)
            facts[PASSAGES_BESIDE_ORIGINAL] = list(bits)
        if source_bits:
            source_bits.append(_source_bits(distiller, passages, "result"))
            facts["source_bits_per_byte"] = source_bits
        tokenizer = open_tokenizer(pair.student.folder)
        write_model(pair.student, _changed(distiller, pair), tokenizer, folder, untie=pair.untie)
    processes().wait_for_everyone()
    return facts, curve


def check_distillation(
    original: Path,
    initialised: Path,
    documents: Callable[[], Iterable[str]],
    settings: DistillSettings,
    seed: int,
    source_documents: Callable[[], Iterable[str]] | None = None,
) -> None:
    """LeptaError if `distill_folder` would refuse these models or this text; nothing is loaded or trained."""
    _choose_passages(open_pair(original, initialised, settings), documents, source_documents, settings, seed)


def _source_bits(distiller: Distiller, passages: Passages, step: str) -> float:
    held_out = passages.source_held_out
    return bits_per_byte(distiller, held_out, held_out_states(distiller, held_out, f"source language, {step}"))


def _choose_passages(
    pair: Pair,
    documents: Callable[[], Iterable[str]],
    source_documents: Callable[[], Iterable[str]] | None,
    settings: DistillSettings,
    seed: int,
) -> Passages:
    """Passages of the target language, and of the source language where that is read.

    LeptaError if the text has none of the tokens, or text that is needed is missing or too short.
    """
    starts = [start_of_text(load_tokenizer(model.folder), model.folder) for model in (pair.teacher, pair.student)]
    aligner = Aligner(pair.old, pair.new, *starts)
    of_source = settings.source_tokens
    settings.check_source_text(source_documents is not None)
    passages = choose_passages(
        documents(),
        aligner,
        pair.fresh,
        settings.tokens - of_source,
        settings.passage,
        settings.occurrences,
        HELD_OUT,
        seed,
    )
    if len(passages.chosen) < settings.batch:  # what fills no batch is left out
        number = len(passages.chosen)
        raise LeptaError(
            f"distill.tokens: {settings.tokens:,} tokens give {number} passage{'' if number == 1 else 's'} of the "
            f"target text, fewer than `distill.batch`, {settings.batch}; expected more tokens or text, or a smaller "
            "batch"
        )
    if not of_source or source_documents is None:
        return passages
    source, held_out = draw_passages(
        source_documents(), aligner, of_source, settings.passage, len(passages.held_out), seed
    )
    source *= math.ceil(settings.batch / len(source))  # less than a batch would be left out
    return replace(passages, source=source, source_held_out=held_out)


def _load_distiller(
    pair: Pair, passages: Passages, settings: DistillSettings, seed: int, work: Path
) -> tuple[Distiller, dict[str, Any]]:
    """Teacher and student, and what the manifest says of them."""
    teacher, learned, initialised = pair.teacher, pair.learned, pair.student.folder
    body_dtype = resolved_body_dtype(settings.body_dtype, initialised, work)
    dtype = DTYPES[body_dtype]
    model = load_model(initialised, dtype)
    layer = _layer(model.config.get_text_config().num_hidden_layers, settings)
    _check_context(passages.chosen, model.config.get_text_config())
    torch.manual_seed(seed)  # LoRA starts from random numbers; the precision, timed or known, may have drawn some
    distiller = Distiller(
        model,
        teacher.rows_of(teacher.input_name)[:].to(model.device),
        torch.from_numpy(learned.inputs).to(model.device),
        torch.from_numpy(learned.outputs).to(model.device),
        layer,
        None if teacher.output_name is None else teacher.rows_of(teacher.output_name)[:].to(model.device),
        settings.lora_rank,
        load_model(teacher.folder, dtype).requires_grad_(False) if settings.head_only else None,
    )
    _changed(distiller, pair)  # refuses now what could not be written later
    _hold(distiller.embedding.rows, learned.inputs, pair.fresh)
    _hold(distiller.head.rows, learned.outputs, learned.moving)
    facts = {
        "learned_rows": len(learned.moving),
        "new_rows": len(pair.fresh),
        "tokens": sum(len(passage.new_ids) - 1 for passage in passages.chosen),
        "source_tokens": sum(len(passage.new_ids) - 1 for passage in passages.source),
        "body_dtype": body_dtype,
        "rows_rms": float(distiller.embedding.rows.detach().square().mean().sqrt()),
    }
    if not settings.head_only:
        facts["layer"] = layer
    return distiller, facts


def _layer(number: int, settings: DistillSettings) -> int:
    layer = settings.layer or math.ceil(number / 3)
    if layer > number:
        raise LeptaError(f"distill.layer: {layer}, but the model has {number} layers; expected one of them, from 1 on")
    return layer


def _check_context(passages: list[Alignment], config: Any) -> None:
    context = getattr(config, "max_position_embeddings", None)
    longest = max(len(passage.old_ids) for passage in passages)
    if context is not None and longest > context:
        raise LeptaError(
            f"distill.passage: one has {longest} old tokens, more than the model's context of {context}; expected "
            "fewer characters"
        )


def _outcome(best: BestRows) -> dict[str, Any]:
    """Which rows are kept, by what; and a warning of a run that did not end as it should."""
    if not best.bits:  # of a short text no passages are put aside
        return {"kept": best.kept}
    facts: dict[str, Any] = {"held_out_bits_per_byte": best.bits, "kept": best.kept}
    begun = next(iter(best.bits))
    if best.kept == begun:
        worse = f"{best.bits[begun]:.3f} -> {best.reached:.3f} bits per byte of passages put aside"
        facts["warnings"] = [f"distillation made the text worse ({worse}); the rows it began with are kept"]
    return facts


def _coverage(passages: Passages, fresh: np.ndarray, new: Vocabulary, occurrences: int) -> dict[str, Any]:
    """How often the tokens occur in the passages, and which do not at all."""
    counts = passages.counts[fresh]
    absent = fresh[counts == 0]
    texts = [new.data(int(i)).decode("utf-8", errors="replace") for i in absent[:LISTED]]
    return {
        "passages": len(passages.chosen),
        "whole_text": passages.whole,
        "tokens_below_occurrences": int((counts < occurrences).sum()),
        "tokens_absent": len(absent),
        "absent": texts,
    }


def _learn_inputs(
    distiller: Distiller, pair: Pair, passages: Passages, settings: DistillSettings, seed: int, unit: float, work: Path
) -> list[dict[str, float]]:
    """Bring hidden states near the teacher's, as a resumable run on all processes; returns its curve."""
    examples = Examples(
        [passages.chosen, passages.source],
        pair.fresh,
        pair.new.size,
        settings.batch,
        everywhere=settings.lora_rank > 0,
        seed=seed,
    )
    groups = [{"name": "rows", "params": [distiller.embedding.rows], "lr": settings.hidden_rate * unit}]
    if distiller.low_rank:
        groups.append({"name": "body", "params": list(distiller.low_rank.values()), "lr": settings.lora_rate})
    steps = len(examples) // settings.batch
    run = Run(
        distiller,
        examples,
        groups,
        work / "inputs",
        settings.batch,
        seed,
        description="learning from hidden states, steps",
        micro_batch=settings.micro_batch,
        warmup_steps=min(10, steps // 10),
        save_every=checkpoint_steps(settings, steps),
        dtype=distiller.embedding.table.dtype,
    )
    distiller.head.rows.requires_grad_(False)
    trained = train(run)
    load_trained(distiller, trained.weights, str(work))
    losses = [entry for entry in trained.curve if "loss" in entry]
    return [{"step": e["step"], "tokens": e["tokens"], "hidden_distance": e["loss"]} for e in losses]


def _learn_head(
    distiller: Distiller,
    passages: Passages,
    settings: DistillSettings,
    seed: int,
    unit: float,
    learned: LearnedRows,
    best: BestRows,
) -> torch.Tensor:
    """Calibrate the head and fit it, or fit further one that has learned; returns last hidden states, (n, d)."""
    head, rule = distiller.head, distiller.rule
    device = head.rows.device
    chosen = _first_tokens(passages.chosen, settings.head_tokens)
    if settings.head_only:
        chosen = chosen + _first_tokens(passages.source, round(settings.head_tokens * settings.source_share))
    weights, expected = settings.text_weights, None
    if head.bias is None and min(weights) < 1:
        tree = PieceTree(learned.paths, device)
        found, targets = collect_targets(distiller, tree, chosen, settings.batch)
        expected = Expectations(targets, tree, distiller.old_head[tree.first_pieces], weights[0])
    else:  # the text alone; also where the head has biases, since those of the original are not read
        found, weights = collect_states(distiller, chosen, settings.batch), (1.0,)
    if not settings.head_only:
        moves = torch.from_numpy(np.isin(learned.outputs, learned.moving)).to(device)
        starts = torch.from_numpy(np.flatnonzero(learned.first >= 0)).to(device)
        with torch.no_grad():
            rows = head.rows.detach().clone()
            rows[starts] = (rows[starts] + rows[torch.from_numpy(learned.first).to(device)[starts]]) / 2
            head.rows.copy_(calibrate(rows, found, rule, head.bias, moves))
        best.measure("calibrated", same_states=True)
    head.rows.requires_grad_(True)
    rate, epochs = settings.peak_rate * unit, settings.epochs_over(len(found))
    for weight in weights:
        if expected:
            expected = replace(expected, text_weight=weight)
        fit(head.rows, found, expected, rule, head.bias, rate, epochs, seed)
        best.measure(f"fitted, {weight:.0%} to the text", same_states=True)
    return found.states


def _first_tokens(passages: Sequence[Alignment], number: int) -> list[Alignment]:
    """So many passages, which are in random order, that they have `number` new tokens, or all."""
    ends = np.cumsum([len(passage.new_ids) - 1 for passage in passages])
    return list(passages[: int(np.searchsorted(ends, number)) + 1])


def _hold(rows: torch.nn.Parameter, ids: np.ndarray, moving: np.ndarray) -> None:
    """Give rows of other tokens than `moving` no gradient."""
    if not np.isin(ids, moving).all():
        moves = torch.from_numpy(np.isin(ids, moving)).to(rows.device)[:, None]
        requires = rows.requires_grad
        rows.requires_grad_(True).register_hook(lambda gradient: gradient * moves)
        rows.requires_grad_(requires)


def _changed(distiller: Distiller, pair: Pair) -> dict[str, ComputedRows]:
    """Tensors of the result: matrices with the rows that learned in their places, and what the body learned."""
    source, learned = pair.student, pair.learned
    changed = {source.input_name: (learned.inputs, distiller.embedding.rows)}
    if not pair.tied:
        changed[source.output_name or HEAD] = (learned.outputs, distiller.head.rows)
    matrices = changed_tensors(distiller.model, distiller.low_rank, source)
    for name, (ids, rows) in changed.items():
        stored = source.rows_of(name if name in source.entries else source.input_name)
        moves = torch.from_numpy(np.isin(ids, learned.moving))
        matrices[name] = with_parts(stored, [(torch.from_numpy(ids)[moves], rows.detach().cpu()[moves])])
    return matrices
