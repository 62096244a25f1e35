"""A recipe to begin with: numbers that follow from the model, the text and the device, and comments that say why.

Try: lepta new my.yaml --base Qwen/Qwen3-0.6B-Base --language kk --text corpora/kk/train --valid corpora/kk/valid
"""

import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lepta.core.errors import LeptaError
from lepta.core.settings import is_name
from lepta.core.templates import render
from lepta.distillation.settings import DistillSettings
from lepta.plan.devices import CPU_SHARE, MFU, Device
from lepta.plan.distillation import CHARACTERS_PER_TOKEN as SOURCE_CHARACTERS_PER_TOKEN
from lepta.plan.shapes import Shape, shape_of
from lepta.plan.text import Amount, count_text
from lepta.plan.words import words_in
from lepta.text.locate import short_name
from lepta.text.sources import STARTER, text_files

SMALL = 3_000_000  # characters: below, rows learned from the original are all that the text is enough for
CHARACTERS_PER_TOKEN = 3  # of a new vocabulary, roughly; a recipe needs the order of magnitude
PASSAGE = 120  # tokens of distillation for each passage of 400 characters, those of the source language among them
DISTILLED = 5_000_000  # tokens beyond which distillation gains little (docs/distillation.md)
PRETRAINED = 1_000_000_000  # tokens to begin with; beyond, it is for the user to say
DAY = 86_400  # seconds that a stage of training may take, to be raised by who has more
OPERATIONS = 6  # for each weight and token, forward and backward
ASSUMED = 7_000_000_000  # weights of a model whose size is not known here
# Two cores, as the demo was measured on: a recipe does not depend on the machine that it is written on.
CPU = Device("2 CPU cores", tflops=0.145, memory=0, share=CPU_SHARE)
SOURCE_SHARE = 0.1  # of the tokens of training, where the body changes
SOURCE_EPOCHS = 10  # that text of the source language is read at most for that
BLOCK, LARGEST_BATCH, STEPS = 1024, 64, 1000  # of training on a GPU; as many steps at least, if the text is enough
CHARACTERS_PER_NEW_TOKEN = 25  # so that each new token occurs often enough in the text to be learned
MOST_ADDED = {False: 8_000, True: 32_000}  # new tokens, for a model of less than LARGE weights and for a larger one
LARGE = 3_000_000_000


@dataclass(frozen=True)
class Wish:
    """What a user says about an adaptation before there is a recipe."""

    name: str
    base: str
    variants: Sequence[str]
    language: str
    text: Sequence[str]
    valid: Sequence[str]
    source_language: str
    source_text: Sequence[str]
    source_valid: Sequence[str]
    gpus: int
    device: Device | None  # None: the CPU of this machine


def propose(wish: Wish) -> str:
    """The recipe as YAML text with comments; LeptaError if text that is here cannot be read."""
    shape = _shape(wish.base)
    amount = count_text(list(wish.text))
    most = MOST_ADDED[shape is not None and shape.body > LARGE]
    add, add_note = _new_tokens(wish, amount, most)
    budget, assumed = _budget(wish, shape)
    tokens, enough = budget, True
    if amount.characters is not None:
        tokens, enough = amount.characters // CHARACTERS_PER_TOKEN, amount.characters >= SMALL
    pretrained = _rounded(max(100, min(tokens, budget)))
    source = count_text(list(wish.source_text)).characters
    view = vars(wish) | {
        "variants": _variants(wish.variants),
        "model_note": f"{shape.weights:,} weights" if shape else "size not known here",
        "text_note": f"{amount.characters:,} characters, {amount.how}" if amount.characters else amount.how,
        "add": add,
        "add_note": add_note,
        "distilled": _rounded(max(100, min(tokens, budget, DISTILLED))),
        "passages": _passages(tokens),
        "tied": shape is not None and shape.tied,
        "pretrained": pretrained if enough else None,
        "pretrained_note": "all of the text, once" if tokens < budget else assumed,
        "adapts": source is None or pretrained <= _tokens_beside(source),
        "source_share": SOURCE_SHARE,
        **_batches(wish, pretrained),
    }
    return render("data/plan/recipe.yaml.j2", view, filters={"quoted": _quoted, "listed": _listed})


