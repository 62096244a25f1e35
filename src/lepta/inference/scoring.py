"""Log-probabilities of exact token ids under a transformers model, with what many texts start with read once.

Texts stand behind a prefix whose keys and values are kept; logits exist at the positions that are asked for only.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.models.language_model import language_model
from lepta.models.loss import LogitRule, logit_rule
from lepta.models.split import among_parts, parts_of

TOKENS = 8192  # of one forward pass, padding included
PASS = 64  # tokens whose reading takes about as long as a forward pass takes by itself
POSITIONS = 256  # whose logits exist at the same time

Ids = tuple[int, ...]
Target = tuple[int, int]  # place in a row, id that follows there
Layers = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Question:
    """A prompt, and continuations (each with the space before it) whose probability after it is asked for."""

    prompt: str
    continuations: tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """A whole text as ids; the log-probabilities of those from `start` on are asked for."""

    ids: Ids
    start: int


def common(texts: Sequence[Sequence[int]]) -> int:
    """Number of ids that all texts start with."""
    first, last = min(texts, key=tuple), max(texts, key=tuple)
    for n, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return n
    return len(first)


def token_ids(tokenizer: Any, texts: Sequence[str], start: Sequence[int] = ()) -> list[Ids]:
    """Ids of texts that hold their special tokens already; `start` is put before each."""
    if not texts:
        return []
    return [(*start, *ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def branches_of(tokenizer: Any, question: Question, together: bool, start: Ids = ()) -> list[Branch]:
    """Exact ids of the prompt with each continuation; `start` is put before each.

    Scores begin where the ids stop being those of the prompt alone: a tokenizer may write the end of the prompt
    differently before a continuation, or cut off its space. `together` has them begin at one place for all
    continuations, so that their probabilities compare; LeptaError if two of these have the same ids.
    """
    whole = map(question.prompt.__add__, question.continuations)
    prompt, *texts = token_ids(tokenizer, [question.prompt, *whole], start)
    if not together:
        return [Branch(text, max(1, common([prompt, text]))) for text in texts]
    if len(set(texts)) < len(texts):
        labels = ", ".join(map(repr, question.continuations))
        raise LeptaError(f"labels {labels}: two of them have the same tokens; the tokenizer cannot tell them apart")
    begin = max(1, common([prompt, *texts]))
    return [Branch(text, begin) for text in texts]


class Scorer:
    """Reads texts with a causal LM, which stays as it is.

    With `reuse`, keys and values of what texts share are kept; without, all is read from its first token: slower.
    """

    def __init__(self, model: Any, reuse: bool = True) -> None:
        self._model, self._body = model, language_model(model)
        # Models with a recurrent state (Mamba, Qwen3.5) cannot go back to the end of a prefix.
        self._reuse = reuse and not getattr(self._body, "_is_stateful", False)
        self._plain = logit_rule(model) == LogitRule()
        self._shared: Ids = ()
        self._layers: Layers | None = None

    def share(self, texts: Sequence[Ids]) -> None:
        """Announce the texts that come next: what they all start with is read when the first of them is."""
        self._shared, self._layers = (), None
        if self._reuse and len(texts) > 1:
            self._shared = texts[0][: common(texts)]

    def choose(self, questions: Sequence[Sequence[Branch]]) -> list[tuple[float, ...]]:
        """Log-likelihood of each continuation of each question, summed over its tokens."""
        sums = map(sum, self.score(list(itertools.chain.from_iterable(questions))))
        return [tuple(itertools.islice(sums, len(branches))) for branches in questions]

    @torch.inference_mode()
    def score(self, branches: Sequence[Branch], own_prefix: bool = False) -> list[list[float]]:
        """Log-probability of each asked id given all before it, in nats.

        With `own_prefix`, these texts share more than what `share` was given (one document): that is read once.
        """
        length = 0
        if self._reuse:
            length = min(common([branch.ids for branch in branches]), min(branch.start for branch in branches) - 1)
            if not own_prefix:
                length = min(length, common([self._shared, branches[0].ids]))
        # Branches that differ in their last id only are one row, asked about several targets at one place.
        asked: dict[Ids, set[Target]] = {}
        wanted = []
        for branch in branches:
            row = branch.ids[length:-1]
            targets = []
            for place in range(branch.start, len(branch.ids)):
                targets.append((place - length - 1, branch.ids[place]))  # each id predicts the one after it
            asked.setdefault(row, set()).update(targets)
            wanted.append((row, targets))
        found = self._found(self._read(branches[0].ids[:length]), asked)
        values = []
        for row, targets in wanted:
            values.append([found[row, target] for target in targets])
        return values

    def _found(self, layers: Layers, asked: Mapping[Ids, set[Target]]) -> dict[tuple[Ids, Target], float]:
        """Log-probabilities of all targets of all rows, read in batches."""
        found: dict[tuple[Ids, Target], float] = {}
        for batch in in_batches(sorted(asked, key=lambda row: (len(row), row)), TOKENS):
            outputs = self._outputs(layers, batch)
            wanted: list[tuple[int, int, int]] = []
            for n, row in enumerate(batch):
                wanted += [(n, *target) for target in sorted(asked[row])]
            for (n, place, target), value in zip(wanted, self._values(outputs, wanted), strict=True):
                found[batch[n], (place, target)] = value
        return found

    @torch.inference_mode()
    def start(self, rows: Sequence[Ids]) -> tuple[int, Any]:
        """What rows start with, of what is shared: how many ids, and a cache that holds them in each row."""
        length = min(common([self._shared, *rows]), min(map(len, rows)) - 1)
        return length, _cache(self._read(rows[0][:length]), len(rows))

    def _read(self, prefix: Ids) -> Layers:
        """Keys and values of a prefix: those of the shared one as far as they go, the rest read now."""
        if not prefix:
            return []
        if self._shared and self._layers is None:
            self._layers = self._layers_of([], self._shared)
        known = common([self._shared, prefix])
        layers: Layers = []
        if self._layers and known:
            layers = [(keys[:, :, :known], values[:, :, :known]) for keys, values in self._layers]
        if known < len(prefix):
            layers = self._layers_of(layers, prefix[known:])
        return layers

    def _layers_of(self, layers: Layers, ids: Ids) -> Layers:
        cache = _cache(layers, 1)
        self._body(input_ids=self._tensor([ids]), past_key_values=cache, use_cache=True)
        return [(keys, values) for keys, values, *_ in cache]

    def _outputs(self, layers: Layers, batch: Sequence[Ids]) -> torch.Tensor:
        """Last hidden states of rows, or logits if the head is not plain; nothing sees padding on the right."""
        ids = padded(batch, 0, self._model.device)
        options: dict[str, Any] = {"use_cache": False}
        if layers:
            options = {"use_cache": True, "past_key_values": _cache(layers, len(batch))}
        if self._plain:
            return self._body(input_ids=ids, **options).last_hidden_state
        return self._model(input_ids=ids, **options).logits

    def _values(self, outputs: torch.Tensor, wanted: Sequence[tuple[int, int, int]]) -> list[float]:
        """Log-probabilities of targets at places in rows."""
        head = self._model.get_output_embeddings()
        places = list(dict.fromkeys((row, place) for row, place, _ in wanted))
        values: dict[tuple[int, int, int], float] = {}
        for start in range(0, len(places), POSITIONS):
            part = {spot: n for n, spot in enumerate(places[start : start + POSITIONS])}
            row_indices, place_indices = self._tensor(list(part)).T
            states = outputs[row_indices, place_indices]
            logits = head(states) if self._plain else states
            here = [item for item in wanted if item[:2] in part]
            lines, targets = self._tensor([(part[item[:2]], item[2]) for item in here]).T
            found = torch.log_softmax(logits.float(), -1)[lines, targets]
            if self._plain and logits.dtype.itemsize == 2:
                # 16 bits tell logits of about 16 apart by steps of 0.06 or more: labels would be equally likely.
                found += _exact(head, states[lines], targets) - logits[lines, targets].float()
            values |= zip(here, found.tolist(), strict=True)
        return [values[item] for item in wanted]

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, device=self._model.device)


def _exact(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logits of one target for each state, as sums in float32."""
    parts, labels = parts_of(head), targets
    targets = among_parts(head, targets)
    rows = parts[0][targets.clamp(max=len(parts[0]) - 1)].float()
    for part, start in zip(parts[1:], itertools.accumulate(map(len, parts)), strict=False):
        rows = torch.where((targets < start)[:, None], rows, part[(targets - start).clamp(min=0)].float())
    logits = (states.float() * rows).sum(dim=-1)
    return logits if head.bias is None else logits + head.bias[labels].float()


def _cache(layers: Layers, rows: int) -> Any:
    """A cache that starts with the same keys and values in each row; whoever adds to it copies them."""
    from transformers import DynamicCache

    if not layers:
        return DynamicCache()
    return DynamicCache([(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in layers])


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Rows of one width; nothing before the padding on the right can see it."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def in_batches(rows: Sequence[Ids], tokens: int) -> list[list[Ids]]:
    """Cut rows, shortest first, into the batches that are read soonest: padding is read too, and passes cost something.

    A batch has at most so many tokens with padding, and at least one row.
    """
    costs, starts = [0], [0]  # of the first rows: least cost, and where their last batch starts
    for end, row in enumerate(rows, 1):
        fitting = range(max(0, min(end - 1, end - tokens // max(1, len(row)))), end)
        start = min(fitting, key=lambda start: costs[start] + (end - start) * len(row))
        costs.append(costs[start] + (end - start) * len(row) + PASS)
        starts.append(start)
    batches: list[list[Ids]] = []
    end = len(rows)
    while end:
        batches.insert(0, list(rows[starts[end] : end]))
        end = starts[end]
    return batches
