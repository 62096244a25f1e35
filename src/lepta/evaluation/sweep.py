"""What to carry into a variant, and how much of it: each way is tried, and measured through the variant itself."""

import itertools
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import progress
from lepta.embeddings.maps import METHODS
from lepta.embeddings.propagate import propagate
from lepta.embeddings.settings import AnyMethod, PropagateSettings
from lepta.evaluation.measure import answer_bits
from lepta.inference.bits import WINDOW, read_windows, score_text
from lepta.inference.chat import Message
from lepta.models.folder import Checkpoint
from lepta.models.load import device, exact_dtype, load_model, load_tokenizer
from lepta.models.weights import count_weights
from lepta.training.conversations import read_conversations

CHARACTERS = 20_000  # of held-out text, and answers: to choose by
EQUAL = 0.0005  # bits per byte: a map that is better by no more than this does not replace the default
DEFAULT: AnyMethod = PropagateSettings().method
TEXT, ANSWERS = "bits_per_byte", "answers_bits_per_byte"


class Unloadable(LeptaError):
    """A variant cannot be loaded on this machine, so nothing can be measured through it."""


@dataclass(frozen=True)
class Way:
    """One way to propagate: the map, and how much of what training changed in the embeddings and in the body."""

    method: AnyMethod
    delta_scale: float
    body_delta: float | None

    @property
    def label(self) -> str:
        """What progress is shown for."""
        body = "" if self.body_delta is None else f", body delta {self.body_delta:g}"
        return f"{self.method}, delta scale {self.delta_scale:g}{body}"


@dataclass(frozen=True)
class Judge:
    """Held-out text of all languages that count, and conversations; the fewest bits per byte are best."""

    texts: Sequence[str]
    conversations: Sequence[Sequence[Message]] = ()

    @classmethod
    def of(cls, valid: Sequence[str], answers: Sequence[str]) -> "Judge | None":
        """Read text sources and files of conversations; None if neither is given."""
        if not valid and not answers:
            return None
        texts = read_windows(valid, WINDOW, CHARACTERS)
        conversations, characters = [], 0
        for messages in read_conversations(answers):
            conversations.append(messages)
            characters += sum(len(turn["content"]) for turn in messages)
            if characters >= CHARACTERS:
                break
        return cls(texts, conversations)

    def score(self, folder: Path, label: str) -> dict[str, float]:
        """What a model scores, by name; progress is shown for `label`."""
        try:
            model, tokenizer = load_model(folder, exact_dtype()), load_tokenizer(folder)
        except (LeptaError, ImportError, RuntimeError) as error:
            raise Unloadable(f"the variant cannot be loaded here ({error})") from error
        found = {}
        if self.texts:
            found[TEXT] = score_text(model, tokenizer, self.texts, f"{label}: held-out text").bits_per_byte
        if self.conversations:
            found[ANSWERS] = answer_bits(
                model, tokenizer, self.conversations, f"{label}: reading answers, conversations"
            )
        return found


