"""LEP on folders: base, adapted base and instruct variants in; each variant with the new vocabulary out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
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
from lepta.models.folder import Checkpoint
from lepta.models.rows import ComputedRows, Rows, all_finite, mean_length, mean_row
from lepta.models.write import write_model
from lepta.vocabulary.source import TokenizerSource, open_tokenizer
from lepta.vocabulary.tokenizer_json import add_special_tokens, post_processor_with_ids
from lepta.vocabulary.tokens import Kind, Vocabulary

# Trained rows this many times as long, or as short, as the variant's own are unknown to its body: docs/training.md
UNKNOWN_LENGTH = 2.0


def propagate(
    base: Checkpoint,
    adapted: Checkpoint,
    variants: Sequence[tuple[Checkpoint, Path]],
    method: AnyMethod = "anchored",
    *,
    body_deltas: Sequence[float | None] = (),
    token_counts: np.ndarray | None = None,
    hard_link: bool = False,
) -> list[dict[str, Any]]:
    """Write instruct variants with the vocabulary and embeddings of the adapted base model.

    Special tokens keep the variant's own rows, bit for bit, also those that only the variant has (chat markers that
    were added to it); its chat template and generation settings come along. T and what the fit needs of the base are
    computed once for all variants with as many rows.

    Parameters
    ----------
    base, adapted : Checkpoint
        The foundation model before and after vocabulary change and continued pre-training.
    variants : sequence of (Checkpoint, Path)
        Instruct variants of `base`, with the original vocabulary, and for each an existing empty folder for the result.
    method : str
        See `lepta.embeddings.maps`; `auto` takes, for each matrix, the one with the least held-out error.
    body_deltas : sequence of float, optional
        For each variant, how many times what training changed in the base model's body is added to its body.
    token_counts : array, shape (new vocabulary,), optional
        Occurrences of the new tokens in text; frequent tokens then weigh more in the fit (by the square root).
    hard_link : bool
        See `write_model`.

    Returns
    -------
    list of dict
        Facts for each variant: T, the fit of each matrix with mean lengths of rows, and `warnings`.

    Raises
    ------
    LeptaError
        If the models do not belong together, values are not finite, or the body was trained too and `body_deltas` does
        not say what to do.
    """
    tokenizer = open_tokenizer(adapted.folder)
    old, new = open_tokenizer(base.folder).vocabulary(), tokenizer.vocabulary()

    @cache
    def transfer_from(rows: int) -> Transfer:
        return transfer_matrix(old, new, rows, adapted.rows)

    made = [_Variant.of(checkpoint, tokenizer, adapted, base, old, new, transfer_from) for checkpoint, _ in variants]
    scales = body_deltas or [None] * len(made)
    bodies = [
        body_changes(base, adapted, variant.checkpoint, scale) for variant, scale in zip(made, scales, strict=True)
    ]
    _check_finite(adapted)
    weights = None if token_counts is None else np.sqrt(_padded(token_counts, adapted.rows) + 1.0)

    fits = _fit(made, base, old, method, weights)
    facts = []
    for variant, fitted, body, (_, folder) in zip(made, fits, bodies, variants, strict=True):
        matrices, maps, warnings = dict(body), {}, []
        for role, fit in fitted.items():
            name = variant.name_of(role)
            own, trained = _matrix(variant.checkpoint, role), _matrix(adapted, role)
            matrices[name] = variant.rows(fit, trained, own)
            lengths = {"adapted": mean_length(trained), "instruct": mean_length(own)}
            maps[name] = fit.summary() | {"row_length": lengths}
            warnings += _length_warnings(name, **lengths)
        if variant.checkpoint.bias_name:
            models = (base, variant.checkpoint, adapted)
            before, own, after = (model.rows_of(model.bias_name or "") for model in models)
            moved = Propagation("delta", None, (variant.transfer.matrix, before, own))
            matrices[variant.checkpoint.bias_name] = variant.rows(moved, after, own)
        write_model(
            variant.checkpoint,
            matrices,
            variant.tokenizer,
            folder,
            variant.transfer.change.moved | variant.added,
            untie=variant.checkpoint.tied and not variant.tied,
            hard_link=hard_link,
        )
        facts.append(
            {
                "transfer": variant.transfer.summary(),
                "special_rows_kept": len(variant.own_rows()[0]),
                "added_tokens": len(variant.added),
                "body_tensors_changed": len(body),
                "maps": maps,
                "warnings": warnings,
            }
        )
    return facts


def _fit(
    made: "list[_Variant]", base: Checkpoint, old: Vocabulary, method: AnyMethod, weights: np.ndarray | None
) -> list[dict[str, Propagation]]:
    """For each variant, the fit of each of its matrices; variants with as many rows share the base's part."""

    @cache
    def stand_ins(rows: int) -> sparse.csr_array | None:
        return stand_in_rows(old, rows) if method in ("auto", *ANCHORED) else None

    fits: list[dict[str, Propagation]] = [{} for _ in made]
    for role in ("input", "output"):
        fitters: dict[int, MapFitter] = {}
        for variant, fitted in zip(made, fits, strict=True):
            if role == "output" and variant.tied:
                continue
            rows = variant.transfer.matrix.shape[1]
            if rows not in fitters:
                fitters[rows] = MapFitter(variant.transfer, _matrix(base, role), stand_ins(rows), weights)
            fitted[role] = fitters[rows].fit(method, _matrix(variant.checkpoint, role))
    return fits


