"""`--help` teaches: every option of every command says what it is, nothing is cut, and it comes at once."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from conftest import SMOLLM2
from pydantic import ValidationError
from typer.testing import CliRunner

from lepta.cli import COMMANDS, app
from lepta.training.settings import Lora
from lepta.version import __version__


def commands(command, path: str) -> Iterator:
    """Every command and group below a command, with the words that call it."""
    yield pytest.param(command, id=path)
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from commands(command.get_command(None, name), f"{path} {name}")


@pytest.mark.parametrize("command", commands(typer.main.get_command(app), "lepta"))
def test_every_option_and_command_has_a_help_text(command):
    assert command.help
    silent = [option.opts for option in command.params if option.param_type_name == "option" and not option.help]
    assert not silent


@pytest.mark.parametrize("command", commands(typer.main.get_command(app), "lepta"))
def test_every_command_has_an_example_that_parses(command, request):
    if hasattr(command, "list_commands"):
        return
    words = request.node.callspec.id.split()
    examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("Try: ")]
    assert examples, "a line with Try:"
    for example in examples:
        called = example.removeprefix("Try: ").partition("&&")[0].split()
        assert called[: len(words)] == words
        command.make_context("lepta", called[len(words) :])  # refuses unknown options and missing ones


def test_options_stand_in_groups():
    shown = CliRunner().invoke(app, ["calibrate", "--help"], env={"COLUMNS": "80"}).stdout
    headings = [line.rstrip(":") for line in shown.splitlines() if line and line[0].isalpha() and line.endswith(":")]
    assert headings[0] == "Options" and {"Output", "Judge", "Answers of the original", "Copies", "LoRA"} <= set(
        headings
    )
    assert shown.index("Judge:") < shown.index("--judge-server") < shown.index("Copies:")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_the_first_line_of_each(name):
    command = typer.main.get_command(app).get_command(None, name)
    assert " ".join(inspect.cleandoc(command.help).partition("\n\n")[0].split()) == COMMANDS[name][1]


@pytest.mark.parametrize("command", commands(typer.main.get_command(app), "lepta"))
def test_help_is_whole_on_80_columns_and_switches_take_no_value(command, request):
    words = request.node.callspec.id.split()[1:]
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown and "<bool>" not in shown and "<list" not in shown
    assert not re.search(r"\S-$", shown, re.MULTILINE), "a line ends inside a word"
    assert "\u2011" not in shown, "what is copied must be a hyphen"


def test_long_options_and_first_lines_are_written_out():
    pretrain, vocab = (
        CliRunner().invoke(app, [name, "-h"], env={"COLUMNS": "80"}).stdout for name in ("pretrain", "vocab")
    )
    assert "--old-rows-learning-rate <float>" in pretrain
    assert "exit code 1 if any fails." in " ".join(vocab.split())


def test_version_is_printed_without_a_command():
    done = subprocess.run([sys.executable, "-m", "lepta", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"


def test_help_imports_no_heavy_library():
    code = "import sys, lepta.cli; sys.argv = ['lepta', '--help']\ntry: lepta.cli.main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'rich'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_setting_has_one_default_on_the_command_line_and_in_recipes():
    """Options are made from the settings models; the default that help shows is the model's."""
    shown = CliRunner().invoke(app, ["tune", "--help"], env={"COLUMNS": "200"}).stdout
    alpha = " ".join(shown[shown.index("--alpha") : shown.index("--dropout")].split())
    assert alpha.endswith("(default: 16).")  # of tuning; a Lora alone has 32


CALIBRATE = "calibrate --original a --model b --output o "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("distill --original x --model x --text x --output x --tokens many", "--tokens: Input should be a valid int"),
        ("vocab build --tokenizer x --corpus y --output o", "give either --add (number of new tokens) or --size (of"),
        ("vocab build --tokenizer x --corpus y --output o --add 5 --keep-text z", "--keep-text: only scenario repl"),
        (CALIBRATE + "--prompts c --judge x --judge-server y", "give either --judge or --judge-server"),
        (CALIBRATE + "--prompts c --judge-server http://y", "--judge-model: missing"),
        (CALIBRATE + "--judge x --copies 4", "--copy-text: at least one"),
        ("tune --model x --data y --preference p --preference-batch 3 --output o", "of 2 (--preference-micro-batch)"),
        (
            "vocab build --tokenizer x --corpus y --output o --add 5 --script Klingon",
            "--script: unknown script 'Klingon'",
        ),
        ("pretrain --model x --text y --output o --tokens 9 --teacher=", "--teacher: String should have at least 1"),
        ("pretrain --model x --text y --output o --tokens 9 --teacher-weight 3", "--teacher-weight: needs --teacher,"),
        ("pretrain --model x --text y --output o --tokens 9 --decay-share 0.5", "--decay-share: only --schedule wsd"),
        ("evaluate instructions m --max-tokens 0", "--max-tokens: Input should be greater than or equal to 1"),
        ("evaluate compare a b --prompts c --max-tokens 0", "--max-tokens: Input should be greater"),
    ],
)
def test_a_wrong_value_is_told_with_command_and_options(command, message):
    error = str(CliRunner().invoke(app, command.split()).exception)
    assert error.startswith(f"{command.partition(' -')[0].removesuffix(' m').removesuffix(' a b')}: ")
    assert message in error


