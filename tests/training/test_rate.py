"""The learning rate that follows from the rows, and those that are given."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.training.blocks import TrainingText
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.rate import BODY, MOST, rate_for, resolved_rates, rows_rms
from lepta.training.settings import PretrainSettings

ROWS = 4000


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=ROWS, tokenizer=tiny_tokenizer)


@pytest.mark.parametrize(
    ("rms", "tokens", "rate"),
    [
        (0.1356, 512, 1.0e-3),  # SmolLM2-135M
        (0.0408, 512, 3.1e-4),  # Gemma 3 270M
        (0.0408, 2048, 6.1e-4),
        (0.1356, 128, 5.1e-4),
    ],
)
def test_rate_goes_with_the_rows_and_the_root_of_the_tokens(rms, tokens, rate):
    assert rate_for(rms, tokens) == pytest.approx(rate)


def test_rate_rises_only_so_far():
    assert rate_for(1.0, 1 << 20) == rate_for(1.0, 1 << 30) == pytest.approx(MOST * rate_for(1.0, 512), rel=0.01)


def test_size_of_the_rows_is_that_of_the_input_embeddings(folder):
    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert rows_rms(Checkpoint(folder)) == pytest.approx(rows.square().mean().sqrt().item(), rel=1e-5)


def with_rows(folder, place, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors["model.embed_tokens.weight"])
    save_file(tensors, place / "model.safetensors")
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    return Checkpoint(place)


def test_rows_of_zeros_do_not_count(folder, tmp_path):
    expected = rows_rms(Checkpoint(folder))
    assert rows_rms(with_rows(folder, tmp_path, lambda rows: rows[ROWS // 2 :].zero_())) == pytest.approx(
        expected, rel=0.1
    )
    with pytest.raises(
        LeptaError, match=r"`learning_rate` auto goes by the size of the rows, which are all 0; give one"
    ):
        rows_rms(with_rows(folder, tmp_path, torch.Tensor.zero_))


def test_large_tables_are_looked_at_in_part(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("lepta.training.rate.SAMPLE", 100)
    whole = rows_rms(Checkpoint(folder))
    monkeypatch.undo()
    assert whole == pytest.approx(rows_rms(Checkpoint(folder)), rel=0.1)


def test_numbers_that_are_given_stay(folder):
    assert resolved_rates(PretrainSettings(tokens=1, learning_rate=[1e-4, 2e-4]), Checkpoint(folder)) == (
        [1e-4, 2e-4],
        {},
    )


def test_auto_is_one_of_several(folder):
    settings = PretrainSettings(tokens=1, learning_rate=["auto", 1e-4], batch=2, block=256)
    rates, chosen = resolved_rates(settings, Checkpoint(folder))
    assert rates == [chosen["auto_learning_rate"], 1e-4]
    assert chosen["auto_learning_rate"] == rate_for(chosen["rows_rms"], 512)
    same = resolved_rates(settings.model_copy(update={"learning_rate": ["auto", rates[0]]}), Checkpoint(folder))[0]
    assert same == rates[:1]


@pytest.mark.parametrize("trains", ["new-rows", "embeddings+lora", "full"])
def test_manifest_and_first_line_say_what_was_taken(folder, russian, tmp_path, monkeypatch, capsys, trains):
    from lepta.training import pretrain

    groups, make_trainable = [], pretrain.make_trainable

    def remember(*arguments):
        groups.extend(made := make_trainable(*arguments))
        return made

    monkeypatch.setattr(pretrain, "make_trainable", remember)
    settings = PretrainSettings(tokens=500, block=64, batch=2, trains=trains, lora={"rank": 2})
    text = TrainingText(lambda: russian, 1.0)
    facts, _ = pretrain_folder(folder, 3600, [text], HeldOut(), settings, 1, tmp_path)
    rate = rate_for(facts["rows_rms"], 128)
    assert facts["learning_rate"] == facts["auto_learning_rate"] == rate
    assert f"learning rate {rate:g} (auto: rows of RMS 0.0" in " ".join(capsys.readouterr().err.split())
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"embeddings": rate} | ({} if trains == "new-rows" else {"body": BODY})
    json.dumps(facts)
