"""The precision that this machine is fast in, and a run that keeps the one it began with."""

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from lepta.core.errors import LeptaError
from lepta.models import precision
from lepta.models.load import load_model
from lepta.models.precision import fastest_on_cpu
from lepta.training.precision import PRECISION, agreed_dtype, recorded_dtype, resolved_body_dtype

CONFIG = LlamaConfig(hidden_size=512, intermediate_size=1024)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing known of an earlier product."""
    precision.faster_on_cpu.cache_clear()
    yield
    precision.faster_on_cpu.cache_clear()


@pytest.fixture
def slow_down(monkeypatch):
    """Make products in one precision slower, as where it is emulated; the tokens of those that were made."""
    product = torch.nn.functional.linear

    def slow(dtype, seconds):
        made = []

        def linear(states, weight):
            if states.dtype == dtype:
                made.append(len(states))
                until = time.thread_time() + seconds
                while time.thread_time() < until:
                    pass
            return product(states, weight)

        monkeypatch.setattr("torch.nn.functional.linear", linear)
        return made

    return slow


def test_what_is_slower_is_not_taken(slow_down):
    slow_down(torch.float32, 0.2)
    assert fastest_on_cpu(CONFIG) == torch.bfloat16


def test_emulated_bfloat16_is_tried_on_a_few_tokens_only(slow_down):
    made = slow_down(torch.bfloat16, 0.05)
    assert fastest_on_cpu(CONFIG) == torch.float32
    assert set(made) == {precision.FEW}


def test_waiting_for_a_busy_core_is_not_counted(monkeypatch):
    product = torch.nn.functional.linear

    def linear(states, weight):
        time.sleep(0.1)
        return product(states, weight)

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    assert max(precision._seconds(precision.FEW, 64, 64)) < 0.05


def test_small_models_are_float32_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(precision, "_seconds", None)
    assert fastest_on_cpu(LlamaConfig(hidden_size=32, intermediate_size=64)) == torch.float32


def test_a_shape_is_timed_once_and_large_ones_in_part(monkeypatch):
    timed = []

    def seconds(tokens, width, inner):
        timed.append((tokens, width, inner))
        return 1.0, 0.5

    monkeypatch.setattr(precision, "_seconds", seconds)
    for _ in range(2):
        assert fastest_on_cpu(LlamaConfig(hidden_size=4096, intermediate_size=14336)) == torch.bfloat16
    assert timed == [(precision.FEW, precision.SIDE, precision.SIDE), (precision.MANY, precision.SIDE, precision.SIDE)]
    assert fastest_on_cpu(GPT2Config(n_embd=768)) == torch.bfloat16  # whose config names no inner size
    assert timed[-1] == (precision.MANY, 768, precision.SIDE)


def test_a_little_faster_is_not_worth_the_digits(monkeypatch):
    monkeypatch.setattr(precision, "_seconds", lambda tokens, width, inner: (1.0, 0.9))
    assert fastest_on_cpu(CONFIG) == torch.float32


def test_threads_are_as_before():
    before = torch.get_num_threads()
    fastest_on_cpu(CONFIG)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_models_are_loaded_in_what_is_fast(tiny_model_folder, tiny_tokenizer, monkeypatch):
    folder = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    assert load_model(folder).dtype == torch.float32
    monkeypatch.setattr("lepta.models.load.fastest_on_cpu", lambda config: torch.bfloat16)
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, torch.float32).dtype == torch.float32


def test_a_config_that_transformers_does_not_know_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(LeptaError, match=f"{tmp_path}: transformers cannot load this model .*unheard_of"):
        precision.config_of(tmp_path)


def test_a_run_goes_on_as_it_began(tmp_path):
    assert recorded_dtype(tmp_path, lambda: torch.bfloat16) == torch.bfloat16
    assert recorded_dtype(tmp_path, lambda: torch.float32) == torch.bfloat16
    for damaged in ("", "[]", "{}", '{"dtype": "int8"}'):
        (tmp_path / PRECISION).write_text(damaged)
        with pytest.raises(LeptaError, match=r"precision\.json.*; start over with --force"):
            recorded_dtype(tmp_path, lambda: torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_settings_name_what_the_run_began_with(tiny_model_folder, tiny_tokenizer, tmp_path, monkeypatch):
    folder = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    monkeypatch.setattr("lepta.training.precision.fastest_on_cpu", lambda config: torch.bfloat16)
    assert resolved_body_dtype("auto", folder, tmp_path) == "bfloat16"
    monkeypatch.setattr("lepta.training.precision.fastest_on_cpu", lambda config: torch.float32)
    assert resolved_body_dtype("auto", folder, tmp_path) == "bfloat16"
    assert resolved_body_dtype("auto", folder, tmp_path / "another") == "float32"
    assert resolved_body_dtype("float32", folder, tmp_path) == "float32"
    assert resolved_body_dtype("float32", folder, tmp_path / "given") == "float32"
    assert not (tmp_path / "given" / PRECISION).exists()


def test_of_several_processes_the_first_decides(tmp_path, monkeypatch):
    def send(box):
        box[0] = "bfloat16"  # what the first process has found

    other = SimpleNamespace(is_main_process=False, num_processes=2)
    monkeypatch.setattr("lepta.training.precision.processes", lambda: other)
    monkeypatch.setattr("lepta.training.precision.broadcast_object_list", send)
    assert agreed_dtype(tmp_path, lambda: torch.float32) == torch.bfloat16
    assert not list(tmp_path.iterdir())
