"""Recipes: what is accepted, and what is said about the rest."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from lepta.core.errors import LeptaError
from lepta.core.shipped import shipped_file, shipped_files
from lepta.corpora.settings import read_corpus_settings
from lepta.models.folder import Checkpoint
from lepta.pipeline import pipeline_of
from lepta.recipe import read_recipe
from lepta.training.settings import PretrainSettings

GOOD = {
    "name": "small",
    "output": "runs/small",
    "base": "models/base",
    "variants": {"chat": {"model": "models/chat"}, "terse": {"tune": {"dialogues": "starter:dialogues/train.jsonl"}}},
    "text": {
        "target": {"language": "ru", "train": ["starter:ru/train"], "valid": ["starter:ru/valid"]},
        "source": {"language": "en", "valid": ["starter:en/valid"]},
    },
    "vocabulary": {"add": 100, "corpus": ["starter:ru/train"]},
    "pretrain": {"tokens": 1000},
}


@pytest.fixture
def write(tmp_path):
    """Write the good recipe with one place changed: a dotted path and a value, or no value to take it out."""

    def write(place=None, *value):
        recipe = copy.deepcopy(GOOD)
        if place:
            *sections, key = place.split(".")
            section = recipe
            for name in sections:
                section = section.setdefault(name, {})
            if value:
                section[key] = value[0]
            else:
                del section[key]
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


def message(path):
    with pytest.raises(LeptaError) as caught:
        read_recipe(path)
    return str(caught.value)


def test_values_and_defaults(write):
    recipe = read_recipe(write())
    assert (recipe.name, recipe.output, recipe.seed) == ("small", Path("runs/small"), 1)
    assert recipe.vocabulary.scenario == "extended"
    assert recipe.propagate.method == "anchored"
    (stage,) = recipe.pretrain
    assert (stage.block, stage.batch, stage.learning_rate) == (256, 2, ["auto"])
    assert recipe.variants["terse"].tune.batch == 128
    assert recipe.variants["chat"].tune is None


def test_recipes_of_the_project_are_valid():
    everything = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    recipes = [path for path in everything if not path.name.startswith("corpus_")]  # those are for `lepta corpus`
    assert recipes
    assert len({read_recipe(path).name for path in recipes}) == len(recipes)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("vocabulery", "vocabulery: unknown key; did you mean 'vocabulary'?"),
        ("pretrain.token", "pretrain.token: unknown key; did you mean 'tokens'?"),
        ("vocabulary.pad", "vocabulary.pad: unknown key; did you mean 'pad_to'?"),
        ("text.target.lang", "text.target.lang: unknown key; did you mean 'language'?"),
        ("variants.chat.modle", "variants.chat.modle: unknown key; did you mean 'model'?"),
        ("variants.terse.tune.batches", "variants.terse.tune.batches: unknown key; did you mean 'batch'?"),
        ("propagate.metod", "propagate.metod: unknown key; did you mean 'method'?"),
        ("propagate.qqqq", "propagate.qqqq: unknown key; known here: method, delta_scale, body_delta, answers"),
    ],
)
def test_unknown_key_gets_the_nearest_one(write, place, expected):
    path = write(place, 1)
    assert message(path) == f"{path}: {expected}"


def test_unknown_key_below_a_variant_named_like_a_section_is_looked_up_in_the_variant(write):
    path = write("variants.pretrain", {"model": "m", "tun": None})
    assert message(path) == f"{path}: variants.pretrain.tun: unknown key; did you mean 'tune'?"


def test_unknown_key_below_a_variant_named_like_one_of_its_fields(write):
    path = write("variants.tune", {"model": "m", "modle": "x"})
    assert message(path) == f"{path}: variants.tune.modle: unknown key; did you mean 'model'?"


def test_unknown_key_below_a_variant_named_model(write):
    """`model` is a field of a variant too, and a plain string there."""
    path = write("variants.model", {"model": "m", "modle": "x"})
    assert message(path) == f"{path}: variants.model.modle: unknown key; did you mean 'model'?"


@pytest.mark.parametrize(
    "place", ["name", "base", "text.target", "text.source.valid", "vocabulary.corpus", "pretrain.tokens"]
)
def test_missing_key_is_named(write, place):
    path = write(place)
    assert message(path) == f"{path}: {place}: missing"


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (
            "vocabulary.add",
            "many",
            "Input should be a valid integer, unable to parse string as an integer, but it is 'many'",
        ),
        ("vocabulary.add", True, "expected a number, but it is true"),
        ("vocabulary.add", 0, "Input should be greater than or equal to 1"),
        ("vocabulary.corpus", "starter:ru/train", "Input should be a valid list, but it is 'starter:ru/train'"),
        ("vocabulary.corpus", [], "List should have at least 1 item after validation, not 0"),
        ("vocabulary.scenario", "swapped", "Input should be 'extended', 'replaced', 'optimized', 'bpe' or 'unigram'"),
        ("pretrain.source_share", 1.0, "Input should be less than 1"),
        (
            "propagate.method",
            "rotate",
            "Input should be 'swap', 'overlap', 'conversion', 'ridge', 'procrustes', 'delta', 'anchored' or 'auto'",
        ),
        ("name", "a/b", r"String should match pattern '^[\w-][\w.-]*$'"),
        ("base", 5, "Input should be a valid string, but it is 5"),
        ("output", 5, "expected the path of a file or folder, but it is 5"),
        ("vocabulary", "small", "expected keys and values, but it is 'small'"),
    ],
)
def test_wrong_value_names_file_and_field_and_what_was_expected(write, place, value, expected):
    path = write(place, value)
    assert message(path) == f"{path}: {place}: {expected}"


@pytest.mark.parametrize("variant", [{}, {"model": "m", "tune": {"dialogues": "d"}}])
def test_variant_needs_a_model_or_tuning_not_both(write, variant):
    path = write("variants.chat", variant)
    expected = "give either `model` (a variant that exists) or `tune` (make one here)"
    assert message(path) == f"{path}: variants.chat: {expected}"


def test_training_text_is_needed(write):
    path = write("text.target.train", [])
    assert message(path) == f"{path}: text.target.train: at least one text source is needed"


@pytest.mark.parametrize("train", ["texts", "texts/a.txt", "./texts/../texts/a.txt"])
def test_held_out_text_is_not_trained_on(write, train):
    sides = {"language": "ru", "train": [train], "valid": ["texts/b.txt", "texts/a.txt"]}
    found = message(write("text.target", sides))
    named = "b" if train == "texts" else "a"
    assert f"texts/{named}.txt is trained on ({train}); expected held-out text that training never sees" in found


def test_source_share_needs_source_text(write):
    assert "text.source.train needs at least one text source" in message(write("pretrain.source_share", 0.5))


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", ""])
def test_names_of_variants_cannot_leave_the_output_folder(write, name):
    assert "variants" in message(write("variants", {name: {"model": "m"}}))


@pytest.mark.parametrize("name", [".", ".."])
def test_names_of_dots_cannot_leave_the_output_folder(write, name):
    assert "variants" in message(write("variants", {name: {"model": "m"}}))


def test_at_most_three_faults_are_told_at_once(write):
    path = write()
    path.write_text("name: a\n")
    assert message(path).count("missing") == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [1, 2\nbase: x\n", r"line \d+: not YAML"),
        (b"name: a\n\tbase: x\n", "line 2: not YAML"),
        (b"- a\n- b\n", "expected keys and values at the top level"),
        (b"", "expected keys and values at the top level"),
        (b"name: \xff\xfe\n", "not YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert re.search(rf"bad\.yaml.*{words}", message(path))


def test_absent_recipe(tmp_path):
    path = tmp_path / "absent.yaml"
    assert message(path).startswith(f"{path}: no such recipe; `lepta recipes list` shows")
    assert message(Path("Qwen/Qwen3-8B")).startswith("Qwen/Qwen3-8B: no such recipe; did you mean 'qwen3/8b'? `lepta")


def test_vocabulary_needs_one_number(write):
    expected = "vocabulary: give either `add` (number of new tokens) or `size` (of the whole vocabulary)"
    assert expected in message(write("vocabulary.size", 60_000))
    assert expected in message(write("vocabulary.add"))


@pytest.mark.parametrize(
    ("scenario", "numbers", "says"),
    [
        ("optimized", {"size": "auto"}, "`size` auto: only of scenario extended; for optimized name a size"),
        ("bpe", {"size": "auto"}, "`size` auto: only of scenario extended"),
        ("unigram", {"size": "auto"}, "`size` auto: only of scenario extended"),
        ("unigram", {"add": 1000}, "scenario unigram replaces the vocabulary: give its whole `size`"),
        ("extended", {"add": 1000, "keep": 50}, "`keep` 50: scenario extended keeps all old tokens"),
    ],
)
def test_numbers_of_the_vocabulary_fit_its_scenario(write, scenario, numbers, says):
    path = write("vocabulary.scenario", scenario)
    content = yaml.safe_load(path.read_text())
    del content["vocabulary"]["add"]
    content["vocabulary"] |= numbers
    path.write_text(yaml.safe_dump(content))
    assert says in message(path)


def test_stages_of_training(write):
    path = write()
    content = yaml.safe_load(path.read_text())
    content["pretrain"] = [{"tokens": 10}, {"tokens": 5, "trains": "embeddings+lora", "learning_rate": [1e-4, 2e-4]}]
    path.write_text(yaml.safe_dump(content))
    first, second = read_recipe(path).pretrain
    assert (first.trains, first.tokens) == ("embeddings", 10)
    assert (second.lora.rank, second.learning_rate) == (32, [1e-4, 2e-4])
    content["pretrain"][1]["tokns"] = content["pretrain"][1].pop("tokens")
    path.write_text(yaml.safe_dump(content))
    assert "pretrain.1.tokns: unknown key; did you mean 'tokens'?" in message(path)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (
            "learning_rate",
            [1e-4, 0],
            "pretrain.learning_rate.1: expected a number above 0 and at most 1, or auto; found 0",
        ),
        ("keep", "first", "pretrain.keep: Input should be 'last' or 'best'"),
        ("lora", {"ranks": 4}, "pretrain.lora.ranks: unknown key; did you mean 'rank'?"),
        ("body_dtype", "int3", "pretrain.body_dtype: Input should be 'auto'"),
    ],
)
def test_wrong_settings_of_training(write, field, value, says):
    assert says in message(write(f"pretrain.{field}", value))


def test_a_limit_to_forgetting_needs_the_weights_from_before_it():
    assert PretrainSettings(tokens=1, forget_limit=0.02).keep is None
    with pytest.raises(ValidationError, match="`forget_limit`: needs `keep` best"):
        PretrainSettings(tokens=1, forget_limit=0.02, keep="last")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": ["parsu"]}, "evaluate.darumeru.tasks: parsu: no such task; did you mean 'parus'?"),
        ({"task": ["parus"]}, "evaluate.darumeru.task: unknown key; did you mean 'tasks'?"),
        ({"tasks": ["parus"], "data": "absent"}, "evaluate.darumeru: data: absent/parus: no such folder"),
        ({"data": "absent"}, "evaluate.darumeru: data: absent/rummlu: no such folder"),  # the first of all tasks
        ({"limit": 0}, "evaluate.darumeru.limit: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_the_benchmark(write, settings, says):
    assert says in message(write("evaluate.darumeru", settings))


def test_a_folder_of_datasets_is_an_input(write, tmp_path):
    (tmp_path / "data" / "parus").mkdir(parents=True)
    recipe = read_recipe(write("evaluate.darumeru", {"tasks": ["parus"], "data": str(tmp_path / "data")}))
    assert recipe.evaluate.darumeru.files == {"darumeru": tmp_path / "data"}
    assert read_recipe(write("evaluate.darumeru", {})).evaluate.darumeru.files == {}


def test_a_gguf_base_becomes_the_type_that_the_recipe_says(write, tmp_path):
    from conftest import SMOLLM2

    file = write("base", SMOLLM2)
    file.write_text(file.read_text() + "gguf_dtype: bfloat16\n")
    first = pipeline_of(read_recipe(file).model_copy(update={"variants": {}})).stages[0]
    (tmp_path / "base").mkdir()
    first.run(tmp_path / "base")
    assert first.settings["dtype"] == "bfloat16"
    assert {entry.dtype for entry in Checkpoint(tmp_path / "base").entries.values()} == {"BF16"}


def test_files_of_another_kind_are_told_by_their_kind():
    with pytest.raises(LeptaError, match=r"corpus_ru\.yaml: this is a corpus file, for `lepta corpus prepare`"):
        read_recipe("corpus_ru")
    with pytest.raises(LeptaError, match=r"demo\.yaml: this is a recipe, for `lepta adapt`; expected a corpus file"):
        read_corpus_settings("demo")
    for file in shipped_files().values():
        named = re.search(r"lepta (?:adapt|plan|corpus prepare) (\S+)", file.read_text(encoding="utf-8"))
        assert named and shipped_file(named[1]) == file
        assert ".yaml" not in named[1], "the file is not there where LEPTA is installed"
