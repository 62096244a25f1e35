"""LEP on folders: base, adapted base and instruct variants in; each variant with the new vocabulary out."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from lepta.core.errors import LeptaError
from lepta.embeddings.body import body_changes
from lepta.embeddings.initialise import padded_rows
from lepta.embeddings.maps import ANCHORED, MapFitter, Propagation
from lepta.embeddings.settings import AnyMethod
from lepta.embeddings.transfer import Transfer, rows_needed, stand_in_rows, transfer_matrix
from lepta.models.folder import AnyModel, Checkpoint
from lepta.models.load import check_whole
from lepta.models.rows import ComputedRows, Rows, all_finite, mean_length, mean_row, mix, precision
from lepta.models.write import write_model
from lepta.vocabulary.change import first_other_token
from lepta.vocabulary.source import TokenizerSource, open_tokenizer
from lepta.vocabulary.tokenizer_json import add_special_tokens, added_tokens_decoder, post_processor_with_ids
from lepta.vocabulary.tokens import Kind, Vocabulary

# Trained rows this many times as long, or as short, as the variant's own are unknown to its body: docs/training.md
UNKNOWN_LENGTH = 2.0


def propagate(
    base: AnyModel,
    adapted: AnyModel,
    variants: Sequence[tuple[AnyModel, str | Path]],
    method: AnyMethod = "anchored",
    *,
    body_deltas: Sequence[float | None] = (),
    delta_scales: Sequence[float] = (),
    token_counts: np.ndarray | None = None,
    hard_link: bool = False,
) -> list[dict[str, Any]]:
    """Write instruct variants with the vocabulary and embeddings of the adapted base model.

    Special tokens keep the variant's own rows, bit for bit, also those that only the variant has (chat markers that
    were added to it); its chat template and generation settings come along. T and what the fit needs of the base are
    computed once for all variants with as many rows.

    Gives facts for each variant: T, the fit of each matrix with mean lengths of rows, and `warnings`. LeptaError if the
    models do not belong together, values are not finite, or the body was trained too and `body_deltas` does not say
    what to do.

    Parameters
    ----------
    base, adapted
        The foundation model before and after vocabulary change and continued pre-training.
    variants
        Instruct variants of `base`, with the original vocabulary, and for each an existing empty folder for the result.
    method
        See `lepta.embeddings.maps`; `auto` takes, for each matrix, the one with the least held-out error.
    body_deltas, delta_scales
        For each variant, how many times what training changed in the base model is added to its body, or carried over
        in its embeddings.
    token_counts
        Occurrences of the new tokens in text, shape (new vocabulary,); frequent ones then weigh more (by square roots).
    hard_link
        See `write_model`.
    """
    base, adapted = Checkpoint.of(base), Checkpoint.of(adapted)
    family = _Family(base, adapted)
    made = [_Variant(family, Checkpoint.of(checkpoint)) for checkpoint, _ in variants]
    scales = body_deltas or [None] * len(made)
    pairs = zip(made, scales, strict=True)
    bodies = [body_changes(base, adapted, variant.checkpoint, scale) for variant, scale in pairs]
    _check_finite(adapted)
    weights = np.ones(adapted.rows)
    if token_counts is not None:
        weights[: len(token_counts)] += token_counts
    fits = _fit(family, made, method, np.sqrt(weights))
    done, shares = [], delta_scales or [1.0] * len(made)
    for variant, fitted, body, share, (_, folder) in zip(made, fits, bodies, shares, variants, strict=True):
        done.append(variant.write(fitted, body, share, Path(folder), hard_link))
    return done


class _Family:
    """The base model before and after adaptation, with their vocabularies; T is computed once for as many rows."""

    def __init__(self, base: Checkpoint, adapted: Checkpoint) -> None:
        self.base, self.adapted = base, adapted
        self.tokenizer = open_tokenizer(adapted.folder)
        self.old, self.new = open_tokenizer(base.folder).vocabulary(), self.tokenizer.vocabulary()
        self.transfer_from = cache(partial(transfer_matrix, self.old, self.new))


def _fit(
    family: _Family, made: "list[_Variant]", method: AnyMethod, weights: np.ndarray
) -> list[dict[str, Propagation]]:
    """For each variant, the fit of each of its matrices; variants with as many rows share the base's part."""

    @cache
    def stand_ins(rows: int) -> sparse.csr_array | None:
        return stand_in_rows(family.old, rows) if method in ("auto", *ANCHORED) else None

    fits: list[dict[str, Propagation]] = [{} for _ in made]
    for role in ("input", "output"):
        fitters: dict[int, MapFitter] = {}
        for variant, fitted in zip(made, fits, strict=True):
            if role == "output" and variant.tied:
                continue
            transfer = variant.transfer_of(_matrix(family.adapted, role), _matrix(variant.checkpoint, role))
            new_rows, rows = transfer.matrix.shape
            if rows not in fitters:
                fitters[rows] = MapFitter(transfer, _matrix(family.base, role), stand_ins(rows), weights[:new_rows])
            fitted[role] = fitters[rows].fit(method, _matrix(variant.checkpoint, role))
    return fits


