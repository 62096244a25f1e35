"""The preference step: each method moves the good answers' odds, and the result is merged and whole."""

import json
import shutil

import pytest
import torch
from commands import lepta
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lepta.core.errors import LeptaError
from lepta.core.settings import validated
from lepta.models.load import load_tokenizer
from lepta.training.preference import prefer_folder, read_preferences, spread
from lepta.training.settings import PreferenceSettings

pytest.importorskip("trl", reason="pip install 'lepta[preference]'")
PAIRS = [{"prompt": f"Вопрос {n}?", "chosen": "Да, конечно.", "rejected": "Нет и нет."} for n in range(16)]


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)


@pytest.fixture
def pairs(write_lines):
    return write_lines("pairs.jsonl", [json.dumps(row) for row in PAIRS])


@pytest.mark.parametrize("method", ["kto", "dpo", "simpo"])
def test_good_answers_become_likelier_than_bad_ones(folder, pairs, tmp_path, method):
    settings = PreferenceSettings(
        method=method, batch=4, learning_rate=1e-2, lora={"rank": 4, "alpha": 4}, max_length=200
    )
    (tmp_path / "out").mkdir()
    facts, curve = prefer_folder(folder, read_preferences([str(pairs)], method), settings, 1, tmp_path / "out")
    assert facts["examples"] == (32 if method == "kto" else 16) and facts["merged_error"] < 1e-4
    assert curve[-1]["rewards/margins"] > curve[0]["rewards/margins"]
    before, after = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, tmp_path / "out"))
    ids = torch.arange(100, 140)[None]
    assert not torch.equal(before(ids).logits, after(ids).logits)


@pytest.mark.parametrize("method", ["kto", "dpo", "simpo"])
def test_thinking_is_off_as_it_is_everywhere(folder, pairs, tmp_path, method):
    thinks = tmp_path / "thinks"
    shutil.copytree(folder, thinks)
    template = load_tokenizer(folder).chat_template
    thinking = "{%- if enable_thinking is not defined or enable_thinking %}Думаю. {% endif %}"
    (thinks / "chat_template.jinja").write_text(thinking + template, encoding="utf-8")
    settings = PreferenceSettings(method=method, batch=8, learning_rate=1e-2, lora={"rank": 4}, max_length=200)
    weights = []
    for source in (folder, thinks):
        out = tmp_path / f"{source.name}-out"
        out.mkdir()
        prefer_folder(source, read_preferences([str(pairs)], method), settings, 1, out)
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("method", ["kto", "dpo", "simpo"])
def test_preferences_are_trained_in_what_is_fast(folder, pairs, tmp_path, monkeypatch, method):
    monkeypatch.setattr("lepta.models.load.fastest_on_cpu", lambda config: torch.bfloat16)
    settings = PreferenceSettings(method=method, batch=8, learning_rate=1e-2, lora={"rank": 4, "alpha": 4})
    (tmp_path / "out").mkdir()
    facts, curve = prefer_folder(folder, read_preferences([str(pairs)], method), settings, 1, tmp_path / "out")
    assert facts["body_dtype"] == "bfloat16"
    assert curve[-1]["rewards/margins"] > curve[0]["rewards/margins"]


def test_rows_that_are_no_preferences(write_lines):
    single = write_lines("single.jsonl", [json.dumps({"prompt": "Раз", "answer": "Два", "label": True})])
    (example,) = read_preferences([str(single)], "kto")
    assert example["label"] is True and example["completion"] == [{"role": "assistant", "content": "Два"}]
    with pytest.raises(LeptaError, match=r"line 1: no preference; .*'rejected', which dpo compares; it has prompt"):
        list(read_preferences([str(single)], "dpo"))


def test_batch_that_cannot_be_compared_in_parts_is_named():
    with pytest.raises(LeptaError, match=r"^lepta tune --preference: `batch`: 3; expected a multiple of 2"):
        validated(PreferenceSettings, {"batch": 3}, "lepta tune --preference")


