"""`lepta pretrain`: a run that goes on, and one that may not."""

import json

import commands
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lepta.cli import app
from lepta.cli.words import percent
from lepta.core.errors import LeptaError
from lepta.evaluation.measure import measure_model
from lepta.vocabulary.source import open_tokenizer


@pytest.fixture(scope="module")
def place(tiny_model_folder, tiny_extended, tiny_tokenizer, tmp_path_factory):
    """A folder with a model whose vocabulary was extended, and its tokenizer before that."""
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "model").symlink_to(tiny_model_folder(rows=4300, tokenizer=tiny_extended))
    (folder / "original").mkdir()
    tiny_tokenizer.save(folder / "original")
    return folder


def arguments(output, *more):
    base = ["--model", "model", "--original", "original", "--text", "starter:ru/train", "--tokens", "3000"]
    return ["pretrain", *base, "--block", "48", "--batch", "2", "--save-every", "10", "--output", output, *more]


def run(place, output, *more, check=0):
    return commands.lepta(*arguments(output, *more), cwd=place, check=check)


def killed(place, output, *more):
    """Start a run and kill it once it has a checkpoint."""
    checkpoints = place / f".{output}.partial" / "checkpoints"
    commands.killed(
        *arguments(output, *more),
        cwd=place,
        when=lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")),
    )
    return checkpoints


def test_a_killed_run_goes_on_and_ends_in_the_same_files(place):
    run(place, "whole", "--trains", "new-rows")
    killed(place, "killed", "--trains", "new-rows")
    run(place, "killed", "--trains", "new-rows")
    for name in ("model.safetensors", "training_curve.json"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert not list(place.glob(".*"))


def test_a_run_goes_on_with_less_memory(place):
    """After running out of memory, with another `micro_batch`: the same but for rounding."""
    run(place, "unbroken", "--trains", "new-rows")
    killed(place, "smaller", "--trains", "new-rows")
    more = ["--micro-batch", "1", "--gradient-checkpointing", "--save-every", "7"]
    shown = run(place, "smaller", "--trains", "new-rows", *more)
    assert "goes on from checkpoint-" in shown.stderr
    key = json.loads((place / "smaller" / "manifest.json").read_text())["key"]
    assert key["settings"]["micro_batch"] == 1
    one, two = (load_file(place / name / "model.safetensors") for name in ("unbroken", "smaller"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=1e-4)


def test_checkpoints_of_other_settings_are_refused_and_kept(place):
    checkpoints = killed(place, "other")
    error = run(place, "other", "--learning-rate", "0.5", check=2).stderr
    assert "holds checkpoints of an interrupted run with other settings (learning_rate changed)" in error
    assert list(checkpoints.glob("checkpoint-*"))
    run(place, "other", "--learning-rate", "0.5", "--tokens", "400", "--force")
    assert not checkpoints.exists()


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_result_stands_beside_the_original_where_that_is_a_model(with_weights, place, tiny_model_folder, tmp_path):
    """A tokenizer alone tells which rows are new, and cannot be measured."""
    original = place / "original"
    if with_weights:
        original = tiny_model_folder(rows=4000, tokenizer=open_tokenizer(original))
    measured = ["--valid", "starter:ru/valid", "--measure-characters", "2000"]
    shown = run(place, tmp_path / "out", "--original", original, *measured).stdout
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]
    assert ("held-out text, beside the original: " in shown) == ("beside_original" in facts) == with_weights
    if with_weights:
        bits = measure_model(original, ["starter:ru/valid"], characters=2000).bits_per_byte
        assert facts["beside_original"] == [facts["held_out_change"][1], pytest.approx(bits)]


def test_rates_are_swept_on_a_part_of_the_text(place):
    rates = ["--learning-rate", "1e-6", "--learning-rate", "1e-2"]
    shown = run(place, "swept", *rates, "--valid", "starter:ru/valid", "--tokens", "2000").stdout
    facts = json.loads((place / "swept" / "manifest.json").read_text())["facts"]
    assert f"text used: {facts['passes'][0]:.2g} passes of the target text" in shown
    assert f"blocks filled: {percent(facts['full'])}\n" in shown
    assert "learning rates tried: 1e-06: " in shown and "held-out text: step 0 (0 tokens), target " in shown
    assert "passes:" not in shown and "full:" not in shown
    assert facts["learning_rate"] == 1e-2
    assert facts["sweep"]["0.01"] < facts["sweep"]["1e-06"]
    assert facts["full"] > 0.8


def test_a_dry_run_tells_steps_tokens_and_time(place):
    shown = run(place, "planned", "--dry-run").stdout
    told = json.loads(run(place, "planned", "--dry-run", "--json").stdout)["cost"]
    assert told["steps"] == 32 and told["tokens"] == 3000 and told["minutes"] >= 0  # 63 blocks of 48, two at a time
    assert "steps: about 32" in shown and "tokens: about 3,000" in shown and "time: about " in shown
    assert "speed now, by one matrix product: " in shown
    assert not list(place.glob("*planned*"))


def test_a_run_that_made_it_worse_says_so_first(place):
    options = ["--learning-rate", "1.0", "--tokens", "600", "--valid", "starter:ru/valid"]
    first = " ".join(run(place, "worse", *options).stdout.split("output:")[0].split())
    assert first.startswith("warning: training made held-out text worse (")
    assert first.endswith("bits per byte); the weights before training are kept")
    facts = json.loads((place / "worse" / "manifest.json").read_text())["facts"]
    assert facts["kept_step"] == 0 and first == f"warning: {facts['warnings'][0]}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trains", "newrows"], "pretrain: --trains: Input should be 'new-rows'"),
        (["--batch", "0"], "pretrain: --batch: Input should be greater than or equal to 1"),
        (["--text", "absent.txt"], "absent.txt: no such file or folder"),
        (["--micro-batch", "3"], "--micro-batch: 3 does not divide the 2 examples"),
        (["--original", "model", "--trains", "new-rows"], "4,300 of 4,300 rows are old"),
        (["--report-to", "nothing"], "nothing"),
        (["--keep", "best"], "keep: best need held-out text of the target language"),
        (["--learning-rate", "0.1", "--learning-rate", "0.2"], "several learning rates need held-out text"),
        (
            ["--keep", "best", "--valid", "starter:ru/valid", "--forget-limit", "0.1"],
            "--forget-limit: needs held-out text of the source language",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, options, says):
    error = run(place, "bad", *options, check=2).stderr
    assert says in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (place / "bad").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--source-share", "0.1"], "--source-share 0.1: needs --source-text"),
        (["--trains", "new-rows"], "--trains new-rows: needs --original"),
        (["--old-rows-learning-rate", "0.1"], "--old-rows-learning-rate: needs --original"),
    ],
)
def test_options_that_need_another_name_it(options, says):
    needed = ["--model", "absent", "--text", "absent.txt", "--tokens", "1", "--output", "absent"]
    error = CliRunner().invoke(app, ["pretrain", *needed, *options]).exception
    assert isinstance(error, LeptaError) and str(error).startswith(says)


def test_a_full_disk_is_said_in_one_line(place):
    """The largest file that a process may write stands for the disk."""
    weights = (place / "model" / "model.safetensors").stat().st_size
    done = commands.lepta(*arguments("full"), cwd=place, largest_file=weights // 10, check=2)
    assert "Traceback" not in done.stderr and "free space" in done.stderr.splitlines()[-1]
    assert not (place / "full").exists()
