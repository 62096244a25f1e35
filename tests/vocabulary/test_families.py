"""Tokenizers read from the files of other libraries give the ids of those libraries."""

import base64
import copy
import json
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lepta.core.errors import LeptaError
from lepta.vocabulary.families import ByteLevelBPE, SentencePieceBPE, SentencePieceUnigram, read_vocabulary
from lepta.vocabulary.llama_cpp import recognise
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokenizer_json import byte_level as byte_level_rule
from lepta.vocabulary.tokenizer_json import sequence, split, split_bytes
from lepta.vocabulary.tokens import Kind

quick = settings(max_examples=150, deadline=None)
# As the publishers' own code has them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Few different characters: runs and repetitions are where the order of merges shows.
REPETITIVE = st.text(alphabet="аб a1=. \n", max_size=40)


def no_special(text):
    """Special tokens written out in text are special to `tokenizers`, and letters like any others to SentencePiece."""
    return not any(token in text for token in ("<unk>", "<s>", "</s>"))


def package_file(package, name):
    return Path(find_spec(package).submodule_search_locations[0]) / name


def tiktoken_ranks(path):
    lines = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def tekken_file():
    data = json.loads(package_file("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8"))
    number = data["config"]["default_vocab_size"] - data["config"]["default_num_special_tokens"]
    return data["config"]["pattern"], {base64.b64decode(r["token_bytes"]): r["rank"] for r in data["vocab"][:number]}


@pytest.fixture(scope="module")
def encodings():
    """Name -> what tiktoken makes of a text."""
    llama3 = tiktoken.Encoding(
        "l",
        pat_str=LLAMA3,
        mergeable_ranks=tiktoken_ranks(package_file("llama_models", "llama3/tokenizer.model")),
        special_tokens={},
    )
    qwen = tiktoken.Encoding(
        "q",
        pat_str=QWEN,
        mergeable_ranks=tiktoken_ranks(package_file("dashscope", "resources/qwen.tiktoken")),
        special_tokens={},
    )
    pattern, ranks = tekken_file()
    tekken = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return {
        "llama3": llama3.encode_ordinary,
        "qwen": lambda text: qwen.encode_ordinary(unicodedata.normalize("NFC", text)),
        "tekken": lambda text: [1000 + i for i in tekken.encode_ordinary(text)],
    }


@pytest.fixture(scope="module", params=["llama3", "qwen", "tekken"])
def byte_level(request, encodings):
    """One of three vocabularies with tiktoken's answer."""
    return request.getfixturevalue(request.param).vocabulary(), encodings[request.param]


def test_ids_are_those_of_tiktoken(byte_level, texts):
    vocabulary, encode = byte_level
    assert isinstance(vocabulary, ByteLevelBPE)
    assert vocabulary.encode(texts) == [encode(text) for text in texts]


@quick
@given(text=st.text(max_size=40) | REPETITIVE)
def test_ids_of_any_text_are_those_of_tiktoken(byte_level, text):
    vocabulary, encode = byte_level
    assume(not any(token["content"] in text for token in vocabulary.spec["added_tokens"]))
    assert vocabulary.encode([text]) == [encode(text)]


def test_every_token_of_a_tiktoken_file_is_its_bytes(encodings, llama3):
    vocabulary = llama3.vocabulary()
    ranks = tiktoken_ranks(package_file("llama_models", "llama3/tokenizer.model"))
    assert vocabulary.bytes_of[: len(ranks)] == list(ranks)
    assert vocabulary.bytes_of[128_000] == b"<|begin_of_text|>"
    assert vocabulary.bytes_of[128_009] == b"<|eot_id|>"
    assert (vocabulary.kinds[128_000:] == Kind.SPECIAL).all()
    assert vocabulary.size == 128_256


@pytest.fixture(scope="module")
def mistral_processor():
    return sentencepiece.SentencePieceProcessor(
        model_file=str(package_file("mistral_common", "data/tokenizer.model.v1"))
    )


@pytest.fixture(scope="module")
def mistral_vocabulary(mistral):
    return mistral.vocabulary()


def test_ids_of_mistral_are_those_of_sentencepiece(mistral_vocabulary, mistral_processor, texts):
    vocabulary = mistral_vocabulary
    assert isinstance(vocabulary, SentencePieceBPE)
    assert vocabulary.encode(texts) == mistral_processor.encode(texts)
    assert vocabulary.tokenizer.encode("Привет").ids == mistral_processor.encode("Привет", add_bos=True)


@quick
@given(text=st.text(max_size=40).filter(no_special) | REPETITIVE)
def test_ids_of_any_text_in_mistral_are_those_of_sentencepiece(mistral_vocabulary, mistral_processor, text):
    assert mistral_vocabulary.encode([text]) == [mistral_processor.encode(text)]


