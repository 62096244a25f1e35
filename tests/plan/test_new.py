"""`lepta new` writes recipes that `plan` and `adapt --dry-run` take, for any language."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.recipe import read_recipe
from lepta.vocabulary.build import build_vocabulary

SYLLABLES = list(map("".join, itertools.product("бгдзқ", "аеоұы")))
KAZAKH = ["--base", "a/b", "--language", "kk", "--text", "x", "--valid", "y"]


def lepta(*words):
    done = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})
    return done, "" if done.exception is None else str(done.exception)


@pytest.fixture
def texts(tmp_path):
    words = map("".join, itertools.product(SYLLABLES, repeat=3))
    (tmp_path / "train.txt").write_text(" ".join(words), encoding="utf-8")
    (tmp_path / "valid.txt").write_text("Көктемде ауыл адамдары егін егеді. " * 40, encoding="utf-8")
    return tmp_path / "train.txt", tmp_path / "valid.txt"


def test_a_recipe_for_a_language_that_is_not_russian(texts, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, valid = texts
    file = tmp_path / "kazakh.yaml"
    model = tiny_model_folder()
    done, error = lepta("new", file, "--base", model, "--variant", f"chat={model}", "--language", "kk",
                        "--text", train, "--valid", valid, "--gpu", "H100", "--gpus", 2)  # fmt: skip
    assert done.exit_code == 0, error
    assert f"lepta plan {file} --gpu H100 --gpus 2" in done.stdout
    assert "not here yet" not in done.stdout and "note:   a variant is the base itself" in done.stdout
    recipe = read_recipe(file)
    assert (recipe.name, recipe.text.target.language, list(recipe.variants)) == ("kazakh", "kk", ["chat"])
    assert recipe.vocabulary.add == 4300  # one for 25 of the text's 109,374 characters
    written = file.read_text(encoding="utf-8")
    assert "109,374 characters, counted" in written and "starter:ru" not in written
    done, error = lepta("plan", file, "--gpu", "H100", "--gpus", 2, "--json")
    assert done.exit_code == 0, error
    assert json.loads(done.stdout)["recipe"] == "kazakh"
    done, error = lepta("adapt", file, "--dry-run", "--json")
    assert done.exit_code == 0, error
    assert next(row["stage"] for row in json.loads(done.stdout)["stages"]) == "vocabulary"


def test_much_text_is_trained_on_and_a_model_that_is_not_here_is_known_by_its_shape(tmp_path):
    file = tmp_path / "big.yaml"
    model = ["--base", "meta-llama/Meta-Llama-3-8B", "--variant", "a/Chat", "--gpu", "H100", "--gpus", 8]
    done, error = lepta("new", file, *model, "--language", "uk", "--text", "uk/train", "--valid", "uk/valid")
    assert done.exit_code == 0, error
    assert "uk/train, uk/valid: not here yet" in done.stdout
    recipe = read_recipe(file)
    (stage,) = recipe.pretrain
    assert stage.trains == "new-rows" and stage.source_share == 0  # the starter corpus is too small for so many tokens
    assert stage.batch % (8 * stage.micro_batch) == 0 and stage.tokens / (stage.batch * stage.block) > 1000
    assert recipe.vocabulary.add == 32_000
    done, error = lepta("plan", file, "--gpu", "H100", "--gpus", 8, "--json")
    assert done.exit_code == 0, error


@pytest.mark.parametrize(
    ("base", "gpu", "tokens", "note"),
    [
        ("Qwen/Qwen3-0.6B-Base", [], 2_100_000, "about a day on 2 CPU cores;"),
        ("Qwen/Qwen3-0.6B-Base", ["--gpu", "H100"], 1_000_000_000, "to begin with;"),
        ("meta-llama/Meta-Llama-3-8B", ["--gpu", "H100"], 710_000_000, "about a day on 1 x H100;"),
        ("no/body-knows", [], 180_000, "about a day on 2 CPU cores, for a model of 7,000,000,000 weights;"),
    ],
)
def test_training_on_text_that_is_not_here_is_what_a_day_allows(base, gpu, tokens, note, tmp_path):
    file = tmp_path / "a.yaml"
    text = ["--text", "dataset:OWNER/corpus", "--valid", "v.txt"]
    done, error = lepta("new", file, "--base", base, "--language", "kk", *text, *gpu)
    assert done.exit_code == 0, error
    assert read_recipe(file).pretrain[0].tokens == tokens
    assert f"tokens: {tokens}  # {note}" in file.read_text(encoding="utf-8")


def test_text_of_few_different_words_gets_a_recipe_that_can_run(texts, tiny_model_folder, tiny_tokenizer, tmp_path):
    (text, valid), file = texts, tmp_path / "a.yaml"
    text.write_text("Мир читает новую книгу о старом городе.\n" * 2400, encoding="utf-8")
    options = ["--base", tiny_model_folder(), "--language", "ru", "--text", text, "--valid", valid]
    done, error = lepta("new", file, *options)
    assert done.exit_code == 0, error
    assert "add: 6  # the text has 6 different words; `size: auto`" in file.read_text(encoding="utf-8")
    build_vocabulary(tiny_tokenizer, [str(text)], add=read_recipe(file).vocabulary.add)
    for command in (["plan", file], ["adapt", file, "--dry-run"]):
        assert "cannot be learned" not in lepta(*command)[0].output
    file.write_text(file.read_text(encoding="utf-8").replace("add: 6 ", "add: 3800 "), encoding="utf-8")
    for command in (["plan", file], ["adapt", file, "--dry-run"]):
        done, error = lepta(*command)
        assert done.exit_code == 0, error
        assert "3,800 new tokens cannot be learned from its corpus" in " ".join(done.output.split())


def test_some_million_characters_adapt_the_body_too_in_small_steps(tiny_model_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Көктемде ауыл адамдары егін егеді.\n" * 100_000, encoding="utf-8")
    options = ["--base", tiny_model_folder(), "--language", "kk", "--text", text, "--valid", tmp_path / "valid"]
    done, error = lepta("new", tmp_path / "a.yaml", *options)
    assert done.exit_code == 0, error
    (stage,) = read_recipe(tmp_path / "a.yaml").pretrain
    assert (stage.trains, stage.source_share, stage.block * stage.batch) == ("new-rows+lora", 0.1, 2048)


def test_text_of_the_source_language_is_named_or_from_the_starter_corpus(texts, tmp_path):
    text, _ = texts
    given = ["--source-language", "zh", "--source-text", text, "--source-valid", "zh/valid"]
    for options, language, train in ([], "en", "starter:en/train"), (given, "zh", str(text)):
        file = tmp_path / f"{language}.yaml"
        done, error = lepta("new", file, *KAZAKH, *options)
        assert (done.exit_code, error) == (0, "")
        source = read_recipe(file).text.source
        assert (source.language, source.train) == (language, [train])
    assert "zh/valid: not here yet" in done.stdout


@pytest.mark.parametrize(("characters", "trains"), [(80_000, "new-rows"), (90_000, "new-rows+lora")])
def test_enough_text_of_the_source_language_lets_the_body_change(characters, trains, tmp_path):
    (tmp_path / "en.txt").write_text("a b c d e " * (characters // 10), encoding="utf-8")
    model = ["--base", "Qwen/Qwen3-0.6B-Base", "--language", "kk", "--text", "x", "--valid", "y"]
    source = ["--source-text", tmp_path / "en.txt", "--source-valid", "en/valid"]
    done, error = lepta("new", tmp_path / "a.yaml", *model, *source)
    assert (done.exit_code, error) == (0, "")
    (stage,) = read_recipe(tmp_path / "a.yaml").pretrain
    assert (stage.trains, stage.tokens) == (trains, 2_100_000)


def test_names_that_yaml_would_read_otherwise(tmp_path):
    file = tmp_path / "odd.yaml"
    done, error = lepta("new", file, "--base", 'OWNER/a: {b} # "c"', "--language", "no", "--text", "starter:ru/train")
    assert (done.exit_code, error) == (0, "")
    recipe = read_recipe(file)
    assert recipe.base == 'OWNER/a: {b} # "c"' and recipe.text.target.language == "no"
    assert recipe.text.target.valid == ["starter:ru/valid"]


def test_names_from_the_command_line_stay_what_they_are(tmp_path):
    for name in ("no", "123", "1e3"):
        variants = ["--variant", "no=a/Chat", "--variant", "5=a/Other\u2028x"]
        language = ["--language", "kk", "--text", "starter:ru/train"]
        done, error = lepta("new", tmp_path / f"{name}.yaml", "--base", "a/b\u0085c", *variants, *language)
        assert (done.exit_code, error) == (0, "")
        recipe = read_recipe(tmp_path / f"{name}.yaml")
        assert (recipe.name, recipe.base) == (name, "a/b\u0085c")
        assert {key: variant.model for key, variant in recipe.variants.items()} == {
            "no": "a/Chat",
            "5": "a/Other\u2028x",
        }


@pytest.mark.parametrize(
    ("file", "words", "says"),
    [
        ("a b.yaml", [], "a b.yaml: its name is the recipe's"),
        (".yaml", [], "its name is the recipe's"),
        ("a.yaml", ["--variant", "a/x", "--variant", "b/x"], "--variant b/x: expected NAME=MODEL"),
        ("a.yaml", ["--variant", "a: b=a/x"], "--variant a: b=a/x: expected NAME=MODEL"),
        ("a.yaml", ["--variant", "chat="], "--variant chat=: expected NAME=MODEL"),
    ],
)
def test_names_that_cannot_be_are_refused(file, words, says, tmp_path):
    done, error = lepta(
        "new", tmp_path / file, "--base", "a/b", "--language", "kk", "--text", "starter:ru/train", *words
    )
    assert done.exit_code != 0 and says in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--language", "kk", "--text", "x", "--valid", "y"], "new: --base is missing"),
        (["--base", "a/b", "--language", "kk", "--text", "x"], "new: --valid is missing"),
        (["--base", "a/b", "--language", "kk", "--text", "x", "--valid", "y", "--gpu", "H10"], "did you mean"),
        ([*KAZAKH, "--source-language", "zh"], "new: --source-text is missing"),
        ([*KAZAKH, "--source-text", "zh"], "new: --source-valid is missing"),
        ([*KAZAKH, "--source-text", "z", "--source-valid", "z"], "text.source: z is trained on (z)"),
    ],
)
def test_what_is_missing_is_told(words, says, tmp_path):
    _done, error = lepta("new", tmp_path / "a.yaml", *words)
    assert says in error and not (tmp_path / "a.yaml").exists()


def test_an_existing_file_stays(tmp_path):
    (tmp_path / "a.yaml").write_text("mine")
    _done, error = lepta("new", tmp_path / "a.yaml", "--base", "a/b", "--language", "ru", "--text", "starter:ru/train")
    assert "exists already" in error and (tmp_path / "a.yaml").read_text() == "mine"


def test_a_recipe_without_pre_training_has_no_empty_tables_and_names_that_fit(texts, tiny_model_folder, tmp_path):
    train, valid = texts
    file, model = tmp_path / "small.yaml", tiny_model_folder()
    done, error = lepta("new", file, "--base", model, "--variant", "OWNER/chat.Q4_1.gguf", "--language", "kk",
                        "--text", train, "--valid", valid)  # fmt: skip
    assert done.exit_code == 0, error
    recipe = read_recipe(file)
    assert not recipe.pretrain and list(recipe.variants) == ["chat"]
    done, error = lepta("plan", file, "--gpu", "L4")
    assert done.exit_code == 0, error
    assert "no pre-training: the recipe has no section `pretrain`" in done.stdout
    for empty in ("FLOP per token", "blocks at once", "0.0 s"):
        assert empty not in done.stdout


def test_numbers_are_round_and_names_of_variants_are_short(texts, tmp_path):
    train, valid = texts
    (tmp_path / "train.txt").write_text("Көктемде ауыл адамдары егін егеді. " * 100_003, encoding="utf-8")
    file = tmp_path / "a.yaml"
    variants = ["--variant", "m/Small-Chat.Q4_1.gguf", "--variant", "m/Other-UD-Q4_K_XL.gguf", "--variant", "a/Q8-F16"]
    done, error = lepta("new", file, "--base", "no/body", "--language", "kk", "--text", train, "--valid", valid,
                        *variants)  # fmt: skip
    assert done.exit_code == 0, error
    recipe = read_recipe(file)
    assert list(recipe.variants) == ["Small-Chat", "Other", "Q8-F16"]
    numbers = recipe.vocabulary.add, recipe.distill.tokens, recipe.pretrain[0].tokens
    assert all(len(str(number).rstrip("0")) <= 2 for number in numbers), numbers


def test_training_text_is_no_held_out_text(texts, tmp_path):
    train, _ = texts
    same = tmp_path / "." / "folder" / ".." / train.name
    _, error = lepta("new", tmp_path / "a.yaml", "--base", "no/body", "--language", "kk", "--text", train,
                        "--valid", same)  # fmt: skip
    assert "is trained on" in error and not (tmp_path / "a.yaml").exists()
