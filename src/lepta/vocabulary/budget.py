"""How many tokens to add (`--size auto`): each makes text shorter, and the head larger."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepta.core.progress import step
from lepta.vocabulary.tokens import Vocabulary

STEP = 1000  # tokens between two points of the curve
TOLERANCE = 0.01


@dataclass(frozen=True)
class Weights:
    """Size of a model; `lepta.models.weights` counts it."""

    body: int  # weights outside the embedding matrices
    width: int  # columns of the embedding matrices
    rows: int
    matrices: int  # 1 if input and output embeddings are one matrix, else 2


@dataclass(frozen=True)
class Point:
    """What a number of new tokens costs and brings."""

    added: int
    tokens: float  # of the words of the target script, as a share of those of the old vocabulary
    # Operations to read or write the same text, as a share of those with the old vocabulary: each token costs two for
    # each weight of body and head.
    compute: float
    embedding_weights: int  # that the new rows add


@step("measuring what new tokens bring")
def curve(
    old: Vocabulary, extended: Vocabulary, words: Sequence[str], weights: np.ndarray, model: Weights
) -> list[Point]:
    """What the first 1,000, 2,000, ... tokens of an extended BPE vocabulary bring.

    A vocabulary that stops after the first n merges splits words as the whole one does before it comes to the others,
    so the number of tokens follows from how often each merge is done; nothing is split again.
    """
    splits = old.split(list(map(str.encode, words)))
    before = sum(weight * len(ids) for ids, weight in zip(splits, weights.tolist(), strict=True))
    saved = np.concatenate([[0.0], np.cumsum(_saved(old, extended, words, weights))])
    points = []
    for added in range(0, extended.size - old.size + 1, STEP):
        tokens = (before - saved[added]) / before
        per_token = (model.body + (model.rows + added) * model.width) / (model.body + model.rows * model.width)
        points.append(Point(added, float(tokens), float(tokens * per_token), added * model.width * model.matrices))
    return points


def _saved(old: Vocabulary, extended: Vocabulary, words: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Tokens that each new token saves: how often the merges that form it are done, in order of its id."""
    done, parts = extended.usage(words, weights), extended.merge_parts
    for token in range(extended.size - 1, old.size - 1, -1):  # a token is merged as often as it is used, in it or alone
        for part in parts.get(token, ()):
            done[part] += done[token]
    return done[old.size :]


def cheapest(points: Sequence[Point]) -> Point:
    """The fewest new tokens with which text costs at most 1 % more than with the best number of them.

    Near the best number the cost hardly changes, while each row needs memory and training.
    """
    best = min(point.compute for point in points)
    return next(point for point in points if point.compute <= best * (1 + TOLERANCE))
