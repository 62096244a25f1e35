"""The recipes of the project: each reads, has a plan without a network, and costs what recipes/README.md says."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.core.shipped import summary_of
from lepta.pipeline import pipeline_of
from lepta.plan.plan import make_plan
from lepta.plan.shapes import shape_of
from lepta.plan.training import fit
from lepta.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[1] / "recipes"
FILES = sorted(path for path in ROOT.rglob("*.yaml") if not path.name.startswith("corpus"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
TEKKEN = "package:mistral_common/data/tekken_240911.json"
TODAY = ("qwen3", "qwen3.5", "gemma-3", "llama-3.1-8b", "mistral-tekken", "smollm3")
PAPER = ("mistral-7b/", "llama-3-8b/")
# Rows and columns of the embeddings that the paper's sizes give.
TRAINED = {
    "mistral-7b/bpe.yaml": 2 * 32_000 * 4096,
    "mistral-7b/unigram.yaml": 2 * 32_000 * 4096,
    "mistral-7b/extended.yaml": 2 * 55_328 * 4096,
    "llama-3-8b/bpe.yaml": 2 * 128_000 * 4096,
    "llama-3-8b/unigram.yaml": 2 * 128_000 * 4096,
    "llama-3-8b/extended.yaml": 2 * 174_816 * 4096,
    "llama-3-8b/optimized.yaml": 2 * 114_504 * 4096,
    "smollm2/extended.yaml": 57_152 * 576,
    "smollm2/bpe.yaml": 32_000 * 576,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def plan_of(name, number=8):
    return make_plan(read_recipe(ROOT / name), ["H100"], number, measure=False)


def line(name):
    """The row of recipes/README.md."""
    facts = plan_of(name, 8 if name.startswith(PAPER) else 1)
    (row,) = facts["devices"]
    time = f"{row['hours']:.0f} h" if row["hours"] > 1 else f"{row['hours'] * 60:.0f} min"
    trained = max(stage["weights"]["trained"] for stage in facts["stages"])
    target = facts["vocabulary"]["target"]
    density = saved = "not measured"
    if target["original_characters_per_token"]:
        density = f"{target['original_characters_per_token']:.2f} -> {target['new_characters_per_token']:.2f}"
        saved = f"{target['inference_flops_ratio']:.2f}"
    return (
        f"| [{name}]({name}) | {density} | {saved} | {trained / 1e6:,.0f} M | "
        f"{facts['total']['tokens'] / 1e9:.2f} G | {row['number']} x H100: {time} | {row['needs_gib']:.0f} GiB | "
        f"{facts['disk']['total'] / 1e9:.0f} GB |"
    )


def test_there_is_a_recipe_for_every_row_of_the_paper():
    assert set(TRAINED) <= set(NAMES)
    apart = [read_recipe(path) for path in FILES if not path.stem.endswith("-calibrated")]
    assert len({recipe.name for recipe in apart}) == len({recipe.output for recipe in apart}) == len(apart)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-calibrated.yaml")])
def test_calibrated_recipes_are_another_recipe_and_the_papers_settings(name):
    recipe, before = read_recipe(ROOT / name), read_recipe(ROOT / name.replace("-calibrated", ""))
    assert recipe.model_copy(update={"calibrate": None}) == before
    chosen = recipe.calibrate.tune
    assert (chosen.lora.rank, chosen.lora.alpha, chosen.lora.layers) == (8, 1, [0, -1])
    assert (chosen.trains, chosen.learning_rate, chosen.batch, chosen.epochs) == ("embeddings+lora", 2.5e-5, 64, 1)
    assert recipe.calibrate.copies.number == 10_000 and recipe.calibrate.judge.keep == 4


def test_instruction_tuning_names_options_that_exist():
    script = ROOT / "instruction-tuning.sh"
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    shown = subprocess.run(
        [sys.executable, "-m", "lepta", "tune", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    options = re.findall(r"--[a-z][a-z-]+", script.read_text(encoding="utf-8"))
    assert len(options) > 8 and all(option in shown for option in options)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_has_a_plan_and_fits_its_gpus(name):
    facts = plan_of(name)
    if read_recipe(ROOT / name).pretrain:
        assert facts["total"]["flops"] > 0
    else:
        assert any("distill" in note for note in facts["notes"]), "what the plan does not count is said"
    assert facts["disk"]["total"] > 0
    assert all(row["fits"] for row in facts["devices"])
    if name in TRAINED:
        assert facts["stages"][0]["weights"]["trained"] == TRAINED[name]
    if name.startswith(PAPER):
        assert 24 < facts["devices"][0]["hours"] < 48
        assert facts["stages"][0]["tokens_per_step"] == 256 * 1024
        # one epoch of 96 GB at 1.8 bytes a character
        assert facts["text"]["target"]["trained_characters"] == pytest.approx(96e9 / 1.8, rel=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(PAPER)])
def test_paper_settings(name):
    recipe = read_recipe(ROOT / name)
    (stage,) = recipe.pretrain
    assert (stage.trains, stage.batch, stage.block, stage.warmup_steps) == ("embeddings", 256, 1024, 100)
    assert (stage.weight_decay, stage.adam_epsilon) == (0.1, 1e-5)
    assert stage.learning_rate == [1e-4 if name.startswith("mistral") else 2e-4]
    assert recipe.propagate.method == "conversion"


@pytest.mark.parametrize("name", [name for name in NAMES if name.split("/")[0] in TODAY])
def test_recipes_for_models_of_today_are_commented_and_thinking_is_a_choice(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    head, *rest = text.splitlines()
    assert head.startswith("# ") and f"lepta plan {name.removesuffix('.yaml')} " in text.replace("\n", " ")
    assert sum("#" in line for line in rest) >= 6
    recipe = read_recipe(ROOT / name)
    assert recipe.distill and recipe.variants and recipe.vocabulary.scenario == "extended"
    assert shape_of(recipe.base).tied == ("untie" in text)
    if "thinks" in head + rest[5] or "thinking" in head:
        assert "thinking: true" in text  # how to turn it on
    kept, other = text.split("  # scenario: replaced")  # the other way to have new tokens
    other = other.replace("  # keep_text", "  keep_text")
    replaced = Recipe.model_validate(yaml.safe_load(f"{kept.rpartition('  scenario')[0]}  scenario: replaced{other}"))
    assert replaced.vocabulary.scenario == "replaced" and replaced.vocabulary.keep_text


def test_recipes_for_models_of_today_are_for_four_languages():
    recipes = [read_recipe(ROOT / name) for name in NAMES if name.split("/")[0] in TODAY]
    assert {recipe.text.target.language for recipe in recipes} == {"ru", "kk", "uk", "el"}


@pytest.mark.parametrize("name", [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.rglob("*.yaml"))])
def test_comments_name_commands_and_no_files_of_a_clone(name):
    comments = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "#" in line]
    assert not [line for line in comments if re.search(r"\b(?:docs|recipes)/|\.md\b", line)]


def test_the_printed_guide_has_no_links_to_pages_of_a_clone():
    shown = CliRunner().invoke(app, ["recipes", "guide"]).output
    assert "](" not in shown and "(docs/vocabulary.md)" in shown and "| smollm2/bpe.yaml | 1.36 -> 4.35 |" in shown


def test_the_corpus_file_says_what_it_reads():
    assert "reads the starter corpus" in summary_of(ROOT / "corpus_ru.yaml")


def test_two_stages_follow_one_another():
    first, second = read_recipe(ROOT / "smollm2/two-stages.yaml").pretrain
    assert (first.trains, first.schedule, first.learning_rate) == ("embeddings+lora", "wsd", [5e-4])
    assert second.learning_rate == [5e-5] and second.lora.rank > first.lora.rank


def test_two_stages_can_be_run(tiny_model_folder, tiny_tokenizer, tmp_path):
    """With a model that is here, and a teacher."""
    values = yaml.safe_load((ROOT / "smollm2/two-stages.yaml").read_text(encoding="utf-8"))
    base = str(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer))
    values |= {"base": base, "variants": {"chat": {"model": base}}, "output": str(tmp_path / "out")}
    values["text"]["target"]["train"], values["text"]["source"]["train"] = ["starter:ru/train"], ["starter:en/train"]
    values["vocabulary"]["corpus"] = ["starter:ru/train"]
    values["pretrain"][1]["teacher"] = base
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    names = [stage.name for stage in pipeline_of(read_recipe(file)).stages]
    assert names.index("pretrained-1") < names.index("pretrained") and not (tmp_path / "out").exists()
    stages = make_plan(read_recipe(file), ["H100"], 1, measure=False)["stages"]
    assert stages[1]["flops_per_token"]["teacher"] > 0 and stages[0]["flops_per_token"]["teacher"] == 0
    values["pretrain"][1]["teacher"] = TEKKEN
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(LeptaError, match=f"^pretrain.teacher: {TEKKEN}: id "):
        pipeline_of(read_recipe(file))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo.yaml" and "-calibrated" not in name])
def test_readme_says_what_the_plan_says(name):
    assert line(name) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_launchers_are_valid_and_name_options_that_exist():
    from accelerate.commands.launch import launch_command_parser

    known = set(launch_command_parser()._option_string_actions)
    known |= {"--standalone", "--nproc_per_node"}  # of torchrun
    for script in sorted((ROOT / "launch").iterdir()):
        text = script.read_text(encoding="utf-8")
        if shell := shutil.which("bash"):
            subprocess.run([shell, "-n", str(script)], check=True)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        options = {word for line in lines for word in line.split() if word.startswith("--")}
        assert options <= known, script.name


def test_a_launcher_does_not_start_more_processes_than_there_are_gpus():
    done = subprocess.run(
        ["sh", ROOT / "launch" / "eight-gpus.sh", "nope.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "GPUS": "64", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 2 and "GPUs here, expected 64" in done.stderr


def test_sharding_brings_llama_to_cards_of_24_gb():
    recipe = read_recipe(ROOT / "llama-3-8b/extended.yaml")
    found = fit(shape_of(recipe.base), recipe.pretrain[0], 128256, 24.0, 8)
    assert found.change["sharding"] == "FSDP2" and found.needs_then <= 24