@pytest.mark.parametrize(
    ("given", "read"),
    [("all-linear", "all-linear"), (["all-linear"], "all-linear"), ("q_proj", ["q_proj"]), (["a", "b"], ["a", "b"])],
)
def test_all_linear_can_be_given_as_the_help_shows_it(given, read):
    """The command line gives a list; recipes may have a word or a list."""
    assert Lora(targets=given).targets == read
    with pytest.raises(ValidationError, match="all-linear is every layer: give it alone"):
        Lora(targets=["q_proj", "all-linear"])


def test_tuning_and_preferences_change_the_same_layers(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("lepta.cli.training._run", lambda stage, *_: given.append(stage.settings) or {})
    line = f"tune --model {tmp_path} --data x --preference y --targets q_proj --layers 1 --rank 4 --output {tmp_path}/o"
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    (settings,) = given
    assert settings["lora"] == Lora(rank=4, alpha=16, targets=["q_proj"], layers=[1]).model_dump()
    assert settings["preference"]["lora"] == settings["lora"]


def test_an_error_of_the_run_names_options_too(tmp_path):
    command = f"vocab build --tokenizer {SMOLLM2} --corpus starter:ru/valid --size 100 --output {tmp_path / 'o'}"
    error = str(CliRunner().invoke(app, command.split()).exception)
    assert error.startswith("--size: 100; the vocabulary to start from has 49,152 tokens already")


@pytest.mark.parametrize("command", commands(typer.main.get_command(app), "lepta"))
def test_help_names_options_and_no_fields_of_recipes(command):
    rows = {"prompt", "answer", "chosen", "rejected", "label", "messages", "good", "bad", "phenomenon", "output"}
    texts = [option.help or "" for option in command.params if option.param_type_name == "option"]
    assert set(re.findall(r"`(\w+)`", " ".join(texts))) <= rows


CALIBRATE = "calibrate --original x --prompts x --no-judge"


@pytest.mark.parametrize(
    "command",
    [
        "adapt nope.yaml",
        "status nope.yaml",
        "plan nope.yaml",
        "report nope",
        "corpus prepare nope.yaml",
        "measure nope --text starter:ru/valid",
        "init --model nope --tokenizer nope --output y",
        "propagate --base nope --adapted nope --instruct nope --output y",
        "distill --original nope --model nope --text x --tokens 99 --output y",
        "pretrain --model nope --text x --tokens 4 --output y",
        "tune --model nope --data nope --output y",
        "calibrate --model nope --original nope --output y --prompts nope --no-judge",
        "darumeru run --model nope --output y",
    ],
)
def test_a_wrong_place_is_told_before_torch_is_imported(command, tmp_path):
    assert refused_without_torch(command, tmp_path).startswith("lepta: nope")


@pytest.mark.parametrize("options", ["pretrain --text x --tokens 4", "tune --data x", CALIBRATE])
def test_a_batch_that_cannot_be_shared_is_told_before_torch_is_imported(options, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = refused_without_torch(f"{options} --model x --output y --batch 3", tmp_path)
    assert "batch: 3 examples per step cannot be shared by 2 processes equally" in error


def refused_without_torch(command, folder):
    """What a command says that ends before it imports what takes seconds."""
    code = "import sys, lepta.cli; sys.argv[1:] = sys.argv[1].split()\ntry: lepta.cli.main()\n"
    code += "except SystemExit as end: code = end.code\n"
    code += "heavy = {'torch', 'transformers'} & set(sys.modules); assert code == 2 and not heavy, (code, heavy)"
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, cwd=folder)
    assert not done.returncode, done.stderr
    return done.stderr
