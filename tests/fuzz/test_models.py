"""Model folders and patches, damaged: refused in one line, or good for what commands do with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.conftest import write
from fuzz.mutations import accepted, changed, damaged
from hypothesis import given
from hypothesis import strategies as st

from lepta.deployment.check import check_model
from lepta.embeddings.initialise import initialise
from lepta.embeddings.patch import apply_patch, export_patch
from lepta.models.folder import Checkpoint
from lepta.models.load import check_whole, load_model
from lepta.plan.shapes import shape_of
from lepta.vocabulary.source import open_tokenizer


def use(folder: Path) -> None:
    """What commands do with a model: plan, load, read text, give it another vocabulary."""
    shape_of(str(folder))
    checkpoint = Checkpoint(folder)
    checkpoint.check_replaceable()
    check_whole(checkpoint)
    model = load_model(folder, torch.float32)
    with torch.no_grad():
        model(torch.tensor([[264, 5, 7]]))
    written = folder.parent / "written"
    written.mkdir()
    initialise(checkpoint, open_tokenizer(folder), written)
    check_model(checkpoint, ["transformers-5", "transformers-4", "vllm"], None)


def copied(folder: Path, factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(folder, factory.mktemp("m") / "folder")


@given(name=st.sampled_from(["config.json", "generation_config.json", "model.safetensors.index.json"]), data=st.data())
def test_json_of_a_model(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = copied(model_folder, tmp_path_factory)
    write(folder / name, data.draw(changed(json.loads((folder / name).read_text()))))
    accepted(lambda: use(folder), "folder")


@given(data=st.data())
def test_bytes_of_weights(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = copied(model_folder, tmp_path_factory)
    file = data.draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    accepted(lambda: use(folder), "folder")


@given(data=st.data())
def test_header_of_weights(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = copied(model_folder, tmp_path_factory)
    file = data.draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(data.draw(changed(json.loads(content[8:end])))).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    accepted(lambda: use(folder), "folder")


@pytest.fixture(scope="session")
def patch(model_folder: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch that gives the model ten tokens more."""
    spec = json.loads(json.dumps(tokenizer.spec))
    for number in range(10):
        spec["added_tokens"].append({**spec["added_tokens"][0], "id": 266 + number, "content": f"<new{number}>"})
    more = tmp_path_factory.mktemp("adapted")
    place = tmp_path_factory.mktemp("patch")
    initialise(Checkpoint(model_folder), type(tokenizer)(spec, tokenizer.config, tokenizer.chat_template), more)
    export_patch(model_folder, more, place)
    return place


@given(name=st.sampled_from(["patch.json", "config.json", "tokenizer.json"]), data=st.data())
def test_json_of_a_patch(
    model_folder: Path, patch: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = copied(patch, tmp_path_factory)
    write(folder / name, data.draw(changed(json.loads((folder / name).read_text()))))
    out = folder.parent / "out"
    out.mkdir()
    accepted(lambda: apply_patch(folder, model_folder, out), "folder")