def propagate_best(
    base: Checkpoint,
    adapted: Checkpoint,
    variants: Sequence[tuple[Checkpoint, Path]],
    settings: PropagateSettings,
    judge: Judge | None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Propagate into all variants, each in the best way that the settings leave open; `options`: see `propagate`.

    `variants` are pairs of a variant and an existing empty folder for the result. The facts say what was tried and
    what it was judged by (`chosen`). LeptaError if there is a choice, but nothing to choose by.
    """
    first = Way(settings.method, settings.delta_scale[0], next(iter(settings.body_delta), None))
    scales = max(len(settings.delta_scale), len(settings.body_delta)) > 1
    if judge is None and scales:
        raise LeptaError(
            "propagate: several scales to choose from (`delta_scale`, `body_delta`); name held-out text (`valid`) or "
            "conversations (`answers`) to choose by, or give one of each"
        )
    if not settings.several or judge is None:
        # All variants in one call: the base's half of the normal equations serves them all.
        facts = propagate(base, adapted, variants, first.method, **_scales(first, len(variants)), **options)
        if settings.several:
            for fact in facts:
                fact["chosen"] = {"by": "rows alone: no held-out text or answers are named"}
        return facts
    found = []
    for instruct, folder in variants:
        try:
            way, chosen = _best(base, adapted, instruct, settings, judge, folder.parent, options)
        except Unloadable as error:
            if scales:
                raise LeptaError(f"propagate: several scales to choose from, but {error}; give one of each") from error
            way, chosen = first, {"by": f"rows alone: {error}"}
        (fact,) = propagate(base, adapted, [(instruct, folder)], way.method, **_scales(way), **options)
        found.append(fact | {"chosen": chosen})
    return found


def _scales(way: Way, variants: int = 1) -> dict[str, Any]:
    return {"body_deltas": [way.body_delta] * variants, "delta_scales": [way.delta_scale] * variants}


def check_room(instruct: Checkpoint) -> None:
    """`Unloadable` if this machine has no room for a variant."""
    weights = count_weights(instruct.folder)
    needed = (weights.body + weights.rows * weights.width * weights.matrices) * exact_dtype().itemsize
    if device().type == "cuda":
        room = torch.cuda.get_device_properties(device()).total_memory
    else:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > room:
        name = instruct.folder.name
        raise Unloadable(f"{name} takes {needed / 1e9:.0f} GB, and there are {room / 1e9:.0f} to load it into")


def _preferred(best: Way, tried: dict[Way, dict[str, float]]) -> tuple[Way, dict[str, str]]:
    """The best way, or the default map where it is as good, with the reason."""
    usual = replace(best, method=DEFAULT)
    if usual == best or sum(tried[usual].values()) - sum(tried[best].values()) > EQUAL:
        return best, {}
    return usual, {"why": f"the default; {best.method} is better by no more than {EQUAL} bits per byte"}


def _best(
    base: Checkpoint,
    adapted: Checkpoint,
    instruct: Checkpoint,
    settings: PropagateSettings,
    judge: Judge,
    work: Path,
    options: dict[str, Any],
) -> tuple[Way, dict[str, Any]]:
    """The best way and what was tried: first each map, then each pair of scales with the best map."""
    check_room(instruct)
    tried: dict[Way, dict[str, float]] = {}

    def score(way: Way) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=work, prefix=".trial-") as folder:
            try:
                propagate(base, adapted, [(instruct, folder)], way.method, **_scales(way), **options)
            except LeptaError:
                if settings.method != "auto" or way.method == "swap":
                    raise
                return {TEXT: math.inf}  # too few tokens are shared for this map
            return judge.score(Path(folder), way.label)

    def best_of(ways: Sequence[Way]) -> Way:
        for way in ways:
            if way not in tried:
                tried[way] = score(way)
                bar.set(len(tried))
        finite = [way for way in ways if math.isfinite(sum(tried[way].values()))]
        if not finite:
            raise LeptaError(f"{instruct.folder}: held-out text has no finite bits per byte, whatever is carried over")
        return min(finite, key=lambda way: sum(tried[way].values()))

    why: dict[str, str] = {}
    deltas: list[float | None] = [*settings.body_delta] or [None]
    scales = list(itertools.product(settings.delta_scale, deltas))
    maps = [Way(method, *scales[0]) for method in (METHODS if settings.method == "auto" else [settings.method])]
    evaluations = len(maps) + len(set(scales)) - 1  # the best map has been tried with the first scales
    with progress(f"{evaluations} evaluations, the variant is loaded for each", evaluations) as bar:
        way = best_of(maps)
        if settings.method == "auto":
            way, why = _preferred(way, tried)
        way = best_of([Way(way.method, *pair) for pair in scales])
    listed = [asdict(one) | scores for one, scores in tried.items() if math.isfinite(sum(scores.values()))]
    names = " and ".join({TEXT: "text", ANSWERS: "answers"}[name] for name in tried[way])
    return way, {"by": f"bits per byte of held-out {names} through the variant", **asdict(way), **why, "tried": listed}
