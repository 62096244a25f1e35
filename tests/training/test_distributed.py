"""Two processes on CPUs (gloo) against one, through the command that people use."""

import json
import socket

import pytest
from commands import Command, lepta, python
from safetensors.torch import load_file

FSDP2 = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


@pytest.fixture(scope="module")
def place(tiny_model_folder, tiny_extended, tmp_path_factory):
    """A folder with a model whose vocabulary was extended."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "model").symlink_to(tiny_model_folder(rows=4300, tokenizer=tiny_extended))
    return folder


def command(output, *options):
    base = ["pretrain", "--model", "model", "--text", "starter:ru/train", "--tokens", "3000", "--output", output]
    base += ["--block", "48", "--batch", "4", "--learning-rate", "0.003"]
    return [*base, "--valid", "starter:ru/valid", "--measure-every", "6", "--keep", "best", *options]


def alone(place, output, *options):
    lepta(*command(output, *options), cwd=place, check=0)


def two(place, output, *options, environment=None):
    """Two processes, told of each other as torchrun does it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, **(environment or {})}
    runs = []
    for rank in ("0", "1"):
        runs.append(Command(command(output, *options), place, shared | {"RANK": rank, "LOCAL_RANK": rank}))
    for run in runs:
        assert run.wait(120) == 0, run.text("stderr")[-3000:]


def losses(folder):
    curve = json.loads((folder / "training_curve.json").read_text())["curve"]
    return [entry["loss"] for entry in curve if "loss" in entry]


@pytest.mark.parametrize("trains", ["embeddings", "embeddings+lora"])
def test_two_processes_train_as_one(place, trains):
    alone(place, f"one-{trains}", "--trains", trains)
    expected = load_file(place / f"one-{trains}" / "model.safetensors")
    for name, environment in (("ddp", {}), ("fsdp", FSDP2)):
        folder = place / f"{name}-{trains}"
        two(place, folder.name, "--trains", trains, environment=environment)
        assert losses(folder) == pytest.approx(losses(place / f"one-{trains}"), abs=1e-4)
        found = load_file(folder / "model.safetensors")
        assert all((found[key] - expected[key]).abs().max() < 1e-3 for key in expected)
        assert not list(place.glob(".*partial"))


def test_new_rows_train_apart_under_fsdp2(place, tiny_tokenizer):
    (place / "original").mkdir()
    tiny_tokenizer.save(place / "original")
    options = ("--trains", "new-rows", "--original", "original")
    alone(place, "one-rows", *options)
    two(place, "fsdp-rows", *options, environment=FSDP2)
    assert losses(place / "fsdp-rows") == pytest.approx(losses(place / "one-rows"), abs=1e-4)
    before, after = (load_file(place / name / "model.safetensors") for name in ("model", "fsdp-rows"))
    name = "model.embed_tokens.weight"
    assert (after[name][:4000] == before[name][:4000]).all()
    assert (after[name] != before[name]).any()


def test_a_teacher_is_whole_in_every_process(place, tiny_model_folder, tiny_tokenizer):
    options = ("--teacher", str(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)), "--tokens", "1500")
    alone(place, "one-taught", *options)
    two(place, "fsdp-taught", *options, environment=FSDP2)
    assert losses(place / "fsdp-taught") == pytest.approx(losses(place / "one-taught"), abs=1e-4)


def test_a_batch_that_cannot_be_shared_is_one_line(place):
    """Under torchrun itself, as people start it."""
    options = ["--standalone", "--nproc_per_node", "2", "-m", "lepta", *command("odd", "--batch", "3")]
    run = python("torch.distributed.run", *options, cwd=place)
    assert run.returncode
    assert "lepta: --batch: 3 examples per step cannot be shared by 2 processes equally" in run.stderr
    assert not (place / "odd").exists()