@dataclass(frozen=True)
class _Variant:
    """An instruct variant and what the result takes from it.

    Attributes
    ----------
    checkpoint : Checkpoint
    tokenizer : TokenizerSource
        Of the result: the new vocabulary with the variant's settings and added tokens.
    transfer : Transfer
        T from the rows that both the base and the variant have.
    added : dict
        Id in the variant -> id in the result, of special tokens that the base does not have.
    special : int64 array
        Ids of special tokens of the new vocabulary.
    adapted : Checkpoint
    total : int
        Rows of the result.
    """

    checkpoint: Checkpoint
    tokenizer: TokenizerSource
    transfer: Transfer
    added: dict[int, int]
    special: np.ndarray
    adapted: Checkpoint
    total: int

    @staticmethod
    def of(
        checkpoint: Checkpoint,
        tokenizer: TokenizerSource,
        adapted: Checkpoint,
        base: Checkpoint,
        old: Vocabulary,
        new: Vocabulary,
        transfer_from: Callable[[int], Transfer],
    ) -> "_Variant":
        """Check that a variant belongs to the base, and put together the tokenizer of its result."""
        checkpoint.check_replaceable()
        own = open_tokenizer(checkpoint.folder)
        vocabulary = own.vocabulary()
        _check_family(base, adapted, checkpoint, old, vocabulary)
        only_here = [i for i in range(vocabulary.size) if old.is_hole(i) and not vocabulary.is_hole(i)]
        by_text = new.ids_by_bytes(Kind.SPECIAL)
        missing = [i for i in only_here if vocabulary.data(i) not in by_text]
        added = {i: by_text[vocabulary.data(i)] for i in only_here if vocabulary.data(i) in by_text}
        added |= dict(zip(missing, range(new.size, new.size + len(missing)), strict=True))
        tokens = [token for token in own.spec["added_tokens"] if token["id"] in missing]
        spec = add_special_tokens(tokenizer.spec, [token | {"id": added[token["id"]]} for token in tokens])
        total = adapted.rows
        if new.size + len(missing) > total:
            total = padded_rows(adapted.rows, new.size, new.size + len(missing), None)
        return _Variant(
            checkpoint,
            _with_settings_of(own, replace(tokenizer, spec=spec)),
            transfer_from(min(base.rows, checkpoint.rows)),
            added,
            np.flatnonzero(new.kinds == Kind.SPECIAL),
            adapted,
            total,
        )

    @property
    def tied(self) -> bool:
        """Whether the result has one matrix for input and output."""
        return self.checkpoint.tied and self.adapted.tied

    def name_of(self, role: str) -> str:
        """Name of a matrix in the result."""
        if role == "input":
            return self.checkpoint.input_name
        name = self.checkpoint.stored_output or self.adapted.stored_output
        return name or "lm_head.weight"

    def own_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the result that are the variant's own, ascending, and where they are in the variant."""
        old_id_of = self.transfer.change.old_id_of
        shared = self.special[old_id_of[self.special] >= 0]
        own = dict(zip(shared.tolist(), old_id_of[shared].tolist(), strict=True))
        own |= {there: here for here, there in self.added.items()}
        # A token may be without a row: one that was added to a tokenizer only.
        places = np.array(sorted(place for place in own if own[place] < self.checkpoint.rows), dtype=np.int64)
        return places, np.array([own[place] for place in places.tolist()], dtype=np.int64)

    def rows(self, fit: Propagation, trained: Rows, own: Rows) -> ComputedRows:
        """Propagated rows with the variant's own in their places; rows beyond both get the variant's mean row.

        In the wider of the two dtypes: what is written in the variant's is rounded once, and its own rows not at all.
        """
        propagated = fit.apply(trained, torch.promote_types(trained.dtype, own.dtype))
        places, sources = self.own_rows()
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

        return ComputedRows((self.total, *propagated.shape[1:]), block)


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
    name = checkpoint.output_name if role == "output" else None
    return checkpoint.rows_of(name or checkpoint.input_name)


