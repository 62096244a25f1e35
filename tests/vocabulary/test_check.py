"""Checks pass on good tokenizers, and each fails on the fault that it is for."""

import copy
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.output import publishing
from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.vocabulary.build import build_vocabulary, save_vocabulary
from lepta.vocabulary.check import check_vocabulary
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokenizer_json import byte_level, sequence, split

DENSE, REACHABLE, BYTES = "ids are dense", "every token is reachable", "bytes have tokens"
ROUND_TRIP, TRANSFORMERS = "text survives encoding and decoding", "same ids in tokenizers and transformers"
OLD_IDS, SPECIALS, UNCHANGED = "old ids keep their meaning", "special tokens are kept", "ids of other text unchanged"
LLAMA_CPP, CONFIG = "llama.cpp can convert it", "the model's config agrees"


def failed(checks):
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("texts", [(), ("--target",), ("--other",)])
def test_the_command_needs_no_text(tiny_tokenizer, tiny_extended, tiny_model_folder, tmp_path, texts):
    save_vocabulary(tiny_extended, tiny_tokenizer, "extended", tmp_path)
    original = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    command = ["vocab", "check", "--tokenizer", str(tmp_path), "--original", str(original), "--json"]
    for option in texts:
        command += [option, "starter:en/valid"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code in (0, 1) and DENSE in {check["name"] for check in json.loads(done.stdout)}


@pytest.fixture
def spoilt(tiny_extended):
    """An extended tokenizer with contents that a test may change."""
    return replace(tiny_extended, spec=copy.deepcopy(tiny_extended.spec))


def test_extended_tokenizer_passes_every_check(extended, smollm2, russian, english):
    checks = check_vocabulary(extended, smollm2, russian[:4], english[:4])
    names = {check.name for check in checks}
    assert names == {DENSE, REACHABLE, BYTES, ROUND_TRIP, TRANSFORMERS, OLD_IDS, SPECIALS, UNCHANGED, LLAMA_CPP}
    assert [(check.name, check.evidence) for check in checks if not check.passed] == []
    assert all(check.evidence for check in checks)


def evidence(checks, name):
    return next(check.evidence for check in checks if check.name == name)


def test_a_published_tokenizer_against_itself_passes_every_check(mistral, russian, english):
    assert failed(check_vocabulary(mistral, mistral, russian[:2], english[:2])) == set()


@pytest.mark.parametrize("scenario", ["optimized", "bpe", "unigram"])
@pytest.mark.parametrize("name", ["tiny_llama3", "mistral"])
def test_scenarios_that_take_tokens_away_are_not_asked_for_unchanged_ids(
    request, build, tmp_path, russian, name, scenario
):
    source = request.getfixturevalue(name)
    numbers = {"add": 100, "keep": 4_000} if scenario == "optimized" else {"size": 1_000}
    built = build(source, scenario, **numbers)
    save_vocabulary(built, source, scenario, tmp_path)
    checks = check_vocabulary(open_tokenizer(tmp_path), source, russian[:2], [])
    assert not {OLD_IDS, UNCHANGED} & {check.name for check in checks}
    assert failed(checks) <= {LLAMA_CPP}
    (tmp_path / "id_map.json").unlink()
    assert {OLD_IDS, UNCHANGED} <= failed(check_vocabulary(open_tokenizer(tmp_path), source, russian[:2], []))


@pytest.mark.parametrize("scenario", ["optimized", "bpe", "unigram"])
def test_model_folder_remembers_the_scenario(build, tiny_llama3, tiny_model_folder, tmp_path, scenario):
    """A model's folder is checked as its vocabulary is, and so is what is made of it."""
    numbers = {"add": 100, "keep": 3_000} if scenario == "optimized" else {"size": 1_000}
    save_vocabulary(build(tiny_llama3, scenario, **numbers), tiny_llama3, scenario, tmp_path)
    model = Checkpoint(tiny_model_folder(rows=tiny_llama3.vocabulary().size, tokenizer=tiny_llama3))
    with publishing(tmp_path / "model") as folder:
        initialise(model, open_tokenizer(tmp_path), folder)
    checks = check_vocabulary(open_tokenizer(tmp_path / "model"), tiny_llama3, [], [])
    assert not {OLD_IDS, UNCHANGED} & {check.name for check in checks}
    assert failed(checks) <= {LLAMA_CPP, CONFIG}  # the tiny model names other special tokens
    again = build_vocabulary(open_tokenizer(tmp_path / "model"), ["starter:ru/valid"], "unigram", size=900)
    assert again.id_map is None  # it is of the vocabulary before


def test_lost_runs_of_spaces_are_found(gemma, build, tmp_path):
    """They are added tokens, which text without their literal leads to through merges only."""
    built = build(gemma, "optimized", add=50, keep=1_000)
    save_vocabulary(built, gemma, "optimized", tmp_path)
    assert failed(check_vocabulary(open_tokenizer(tmp_path), gemma, [], [])) == set()
    file = tmp_path / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["model"]["merges"] = [pair for pair in spec["model"]["merges"] if not "".join(pair).startswith("▁▁")]
    file.write_text(json.dumps(spec))
    checks = check_vocabulary(open_tokenizer(tmp_path), gemma, [], [])
    assert failed(checks) == {REACHABLE}
    assert repr("▁▁".encode()) in evidence(checks, REACHABLE)


def test_extended_folder_is_asked_for_unchanged_ids(tiny_extended, tiny_tokenizer, tmp_path):
    save_vocabulary(tiny_extended, tiny_tokenizer, "extended", tmp_path)
    checks = check_vocabulary(open_tokenizer(tmp_path), tiny_tokenizer, [], [])
    assert {OLD_IDS, UNCHANGED} <= {check.name for check in checks} - failed(checks)


def test_alone_a_tokenizer_is_not_compared(tiny_tokenizer, russian):
    checks = check_vocabulary(tiny_tokenizer, None, russian[:2], [])
    assert not {OLD_IDS, SPECIALS, UNCHANGED} & {check.name for check in checks}
    assert not {DENSE, ROUND_TRIP, TRANSFORMERS} & failed(checks)
    assert "none for 0x04" in evidence(checks, BYTES) and "hardly" in evidence(checks, BYTES)
    assert BYTES not in failed(checks)


def test_hole_is_found(spoilt, tiny_tokenizer):
    spoilt.spec["added_tokens"].append(spoilt.spec["added_tokens"][0] | {"id": 4_302, "content": "<late>"})
    checks = check_vocabulary(spoilt, tiny_tokenizer, [], [])
    assert DENSE in failed(checks)
    assert "first 4300" in next(check.evidence for check in checks if check.name == DENSE)


def test_token_without_a_merge_is_found(spoilt, tiny_tokenizer):
    spoilt.spec["model"]["vocab"]["ÑĪÑĪÑĪÑĪÑĪÑĪ"] = 4_300
    checks = check_vocabulary(spoilt, tiny_tokenizer, [], [])
    assert REACHABLE in failed(checks)
    assert "300 of 301 new tokens" in next(check.evidence for check in checks if check.name == REACHABLE)


def test_exchanged_old_ids_are_found(spoilt, tiny_tokenizer, english):
    vocab = spoilt.spec["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    names = failed(check_vocabulary(spoilt, tiny_tokenizer, [], english[:2]))
    assert {OLD_IDS, UNCHANGED} <= names
    assert SPECIALS not in names


def test_renamed_special_token_is_found(spoilt, tiny_tokenizer):
    token, vocab = spoilt.spec["added_tokens"][16], spoilt.spec["model"]["vocab"]
    vocab["<renamed>"] = vocab.pop(token["content"])
    token["content"] = "<renamed>"
    assert {OLD_IDS, SPECIALS} <= failed(check_vocabulary(spoilt, tiny_tokenizer, [], []))


def test_lost_letters_are_found(spoilt, tiny_tokenizer):
    spoilt.spec["normalizer"] = None
    spoilt.spec["decoder"] = None
    assert ROUND_TRIP in failed(check_vocabulary(spoilt, tiny_tokenizer, ["Привет, мир"], []))


def test_spaces_that_an_added_token_takes_in_the_original_too_are_forgiven(spoilt):
    """`lstrip` makes a token take the space before it, so text with it never comes back."""
    tool = spoilt.spec["added_tokens"][0] | {"id": 4_300, "content": "[TOOL]", "lstrip": True}
    spoilt.spec["added_tokens"].append(tool)
    assert ROUND_TRIP in failed(check_vocabulary(spoilt, None, ["Привет, [TOOL] мир"], []))
    assert ROUND_TRIP not in failed(check_vocabulary(spoilt, spoilt, ["Привет, [TOOL] мир"], []))
    plain = replace(
        spoilt, spec=spoilt.spec | {"added_tokens": [*spoilt.spec["added_tokens"][:-1], tool | {"lstrip": False}]}
    )
    assert ROUND_TRIP in failed(check_vocabulary(spoilt, plain, ["Привет, [TOOL] мир"], []))


def test_lost_byte_is_found(spoilt, tiny_tokenizer):
    """A byte that the original has a token for; SmolLM2 itself lacks some."""
    assert BYTES not in failed(check_vocabulary(spoilt, tiny_tokenizer, [], []))
    vocab = spoilt.spec["model"]["vocab"]
    vocab["ÿÿÿ"] = vocab.pop("ł")  # 0xA0
    merges = spoilt.spec["model"]["merges"]
    spoilt.spec["model"]["merges"] = [pair for pair in merges if "ł" not in pair]
    checks = check_vocabulary(spoilt, tiny_tokenizer, [], [])
    assert BYTES in failed(checks)
    assert "none for 0xA0" in evidence(checks, BYTES)


def test_other_ids_in_transformers_are_found(tiny_tokenizer, tiny_extended):
    """A class of a single model rebuilds the tokenizer as it thinks best."""
    config = tiny_extended.config | {"tokenizer_class": "GemmaTokenizer"}
    checks = check_vocabulary(replace(tiny_extended, config=config), tiny_tokenizer, ["Привет, мир 2024"], [])
    assert TRANSFORMERS in failed(checks)


def test_changed_role_is_found(spoilt, tiny_tokenizer):
    other = replace(spoilt, config=spoilt.config | {"eos_token": "<|endoftext|>"})
    checks = check_vocabulary(other, tiny_tokenizer, [], [])
    assert SPECIALS in failed(checks)
    assert "eos_token was <|im_end|>, is <|endoftext|>" in evidence(checks, SPECIALS)


def test_llama_cpp_is_told_about_a_new_hash_of_a_known_rule(tiny_llama3, llama3):
    """Other tokens, other hash; the rule that cuts text is LLaMA-3's."""
    checks = check_vocabulary(tiny_llama3, llama3, [], [])
    assert LLAMA_CPP not in failed(checks)
    assert 'res = "llama-bpe"' in evidence(checks, LLAMA_CPP)
    assert "add to get_vocab_base_pre (convert_hf_to_gguf.py or conversion/base.py):" in evidence(checks, LLAMA_CPP)
    # The rule is known by itself, so the original need not be: it may be an adapted tokenizer, or not given.
    for original in (tiny_llama3, None):
        assert 'res = "llama-bpe"' in evidence(check_vocabulary(tiny_llama3, original, [], []), LLAMA_CPP)


def test_llama_cpp_cannot_know_another_rule(mistral, tiny_llama3, llama3):
    """A rule of nobody on LLaMA-3's tokens; a SentencePiece vocabulary has no rule to know."""
    spec = tiny_llama3.spec | {"pre_tokenizer": sequence(split(r"\p{N}{1,2}|\P{N}+"), byte_level(use_regex=False))}
    assert LLAMA_CPP in failed(check_vocabulary(replace(tiny_llama3, spec=spec), llama3, [], []))
    assert LLAMA_CPP not in failed(check_vocabulary(mistral, None, [], []))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 4_300, "bos_token_id": 1, "eos_token_id": [0, 2]}, None),
        ({"vocab_size": 4_352, "eos_token_id": None}, None),
        ({"text_config": {"vocab_size": 4_300, "eos_token_id": 2}}, None),
        ({"vocab_size": 4_299}, r"4,299 rows for 4,300 ids"),
        ({"vocab_size": 4_300, "eos_token_id": 3}, r"eos_token_id is 3, <|im_end|> is 2"),
        ({"vocab_size": 4_300, "bos_token_id": [0, 2]}, r"bos_token_id is [0, 2], <|im_start|> is 1"),
    ],
)
def test_config_of_the_model_beside_the_tokenizer(tiny_extended, tmp_path, fields, words):
    tiny_extended.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    checks = check_vocabulary(open_tokenizer(tmp_path), None, [], [])
    assert (CONFIG in failed(checks)) == (words is not None)
    assert (words or "") in evidence(checks, CONFIG)
