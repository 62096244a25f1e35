"""An adapted model without its body: new embeddings and tokenizer, to be put on the very model they were made for.

A patch is a folder with the rows that are new (`patch.safetensors`), the adapted model's tokenizer and configs, and
`patch.json` with a hash of each tensor before and after. It fits one model only, and says so if it is given another.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, model_validator

from lepta.card import PATCH, patch_card
from lepta.core.errors import LeptaError, explained
from lepta.core.output import CARD
from lepta.core.progress import progress
from lepta.core.reading import conform, read_json
from lepta.embeddings.transfer import transfer_matrix
from lepta.models.folder import AnyModel, Checkpoint, TensorEntry, read_header
from lepta.models.rows import ComputedRows, Rows, StoredRows, blocks
from lepta.models.write import bytes_of, carry_configs, write_model, write_shard
from lepta.stages import Hashes
from lepta.text.locate import locate
from lepta.vocabulary.schema import MOST_TOKENS
from lepta.vocabulary.source import open_tokenizer

ROWS, SAME, CHANGED = "patch.safetensors", "same_rows", ".changed_rows"
FORMAT = 2
PATCH_FILES = ["*.json", "*.jinja", ROWS]
Count = Annotated[int, Field(strict=True, ge=1, lt=MOST_TOKENS)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Patch(BaseModel):
    """What `patch.json` says."""

    format: Literal[2]  # 1 had no hashes of the small files
    rows: Count
    matrices: dict[str, str] = Field(min_length=1)  # of the adapted model -> of the original
    files: dict[str, Hash]  # all others of the patch
    before: dict[str, Hash]  # tensors of the original
    after: dict[str, Hash]  # tensors of the adapted model that the patch makes

    @model_validator(mode="after")
    def _whole(self) -> "Patch":
        if self.after.keys() != self.matrices.keys():
            raise ValueError("after: not the tensors that `matrices` names")
        return self


def export_patch(original: AnyModel, adapted: AnyModel, folder: str | Path) -> dict[str, Any]:
    """Write what turns one model into another that differs in vocabulary and embeddings only.

    `original` and `adapted` are a base or instruct model, and the same after adaptation; `folder` exists and is empty.
    Gives `rows`, those of the new matrices, and `rows_carried`: for each matrix, those that the original does not have.
    LeptaError if the models differ in anything but vocabulary and embeddings.
    """
    original, adapted, folder = Checkpoint.of(original), Checkpoint.of(adapted), Path(folder)
    names = _matrices(original, adapted)
    before, after = tensor_hashes(original), tensor_hashes(adapted)
    embeddings = {original.stored_output, *names, *names.values()}
    if unlike := sorted(_unlike(before, after) - embeddings):
        raise LeptaError(
            f"{adapted.name}: tensor {unlike[0]} is not that of {original.name}; a patch carries embeddings only, "
            "so the bodies of both models must be the same"
        )
    tokenizer = open_tokenizer(adapted.folder)
    old, new = open_tokenizer(original.folder).vocabulary(), tokenizer.vocabulary()
    same = transfer_matrix(old, new, original.rows, adapted.rows).exact
    tensors = {SAME: ComputedRows.of(torch.from_numpy(same))}
    carried = {}
    for name, source in names.items():
        matrix = adapted.rows_of(name)
        before_rows = original.rows_of(source)
        changed = _changed_rows(matrix, before_rows, np.where(same < before_rows.shape[0], same, -1))
        carried[name] = len(changed)
        chosen = partial(_chosen_rows, matrix, torch.from_numpy(changed))
        tensors[name] = ComputedRows((len(changed), *matrix.shape[1:]), chosen)
        tensors[name + CHANGED] = ComputedRows.of(torch.from_numpy(changed))
    if not any(carried.values()):
        raise LeptaError(
            f"{adapted.name}: all its rows are in {original.name} too, so there is nothing to carry; "
            "are original and adapted swapped?"
        )
    entries = []
    for name, rows in tensors.items():
        dtype = adapted.entries[name].dtype if name in names else "I64"
        entries.append(TensorEntry(name, dtype, rows.shape, folder, 0, 0))
    write_shard(folder / ROWS, entries, tensors)
    tokenizer.save(folder)
    carry_configs(adapted.folder, folder)
    facts = {"rows": adapted.rows, "rows_carried": carried}
    content = {
        "format": FORMAT,
        "matrices": names,
        **facts,
        "files": _files(folder),
        "before": before,
        "after": {name: after[name] for name in names},
    }
    (folder / PATCH).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(patch_card(original.folder, original.name), encoding="utf-8")
    return facts


def apply_patch(place: str | Path, original: AnyModel, folder: str | Path, hard_link: bool = False) -> dict[str, Any]:
    """Write the adapted model that a patch was made from, into an existing empty folder.

    `place` is the folder or hub id of the patch, `original` the model that it is for; for `hard_link` see
    `write_model`. LeptaError if it is no patch, is damaged, or is for another model.
    """
    original, folder = Checkpoint.of(original), Path(folder)
    patch = locate(place, hub_files=PATCH_FILES)
    content = _read_content(patch)
    rows = {name: entry.rows for name, entry in read_header(patch / ROWS).items()}
    _check_fit(patch, content, rows, original)
    same = rows[SAME][:].numpy()
    matrices = {}
    for name, source in content.matrices.items():
        changed = rows[name + CHANGED][:].numpy()
        patched = partial(_patched_rows, rows[name], changed, original.rows_of(source), same)
        matrices[name] = ComputedRows((content.rows, *rows[name].shape[1:]), patched)
    untie = not matrices.keys() <= original.entries.keys()
    with explained(patch / ROWS, "its rows do not fit the model", "export the patch again"):
        write_model(original, matrices, open_tokenizer(patch), folder, untie=untie, hard_link=hard_link)
    carry_configs(patch, folder)
    # A bias and further tables are found by themselves.
    names = [name for name, new in matrices.items() if len(new.shape) == 2 and name not in original.tables]
    written = tensor_hashes(Checkpoint(folder, *names), list(matrices))
    for name, expected in content.after.items():
        if written[name] != expected:
            raise LeptaError(f"{patch}: {name} does not become the tensor that the patch was made from")
    return {"rows": content.rows}


def _read_content(patch: Path) -> Patch:
    """What `patch.json` says; LeptaError if it is not there or damaged, or a file is not as it says."""
    if not (patch / PATCH).is_file():
        raise LeptaError(f"{patch}: no {PATCH} in it; expected a folder that `lepta patch export` wrote")
    content = conform(
        Patch, read_json(patch / PATCH), patch / PATCH, "export the patch again, with this version of LEPTA"
    )
    if other := sorted(_unlike(_files(patch), content.files)):
        raise LeptaError(f"{patch / other[0]}: not as {PATCH} says it was exported; copy or download the patch again")
    return content


def _check_fit(patch: Path, content: Patch, rows: dict[str, StoredRows], original: Checkpoint) -> None:
    """LeptaError if a patch is for another model, or its rows are not what `patch.json` says."""
    if other := sorted(_unlike(tensor_hashes(original), content.before)):
        raise LeptaError(
            f"{original.name}: tensor {other[0]} is not that of the model that the patch {patch} was made for; "
            "give that model, in the same revision and dtype"
        )
    needed = [SAME, *content.matrices, *(name + CHANGED for name in content.matrices)]
    missing = [name for name in needed if name not in rows]
    missing += sorted({*content.matrices.values()} - {*content.before})
    if missing:
        raise LeptaError(f"{patch / PATCH}: names {missing[0]}, which is not there; export the patch again")
    if left := [name for name in original.vocabulary_names if name not in content.matrices.values()]:
        raise LeptaError(f"{patch / PATCH}: has nothing for {left[0]}, which has a row for each token; export it again")
    if rows[SAME].shape != (content.rows,):
        raise LeptaError(f"{patch / PATCH}: rows is {content.rows:,}, expected {rows[SAME].shape[0]:,} by {ROWS}")


def _files(patch: Path) -> dict[str, str]:
    """Hashes of the files of a patch that decide what it makes."""
    hashes = Hashes().files(patch).items()
    return {name: found for name, found in hashes if name != PATCH and any(map(Path(name).match, PATCH_FILES))}


def tensor_hashes(checkpoint: Checkpoint, names: list[str] | None = None) -> dict[str, str]:
    """SHA-256 of tensors, with dtype and shape, whatever files they lie in."""
    hashes = {}
    entries = [checkpoint.entries[name] for name in names or checkpoint.entries]
    total = sum(entry.end - entry.start for entry in entries)
    with progress("hashing weights, GB", total / 1e9) as meter:
        done = 0
        for entry in entries:
            digest = hashlib.sha256(f"{entry.dtype} {list(entry.shape)}".encode())
            for block in bytes_of(entry):
                digest.update(block)
                done += len(block)
                meter.set(done / 1e9)
            hashes[entry.name] = digest.hexdigest()
    return hashes


def _unlike(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """Names of tensors that are not in both, or not with the same hash."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _matrices(original: Checkpoint, adapted: Checkpoint) -> dict[str, str]:
    """Name of each matrix with a row for each token in the adapted model -> of that in the original."""
    names = {adapted.input_name: original.input_name}
    if adapted.output_name:
        names[adapted.output_name] = original.output_name or original.input_name
    if adapted.bias_name and original.bias_name:
        names[adapted.bias_name] = original.bias_name
    if adapted.surplus:
        raise LeptaError(
            f"{adapted.name}: its input embeddings have {adapted.surplus} rows more than its head, which patches do "
            "not know; pass the whole folder on"
        )
    return names | {table: table for table in adapted.tables if table in original.entries}


