"""`import lepta` is quick, and its names are what type checkers and editors see."""

import ast
import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import SMOLLM2

import lepta


def test_names_for_type_checkers_are_those_that_are_loaded():
    tree = ast.parse(Path(lepta.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    assert all(node.names[0].asname == node.names[0].name for node in tree.body)  # what makes it a re-export
    names = {node.names[0].name: node.module for node in tree.body}
    assert set(dir(lepta)) == names.keys() >= {"LeptaError", "__version__", "adapt", "build_vocabulary"}
    for name, module in names.items():
        assert getattr(lepta, name) is getattr(import_module(module), name)


def test_the_page_on_python_lists_every_function():
    page = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    functions = [name for name in lepta.__all__ if inspect.isfunction(getattr(lepta, name))]
    assert sorted(name for name, _ in rows) == sorted(functions)
    assert all(meaning.endswith(".") for _, meaning in rows)


def test_no_module_has_the_name_of_a_function():
    modules = {file.stem for file in Path(lepta.__file__).parent.iterdir()}
    assert modules.isdisjoint(lepta._HOME), "importing the module would replace the function"


def test_a_function_stays_one():
    from lepta import adapt as first
    from lepta import adapt as second

    assert callable(first) and first is second


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, lepta; assert not {'torch', 'numpy', 'pydantic', 'rich', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


USER = """
from pathlib import Path

import lepta

tokenizer = lepta.build_vocabulary("OWNER/NAME", ["corpus.txt"], "extended", add=8000)
vocabulary: lepta.Vocabulary = tokenizer.vocabulary()
density: float = lepta.measure(tokenizer, lepta.read_documents(["held-out.txt"])).summary()["characters_per_token"]
passed: list[bool] = [check.passed for check in lepta.check_vocabulary(tokenizer, "OWNER/NAME")]
with lepta.publishing("vocabulary") as folder:
    lepta.save_vocabulary(tokenizer, "OWNER/NAME", "extended", folder)
with lepta.publishing("initialised") as folder, lepta.opened("model.gguf") as checkpoint:
    rows: int = lepta.initialise(checkpoint, "vocabulary", folder)["new_rows"]
with lepta.publishing("distilled") as folder:
    lepta.distill_folder(
        "OWNER/NAME", "initialised", lambda: lepta.read_documents(["text"]), lepta.DistillSettings(tokens=99), 1, folder
    )
with lepta.publishing(Path("pretrained")) as folder:
    texts = [lepta.TrainingText(lambda: ["text"], 1.0)]
    settings = lepta.PretrainSettings(tokens=1_000_000, trains="embeddings")
    facts, curve = lepta.pretrain_folder("distilled", 49_152, texts, lepta.HeldOut(["text"]), settings, 1, folder)
with lepta.publishing("propagated") as folder:
    lepta.propagate("OWNER/NAME", "pretrained", [("OWNER/CHAT", folder)], "auto")
with lepta.publishing("patch") as folder:
    lepta.export_patch("OWNER/NAME", "pretrained", folder)
bits: float = lepta.measure_model("propagated", ["held-out.txt"], dtype="bfloat16").bits_per_byte
recipe: lepta.Recipe = lepta.read_recipe("demo")
output: Path = lepta.adapt(recipe)
"""
TEXT = ["Утром в деревне"]
LIBRARIES = ("torch", "transformers", "scipy", "numpy", "tokenizers", "peft", "accelerate", "datasets")


def test_a_file_that_uses_the_public_api_passes_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    # The libraries below are skipped: reading torch alone takes 2 GB, and the API's own types are asked here.
    skipped = ",".join(f"{name}.*,{name}" for name in LIBRARIES)
    config = f"[mypy]\nstrict = true\n[mypy-{skipped}]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(config, encoding="utf-8")
    source = Path(lepta.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    environment = os.environ | {"MYPYPATH": str(source)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    in_user = [line for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert not in_user, done.stdout
    (tmp_path / "user.py").write_text(USER + "reveal_type(lepta.propagate)\nlepta.measure(1, [])\n", encoding="utf-8")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert 'Revealed type is "def (base: lepta.models.folder.Checkpoint | str | pathlib.Path' in done.stdout
    assert 'error: Argument 1 to "measure" has incompatible type "int"' in done.stdout


def test_what_is_shown_in_a_shell_is_short(smollm2):
    for shown in (repr(smollm2), repr(smollm2.vocabulary())):
        assert len(shown) < 250 and "49,152" in shown


def test_a_tokenizer_is_taken_open_or_by_its_place(smollm2, monkeypatch):
    monkeypatch.setattr("lepta.vocabulary.merges.OCCURRENCES", 50_000)  # fewer words to merge
    from_place = lepta.measure(SMOLLM2, ["Утром в деревне"])
    assert (
        from_place
        == lepta.measure(smollm2, ["Утром в деревне"])
        == lepta.measure(smollm2.vocabulary(), ["Утром в деревне"])
    )
    assert from_place.characters == 15
    by_name, by_object = (lepta.build_vocabulary(one, ["starter:ru/valid"], add=5) for one in (SMOLLM2, smollm2))
    assert by_name.spec == by_object.spec
