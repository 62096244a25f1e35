"""`lepta measure`: the same numbers as a direct computation, for any model source, side by side."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import lepta
from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.evaluation.measure import measure_model
from lepta.inference.bits import WINDOW, score_text
from lepta.inference.chat import render_chat
from lepta.models.load import load_model, load_tokenizer

FIELDS = {
    "model",
    "bits_per_byte",
    "characters_per_token",
    "characters",
    "utf8_bytes",
    "tokens",
    "window",
    "dtype",
    "seconds",
    "answers_bits_per_byte",
}


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)


@pytest.fixture(scope="module")
def other(tiny_model_folder, tiny_extended):
    return tiny_model_folder(rows=4300, tokenizer=tiny_extended)


def ran(*arguments):
    done = CliRunner().invoke(app, ["measure", *map(str, arguments)])
    assert done.exit_code == 0, done.exception
    return done.stdout


@torch.inference_mode()
def test_json_holds_what_a_direct_computation_gives(folder, write_lines):
    text = "Привет, мир. One two three."
    found = json.loads(ran(folder, "--text", write_lines("a.txt", [text]), "--dtype", "float32", "--json"))
    assert set(found) == FIELDS
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    logits = model(ids.to(model.device)).logits[0, :-1].double().cpu()
    bits = -logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item() / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(
        bits / len(text.encode()), rel=1e-5 if torch.cuda.is_available() else 1e-2
    )
    assert (found["characters"], found["utf8_bytes"]) == (len(text), len(text.encode()))
    assert found["tokens"] == ids.shape[1] - 1
    assert found["characters_per_token"] == len(text) / found["tokens"]
    assert (found["window"], found["seconds"] > 0) == (WINDOW, True)


def test_several_models_stand_side_by_side(folder, other):
    options = ["--text", "starter:ru/valid", "--characters", "500", "--window", "200"]
    found = json.loads(ran(folder, other, *options, "--json"))
    assert [row["model"] for row in found] == [str(folder), str(other)]
    assert found[0]["characters"] == found[1]["characters"] and found[0]["tokens"] > found[1]["tokens"]
    assert all(set(row) == FIELDS and row["window"] == 200 for row in found)
    table = ran(folder, other, *options)
    assert "characters/s" in table and f"{found[1]['tokens']}" in table and "in windows of 200 characters" in table


def test_all_of_the_text_is_measured_unless_a_limit_is_given(folder, write_lines):
    lines = write_lines("a.jsonl", [json.dumps({"text": "слово " * 50}) for _ in range(20)])
    whole = measure_model(folder, [str(lines)], window=100)
    assert whole.characters == 20 * len(("слово " * 50).strip())
    assert measure_model(folder, [str(lines)], window=100, characters=250).characters == 300


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the precision that auto takes is forced through the CPU's timing"
)
def test_the_precision_is_the_one_asked_for(folder, monkeypatch):
    given = {"text": ["starter:en/valid"], "characters": 500}
    exact = measure_model(folder, **given, dtype="float32")
    rounded = measure_model(folder, **given, dtype="bfloat16")
    assert (exact.dtype, rounded.dtype) == ("float32", "bfloat16")
    assert exact.bits_per_byte != rounded.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.01)
    monkeypatch.setattr("lepta.models.load.fastest_on_cpu", lambda config: torch.bfloat16)
    assert measure_model(folder, **given).bits_per_byte == rounded.bits_per_byte


def test_answers_cost_what_the_model_gives_them(folder, other, write_lines):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    given = [
        "--text",
        "starter:ru/valid",
        "--characters",
        "500",
        "--answers",
        write_lines("a.jsonl", [json.dumps({"messages": turns})]),
    ]
    found = json.loads(ran(folder, *given, "--dtype", "float32", "--json"))
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    whole = render_chat(tokenizer, turns).rstrip("\n")
    asked = render_chat(tokenizer, turns[:1], add_generation_prompt=True)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    first = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    logits = model(ids).logits.log_softmax(-1)[0, first - 1 : -1].detach()
    expected = -logits.gather(1, ids[0, first:, None]).sum() / math.log(2) / len(b"Hello there")
    assert found["answers_bits_per_byte"] == pytest.approx(float(expected), rel=1e-4)
    table = ran(folder, other, *given)
    assert f"{found['answers_bits_per_byte']:.2f}" in table and max(map(len, table.splitlines())) <= 80


def test_python_has_the_same_verb(folder):
    assert lepta.measure_model is measure_model
    assert lepta.measure.__module__ == "lepta.vocabulary.measure"  # of tokenizers, as before


def test_bad_input_is_one_line(folder, write_lines, tmp_path):
    for arguments, says in (
        ([folder, "--text", "absent.txt"], r"absent\.txt: no such file or folder"),
        ([tmp_path / "absent", "--text", "starter:ru/valid"], "absent: no such file or folder"),
        ([folder, "--text", write_lines("empty.txt", [" ", "  "])], r"empty\.txt: no text"),
    ):
        error = CliRunner().invoke(app, ["measure", *map(str, arguments)]).exception
        assert isinstance(error, LeptaError)
        with pytest.raises(LeptaError, match=says):
            raise error


def test_a_window_longer_than_all_positions_is_one_line(tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=4000, n_positions=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    tiny_tokenizer.save(tmp_path)
    model, tokenizer = load_model(tmp_path, torch.float32), load_tokenizer(tmp_path)
    if model.device.type == "cpu":
        with pytest.raises(
            LeptaError, match=r"a text of \d+ tokens, and the model has positions for 64; give a smaller"
        ):
            score_text(model, tokenizer, ["слово " * 100])
