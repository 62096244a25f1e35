"""What `lepta recipes fields` says of recipes and corpus files, from the models that check them."""

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.cli.recipes import all_sections
from lepta.core.errors import LeptaError
from lepta.core.fields import field_texts

SECTIONS = dict(all_sections())


def shown(*words):
    return CliRunner().invoke(app, ["recipes", "fields", *words], env={"COLUMNS": "80"}, catch_exceptions=False).output


@pytest.mark.parametrize("path", SECTIONS)
def test_every_field_says_what_it_takes(path):
    lines = shown(path).splitlines()
    texts = field_texts(SECTIONS[path])
    assert {text.name for text in texts} == set(SECTIONS[path].model_fields)
    for text in texts:
        assert any(line.startswith(f"  {text.name}: {text.takes}"[:60]) for line in lines), text.name
        assert not {"None", "Annotated", "Union", "Optional", "Literal"} & set(text.takes.replace("[", " ").split())


def test_values_defaults_and_what_is_required():
    of_pretrain = {text.name: text for text in field_texts(SECTIONS["pretrain"])}
    assert of_pretrain["schedule"].takes == "cosine | wsd" and of_pretrain["schedule"].default == "cosine"
    assert of_pretrain["tokens"].required and not of_pretrain["batch"].required
    assert of_pretrain["learning_rate"].takes == "list of number | auto"
    assert of_pretrain["documents_apart"].default == "false"
    assert {text.name: text.takes for text in field_texts(SECTIONS[""])}["variants"] == "map from text to section"
    assert "tokens: whole number, required" in shown("pretrain")


def test_without_a_section_all_of_them_are_listed():
    assert {line for line in shown().splitlines() if not line.startswith(" ")} >= SECTIONS.keys() - {""}
    assert "pretrain.lora" in shown("pretrain") and "calibrate" not in shown("pretrain")


def test_a_wrong_section_gets_the_nearest_right_one():
    with pytest.raises(LeptaError, match="pretrian: no such section; did you mean 'pretrain'"):
        shown("pretrian")
