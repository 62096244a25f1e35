"""What a model card says."""

import pytest

from lepta.card import licence_of, rates_in_words


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\nA model.\n", "mit"),
        ("---\nlanguage: ru\n---\nA model.\n", "unknown"),
        ("---\nlicense: mit\ntags:\n\t- x\n---\nA tab is no YAML.\n", "unknown"),
        ("---\njust text\n---\nA model.\n", "unknown"),
        ("A model.\n", "unknown"),
        (None, "unknown"),
    ],
    ids=["named", "not named", "no YAML", "text", "no front matter", "no card"],
)
def test_licence_is_what_the_card_says_or_unknown(tmp_path, card, licence):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


def test_rates_are_as_the_recipe_gives_them():
    assert rates_in_words(["auto"]) == "auto"
    assert rates_in_words([1e-4, 2e-4, "auto"]) == "0.0001 or 0.0002 or auto"
