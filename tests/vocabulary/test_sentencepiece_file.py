"""Vocabularies written for SentencePiece: the library itself reads them to the ids of `tokenizer.json`."""

import json

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from lepta.core.output import publishing
from lepta.deployment.probe import probe_lines
from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.unigram import SIGNS

LINES = [line.replace("▁", "") for line in probe_lines(600)]
BUILT = [
    ("mistral", "extended", {"add": 300}),
    ("mistral", "optimized", {"add": 300, "keep": 8_000}),
    ("mistral", "bpe", {"size": 1_200}),
    ("mistral", "unigram", {"size": 1_200}),
    ("gemma", "extended", {"add": 50}),
    ("gemma", "bpe", {"size": 900}),
    ("smollm2", "unigram", {"size": 1_200}),
]


@pytest.mark.parametrize(("name", "scenario", "numbers"), BUILT, ids=lambda value: str(value))
def test_sentencepiece_reads_the_same_ids(request, build, tmp_path, russian, name, scenario, numbers):
    built = build(request.getfixturevalue(name), scenario, **numbers)
    built.save(tmp_path)
    file = tmp_path / ("spiece.model" if scenario == "unigram" else "tokenizer.model")
    processor = SentencePieceProcessor(model_file=str(file))
    vocabulary = built.vocabulary()
    lines = [*LINES, *russian]
    assert processor.encode(lines) == vocabulary.encode(lines)
    assert processor.vocab_size() == vocabulary.size
    assert open_tokenizer(file).vocabulary().bytes_of == vocabulary.bytes_of


def test_a_published_model_comes_back_as_it_was(mistral, tmp_path):
    mistral.save(tmp_path)
    processor = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert processor.encode(LINES) == mistral.vocabulary().encode(LINES)
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    assert processor.is_control(1) and processor.is_byte(3)


def test_the_pad_token_of_a_model_stays(build, russian, tmp_path):
    """Trained models name one by its id alone; -1, the library's default, is none."""
    file, again = tmp_path / "trained.model", tmp_path / "tokenizer.model"
    for pad_id, expected in ((3, "<pad>"), (-1, None)):
        with file.open("wb") as out:
            SentencePieceTrainer.train(
                sentence_iterator=iter(russian),
                model_writer=out,
                vocab_size=500,
                model_type="bpe",
                byte_fallback=True,
                pad_id=pad_id,
                minloglevel=2,
            )
        source = open_tokenizer(file)
        assert source.config.get("pad_token") == expected
        built = build(source, "extended", add=20)
        assert built.config.get("pad_token") == expected
        built.save(tmp_path)
        assert SentencePieceProcessor(model_file=str(again)).pad_id() == pad_id


@pytest.mark.parametrize("name", ["smollm2", "llama3"])
def test_byte_level_vocabularies_are_no_sentencepiece_models(request, tmp_path, name):
    request.getfixturevalue(name).save(tmp_path)
    assert not list(tmp_path.glob("*.model"))


def test_model_folders_carry_it(mistral, build, tiny_model_folder, tmp_path):
    built = build(mistral, "extended", add=300)
    model = Checkpoint(tiny_model_folder(rows=32_000, tokenizer=mistral))
    with publishing(tmp_path / "model") as folder:
        initialise(model, built, folder)
    processor = SentencePieceProcessor(model_file=str(tmp_path / "model/tokenizer.model"))
    assert processor.vocab_size() == json.loads((tmp_path / "model/config.json").read_text())["vocab_size"] == 32_300


@pytest.mark.parametrize("name", ["mistral", "tiny_llama3"])
def test_unigram_has_a_piece_for_every_sign(request, build, name):
    """llama.cpp and transformers.js lose what has none."""
    vocabulary = build(request.getfixturevalue(name), "unigram", size=1_200).vocabulary()
    pieces = {piece for piece, _ in vocabulary.spec["model"]["vocab"]}
    assert set(SIGNS) <= pieces
    ids = vocabulary.encode([sign * 2 for sign in SIGNS])
    assert all(
        vocabulary.bytes_of[i].decode() in sign * 2 for sign, split in zip(SIGNS, ids, strict=True) for i in split
    )