def _changed_rows(matrix: Rows, original: Rows, same: np.ndarray) -> np.ndarray:
    """Rows that are not, bit for bit, a row of the original."""
    changed = []
    for block in blocks(matrix.shape):
        rows, sources = matrix[block], same[block]
        differs = torch.from_numpy(sources < 0)
        known = np.flatnonzero(sources >= 0)
        if len(known):
            here, there = rows[torch.from_numpy(known)], original[torch.from_numpy(sources[known])]
            differs[torch.from_numpy(known)] = (_bits(here) != _bits(there)).any(dim=1)
        changed.append(block.start + np.flatnonzero(differs.numpy()))
    return np.concatenate(changed).astype(np.int64)


def _bits(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.uint8).reshape(len(rows), -1)


def _chosen_rows(matrix: Rows, index: torch.Tensor, rows: slice) -> torch.Tensor:
    return matrix[index[rows]]


def _patched_rows(carried: Rows, changed: np.ndarray, original: Rows, same: np.ndarray, rows: slice) -> torch.Tensor:
    """Rows of the adapted matrix: those that the patch carries, the others from the original."""
    first, last = np.searchsorted(changed, [rows.start, rows.stop])
    result = torch.empty((rows.stop - rows.start, *original.shape[1:]), dtype=carried.dtype)
    here = changed[first:last] - rows.start
    result[torch.from_numpy(here)] = carried[int(first) : int(last)]
    others = np.setdiff1d(np.arange(rows.stop - rows.start), here)
    result[torch.from_numpy(others)] = original[torch.from_numpy(same[rows][others])]
    return result
