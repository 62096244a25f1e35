"""`lepta repair`, and text that is read as conversations."""

import json
import shutil

import commands
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.core.errors import LeptaError
from lepta.distillation.settings import RepairSettings
from lepta.embeddings.initialise import initialise
from lepta.inference.chat import around_turns
from lepta.learning import in_turns, repair_folder
from lepta.models.folder import Checkpoint
from lepta.text.settings import Language, Text

SMALL = {"tokens": 1600, "head_tokens": 2000, "block": 128, "batch": 4, "lora_rank": 2, "passage": 200}
TEXT = Text(
    target=Language(language="ru", train=["starter:ru/valid"], valid=["starter:ru/valid"]),
    source=Language(language="en", train=["starter:en/valid"], valid=["starter:en/valid"]),
)
FLAGS = ["--text", "starter:ru/valid", "--source-text", "starter:en/valid", "--tokens", "1600", "--block", "128"]


@pytest.fixture(scope="module")
def variant(tiny_tokenizer, tiny_model_folder):
    """An instruct model with a head of its own and its own vocabulary."""
    return tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)


@pytest.fixture(scope="module")
def propagated(variant, tiny_extended, tmp_path_factory):
    """The variant with 300 Russian tokens, and a body that is a little different."""
    initialised, folder = tmp_path_factory.mktemp("initialised"), tmp_path_factory.mktemp("propagated")
    initialise(Checkpoint(variant), tiny_extended, initialised)
    model = AutoModelForCausalLM.from_pretrained(initialised)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1.1)
    model.save_pretrained(folder)
    for file in [*initialised.glob("*token*"), *initialised.glob("*.jinja")]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def last_states(folder, text, of=None):
    """Last hidden states where both tokenisations of a text end, at its end."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return model.model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0, -1]


def test_both_steps_bring_the_variant_nearer_to_its_original(variant, propagated, tmp_path):
    facts = repair_folder(propagated, variant, TEXT, RepairSettings(**SMALL, learning_rate=1e-2), 1, tmp_path / "out")
    before, states, after = (
        load_file(folder / "model.safetensors")
        for folder in (propagated, tmp_path / "out/states", tmp_path / "out/model")
    )
    assert {name for name in states if not torch.equal(states[name], after[name])} == {"lm_head.weight"}
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(before[name][:4000], states[name][:4000])
        assert not torch.equal(before[name][4000:], states[name][4000:])
    assert not torch.equal(before["model.layers.0.mlp.down_proj.weight"], states["model.layers.0.mlp.down_proj.weight"])
    bits = facts["model"]["held_out_bits_per_byte"]
    assert bits["fitted to what the original expects"] < bits["initialised"]
    assert (
        repair_folder(propagated, variant, TEXT, RepairSettings(**SMALL, learning_rate=1e-2), 1, tmp_path / "out")
        == facts
    )


def test_hidden_states_come_nearer(variant, propagated, tmp_path):
    settings = RepairSettings(**SMALL | {"tokens": 8000, "head_tokens": 0}, learning_rate=1e-2)
    facts = repair_folder(propagated, variant, TEXT, settings, 1, tmp_path)
    assert list(facts) == ["model"], "one step, which has the result"
    text = "Утром в деревне было тихо, и снег лежал на крышах"
    wanted, before, after = (last_states(folder, text) for folder in (variant, propagated, tmp_path / "model"))
    assert (after - wanted).norm() < (before - wanted).norm()


def test_the_command_says_what_it_found_and_costs(variant, propagated, tmp_path):
    model = ["repair", "--model", propagated, "--original", variant, "--output", tmp_path / "out", *FLAGS]
    model += ["--head-tokens", "2000", "--lora-rank", "2", "--json"]
    few = commands.lepta(*model, "--passage", "1600", check=2).stderr
    assert "--head-tokens: 2,000 tokens give" in few.replace("\n", " ") and "fewer than --batch, 8" in few
    shutil.rmtree(tmp_path / "out")
    model += ["--passage", "200"]
    cost = json.loads(commands.lepta(*model, "--dry-run", check=0).stdout)
    assert cost["tokens"] == 3600 and cost["gigaflop"] > 0 and not (tmp_path / "out").exists()
    facts = json.loads(commands.lepta(*model, check=0).stdout)
    assert facts["output"] == str(tmp_path / "out/model") and facts["states"]["tokens"] >= 1600
    assert AutoModelForCausalLM.from_pretrained(facts["output"]).config.vocab_size > 4000
    printed = commands.lepta(*(flag for flag in model if flag != "--json"), check=0)
    assert "Hidden states" in printed.stdout and "Result" in printed.stdout
    (tmp_path / "other/model").mkdir(parents=True)
    taken = commands.lepta(*model, "--output", tmp_path / "other", check=2)
    assert "exists and is none of this command's" in taken.stderr


def test_what_cannot_be_repaired_is_refused_at_once(variant, propagated, tiny_tokenizer, tiny_model_folder, tmp_path):
    tied = tiny_model_folder(rows=4000, tied=True, tokenizer=tiny_tokenizer)
    command = ["repair", "--original", variant, "--output", tmp_path / "out", *FLAGS]
    said = commands.lepta(*command, "--model", tied, check=2).stderr
    assert "--head-tokens: the model has one matrix for both ends" in said and "expected 0" in said
    few = commands.lepta(*command, "--model", propagated, "--head-tokens", "20", check=2).stderr
    assert "--head-tokens: 17 tokens of the target language cannot fill a --batch of 8" in few.replace("\n", " ")
    none = commands.lepta(*command[:-6], "--text", "starter:ru/valid", "--model", propagated, check=2).stderr
    assert "repair: needs --source-text" in none
    (propagated / "chat_template.jinja").rename(propagated / "hidden")
    try:
        plain = commands.lepta(*command, "--model", propagated, check=2).stderr
        assert "--chat-share:" in plain and "has no chat template" in plain
    finally:
        (propagated / "hidden").rename(propagated / "chat_template.jinja")
    assert not (tmp_path / "out").exists()


def test_a_share_of_the_text_is_conversations(variant):
    around = around_turns(AutoTokenizer.from_pretrained(variant))
    before, between, behind = around
    assert "<|im_start|>user" in before and "assistant" in between and behind.startswith("<|im_end|>")
    document = "слово " * 700  # three pieces of 1,500 characters at most
    read = list(in_turns(iter([document, "два слова"]), 0.5, around))
    assert [text.startswith(before) for text in read] == [False, True, False, True]
    for text in read[1::2]:
        assert text.endswith(behind) and between in text
    plain = [text.removeprefix(before).removesuffix(behind).replace(between, "") for text in read]
    assert plain == [*([document.strip()[start : start + 1500].strip() for start in (0, 1500, 3000)]), "два слова"]
    assert all(text.startswith(before) for text in in_turns(iter([document]), 1.0, around))


def test_a_template_that_changes_what_is_said_is_refused(variant):
    tokenizer = AutoTokenizer.from_pretrained(variant)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(LeptaError, match="does not write a message and its answer"):
        around_turns(tokenizer)
