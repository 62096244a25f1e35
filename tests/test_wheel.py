"""A wheel holds all that the commands need: it works in an empty folder, far from the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from lepta.version import __version__

ROOT = Path(__file__).parents[1]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "src", "recipes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that LEPTA_WHEEL names (`make dist`), else one that is built here."""
    if given := os.environ.get("LEPTA_WHEEL"):
        return Path(given).resolve()
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
        else:
            shutil.copy(ROOT / part, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("setuptools, which builds the wheel, cannot be fetched")
    assert not done.returncode, done.stderr
    (built,) = place.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run `lepta` from the wheel in an empty folder; gives that folder and a function that runs commands."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    with ZipFile(wheel) as archive:
        archive.extractall(site)

    def run(*command: str, module: str = "lepta") -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-m", module, *command], cwd=empty, env=environment, capture_output=True, text=True
        )

    return empty, run


def test_it_is_the_wheel_that_runs_and_it_knows_its_version(wheel, installed):
    _, run = installed
    assert run("--version").stdout == f"{__version__}\n"
    assert f"-{__version__}-" in wheel.name
    assert "site" in run("doctor", "--json").stdout.partition('"lepta"')[2].partition("\n")[0]


def test_every_file_of_the_package_is_in_it(wheel):
    package = ROOT / "src" / "lepta"
    files = {file.relative_to(package.parent).as_posix() for file in package.rglob("*") if file.is_file()}
    shipped = [file for file in (ROOT / "recipes").rglob("*.*") if file.is_file()]
    recipes = {f"lepta/data/{file.relative_to(ROOT).as_posix()}" for file in shipped}
    expected = {name for name in files | recipes if "__pycache__" not in name and not name.endswith(".pyc")}
    assert expected <= set(ZipFile(wheel).namelist())


def test_the_recipes_come_with_it(installed):
    empty, run = installed
    assert "mistral-7b/extended" in run("recipes", "list").stdout
    assert run("recipes", "copy", "smollm2/bpe", "mine.yaml").returncode == 0
    assert (empty / "mine.yaml").read_bytes() == (ROOT / "recipes/smollm2/bpe.yaml").read_bytes()
    assert run("recipes", "copy", "smollm2/bpe", "mine.yaml").returncode == 2  # it is there already
    planned = run("plan", "smollm2/bpe", "--gpu", "H100", "--json")
    assert planned.returncode == 0 and '"smollm2-bpe"' in planned.stdout


def test_a_recipe_that_is_not_there_is_told_with_the_command_that_gives_one(installed):
    _, run = installed
    for command, name in ((("adapt",), "demo"), (("plan",), "qwen3/0.6b"), (("corpus", "prepare"), "corpus_ru")):
        for path in (f"recipes/{name}.yaml", f"{name}.yaml"):
            done = run(*command, path)
            assert done.returncode == 2 and "lepta recipes list" in done.stderr
            called = {"corpus": "lepta corpus prepare"}.get(command[0], "lepta adapt")
            assert f"`{called} {name}`" in done.stderr
    done = run("adapt", "my.yaml")
    assert done.returncode == 2 and "lepta recipes copy demo" in done.stderr


def test_the_guide_to_the_recipes_comes_with_it(installed):
    _, run = installed
    printed = run("recipes", "guide").stdout
    assert "smollm2/two-stages.yaml | 1.36" in printed and "(docs/vocabulary.md)" in printed
    assert "](" not in printed
