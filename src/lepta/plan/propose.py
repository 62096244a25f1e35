"""A recipe to begin with: numbers that follow from the model, the text and the device, and comments that say why.

Try: lepta new my.yaml --base Qwen/Qwen3-0.6B-Base --language kk --text corpora/kk/train --valid corpora/kk/valid
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from lepta.core.errors import LeptaError
from lepta.core.settings import is_name
from lepta.plan.devices import Device
from lepta.plan.shapes import Shape, shape_of
from lepta.plan.text import Amount, count_text
from lepta.text.sources import STARTER

SMALL = 3_000_000  # characters: below, rows learned from the original are all that the text is enough for
CHARACTERS_PER_TOKEN = 3  # of a new vocabulary, roughly; a recipe needs the order of magnitude
DISTILLED = 5_000_000  # tokens beyond which distillation gains little (docs/distillation.md)
PRETRAINED = 1_000_000_000  # tokens; a budget that one machine can have, to be raised by who has more
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
    gpus: int
    device: Device | None  # None: the CPU of this machine


def propose(wish: Wish) -> str:
    """The recipe as YAML text with comments; LeptaError if text that is here cannot be read."""
    shape, unknown = _shape(wish.base)
    amount = count_text(list(wish.text))
    text_note = f"{amount.characters:,} characters, {amount.how}" if amount.characters else amount.how
    model_note = f"{shape.body + shape.matrices * shape.rows * shape.width:,} weights" if shape else unknown
    lines = [
        f"# {wish.name}: a vocabulary for {_quoted(wish.language)}. Written by `lepta new`; change what you like.",
        "# What it costs: lepta plan FILE. What would run: lepta adapt FILE --dry-run. All fields: docs, Reference.",
        f"name: {_quoted(wish.name)}",
        f"output: {_quoted(f'runs/{wish.name}')}",
        "seed: 1",
        "",
        f"base: {_quoted(wish.base)}  # {model_note}",
        *_variants(wish.variants),
        "",
        f"# Training text: {text_note}. Held-out text must not be in it.",
        "text:",
        f"  target: {{language: {_quoted(wish.language)}, train: {_listed(wish.text)}, valid: {_listed(wish.valid)}}}",
        "  source: {language: en, train: [starter:en/train], valid: [starter:en/valid]}  # what must not be forgotten",
        "",
        *_vocabulary(wish, shape, amount),
        "",
        *_learning(wish, shape, amount),
        "",
        "propagate:",
        "  method: anchored  # auto: the one of seven maps that predicts held-out tokens best",
        "",
        "evaluate:",
        "  characters: 10000",
    ]
    return "\n".join(lines) + "\n"


def _shape(base: str) -> tuple[Shape | None, str]:
    """Sizes of the base model, or why they are not known."""
    try:
        return shape_of(base), ""
    except LeptaError:
        return None, "size not known here"


def _variants(variants: Sequence[str]) -> list[str]:
    if not variants:
        return ["variants: {}  # none yet: name instruct variants of the base, as  chat: {model: OWNER/NAME}"]
    models: dict[str, str] = {}
    for variant in variants:
        name, _, model = variant.rpartition("=")
        last = model.partition("@")[0].split("/")[-1].removesuffix(".gguf")
        name = name or "".join(c if c.isalnum() or c in "._-" else "-" for c in last)
        if not model or name in models or not is_name(name):
            raise LeptaError(
                f"--variant {variant}: expected NAME=MODEL, NAME of letters, digits, `.`, `_`, `-`, another for each"
            )
        models[name] = model
    return ["variants:", *(f"  {_quoted(name)}: {{model: {_quoted(model)}}}" for name, model in models.items())]


def _vocabulary(wish: Wish, shape: Shape | None, amount: Amount) -> list[str]:
    large = shape is not None and shape.body > LARGE
    most = MOST_ADDED[large]
    add = min(most, max(100, (amount.characters or most * CHARACTERS_PER_NEW_TOKEN) // CHARACTERS_PER_NEW_TOKEN))
    return [
        "vocabulary:",
        "  scenario: extended  # old tokens keep their ids; optimized, bpe, unigram: docs, Vocabularies",
        f"  add: {add}  # each new token should occur often; `size: auto` weighs it on your text",
        f"  corpus: {_listed(wish.text)}",
    ]


def _learning(wish: Wish, shape: Shape | None, amount: Amount) -> list[str]:
    """Distillation, and pre-training where there is text enough."""
    tokens = (amount.characters or PRETRAINED * CHARACTERS_PER_TOKEN) // CHARACTERS_PER_TOKEN
    lines = [
        "# Rows of new tokens are learned from the original model, which reads the same text in its old tokens.",
        "distill:",
        f"  tokens: {max(100, min(tokens, DISTILLED))}",
        "  lora_rank: 16  # lower layers learn to read new tokens too, and source text keeps them as they were for it",
    ]
    if shape is not None and shape.tied:
        lines.append("  untie: false  # true: a head of its own, better at writing, for more weights")
    if tokens * CHARACTERS_PER_TOKEN < SMALL:
        return [*lines, "", "# Too little text for pre-training to gain more; with some millions of characters add it."]
    block, batch = (1024, 64) if wish.device else (256, 16)
    share = wish.gpus * 8
    return [
        *lines,
        "",
        "pretrain:",
        "  trains: embeddings  # embeddings+lora adapts the body too",
        f"  tokens: {min(tokens, PRETRAINED)}",
        f"  block: {block}",
        f"  batch: {max(batch // share, 1) * share if wish.device else batch}  # blocks a step, over all processes",
        f"  micro_batch: {8 if wish.device else 4}  # blocks one process holds at once; `lepta plan` tells if they fit",
        "  keep: best",
    ]


def _quoted(value: str) -> str:
    """A YAML scalar: JSON's strings are YAML's, with escapes for what YAML takes for a line break."""
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _listed(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def valid_of(text: Sequence[str]) -> list[str]:
    """Held-out text that belongs to training text, where that is known: of the starter corpus."""
    ends = "/train"
    known = [source for source in text if source.startswith(STARTER) and source.endswith(ends)]
    return [source.removesuffix(ends) + "/valid" for source in known]
