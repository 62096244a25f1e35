"""Small valid files of every kind that LEPTA reads: what the fuzz targets start from."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from lepta.models.folder import Checkpoint
from lepta.vocabulary import tokenizer_json as parts
from lepta.vocabulary.families import CHARACTER_OF_BYTE
from lepta.vocabulary.source import TokenizerSource

# How many inputs each target makes up: 2,000 in the slow run, LEPTA_FUZZ=2000 pytest tests/fuzz
CASES = int(os.environ.get("LEPTA_FUZZ", "30"))
COMMANDS = CASES if CASES >= 100 else 6  # where each input goes through whole commands, of a second each
settings.register_profile(
    "fuzz",
    max_examples=CASES,
    deadline=None,
    derandomize=CASES < 100,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.explicit, Phase.generate],  # what fails is small enough; shrinking takes minutes
)
settings.load_profile("fuzz")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"


def byte_level_spec() -> dict[str, Any]:
    """Byte-level BPE: 256 bytes, eight merges, two special tokens."""
    tokens = [CHARACTER_OF_BYTE[byte] for byte in range(256)]
    merges = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["Ð", "¿"], ["Ñ", "Ģ"], ["Ð¿", "ÑĢ"], ["i", "n"], ["in", "g"]]
    vocab = {token: i for i, token in enumerate([*tokens, *map("".join, merges), "<s>", "</s>"])}
    added = [parts.added_token(vocab[token], token) for token in ("<s>", "</s>")]
    return parts.tokenizer_json(
        parts.bpe_model(vocab, merges),
        added,
        pre_tokenizer=parts.split_bytes(parts.LLAMA3_REGEX),
        post_processor=parts.around({"<s>": vocab["<s>"]}, {}),
        decoder=parts.byte_level(use_regex=True),
    )


@pytest.fixture(scope="session")
def tokenizer() -> TokenizerSource:
    """The tokenizer of `byte_level_spec`, with a config and a template."""
    config = parts.tokenizer_config({"bos_token": "<s>", "eos_token": "</s>"}) | {"model_max_length": 512}
    return TokenizerSource(byte_level_spec(), config, TEMPLATE)


@pytest.fixture(scope="session")
def sentencepiece_proto() -> Any:
    """A SentencePiece BPE with all bytes."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=piece, score=0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    for rank, piece in enumerate(["▁", "t", "h", "e", "п", "р", "th", "▁th", "пр", "▁the"]):
        proto.pieces.add(piece=piece, score=-rank, type=1)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, tokenizer: TokenizerSource) -> Path:
    """A GGUF file with a byte-level tokenizer and an embedding matrix."""
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    model = tokenizer.spec["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(list(model["vocab"]))
    writer.add_token_types([1] * 264 + [3, 3])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(264)
    writer.add_eos_token_id(265)
    writer.add_context_length(512)
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_feed_forward_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.ones((266, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="session")
def model_folder(tokenizer: TokenizerSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in two files with an index."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=266,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=264,
        eos_token_id=265,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="12KB")
    tokenizer.save(folder)
    assert (folder / "model.safetensors.index.json").is_file() and Checkpoint(folder).rows == 266
    return folder


def write(file: Path, value: Any) -> Path:
    """Write JSON; what JSON cannot say is left to the readers of bytes."""
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def run(folder: Path, *arguments: object) -> None:
    """Run a command in this process, in a folder; what it raises comes through."""
    from lepta.cli import app

    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app([str(argument) for argument in arguments], standalone_mode=False)
