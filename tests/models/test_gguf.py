"""Models in GGUF files become folders that compute the same."""

import gc
import json
import shutil
import subprocess
import sys
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from conftest import SMOLLM2
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.models.gguf import import_gguf
from lepta.plan.shapes import shape_of
from lepta.text.locate import locate
from lepta.vocabulary.gguf_reader import Reader
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcd", "ab", "▁a"]
KINDS = [3, 3, 3, 2, *[6] * 256, *[1] * 7]
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "unk_token_id": 3}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
    "max_position_embeddings": 128,
}
TEXT = torch.tensor([[2, *range(200, 232)]])


def rope(base=1_000_000.0, near=10_000.0, **scaling):
    everywhere = {"rope_type": "default", "rope_theta": base} | scaling
    return {"full_attention": everywhere, "sliding_attention": {"rope_type": "default", "rope_theta": near}}


def gemma3(**settings):
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(TOKENS), **(SIZES | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms as well, which start at zero
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def write_gguf(model, file, left_out=(), extra=(), extra_tensors=(), **fields):
    """Write a Gemma 3 as llama.cpp's converter does; fields by the names of `GGUFWriter`, None to leave one out."""
    config = model.config
    given = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "key_length": config.head_dim,
        "value_length": config.head_dim,
        "rope_freq_base": config.rope_parameters["full_attention"]["rope_theta"],
        "sliding_window": config.sliding_window,
        "tokenizer_model": "llama",
        "token_list": TOKENS,
        "token_scores": [-float(i) for i in range(len(TOKENS))],
        "token_types": KINDS,
        "add_space_prefix": False,
    }
    writer = gguf.GGUFWriter(file, "gemma3")
    for name, value in (given | IDS | fields).items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    for key, value in dict(extra).items():
        writer.add_float32(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        written = names.get_name(name, try_suffixes=(".weight",))
        if written not in left_out:
            writer.add_tensor(written, parameter.detach().numpy() + np.float32(name.endswith("norm.weight")))
    for name in extra_tensors:
        writer.add_tensor(name, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def imported(tmp_path):
    """Import a GGUF file: the loaded model, and its folder."""

    def run(file):
        folder = tmp_path / "folder"
        folder.mkdir()
        import_gguf(file, folder)
        return AutoModelForCausalLM.from_pretrained(folder).eval(), folder

    return run


CASES = {
    "as it is": ({}, {}),
    "near base": ({"rope_parameters": rope(near=500.0)}, {"rope_freq_base_swa": 500.0}),
    "far base": ({"rope_parameters": rope(base=3000.0)}, {}),
    "scaled": (
        {"rope_parameters": rope(rope_type="linear", factor=8.0)},
        {"rope_scaling_type": gguf.RopeScalingType.LINEAR, "rope_scaling_factor": 8.0},
    ),
    "every third": (
        {"layer_types": ["full_attention" if n % 3 == 2 else "sliding_attention" for n in range(7)]},
        {"sliding_window_pattern": 3},
    ),
    "listed": (
        {"layer_types": ["full_attention" if n < 2 else "sliding_attention" for n in range(7)]},
        {"sliding_window_pattern": [n >= 2 for n in range(7)]},
    ),
    "capped": ({"final_logit_softcapping": 3.0}, {"final_logit_softcapping": 3.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_gemma3_computes_what_it_did(case, tmp_path, imported):
    settings, fields = CASES[case]
    model = gemma3(**settings)
    result, _ = imported(write_gguf(model, tmp_path / "t.gguf", **fields))
    with torch.no_grad():
        torch.testing.assert_close(result(TEXT).logits, model(TEXT).logits)
    for name in ("layer_types", "rope_parameters", "sliding_window", "query_pre_attn_scalar", "tie_word_embeddings"):
        assert getattr(result.config, name) == getattr(model.config, name), name


def test_a_file_is_opened_as_a_folder_that_is_gone_with_it(tmp_path):
    checkpoint = Checkpoint(write_gguf(gemma3(), tmp_path / "t.gguf"))
    folder = checkpoint.folder
    assert (folder / "config.json").is_file() and checkpoint.tied
    del checkpoint
    gc.collect()
    assert not folder.exists()


def test_what_is_said_of_a_file_is_of_the_folder_that_it_becomes(tmp_path):
    file = write_gguf(gemma3(), tmp_path / "t.gguf")
    shown = CliRunner().invoke(app, ["check", str(file), "--consumer", "peft"], catch_exceptions=False).stdout
    assert "A GGUF file: judged is the folder that lepta export folder makes of it." in shown


def test_weights_are_written_in_the_dtype_that_is_asked_for(tmp_path):
    file = write_gguf(gemma3(), tmp_path / "t.gguf")
    kept = {}
    for dtype in ("float32", "bfloat16", "float16"):
        (tmp_path / dtype).mkdir()
        import_gguf(file, tmp_path / dtype, dtype)
        kept[dtype] = load_file(tmp_path / dtype / "model.safetensors")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype="auto").dtype == getattr(torch, dtype)
    for dtype in ("bfloat16", "float16"):
        for name, tensor in kept["float32"].items():
            assert torch.equal(kept[dtype][name], tensor.to(getattr(torch, dtype)))


def test_weights_are_never_in_memory_together(tmp_path):
    model = gemma3(num_hidden_layers=14, hidden_size=128, intermediate_size=512)
    size = sum(parameter.nbytes for parameter in model.parameters())
    (tmp_path / "folder").mkdir()
    file = write_gguf(model, tmp_path / "t.gguf")
    import_gguf(file, tmp_path / "folder")  # what is imported and cached is so once
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    tracemalloc.start()  # NumPy's arrays are seen, and those of torch that are made of them
    import_gguf(file, tmp_path / "folder")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2, (peak, size)


PEAK = """
import resource, sys, tempfile
from pathlib import Path
from lepta.embeddings.initialise import initialise
from lepta.models.load import opened
from lepta.vocabulary.source import open_tokenizer

for file in sys.argv[1:]:  # the first, a small one, has what is imported and cached
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with opened(file, dtype="float16") as checkpoint, tempfile.TemporaryDirectory() as folder:
        initialise(checkpoint, open_tokenizer(file), Path(folder))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_of_init_is_less_than_the_weights_in_float16_and_half_again(tmp_path):
    """Of the whole process, so mapped pages count, and what libraries in C and Rust hold."""
    model = gemma3(num_hidden_layers=4, hidden_size=1024, intermediate_size=4096)
    files = [write_gguf(gemma3(), tmp_path / "small.gguf"), write_gguf(model, tmp_path / "large.gguf")]
    done = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True, check=True)
    in_float16 = sum(parameter.numel() * 2 for parameter in model.parameters())
    assert int(done.stdout) < 1.5 * in_float16, (int(done.stdout), in_float16)


def test_attention_of_the_27b_is_scaled_by_its_width(tmp_path, imported, monkeypatch):
    """No field says so: llama.cpp too knows it by its number of layers."""
    monkeypatch.setattr("lepta.models.gguf.GEMMA3_27B_LAYERS", SIZES["num_hidden_layers"])
    model = gemma3(query_pre_attn_scalar=SIZES["hidden_size"] // SIZES["num_attention_heads"])
    result, _ = imported(write_gguf(model, tmp_path / "t.gguf"))
    with torch.no_grad():
        torch.testing.assert_close(result(TEXT).logits, model(TEXT).logits)


def test_every_setting_above_changes_what_the_model_computes():
    """Else the test above would not see one that is lost."""
    with torch.no_grad():
        logits = [gemma3(**settings)(TEXT).logits for settings, _ in CASES.values()]
    assert all((other - logits[0]).abs().max() > 0.01 for other in logits[1:])


def test_folder_has_tokenizer_and_card_and_the_plan_knows_its_shape(tmp_path, imported):
    file = write_gguf(gemma3(), tmp_path / "t.gguf", name="Tiny", license="gemma")
    model, folder = imported(file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab a1")["input_ids"]) == ["<bos>", "ab", "▁a", "<0x31>"]
    assert "license: gemma" in (folder / "README.md").read_text()
    assert [model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id] == [2, 1, 0]
    plan, exact = shape_of(str(file)), shape_of(str(folder))
    assert (plan.body, plan.linear, plan.tied, plan.rows) == (exact.body, exact.linear, exact.tied, exact.rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra": {"gemma3.attention.warmth": 2.0}}, r"gemma3\.attention\.warmth is not known here; give"),
        ({"sliding_window": None}, r"no gemma3\.attention\.sliding_window; convert"),
        ({"rope_freq_base": None}, r"no gemma3\.rope\.freq_base; convert"),
        ({"value_length": 8}, "keys, values and rotations of different lengths"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, r"gemma3\.rope\.scaling\.type is 'yarn'; expected 'linear'"),
        ({"left_out": ["blk.3.ffn_up.weight"]}, r"no weights for model\.layers\.3\.mlp\.up_proj\.weight; expected"),
        ({"extra_tensors": ["rope_freqs.weight"]}, "94 tensors, expected 93; not a Gemma 3 of text alone"),
        ({"tokenizer_model": "bert"}, r"tokenizer\.ggml\.model is 'bert', known are"),
    ],
)
def test_what_would_become_another_model_raises(changes, words, tmp_path, imported):
    file = write_gguf(gemma3(), tmp_path / "t.gguf", **changes)
    with pytest.raises(LeptaError, match=rf"t\.gguf: {words}"):
        imported(file)


def test_headers_are_read_as_gguf_reads_them_and_within_limits(tmp_path):
    file = locate(SMOLLM2, [])
    here, there = Reader(file), GGUFReader(file)
    assert here.fields.keys() == there.fields.keys() and here.data_offset == there.data_offset
    for name, field in there.fields.items():
        assert here.fields[name].contents() == field.contents() and here.fields[name].types == field.types
    content = bytearray(file.read_bytes()[: here.data_offset])
    place = here.fields["tokenizer.ggml.tokens"].offset + 8 + len("tokenizer.ggml.tokens") + 8
    for number in (2**62, 2**31, len(here.fields["tokenizer.ggml.tokens"].data) + 1):
        content[place : place + 8] = number.to_bytes(8, "little")
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(LeptaError, match=r"damaged.gguf: not a whole GGUF file"):
            read_gguf_fields(tmp_path / "damaged.gguf")


def test_a_file_is_written_as_a_folder_once(smollm2_folder, tmp_path):
    made = CliRunner().invoke(app, ["export", "folder", SMOLLM2, "--output", str(tmp_path / "model")])
    assert made.exit_code == 0, made.output
    for file in (file for file in smollm2_folder.iterdir() if file.name != "manifest.json"):
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["facts"]["source"] == SMOLLM2
    again = CliRunner().invoke(app, ["export", "folder", str(tmp_path / "model"), "--output", str(tmp_path / "other")])
    assert isinstance(again.exception, LeptaError) and "is a folder already" in str(again.exception)