def _check_finite(adapted: Checkpoint) -> None:
    """Refuse a damaged adapted model before anything is fitted; `MapFitter` sees the base and the variant alone."""
    for name in adapted.vocabulary_names:
        if not all_finite(adapted.rows_of(name)):
            raise LeptaError(
                f"{adapted.folder}: {name}: NaN or infinite values; expected a whole checkpoint of training that went "
                "well; download it again or train again from an earlier one"
            )


def _padded(counts: np.ndarray, rows: int) -> np.ndarray:
    padded = np.zeros(rows)
    padded[: len(counts)] = counts
    return padded


def _with_settings_of(own: TokenizerSource, tokenizer: TokenizerSource) -> TokenizerSource:
    """The new tokenizer with a variant's chat template, roles of tokens and what it puts around texts."""
    owned = {"tokenizer_class", "added_tokens_decoder"} & set(tokenizer.config)  # they belong to the new vocabulary
    config = tokenizer.config | own.config | {key: tokenizer.config[key] for key in owned}
    if "added_tokens_decoder" in config:
        known = {str(token["id"]): token for token in tokenizer.spec["added_tokens"]}
        config["added_tokens_decoder"] = {
            token_id: {key: value for key, value in token.items() if key != "id"} for token_id, token in known.items()
        }
    ids = {token["content"]: token["id"] for token in tokenizer.spec["added_tokens"]}
    spec = tokenizer.spec | {"post_processor": post_processor_with_ids(own.spec.get("post_processor"), ids)}
    return replace(tokenizer, spec=spec, config=config, chat_template=own.chat_template or tokenizer.chat_template)


def _check_family(
    base: Checkpoint, adapted: Checkpoint, instruct: Checkpoint, old: Vocabulary, own: Vocabulary
) -> None:
    """Refuse models that are not a base, its adaptation and its variant."""
    if not base.width == adapted.width == instruct.width:
        raise LeptaError(
            f"embedding widths differ: base {base.width} ({base.folder}), adapted {adapted.width} ({adapted.folder}), "
            f"instruct {instruct.width} ({instruct.folder}); expected three models of one architecture and size"
        )
    if instruct.rows < rows_needed(old):
        raise LeptaError(
            f"{instruct.folder}: {instruct.rows} embedding rows, but the vocabulary of the base {base.folder} needs "
            f"{rows_needed(old)}; expected a variant with the base model's own vocabulary"
        )
    for i in range(max(old.size, own.size)):
        here, there = _token(own, i), _token(old, i)
        if here != there and (there is not None or own.kinds[i] != Kind.SPECIAL):
            raise LeptaError(
                f"{instruct.folder}: id {i} is {here!r}, but {there!r} in the base {base.folder}; "
                "expected a variant with the base model's own vocabulary; only special tokens may come on top"
            )
    if instruct.tied and not base.tied:
        raise LeptaError(
            f"{instruct.folder}: ties input and output embeddings, the base {base.folder} does not; "
            "expected a variant that was trained from this base"
        )
    if len({checkpoint.bias_name is None for checkpoint in (base, adapted, instruct)}) > 1:
        raise LeptaError("some of base, adapted and instruct add a bias to the logits and some do not")


def _token(vocabulary: Vocabulary, token_id: int) -> bytes | None:
    return vocabulary.bytes_of[token_id] if token_id < vocabulary.size else None


def count_tokens(vocabulary: Vocabulary, documents: Sequence[str]) -> np.ndarray:
    """Occurrences of each token in documents, shape (vocabulary.size,)."""
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for ids in vocabulary.encode(documents):
        counts += np.bincount(np.array(ids, dtype=np.int64), minlength=vocabulary.size)
    return counts
