"""The original model and the same with the new vocabulary: whether they belong together, what is new, what learns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lepta.core.errors import LeptaError
from lepta.core.progress import track
from lepta.distillation.settings import DistillSettings
from lepta.distillation.targets import LearnedRows, learned_rows
from lepta.embeddings.transfer import transfer_matrix
from lepta.models.folder import PER_LAYER, Checkpoint
from lepta.models.rows import same_values
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Vocabulary


@dataclass(frozen=True)
class Pair:
    """The original model and the same with the new vocabulary: what is new, and which rows learn."""

    teacher: Checkpoint
    student: Checkpoint
    old: Vocabulary
    new: Vocabulary
    fresh: np.ndarray  # ids of new tokens, int64
    learned: LearnedRows
    tied: bool  # the result has one matrix for both ends
    untie: bool  # it has two, and the student one


def open_pair(original: Path, initialised: Path, settings: DistillSettings) -> Pair:
    """Open two model folders; LeptaError if they do not belong together or cannot be compared by embeddings."""
    teacher, student = Checkpoint(original), Checkpoint(initialised)
    if per_layer := [name for name in student.tables if name.endswith(PER_LAYER)]:
        raise LeptaError(
            f"{initialised}: {per_layer[0]} is looked up by token in each layer, so the original cannot be compared "
            "by embeddings alone; leave distillation out and train the rows (lepta pretrain)"
        )
    if student.surplus:
        raise LeptaError(
            f"{initialised}: its input embeddings have {student.surplus} rows more than its head, which distillation "
            "does not know; leave it out and train the rows (lepta pretrain)"
        )
    if teacher.width != student.width:
        raise LeptaError(
            f"{teacher.name}: rows have {teacher.width} numbers, in {student.name} {student.width}; expected the "
            "model that this one was initialised from"
        )
    if not settings.head_only:
        check_same_body(teacher, student)
    elif student.output_name is None:
        raise LeptaError(
            f"{initialised}: its head is its embeddings, so the head cannot learn alone; expected a model with a head "
            "of its own, as `lepta distill --untie` makes it"
        )
    old, new = open_tokenizer(original).vocabulary(), open_tokenizer(initialised).vocabulary()
    transfer = transfer_matrix(old, new, teacher.rows, student.rows)
    fresh = np.flatnonzero((transfer.exact[: new.size] < 0) & (np.diff(transfer.matrix.indptr)[: new.size] > 0))
    if not len(fresh):
        raise LeptaError(f"{initialised}: has no token that {original} lacks, so there is nothing to learn")
    untie = settings.untie and student.output_name is None
    tied = student.output_name is None and not untie
    learned = learned_rows(old, new, fresh, transfer.change.old_id_of, settings.rows == "target-rows", tied)
    return Pair(teacher, student, old, new, fresh, learned, tied, untie)


def check_same_body(teacher: Checkpoint, student: Checkpoint) -> None:
    """Refuse two models that differ in more than their vocabulary; LeptaError names the tensor that differs."""
    ends = {*teacher.vocabulary_names, teacher.stored_output, *student.vocabulary_names, student.stored_output}
    names = [name for name in student.entries if name not in ends]
    for name in track(names, "comparing bodies, tensors", len(names)):
        known = teacher.entries.get(name)
        same_type = known is not None and known.dtype == student.entries[name].dtype
        read = Checkpoint.raw if same_type else Checkpoint.rows_of
        if known is None or not same_values(read(teacher, name), read(student, name)):
            raise LeptaError(
                f"{student.name}: tensor {name} is not that of {teacher.name}; distillation needs the original and "
                "what `lepta init` made of it, before its body was trained (a trained body: `head_only`)"
            )
