"""The model card: every input, its licence, and what was done, so that a reader need not trust anybody."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex

from lepta.core.errors import LeptaError
from lepta.core.reading import parse_yaml, read_utf8
from lepta.recipe import Recipe
from lepta.version import __version__

FRONT_MATTER = regex.compile(r"\A---\n(.*?)\n---\n", regex.DOTALL)


def licence_of(folder: Path) -> str:
    """The licence that a model folder's card names, or `unknown`."""
    card = folder / "README.md"
    try:
        match = FRONT_MATTER.match(read_utf8(card)) if card.is_file() else None
        facts = parse_yaml(match[1], card) if match else None
    except LeptaError:  # a card is written by hand, and nothing but a licence's name depends on it
        facts = None
    return str(facts.get("license", "unknown")) if isinstance(facts, dict) else "unknown"


def write_card(recipe: Recipe, variant: str, base: Path, facts: dict[str, Any], folder: Path) -> None:
    """Write README.md for a propagated variant.

    Parameters
    ----------
    recipe : Recipe
    variant : str
        Name of the variant in the recipe.
    base : Path
        Folder of the base model.
    facts : dict
        What `propagate` returned.
    folder : Path
        Model folder.
    """
    licence, made = licence_of(base), recipe.variants[variant]
    source = made.model or (f"tuned from the base model on `{made.tune.dialogues}`" if made.tune else "")
    transfer = facts["transfer"]
    fits = [
        f"| `{name}` | {fit['method']} | {fit['rank']} | {fit['residual_swap']:.4f} | {fit['residual']:.4f} |"
        for name, fit in facts["maps"].items()
    ]
    lines = [
        "---",
        f"license: {licence}",
        f"language: [{recipe.text.target.language}, {recipe.text.source.language}]",
        "library_name: transformers",
        "tags: [lepta, vocabulary-adaptation]",
        "---",
        "",
        f"# {recipe.name}: {variant} with a vocabulary for `{recipe.text.target.language}`",
        "",
        f"Made by LEPTA {__version__}: Learned Embedding Propagation (arXiv 2412.21140). Load it with transformers:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "| input | source | licence |",
        "|---|---|---|",
        f"| base model | `{recipe.base}` | {licence} |",
        f"| instruct variant | {source} | {'as the base' if made.tune else 'see there'} |",
        *(f"| vocabulary text | `{text}` | {text_licence(text)} |" for text in recipe.vocabulary.corpus),
        *(f"| training text | `{text}` | {text_licence(text)} |" for text in recipe.text.target.train),
        *(f"| training text | `{text}` | {text_licence(text)} |" for text in recipe.text.source.train),
        "",
        f"Vocabulary: {recipe.vocabulary.scenario}, {transfer['rows']:,} rows, {transfer['exact']:,} of them tokens of "
        f"the original, {transfer['mixed']:,} new. "
        + " ".join(
            f"Trained: {stage.trains}, {stage.tokens:,} tokens, learning rate "
            f"{rates_in_words(stage.learning_rate)}, seed {recipe.seed}."
            for stage in recipe.pretrain
        ),
        "",
        "| matrix | map | rank | error without map | error with map |",
        "|---|---|---|---|---|",
        *fits,
        "",
        "Content hashes of all inputs, library versions and settings are in `manifest.json`.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def rates_in_words(rates: Sequence[float | str]) -> str:
    """Learning rates as a recipe gives them: numbers, or `auto`."""
    return " or ".join(rate if isinstance(rate, str) else f"{rate:g}" for rate in rates)


def text_licence(source: str) -> str:
    """Licence of a text source, where it is known."""
    if source.startswith("starter:"):
        return "Apache-2.0 (written for LEPTA)"
    if source.startswith("wordfreq:"):
        return "statistics: CC BY-SA 4.0 (wordfreq)"
    return "the user's"