def test_decoded_text_of_mistral_is_that_of_sentencepiece(mistral_vocabulary, mistral_processor, texts):
    for ids in mistral_vocabulary.encode(texts):
        assert mistral_vocabulary.tokenizer.decode(ids) == mistral_processor.decode(ids)


KINDS = [
    pytest.param({"model_type": kind, "add_dummy_prefix": prefix, "remove_extra_whitespaces": strips}, id=name)
    for kind in ("bpe", "unigram")
    for prefix, strips, name in (
        (True, False, f"{kind}-prefix"),
        (False, False, f"{kind}-plain"),
        (True, True, f"{kind}-prefix-strips"),
    )
]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, train):
    """A small SentencePiece model, read by LEPTA and by SentencePiece itself."""
    path = train(**request.param)
    return open_tokenizer(path).vocabulary(), sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_ids_of_a_trained_model_are_those_of_sentencepiece(trained, texts):
    vocabulary, processor = trained
    wrong = [t for t, ids in zip(texts, vocabulary.encode(texts), strict=True) if ids != processor.encode(t)]
    assert wrong == []


@quick
@given(text=st.text(max_size=40).map(lambda text: text.replace("\0", "")).filter(no_special) | REPETITIVE)
def test_ids_of_any_words_in_a_trained_model_are_those_of_sentencepiece(trained, text):
    vocabulary, processor = trained
    assert vocabulary.encode([text]) == [processor.encode(text)]


def test_names_of_byte_pieces_in_text_are_letters_like_any_others(trained):
    vocabulary, processor = trained
    for text in ("<0x41>", "a <0x0A> b<0xD0>"):
        assert vocabulary.encode([text]) == [processor.encode(text)]
    [ids] = vocabulary.split([b"<0x41>"])
    assert b"".join(map(vocabulary.data, ids)) == b"<0x41>"


def test_families_of_trained_models(trained):
    vocabulary, processor = trained
    assert isinstance(vocabulary, (SentencePieceBPE, SentencePieceUnigram))
    assert vocabulary.size == processor.vocab_size()
    assert sum(vocabulary.kinds == Kind.BYTE) == 256


def test_pieces_given_by_the_user_are_matched_in_text(train):
    path = train(
        model_type="bpe", add_dummy_prefix=False, remove_extra_whitespaces=False, user_defined_symbols=["<sep>", "мир"]
    )
    vocabulary, processor = open_tokenizer(path).vocabulary(), sentencepiece.SentencePieceProcessor(str(path))
    for text in ("Привет,<sep>мир и миру", "<sep><sep> a"):
        assert vocabulary.encode([text]) == [processor.encode(text)]


def test_llama_cpp_recognises_known_tokenizers(llama3, qwen, smollm2):
    names = [recognise(source.vocabulary().tokenizer).name for source in (llama3, qwen, smollm2)]
    assert names == ["llama-bpe", "qwen2", "smollm"]
    tekken = open_tokenizer("package:mistral_common/data/tekken_240718.json")
    assert recognise(tekken.vocabulary().tokenizer).name == "tekken"


def test_llama_cpp_does_not_recognise_what_cuts_otherwise(llama3):
    """LLaMA-3 with every digit alone."""
    spec = llama3.spec | {"pre_tokenizer": sequence(split(QWEN), byte_level_rule(use_regex=False))}
    assert recognise(read_vocabulary(spec).tokenizer).name is None


@pytest.mark.parametrize("name", ["smollm2", "tiny_llama3", "mistral"])
def test_merges_as_strings_mean_the_same_as_pairs(request, name, texts):
    source = request.getfixturevalue(name)
    model = source.spec["model"]
    strings = model | {"merges": [" ".join(pair) for pair in model["merges"]]}
    assert read_vocabulary(source.spec | {"model": strings}).encode(texts) == source.vocabulary().encode(texts)


# Bad files.


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_sentencepiece_file_raises(tmp_path, share):
    data = package_file("mistral_common", "data/tokenizer.model.v1").read_bytes()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LeptaError, match=r"tokenizer\.model: not a whole SentencePiece model.*again"):
        open_tokenizer(path)


def test_sentencepiece_file_cut_between_pieces_raises(tmp_path):
    """A file cut where a piece ends is valid protobuf; what is missing is the trainer's settings at its end."""
    data = package_file("mistral_common", "data/tokenizer.model.v1").read_bytes()
    end = 0
    for _ in range(1000):
        end += 2 + data[end + 1]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data[:end])
    with pytest.raises(LeptaError, match=r"tokenizer\.model: not a whole SentencePiece model.*again"):
        open_tokenizer(path)


