"""Tokenizers of every format, damaged: refused in one line, or good for text."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzz.conftest import byte_level_spec, write
from fuzz.mutations import HOSTILE, accepted, changed, damaged
from hypothesis import given
from hypothesis import strategies as st

from lepta.embeddings.transfer import transfer_matrix
from lepta.vocabulary.source import open_tokenizer

TEXT = ["Привет, the thing <s> 12345", "über 日本 👨‍👩‍👧\n\n  x"]


def use(place: Path) -> None:
    """What commands do with a tokenizer: read text, map it to another vocabulary, write it."""
    source = open_tokenizer(place)
    vocabulary = source.vocabulary()
    assert all(0 <= i < vocabulary.size for ids in vocabulary.encode(TEXT) for i in ids)
    assert vocabulary.tokenizer.get_vocab_size() <= vocabulary.size
    vocabulary.split([text.encode() for text in TEXT])
    transfer_matrix(vocabulary, vocabulary, vocabulary.size, vocabulary.size)
    written = place.parent / "written"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    source.save(written)


@given(spec=changed(byte_level_spec()))
def test_tokenizer_json(tmp_path_factory: pytest.TempPathFactory, spec: Any) -> None:
    file = write(tmp_path_factory.mktemp("t") / "tokenizer.json", spec)
    accepted(lambda: use(file), "tokenizer.json")


@given(data=damaged(json.dumps(byte_level_spec()).encode()))
def test_bytes_of_tokenizer_json(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("t") / "tokenizer.json"
    file.write_bytes(data)
    accepted(lambda: use(file), "tokenizer.json")


CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": {"content": "<s>", "special": True},
    "eos_token": "</s>",
    "added_tokens_decoder": {"264": {"content": "<s>", "special": True}, "265": {"content": "</s>"}},
    "additional_special_tokens": ["<s>"],
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    "add_bos_token": True,
}


@given(name=st.sampled_from(["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]), data=st.data())
def test_files_beside_a_tokenizer(
    tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("t") / "folder"
    folder.mkdir()
    tokenizer.save(folder)
    start = {
        "tokenizer_config.json": CONFIG,
        "special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"},
        "added_tokens.json": {"<s>": 264, "<new>": 266},
    }[name]
    write(folder / name, data.draw(changed(start)))
    accepted(lambda: use(folder), "folder")


def tekken() -> dict[str, Any]:
    """A Tekken file of 300 tokens."""
    rows = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    rows += [{"rank": 256, "token_bytes": base64.b64encode(b"th").decode(), "token_str": "th"}]
    special = [{"rank": i, "token_str": token} for i, token in enumerate(["<unk>", "<s>", "</s>"])]
    config = {"pattern": r"\p{L}+|\s+|[^\s]", "default_vocab_size": 260, "default_num_special_tokens": 3}
    return {"config": config, "vocab": rows, "special_tokens": special}


@given(content=changed(tekken()))
def test_tekken(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    file = write(tmp_path_factory.mktemp("t") / "tekken.json", content)
    accepted(lambda: use(file), "tekken.json")


@given(data=damaged(b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))))
def test_tiktoken(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("t") / "small.tiktoken"
    file.write_bytes(data)
    assert not accepted(lambda: use(file), "small.tiktoken")


@given(data=st.data())
def test_bytes_of_sentencepiece(
    sentencepiece_proto: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("t") / "tokenizer.model"
    file.write_bytes(data.draw(damaged(sentencepiece_proto.SerializeToString())))
    accepted(lambda: use(file), "tokenizer.model")


@given(data=st.data())
def test_fields_of_sentencepiece(
    sentencepiece_proto: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    proto = type(sentencepiece_proto)()
    proto.CopyFrom(sentencepiece_proto)
    trainer, numbers = proto.trainer_spec, st.sampled_from([-(2**31), -2, 0, 5, 10**6, 2**31 - 1])
    for _ in range(data.draw(st.integers(1, 3))):
        piece = proto.pieces[data.draw(st.integers(0, len(proto.pieces) - 1))]
        match data.draw(st.integers(0, 5)):
            case 0:
                setattr(trainer, data.draw(st.sampled_from(["bos_id", "unk_id", "pad_id"])), data.draw(numbers))
            case 1:
                trainer.model_type = data.draw(st.integers(1, 4))
            case 2:
                piece.type = data.draw(st.integers(1, 6))
            case 3:
                piece.piece = data.draw(st.sampled_from(["", "t", "<s>", "<0x00>", "▁" * 300, "<0xZZ>", "\0"]))
            case 4:
                piece.score = data.draw(st.sampled_from([float("nan"), float("inf"), -1e38]))
            case _:
                proto.normalizer_spec.precompiled_charsmap = data.draw(st.binary(max_size=40))
    file = tmp_path_factory.mktemp("t") / "tokenizer.model"
    file.write_bytes(proto.SerializeToString())
    accepted(lambda: use(file), "tokenizer.model")


@given(data=st.data())
def test_bytes_of_gguf(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("t") / "small.gguf"
    file.write_bytes(data.draw(damaged(gguf_file.read_bytes())))
    accepted(lambda: use(file), "small.gguf")


@given(data=st.data())
def test_fields_of_gguf(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from lepta.vocabulary.gguf_tokenizer import read_gguf_fields, read_gguf_tokenizer

    fields = read_gguf_fields(gguf_file)
    name = data.draw(st.sampled_from(sorted(name for name in fields if name.startswith("tokenizer."))))
    kind = data.draw(st.sampled_from(["gpt2", "llama"]))
    fields |= {"tokenizer.ggml.model": kind, "tokenizer.ggml.scores": [0.0] * 266}
    fields[name] = data.draw(st.one_of(st.sampled_from(HOSTILE), changed(fields[name])))
    accepted(lambda: read_gguf_tokenizer(Path("small.gguf"), fields), "small.gguf")


@given(data=damaged("{% for m in messages %}Привет {{ m.content }}{% endfor %}".encode()))
def test_template(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("t") / "folder"
    folder.mkdir()
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_bytes(data)
    accepted(lambda: use(folder), "chat_template.jinja")
