"""Models and tokenizers of folders, and what is said of those that cannot be loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MistralConfig

from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.models.load import load_model, load_tokenizer
from lepta.plan.shapes import shape_of
from lepta.vocabulary.source import open_tokenizer


def with_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def without_tensor(folder, name):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [("llama", "num_hidden_layers", 10**6), ("gpt2", "n_layer", 10**6), ("gptj", "n_layer", 10**7)],
)
def test_a_number_of_layers_that_no_model_has_is_refused_under_any_name(kind, name, number, tmp_path):
    """Each layer would be built, if only on the meta device."""
    config = AutoConfig.for_model(kind, **{name: 2}).to_dict() | {name: number}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LeptaError, match=rf"{name}"):
        shape_of(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda folder: with_config(folder, num_hidden_layers=3), r"model\.layers\.2\.\S+, .* and 6 more"),
        (lambda folder: without_tensor(folder, "model.norm.weight"), r"model\.norm\.weight"),
        (lambda folder: without_tensor(folder, "lm_head.weight"), r"lm_head\.weight"),
    ],
)
def test_tensors_that_a_checkpoint_lacks_are_not_drawn_at_random(
    damage, names, tiny_model_folder, tiny_tokenizer, tmp_path
):
    folder = shutil.copytree(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer), tmp_path / "model")
    load_model(folder, torch.float32)
    damage(folder)
    with pytest.raises(LeptaError, match=rf"^{folder}: no weights for {names}; expected all tensors"):
        load_model(folder, torch.float32)


def spoil(folder, value=float("nan")):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: with_config(folder, hidden_size=33), "transformers cannot load this model .*33"),
        (lambda folder: with_config(folder, hidden_size=40), r"\S+ is \(.*32.*\), expected \(.*40.*\) by its config"),
        (lambda folder: with_config(folder, vocab_size=4001), r"\(4000, 32\), expected \(4001, 32\) by its config"),
        (lambda folder: with_config(folder, num_hidden_layers=3), r"no weights for model\.layers\.2\."),
        (spoil, r"model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"),
        (lambda folder: spoil(folder, float("-inf")), "has NaN or infinite values"),
    ],
)
def test_tensors_that_contradict_the_config_or_are_not_finite_are_refused_before_any_work(
    damage, says, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    folder = shutil.copytree(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer), tmp_path / "model")
    (tmp_path / "output").mkdir()
    initialise(Checkpoint(folder), tiny_extended, tmp_path / "output")
    damage(folder)
    for attempt in (
        lambda: initialise(Checkpoint(folder), tiny_extended, tmp_path / "output"),
        lambda: load_model(folder, torch.float32),
    ):
        with pytest.raises(LeptaError, match=f"^{folder}.*{says}"):
            attempt()


def test_a_model_without_head_and_flag_is_told_what_to_write(tiny_model_folder, tiny_tokenizer, tmp_path):
    folder = shutil.copytree(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer), tmp_path / "model")
    without_tensor(folder, "lm_head.weight")
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LeptaError, match=r'no weights for lm_head\.weight; .* write "tie_word_embeddings": true there'):
        initialise(Checkpoint(folder), tiny_tokenizer, tmp_path)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    load_model(folder, torch.float32)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_models_that_were_quantised_name_the_package_that_they_need(
    method, tiny_model_folder, tiny_tokenizer, tmp_path
):
    folder = shutil.copytree(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer), tmp_path / "model")
    with_config(folder, quantization_config={"quant_method": method, "bits": 4, "group_size": 32, "zero_point": True})
    with pytest.raises(LeptaError, match=f"^{folder}: transformers needs another package .*before it was quantised"):
        load_model(folder, torch.float32)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="transformers keeps float8 weights in memory on GPUs that have it"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_in_float8_is_loaded_in_the_precision_that_is_asked(dtype, tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder(), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    model = load_model(folder, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


TEXTS = ["Hello world, it's 2024!", "Привет, мир.\n  def f(x):\n\treturn 1", " leading", "日本語"]


def test_tokenizers_of_mistral_need_no_further_package(tmp_path):
    """Transformers imports mistral_common for them, which here is installed for its files only."""
    source = open_tokenizer("package:mistral_common/data/tokenizer.model.v1")
    source.save(tmp_path)
    MistralConfig().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == source.vocabulary().encode(TEXTS)
    assert tokenizer.eos_token == "</s>"


def break_config(folder):
    (folder / "tokenizer_config.json").write_text("{")


def remove_all(folder):
    for file in folder.iterdir():
        file.unlink()


def name_a_class(folder):
    remove_all(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))


def break_tokens(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b"]]}}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_config, r"tokenizer_config\.json.*JSON"),
        (remove_all, r": no tokenizer\.json, \.model or tekken\.json in it"),
        (name_a_class, r": no tokenizer\.json, \.model or tekken\.json in it"),
        (break_tokens, r"tokenizer\.json: model\.merges\.0.*valid string"),
    ],
)
def test_tokenizers_that_cannot_be_loaded_are_named(damage, says, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(LeptaError, match=f"{tmp_path}.*{says}"):
        load_tokenizer(tmp_path)


def test_a_package_that_is_missing_is_named(tiny_tokenizer, tmp_path, monkeypatch):
    def missing(*arguments, **named):
        raise ImportError("tokens need sentencepiece")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", missing)
    with pytest.raises(LeptaError, match=r"needs another package .*sentencepiece.*install it, or give a folder with"):
        load_tokenizer(tmp_path)
