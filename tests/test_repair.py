"""`lepta repair`, and text that is read as conversations."""

import itertools
import json

import commands
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.core.errors import LeptaError
from lepta.distillation.passages import cut
from lepta.distillation.settings import DistillSettings, RepairSettings
from lepta.embeddings.initialise import initialise
from lepta.inference.chat import around_turns
from lepta.learning import _both_sides, in_turns
from lepta.models.folder import Checkpoint
from lepta.models.load import load_tokenizer
from lepta.repair import repair_folder
from lepta.text.settings import Language, Text
from lepta.training.blocks import write_tokens

SMALL = {"tokens": 1600, "head_tokens": 4000, "block": 128, "batch": 4, "lora_rank": 2, "passage": 200}
TEXT = Text(
    target=Language(language="ru", train=["starter:ru/train"], valid=["starter:ru/valid"]),
    source=Language(language="en", train=["starter:en/train"], valid=["starter:en/valid"]),
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
    assert bits["fitted, 30% to the text"] < bits["before"]
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
    assert not (tmp_path / "out").exists(), "told before the first step"
    model += ["--passage", "200"]
    planned = json.loads(commands.lepta(*model, "--dry-run", check=0).stdout)
    assert [stage["stage"] for stage in planned["stages"]] == ["states", "model"]
    cost = planned["cost"]
    assert cost["states_tokens"] == 1600 and cost["head_tokens"] == 2000 and cost["head_gigaflop"] > 0
    assert not (tmp_path / "out").exists()
    facts = json.loads(commands.lepta(*model, check=0).stdout)
    assert facts["output"] == str(tmp_path / "out/model") and facts["states"]["tokens"] >= 1600
    assert AutoModelForCausalLM.from_pretrained(facts["output"]).config.vocab_size > 4000
    printed = commands.lepta(*(flag for flag in model if flag != "--json"), check=0)
    assert "Hidden states" in printed.stdout and "Result" in printed.stdout
    (tmp_path / "other/model").mkdir(parents=True)
    taken = commands.lepta(*model, "--output", tmp_path / "other", check=2)
    assert "exists and is none of this command's" in taken.stderr
    inside = ["repair", "--model", tmp_path / "out/model", "--original", variant, *FLAGS, "--output", tmp_path / "out"]
    assert "out/model: is read (model), and would be written over" in commands.lepta(*inside, check=2).stderr
    assert "is read (model)" in commands.lepta(*inside, "--output", tmp_path / "out/model", check=2).stderr
    (tmp_path / "file").touch()
    assert "is a file; --output is a folder" in commands.lepta(*model, "--output", tmp_path / "file", check=2).stderr


def test_what_another_command_made_is_not_replaced(variant, propagated, tmp_path):
    made = ["propagate", "--base", variant, "--adapted", propagated, "--instruct", variant, "--body-delta", "1.0"]
    commands.lepta(*made, "--output", tmp_path / "out/model", check=0)
    command = ["repair", "--model", propagated, "--original", variant, *FLAGS, "--output", tmp_path / "out"]
    assert "out/model: exists and is none of this command's" in commands.lepta(*command, check=2).stderr


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
    same = commands.lepta(*command, "--model", variant, check=2).stderr
    assert "has no token that" in same and "nothing to repair" in same
    wide = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, hidden=64)
    other = commands.lepta(*command, "--model", propagated, "--original", wide, "--dry-run", check=2).stderr
    assert f"{wide}: rows have 64 numbers" in other.replace("\n", "")
    english = [*command[:5], "--text", "starter:en/valid", *FLAGS[2:], "--model", propagated]
    said = commands.lepta(*english, check=2).stderr
    assert "repair: of 300 tokens that are to learn none occurs in the text" in said.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_share_of_the_text_is_conversations(variant):
    around = around_turns(load_tokenizer(variant))
    before, between, behind = around
    assert before.endswith("<|im_start|>user\n") and "assistant" in between and behind.startswith("<|im_end|>")
    document = "слово " * 700  # three pieces of 1,500 characters at most
    read = list(in_turns(iter([document, "два слова", "я"]), 0.5, around, 1500))
    assert [text.startswith(before) for text in read] == [False, True, False, True, False]
    for text in read[1::2]:
        assert text.endswith(behind) and between in text
    plain = [text.removeprefix(before).removesuffix(behind).replace(between, "") for text in read]
    pieces = [document.strip()[start : start + 1500].strip() for start in (0, 1500, 3000)]
    assert plain == [*pieces, "два слова", "я"]
    assert all(text.startswith(before) for text in in_turns(iter([document]), 1.0, around, 1500))
    shares = list(in_turns(iter(["два слова"] * 1000), 0.1, around, 1500))
    assert sum(text.startswith(before) for text in shares) == 100


def test_a_conversation_begins_and_ends_once(variant, tiny_llama3, tiny_model_folder, tmp_path):
    """A start token is not there twice where tokenizers put it, and not lost where they do not; so the end."""
    tokenizer = load_tokenizer(variant)  # its start token is that of a turn, and it puts none before a text
    store = write_tokens(
        in_turns(iter(["Утром было тихо"]), 1.0, around_turns(tokenizer), 1500), tokenizer, 200, tmp_path
    )
    section = tokenizer.decode(store.section(0))
    assert section.startswith("<|im_start|>") and section.endswith("<|im_end|>")
    assert section.count("<|im_end|>") == section.count("<|im_start|>")
    with_start = load_tokenizer(tiny_model_folder(rows=6256, tokenizer=tiny_llama3))
    text = next(in_turns(iter(["Утром было тихо"]), 1.0, around_turns(with_start), 1500))
    assert text.startswith("<|start_header_id|>user")
    ids = write_tokens(iter([text]), with_start, 200, tmp_path / "other").section(0)
    assert list(ids).count(with_start.bos_token_id) == 1 and ids[0] == with_start.bos_token_id


def test_a_conversation_fits_a_passage(variant, propagated, monkeypatch):
    """Distillation cuts text into passages, and no conversation apart."""
    around = around_turns(load_tokenizer(variant))
    settings = DistillSettings(tokens=3000, passage=400, chat_share=1.0)
    documents, _ = _both_sides(TEXT, settings, propagated)
    texts = list(itertools.islice(documents(), 50))
    assert all(text.startswith(around[0]) and cut(text, 400) == [text.strip()] for text in texts)
    with pytest.raises(LeptaError, match=r"distill.passage: 40 characters have no room .* expected at least \d+"):
        _both_sides(TEXT, settings.model_copy(update={"passage": 40}), propagated)


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}", "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
                 "{% for m in messages %}{{ m.content[:100] }}{% endfor %}"]
)  # fmt: skip
def test_a_template_that_changes_what_is_said_is_refused(variant, template):
    tokenizer = AutoTokenizer.from_pretrained(variant)
    tokenizer.chat_template = template
    with pytest.raises(LeptaError, match="does not write a message and its answer"):
        around_turns(tokenizer)