@pytest.mark.parametrize("kind", ["word", "char"])
def test_sentencepiece_of_another_type_raises(train, kind):
    path = train(model_type=kind, byte_fallback=False, vocab_size=100, hard_vocab_limit=False)
    with pytest.raises(LeptaError, match=r"tokenizer\.model: .*type WORD or CHAR; expected BPE or UNIGRAM"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("IQ== 0\nIg== 1\n", r"file of 2 tokens.*known are LLaMA-3 \(128,000\).*give the model's tokenizer\.json"),
        ("IQ== 0\nIg== 2\n", r"line 2: expected a token in base64 and its rank 1"),
        ("IQ== 0\nIg==\n", "line 2: expected a token in base64"),
        ("IQ== 0\n!!!! 1\n", "line 2: expected a token in base64"),
        ("IQ== 0\nIg== eins\n", "line 2: expected a token in base64"),
    ],
)  # fmt: skip
def test_bad_tiktoken_file_raises_with_its_line(tmp_path, text, words):
    path = tmp_path / "my.tiktoken"
    path.write_text(text)
    with pytest.raises(LeptaError, match=rf"my\.tiktoken.*{words}"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda data: data["config"].pop("pattern"), "pattern"),
        (lambda data: data["vocab"][5].pop("token_bytes"), "token_bytes"),
        (lambda data: data["config"].pop("default_vocab_size"), "default_vocab_size"),
    ],
)
def test_tekken_file_without_a_field_raises(tmp_path, change, field):
    row = {"rank": 0, "token_bytes": "IQ==", "token_str": "!"}
    data = {
        "config": {"pattern": ".", "default_num_special_tokens": 2, "default_vocab_size": 12},
        "vocab": [row | {"rank": n} for n in range(10)],
    }
    change(data)
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    with pytest.raises(LeptaError, match=rf"tekken\.json: .*{field}.*again"):
        open_tokenizer(tmp_path)


def test_truncated_tekken_file_raises(tmp_path):
    data = package_file("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8")
    (tmp_path / "tekken.json").write_text(data[:5000], encoding="utf-8")
    with pytest.raises(LeptaError, match=r"tekken\.json: not JSON .* at line \d+"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda spec: spec["added_tokens"][0].update(id=-1), r"added_tokens\.0\.id: input should be greater"),
        (lambda spec: spec["added_tokens"][0].update(id=1), "tokens '.*' and '<.endoftext.>' have one id, 1"),
        (lambda spec: spec["model"]["vocab"].update({"Ġthe": 5}), "tokens '.*' and '.*' have one id, 5"),
        (lambda spec: spec["model"].update(dropout=0.5), r"model\.dropout is 0\.5"),
        (lambda spec: spec["added_tokens"][0].update(id="7"), r"added_tokens\.0\.id: input should be a valid integer"),
        (lambda spec: spec["model"]["vocab"].update(new=2**63), r"model\.vocab.*: input should be less than"),
        (lambda spec: spec["model"]["vocab"].update(new=10**9), r"model\.vocab.*: input should be less than"),
        (lambda spec: spec["added_tokens"][0].pop("content"), r"added_tokens\.0\.content: field required"),
        (lambda spec: spec.pop("model"), "tokenizer.json"),
        (lambda spec: spec.update(pre_tokenizer={}), r"pre_tokenizer\.type: field required"),
        (lambda spec: spec["model"].update(merges=[["Ġ", "nothing here"]]), "not a tokenizer"),
        (lambda spec: spec.update(pre_tokenizer=split_bytes("((((")), "not a tokenizer"),
        (lambda spec: spec.update(pre_tokenizer=split_bytes("(a+)+$")), "cannot turn text into tokens"),
        (lambda spec: spec.update(pre_tokenizer=split_bytes(r"(\w+\s?)+$")), "cannot turn text into tokens"),
        (lambda spec: spec.update(pre_tokenizer=split_bytes(r"(\p{L}+)+\d")), "cannot turn text into tokens"),
        (lambda spec: spec["model"]["vocab"].update({"\ud800": 4_000}), "json: not JSON"),
    ],
)
def test_tokens_of_no_id_or_of_one_id_and_chance_are_refused(tiny_tokenizer, tmp_path, change, says):
    spec = copy.deepcopy(tiny_tokenizer.spec)
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(LeptaError, match=says):
        open_tokenizer(tmp_path / "tokenizer.json").vocabulary()


def test_word_piece_is_refused_by_name(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LeptaError, match=r"'WordPiece'.*expected byte-level BPE"):
        open_tokenizer(tmp_path).vocabulary()


def test_folder_with_only_a_sentencepiece_file_is_read(mistral, tmp_path):
    source = package_file("mistral_common", "data/tokenizer.model.v1")
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    assert open_tokenizer(tmp_path).spec == mistral.spec