@dataclass(frozen=True)
class ScaledRows:
    """T X_base + scale (X_adapted - T X_base): rows as if training had changed them more, or less.

    Rows that no old token corresponds to stay as they are.
    """

    adapted: Rows
    base: Rows
    matrix: sparse.csr_array  # T
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the adapted matrix."""
        return tuple(self.adapted.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the adapted matrix; rows come in the precision of its products, to be rounded once."""
        return self.adapted.dtype

    def __getitem__(self, rows: slice | torch.Tensor, /) -> torch.Tensor:
        """See `Rows`."""
        trained = self.adapted[rows].to(torch.float64)
        weights = self.matrix[rows if isinstance(rows, slice) else rows.numpy()]
        change = trained - mix(weights, self.base)
        change[torch.from_numpy(np.diff(weights.indptr) == 0)] = 0
        return (trained + (self.scale - 1) * change).to(precision(self.adapted))


class _Variant:
    """An instruct variant that belongs to the base, and what the result takes from it.

    `tokenizer` is the result's: the new vocabulary with the variant's settings and the special tokens that the base
    does not have. Those are in `added`: id in the variant -> id in the result, which has `total` rows. `transfer` is T
    from the rows that both the base and the variant have.
    """

    def __init__(self, family: _Family, checkpoint: Checkpoint) -> None:
        checkpoint.check_replaceable()
        check_whole(checkpoint)
        own, new = open_tokenizer(checkpoint.folder), family.new
        vocabulary = own.vocabulary()
        _check_family(family, checkpoint, vocabulary)
        self.checkpoint, self._family = checkpoint, family
        self.transfer = self.transfer_of(_matrix(family.adapted, "input"), _matrix(checkpoint, "input"))

        known = new.ids_by_bytes(Kind.SPECIAL)
        self.added: dict[int, int] = {}
        size = new.size
        for i in range(vocabulary.size):
            if not family.old.is_hole(i) or vocabulary.is_hole(i):
                continue
            self.added[i] = known.get(vocabulary.data(i), size)
            if self.added[i] == size:
                size += 1
        tokens = []
        for token in own.spec["added_tokens"]:
            if self.added.get(token["id"], -1) >= new.size:
                tokens.append(token | {"id": self.added[token["id"]]})
        spec = add_special_tokens(family.tokenizer.spec, tokens)
        self.tokenizer = _with_settings_of(own, replace(family.tokenizer, spec=spec))
        self.total = family.adapted.rows
        if size > self.total:
            self.total = padded_rows(family.adapted.rows, new.size, size, None)

    def transfer_of(self, adapted: Rows, own: Rows) -> Transfer:
        """T for a matrix of the adapted model and the variant's own, from rows that the base has too."""
        return self._family.transfer_from(min(self._family.base.rows, own.shape[0]), adapted.shape[0])

    @property
    def tied(self) -> bool:
        """Whether the result has one matrix for input and output."""
        return self.checkpoint.tied and self._family.adapted.tied

    def write(
        self, fits: dict[str, Propagation], body: dict[str, ComputedRows], scale: float, folder: Path, hard_link: bool
    ) -> dict[str, Any]:
        """Write the result with so many times the change of the embeddings, and tell what was done."""
        base, adapted = self._family.base, self._family.adapted
        matrices, maps, warnings = dict(body), {}, []
        for role, fit in fits.items():
            name = self._name_of(role)
            own, before, trained = _matrix(self.checkpoint, role), _matrix(base, role), _matrix(adapted, role)
            trained = self._scaled(trained, before, own, scale)
            matrices[name] = self._rows(fit, trained, own)
            lengths = {"adapted": mean_length(trained), "instruct": mean_length(own)}
            maps[name] = fit.summary() | {"row_length": lengths}
            warnings += _length_warnings(name, **lengths)
        for name in self.checkpoint.vocabulary_names:
            if name not in self.checkpoint.embedding_names:
                before, own, after = base.rows_of(name), self.checkpoint.rows_of(name), adapted.rows_of(name)
                moved = Propagation("delta", None, (self.transfer_of(after, own).matrix, before, own))
                matrices[name] = self._rows(moved, self._scaled(after, before, own, scale), own)
        write_model(
            self.checkpoint,
            matrices,
            self.tokenizer,
            folder,
            self.transfer.change.moved | self.added,
            untie=self.checkpoint.tied and not self.tied,
            hard_link=hard_link,
        )
        return {
            "transfer": self.transfer.summary(),
            "special_rows_kept": len(self._own_rows(self.checkpoint.rows)[0]),
            "added_tokens": len(self.added),
            "body_tensors_changed": len(body),
            "maps": maps,
            "warnings": warnings,
        }

    def _scaled(self, trained: Rows, before: Rows, own: Rows, scale: float) -> Rows:
        """Trained rows with so many times what training changed in them."""
        return trained if scale == 1.0 else ScaledRows(trained, before, self.transfer_of(trained, own).matrix, scale)

    def _name_of(self, role: str) -> str:
        """Name of a matrix in the result."""
        if role == "input":
            return self.checkpoint.input_name
        return self.checkpoint.stored_output or self._family.adapted.stored_output or "lm_head.weight"

    def _own_rows(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the result that are the variant's own, ascending, and where they are in a matrix of so many rows."""
        old_id_of = self.transfer.change.old_id_of
        special = np.flatnonzero(self._family.new.kinds == Kind.SPECIAL)
        shared = special[old_id_of[special] >= 0]
        own = dict(zip(shared.tolist(), old_id_of[shared].tolist(), strict=True))
        own |= zip(self.added.values(), self.added, strict=True)
        # A token may be without a row: one that was added to a tokenizer only.
        places = sorted(place for place in own if own[place] < rows)
        return np.array(places, dtype=np.int64), np.array(list(map(own.get, places)), dtype=np.int64)

    def _rows(self, fit: Propagation, trained: Rows, own: Rows) -> ComputedRows:
        """Propagated rows with the variant's own in their places; rows beyond both get the variant's mean row.

        In the wider of the two dtypes: what is written in the variant's is rounded once, and its own rows not at all.
        """
        propagated = fit.apply(trained, torch.promote_types(trained.dtype, own.dtype))
        places, sources = self._own_rows(own.shape[0])
        mean = cache(lambda: mean_row(own))

        def block(rows: slice) -> torch.Tensor:
            result = propagated.rows(slice(rows.start, min(rows.stop, propagated.shape[0])))
            if len(result) < rows.stop - rows.start:
                padding = mean().to(result.dtype).expand(rows.stop - rows.start - len(result), *result.shape[1:])
                result = torch.cat([result, padding])
            here = (places >= rows.start) & (places < rows.stop)
            if here.any():
                result = result.clone()
                kept = own[torch.from_numpy(sources[here])]
                result[torch.from_numpy(places[here] - rows.start)] = kept.to(result.dtype)
            return result

        total = self.total - (self._family.adapted.rows - trained.shape[0])  # Mllama's head has fewer rows
        return ComputedRows((total, *propagated.shape[1:]), block)


def _length_warnings(name: str, adapted: float, instruct: float) -> list[str]:
    """What to say of rows that the body of a variant does not know, if they are such rows."""
    ratio = adapted / instruct if instruct else 1.0
    if 1 / UNKNOWN_LENGTH < ratio < UNKNOWN_LENGTH:
        return []
    cause = "fewer tokens or a lower learning rate" if ratio > 1 else "less weight decay or a lower learning rate"
    return [
        f"{name}: trained rows are {adapted:.3g} long in the mean, the variant's own {instruct:.3g}; "
        f"its body does not know such rows. Train with {cause}, or calibrate the result"
    ]


def _matrix(checkpoint: Checkpoint, role: str) -> Rows:
    names = {"input": checkpoint.input_name, "output": checkpoint.output_name or checkpoint.input_name}
    return checkpoint.rows_of(names[role])


def _check_finite(adapted: Checkpoint) -> None:
    """Refuse a damaged adapted model before anything is fitted; `MapFitter` sees the base and the variant alone."""
    for name in adapted.vocabulary_names:
        if not all_finite(adapted.rows_of(name)):
            raise LeptaError(
                f"{adapted.name}: {name}: NaN or infinite values; expected a whole checkpoint of training that went "
                "well; download it again or train again from an earlier one"
            )


def _with_settings_of(own: TokenizerSource, tokenizer: TokenizerSource) -> TokenizerSource:
    """The new tokenizer with a variant's chat template, roles of tokens and what it puts around texts."""
    owned = {"tokenizer_class", "added_tokens_decoder"} & set(tokenizer.config)  # they belong to the new vocabulary
    config = tokenizer.config | own.config | {key: tokenizer.config[key] for key in owned}
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = added_tokens_decoder(tokenizer.spec)
    ids = {token["content"]: token["id"] for token in tokenizer.spec["added_tokens"]}
    spec = tokenizer.spec | {"post_processor": post_processor_with_ids(own.spec.get("post_processor"), ids)}
    return replace(tokenizer, spec=spec, config=config, chat_template=own.chat_template or tokenizer.chat_template)


def _check_family(family: _Family, instruct: Checkpoint, own: Vocabulary) -> None:
    """Refuse models that are not a base, its adaptation and its variant (with the vocabulary `own`)."""
    base, adapted, old = family.base, family.adapted, family.old
    if not base.width == adapted.width == instruct.width:
        raise LeptaError(
            f"embedding widths differ: base {base.width} ({base.name}), adapted {adapted.width} ({adapted.name}), "
            f"instruct {instruct.width} ({instruct.name}); expected three models of one architecture and size"
        )
    if instruct.rows < rows_needed(old):
        raise LeptaError(
            f"{instruct.name}: {instruct.rows} embedding rows, but the vocabulary of the base {base.name} needs "
            f"{rows_needed(old)}; expected a variant with the base model's own vocabulary"
        )
    if (i := first_other_token(old, own)) is not None:
        raise LeptaError(
            f"{instruct.name}: id {i} is {own.token(i)!r}, but {old.token(i)!r} in the base {base.name}; "
            "expected a variant with the base model's own vocabulary; only special tokens may come on top"
        )
    if instruct.tied and not base.tied:
        raise LeptaError(
            f"{instruct.name}: ties input and output embeddings, the base {base.name} does not; "
            "expected a variant that was trained from this base"
        )
    if len({checkpoint.bias_name is None for checkpoint in (base, adapted, instruct)}) > 1:
        raise LeptaError("some of base, adapted and instruct add a bias to the logits and some do not")
    for other, table in itertools.product((base, adapted), instruct.tables):
        if table not in other.entries:
            raise LeptaError(
                f"{other.name}: no tensor {table}, which {instruct.name} has with a row for each token; "
                "expected models of one architecture"
            )


def count_tokens(vocabulary: Vocabulary, documents: Sequence[str]) -> np.ndarray:
    """Occurrences of each token in documents, shape (vocabulary.size,)."""
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for ids in vocabulary.encode(documents):
        counts += np.bincount(np.array(ids, dtype=np.int64), minlength=vocabulary.size)
    return counts
