"""The vocabulary that a recipe asks for: its size, what it adds to the model, and how dense it makes text."""

from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel

from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST, read_manifest
from lepta.core.reading import conform
from lepta.plan.shapes import Shape
from lepta.plan.text import Density, measured, new_estimate, original_estimate, vocabulary_at
from lepta.recipe import Recipe
from lepta.vocabulary.schema import TokenId
from lepta.vocabulary.tokens import Vocabulary

MADE = "of the vocabulary that was made"
AUTO_ADDED = 16_000  # stands for `size: auto`, which only the corpus decides
SIDES = ("target", "source")
Densities = dict[str, tuple[Density, Density]]  # of each side: original and new vocabulary


class NewVocabulary(NamedTuple):
    """Size of the vocabulary that a recipe asks for."""

    size: int  # ids
    first_new: int  # rows of old tokens that stay, as many as are known; 0 where all may be new
    how: str  # where the size is from


def new_vocabulary(recipe: Recipe, before: Shape) -> NewVocabulary:
    """Size of the vocabulary of a recipe: of the one it made already, or as it asks for it."""
    settings = recipe.vocabulary
    first_new = 0
    if settings.scenario == "replaced":
        return _same_size(recipe, before)
    if settings.scenario == "extended":
        first_new = before.tokens
    elif settings.scenario == "optimized":
        first_new = settings.keep or before.tokens // 2
    if (made := _made_size(recipe)) is not None:
        return NewVocabulary(made, first_new, MADE)
    if settings.size == "auto":
        return NewVocabulary(before.tokens + AUTO_ADDED, first_new, "size: auto; the corpus decides")
    size = settings.size or first_new + (settings.add or 0)
    if size <= first_new:
        raise LeptaError(
            f"vocabulary.size: {size:,}, but {first_new:,} tokens of {recipe.base} stay (scenario "
            f"{settings.scenario}); expected more"
        )
    return NewVocabulary(size, first_new, "of the recipe")


def _same_size(recipe: Recipe, before: Shape) -> NewVocabulary:
    """Of scenario `replaced`: rows that are not new stay, padding too."""
    add = recipe.vocabulary.add or 0
    if add >= before.tokens:
        raise LeptaError(
            f"vocabulary.add: {add:,}, but {recipe.base} has {before.tokens:,} tokens, and some must stay; expected "
            "fewer"
        )
    return NewVocabulary(before.tokens, before.rows - add, "that of the original, which stays")


class _Made(BaseModel):
    new_size: TokenId


def _made_size(recipe: Recipe) -> int | None:
    """Ids of the vocabulary that a run of the recipe made; None if it was made with other settings, or not at all."""
    manifest = recipe.output / "vocabulary" / MANIFEST
    if not manifest.is_file():
        return None
    content = read_manifest(manifest.parent)
    made_with = content["key"]["settings"]
    for name, value in recipe.vocabulary.key.items():
        if made_with.get(name) != value:
            return None
    return conform(_Made, content["facts"], manifest, "make the vocabulary again").new_size


def with_vocabulary(before: Shape, recipe: Recipe, size: int) -> Shape:
    """The base model with a vocabulary of so many tokens, padded as the recipe says."""
    from lepta.embeddings.initialise import padded_rows

    return replace(before, tokens=size, rows=padded_rows(before.rows, before.tokens, size, recipe.vocabulary.pad_to))


def densities_of(recipe: Recipe, before: Shape, size: int, old: Vocabulary | None) -> Densities:
    """Characters per token of both languages; measured where the tokenizers are here, `old` being the original one."""
    made = vocabulary_at(recipe.output / "vocabulary") if _made_size(recipe) and old else None
    densities: Densities = {}
    for side in SIDES:
        language = getattr(recipe.text, side)
        table = original_estimate(before.tokenizer, language.language)
        original = measured(old, language.valid) or table
        new = measured(made, language.valid)
        if new is None:
            new = new_estimate(before.tokenizer, recipe.vocabulary, size, language.language)
            here, there = original.characters_per_token, table.characters_per_token
            if original is not table and here and there and new.characters_per_token:
                # This text is not the one that was measured; both vocabularies find it equally easier or harder.
                ratio = here / there
                how = f"{new.how}, times {ratio:.2f}: original here / there"
                new = Density(new.characters_per_token * ratio, how)
        densities[side] = original, new
    return densities


def in_original(tokens: int, densities: Densities) -> float | None:
    """Tokens that the same text of the target language takes in the original vocabulary; None if that is not known."""
    original, new = densities["target"]
    if not original.characters_per_token or not new.characters_per_token:
        return None
    return tokens * new.characters_per_token / original.characters_per_token


def vocabulary_facts(
    recipe: Recipe, before: Shape, after: Shape, new_tokens_from: str, densities: Densities
) -> dict[str, Any]:
    """What the new vocabulary changes: tokens, weights, and for each language tokens, operations and context."""
    facts: dict[str, Any] = {
        "scenario": recipe.vocabulary.scenario,
        "original_tokens": before.tokens,
        "new_tokens": after.tokens,
        "new_tokens_from": new_tokens_from,
        "original_rows": before.rows,
        "new_rows": after.rows,
        "original_weights": before.weights,
        "new_weights": after.weights,
        "original_embedding_weights": before.embeddings,
        "new_embedding_weights": after.embeddings,
        "added_weights": after.weights - before.weights,
        "added_share": after.weights / before.weights - 1,
        "original_embedding_share": before.embeddings / before.weights,
        "new_embedding_share": after.embeddings / after.weights,
    }
    for side in SIDES:
        language = getattr(recipe.text, side).language
        facts[side] = {"language": language} | _density_facts(before, after, *densities[side])
    return facts


def _density_facts(before: Shape, after: Shape, original: Density, new: Density) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "original_characters_per_token": original.characters_per_token,
        "original_from": original.how,
        "new_characters_per_token": new.characters_per_token,
        "new_from": new.how,
        "tokens_ratio": None,
        "inference_flops_ratio": None,
        "context_characters": None,
    }
    if original.characters_per_token and new.characters_per_token:
        tokens = original.characters_per_token / new.characters_per_token
        facts["tokens_ratio"] = tokens
        facts["inference_flops_ratio"] = tokens * _read_flops(after) / _read_flops(before)
        reached = original.characters_per_token, new.characters_per_token
        facts["context_characters"] = [round(characters * before.context) for characters in reached]
    return facts


def _read_flops(shape: Shape) -> int:
    """Operations to read or write one token: two for each weight of body and head."""
    return 2 * (shape.body + shape.rows * shape.width)