def _tokens_beside(source: int) -> int:
    """Tokens of training beside which so many characters of the source language are enough."""
    return int(source / SOURCE_CHARACTERS_PER_TOKEN * SOURCE_EPOCHS / SOURCE_SHARE)


def _passages(tokens: int) -> int:
    """Passages a step of distillation, fewer than by default where the text is too short to fill one."""
    default = int(DistillSettings.model_fields["batch"].default)
    return min(default, max(1, tokens // PASSAGE))


def _rounded(number: int) -> int:
    """Down to two digits: what follows from an estimate is no more exact."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def _new_tokens(wish: Wish, amount: Amount, most: int) -> tuple[int, str]:
    """How many tokens to add, and why: text of few different words cannot teach more than about so many."""
    characters = amount.characters or most * CHARACTERS_PER_NEW_TOKEN
    add = _rounded(min(most, max(100, characters // CHARACTERS_PER_NEW_TOKEN)))
    words = words_in(wish.text)
    if words and words.number < add:
        return _rounded(max(1, words.number)), f"the text has {words.number:,} different words"
    return add, "each new token should occur often"


def _shape(base: str) -> Shape | None:
    """Sizes of the base model, if they are known."""
    try:
        return shape_of(base)
    except LeptaError:
        return None


def _budget(wish: Wish, shape: Shape | None) -> tuple[int, str]:
    """Tokens that a stage of training may take, and what that assumes."""
    device, weights = wish.device or CPU, shape.weights if shape else ASSUMED
    flops = device.tflops * 1e12 * (device.share or MFU) * wish.gpus
    tokens = int(flops * DAY / (OPERATIONS * weights))
    if tokens >= PRETRAINED:
        return PRETRAINED, "to begin with; more text and time make it better"
    number = f"{wish.gpus} x {device.name}" if wish.device else device.name
    model = "" if shape else f", for a model of {ASSUMED:,} weights"
    return int(float(f"{tokens:.2g}")), f"about a day on {number}{model}; more text and time make it better"


def _variants(variants: Sequence[str]) -> dict[str, str]:
    """Name -> model of `MODEL` or `NAME=MODEL`."""
    models: dict[str, str] = {}
    for variant in variants:
        name, _, model = variant.rpartition("=")
        name = name or re.sub(r"[^\w.-]", "-", short_name(model.partition("@")[0]))
        if not model or name in models or not is_name(name):
            raise LeptaError(
                f"--variant {variant}: expected NAME=MODEL, NAME of letters, digits, `.`, `_`, `-`, another for each"
            )
        models[name] = model
    return models


def _batches(wish: Wish, tokens: int) -> dict[str, int]:
    """Sizes for a GPU or a CPU; each process has whole micro-batches of a step.

    Of a million tokens steps of 2,048 taught both models that were measured (docs/training.md); a GPU wants large ones.
    """
    if wish.device is None:
        return {"block": 256, "batch": 8, "micro_batch": 4}
    share = max(1, min(LARGEST_BATCH, tokens // (STEPS * BLOCK)) // wish.gpus)
    micro_batch = min(share, 8)
    return {"block": BLOCK, "batch": share // micro_batch * micro_batch * wish.gpus, "micro_batch": micro_batch}


def _quoted(value: str) -> str:
    """A YAML scalar: JSON's strings are YAML's, with escapes for what YAML takes for a line break."""
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _listed(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def starter_text(language: str) -> list[str]:
    """Training text of the starter corpus in a language, if it has any."""
    source = f"{STARTER}{language}/train"
    try:
        text_files(source)
    except LeptaError:
        return []
    return [source]


def valid_of(text: Sequence[str]) -> list[str]:
    """Held-out text that belongs to training text, where that is known: of the starter corpus."""
    known = fnmatch.filter(text, f"{STARTER}*/train")
    return [source.removesuffix("/train") + "/valid" for source in known]