def test_what_is_too_long_is_left_out_whole(folder, write_lines, tmp_path):
    rows = [*PAIRS[:3], PAIRS[3] | {"chosen": "слово " * 100}]
    file = write_lines("pairs.jsonl", [json.dumps(row) for row in rows])
    settings = PreferenceSettings(method="dpo", batch=2, max_length=150)
    facts, _ = prefer_folder(folder, read_preferences([str(file)], "dpo"), settings, 1, tmp_path)
    assert (facts["examples"], facts["too_long"]) == (3, 1)
    with pytest.raises(LeptaError, match="0 examples left of 4"):
        prefer_folder(
            folder, read_preferences([str(file)], "dpo"), settings.model_copy(update={"max_length": 8}), 1, tmp_path
        )


def test_tuning_with_copies_and_a_preference_step(folder, pairs, tmp_path):
    command = ["tune", "--model", folder, "--output", "out", "--json"]
    command += ["--data", "starter:dialogues/valid.jsonl", "--batch", "16", "--rank", "4", "--max-length", "400"]
    command += ["--copy-text", "starter:ru/train", "--copies", "5", "--copy-characters", "300"]
    command += ["--preference", pairs, "--preference-method", "dpo", "--preference-batch", "4"]
    facts = json.loads(lepta(*command, cwd=tmp_path, check=0).stdout)
    assert facts["copies"]["copied"] == 5 and facts["conversations"] == 55 and facts["preference"]["examples"] == 16
    assert [path.name for path in tmp_path.iterdir() if path.name != "pairs.jsonl"] == ["out"]


def test_the_system_prompt_is_part_of_what_is_asked(write_lines):
    file = write_lines("pairs.jsonl", [json.dumps(PAIRS[0] | {"system": "Отвечай грубо."})])
    (example,) = read_preferences([str(file)], "dpo")
    assert [turn["role"] for turn in example["prompt"]] == ["system", "user"]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_micro_batch_of_kto_has_a_prompt_twice(pairs, size):
    examples = list(read_preferences([str(pairs)], "kto"))
    examples += [examples[0] | {"label": False}] * 5  # one prompt that is answered seven times
    ordered = spread(examples, size, 1)
    assert sorted(map(json.dumps, ordered)) == sorted(map(json.dumps, examples))
    for start in range(0, len(ordered), size):
        prompts = [json.dumps(example["prompt"]) for example in ordered[start : start + size]]
        assert len(set(prompts)) == len(prompts)
    labels = [example["label"] for example in ordered[: len(ordered) // 2]]
    assert 0.2 < sum(labels) / len(labels) < 0.8  # good and bad answers come mixed
    assert ordered == spread(examples, size, 1) != spread(examples, size, 2)


def test_kto_measures_on_answers_to_other_prompts(folder, pairs, tmp_path, monkeypatch):
    import trl

    seen, whole = [], trl.KTOTrainer.__init__

    def looking(self, *arguments, **named):
        whole(self, *arguments, **named)
        tokenizer = named["processing_class"]
        seen.extend(tokenizer.decode(row["prompt_ids"]) for row in self.train_dataset)

    monkeypatch.setattr(trl.KTOTrainer, "__init__", looking)
    monkeypatch.setattr(trl.KTOTrainer, "train", lambda self, **_: None)
    settings = PreferenceSettings(batch=4, lora={"rank": 4, "alpha": 4}, max_length=200)
    prefer_folder(folder, read_preferences([str(pairs)], "kto"), settings, 1, tmp_path)
    assert all(one != other for one, other in zip(seen[::2], seen[1::2], strict=True))


def test_a_single_step_learns_and_depends_on_the_seed_alone(folder, pairs, tmp_path):
    settings = PreferenceSettings(method="dpo", batch=32, learning_rate=1e-2, lora={"rank": 4, "alpha": 4})
    weights = []
    for state in (0, 1):
        torch.manual_seed(state)
        place = tmp_path / str(state)
        place.mkdir()
        prefer_folder(folder, read_preferences([str(pairs)], "dpo"), settings, 1, place)
        weights.append(load_file(place / "model.safetensors"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], load_file(folder / "model.safetensors")[name])
