"""Tuning on conversations: what the loss counts, what trains, and that the merged model is the one that was trained."""

import json

import pytest
import torch
from commands import lepta
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.plan.commands import tuning_cost
from lepta.training import merge
from lepta.training.conversations import (
    COUNTED,
    IGNORED,
    conversation_example,
    lay_out_rows,
    messages_of,
    read_conversations,
    write_examples,
)
from lepta.training.merge import write_merged
from lepta.training.settings import TuneSettings
from lepta.training.tune import TuneCommand, tune, tune_folder

DIALOGUE = [
    {"role": "system", "content": "Отвечай кратко."},
    {"role": "user", "content": "Почему небо голубое?"},
    {"role": "assistant", "content": "Коротко: воздух рассеивает синий свет."},
    {"role": "user", "content": "А закат?"},
    {"role": "assistant", "content": "Коротко: путь света длиннее."},
]
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tiny_tokenizer):
    """An untied and a tied tiny model."""
    return {tied: tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, tied=tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders[False])


@pytest.fixture(scope="module")
def dialogues():
    return list(read_conversations(["starter:dialogues/valid.jsonl"]))


def settings(**values):
    return TuneSettings.model_validate({"learning_rate": 1e-2, "batch": 4, "max_length": 500} | values)


def counted(tokenizer, example):
    """The text that the loss counts, a part for each run of tokens."""
    parts, run = [], []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if label != IGNORED:
            assert label == token
            run.append(token)
        elif run:
            parts.append(tokenizer.decode(run))
            run = []
    return [*parts, tokenizer.decode(run)] if run else parts


def test_the_loss_counts_every_answer_and_the_end_of_its_turn(tokenizer):
    example = conversation_example(tokenizer, DIALOGUE)
    answers = [DIALOGUE[2]["content"], DIALOGUE[4]["content"]]
    assert counted(tokenizer, example) == [f"{answer}<|im_end|>" for answer in answers]
    prompt = tokenizer.apply_chat_template(DIALOGUE[:-1], tokenize=False, add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert example["input_ids"][: len(asked)] == asked  # as the model is asked when it is used


@pytest.mark.parametrize("family", ["mistral", "tiny_llama3", "tiny_qwen"])
def test_answers_of_other_families(family, request):
    other = request.getfixturevalue(family).vocabulary().tokenizer

    class Template:
        """A tokenizer with OpenChat's way of writing turns."""

        chat_template = "as apply_chat_template writes it"

        def apply_chat_template(self, messages, tokenize, add_generation_prompt=False, **switches):
            text = "".join(f"{m['role']}: {m['content']}#" for m in messages)
            return text + ("assistant:" if add_generation_prompt else "")

        def __call__(self, text, **options):
            encoded = other.encode(text, add_special_tokens=False)
            return {"input_ids": encoded.ids, "offset_mapping": encoded.offsets}

        def decode(self, ids):
            return other.decode(ids)

    found = [part.strip() for part in counted(Template(), conversation_example(Template(), DIALOGUE))]
    assert found == [f"{turn['content']}#" for turn in DIALOGUE if turn["role"] == "assistant"]


def test_earlier_turns_that_a_template_rewrites_do_not_count(tokenizer):
    changed = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    changed.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else '...' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert counted(changed, conversation_example(changed, DIALOGUE)) == [f"{DIALOGUE[4]['content']}<|im_end|>"]


def test_what_cannot_be_learned_from_is_left_out_and_counted(tokenizer, tmp_path):
    refusing = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    refusing.chat_template = REFUSING + refusing.chat_template
    ask, answer = DIALOGUE[1], DIALOGUE[2]
    good = [ask, answer]
    conversations = [
        good,
        DIALOGUE,
        good,
        [ask],
        [ask, {"role": "assistant", "content": " \n"}],
        [ask, {"role": "assistant", "content": "слово " * 300}],
    ]
    store, counts = write_examples(conversations, refusing, 200, tmp_path)
    expected = {"conversations": 6, "duplicate": 1, "refused": 1, "unanswered": 2, "too_long": 1, "examples": 1}
    assert {name: counts[name] for name in expected} == expected
    assert counts["tokens"] == store.starts[-1] and counts["answer_tokens"] == int((store.tokens[:] >= COUNTED).sum())
    again, same = write_examples(iter(()), refusing, 200, tmp_path)  # as a run that goes on does
    assert same == counts and (again.starts == store.starts).all()
    with pytest.raises(LeptaError, match=r"none of 1 conversations .*: 1 refused by the chat template; .*no system"):
        write_examples([DIALOGUE], refusing, 200, tmp_path / "none")


def test_rows_that_are_no_conversations_are_named():
    assert messages_of({"system": "a", "prompt": "b", "answer": "c", "kind": "x"}, "") == [
        {"role": role, "content": text} for role, text in (("system", "a"), ("user", "b"), ("assistant", "c"))
    ]
    for row in ({"text": "a"}, {"messages": ["a"]}, {"messages": [{"role": "user", "content": None}]}, {}):
        with pytest.raises(LeptaError, match=r'f, line 3: no conversation; expected "messages"'):
            messages_of(row, "f, line 3")


def test_packed_conversations_do_not_see_each_other(folders, tokenizer, dialogues, tmp_path):
    store, counts = write_examples(dialogues, tokenizer, 500, tmp_path)
    packed, single = (lay_out_rows(store, 1, 4, 1, length) for length in (500, None))
    assert sum(map(len, packed.members)) == len(single) == counts["examples"] > 2 * len(packed)
    assert sorted(n for row in packed.members for n in row) == list(range(len(single)))
    model = AutoModelForCausalLM.from_pretrained(folders[False])
    place = {row[0]: number for number, row in enumerate(single.members)}

    def loss(example):
        batch = {name: torch.as_tensor(values)[None] for name, values in example.items()}
        number = int((batch["labels"] != IGNORED).sum())
        with torch.no_grad():
            return float(model(**batch).loss) * number

    row = max(range(len(packed)), key=lambda n: len(packed.members[n]))
    apart = sum(loss(single[place[n]]) for n in packed.members[row])
    assert loss(packed[row]) == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("trains", ["lora", "lora+head", "embeddings+lora", "full"])
def test_what_trains_and_that_it_is_merged(folders, dialogues, tmp_path, tied, trains):
    chosen = settings(trains=trains, lora={"rank": 4, "alpha": 1, "layers": [0, -1]})
    facts, curve = tune_folder(folders[tied], dialogues, chosen, 1, tmp_path)
    losses = [entry["loss"] for entry in curve]
    assert facts["loss"]["first_quarter"] > facts["loss"]["last_quarter"] > 0
    assert losses[-1] < losses[0] and facts["examples"] == len(dialogues) and facts["merged_error"] < 1e-4
    before, after = Checkpoint(folders[tied]), Checkpoint(tmp_path)
    changed = {name for name in before.entries if not torch.equal(before.load(name), after.load(name))}
    ends = {"model.embed_tokens.weight", "lm_head.weight"} & set(before.entries)
    whole = {"lora": set(), "lora+head": ends if tied else {"lm_head.weight"}}.get(trains, ends)
    assert changed & ends == whole
    assert {name for name in before.entries if name.endswith("_proj.weight")} <= changed
    assert after.tied == tied


def test_products_in_16_bits_leave_the_trained_model_exact(folders, dialogues, tmp_path):
    """As on a GPU: float32 weights, bfloat16 products while they train."""
    facts, _ = tune_folder(folders[True], dialogues, settings(trains="full", body_dtype="bfloat16"), 1, tmp_path)
    assert facts["merged_error"] < 1e-4


@pytest.mark.parametrize(("rate", "dtype"), [(1e-6, torch.float32), (3e-3, torch.bfloat16)])
def test_changes_that_16_bits_would_lose_are_written_in_float32(
    rate, dtype, tiny_model_folder, tiny_tokenizer, dialogues, tmp_path
):
    source = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, tied=True, dtype=torch.bfloat16)
    chosen = settings(trains="full", body_dtype="float32", learning_rate=rate)
    facts, _ = tune_folder(source, dialogues, chosen, 1, tmp_path)
    before, after = AutoModelForCausalLM.from_pretrained(source), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (before.dtype, after.dtype) == (torch.bfloat16, dtype)
    assert ("warnings" in facts) == (dtype == torch.float32)
    assert facts["merged_error"] < (1e-4 if dtype == torch.float32 else 0.1)
    changed = [(a != b).float().mean() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert max(changed) > 0.5


def test_runs_are_not_lost_where_rounding_makes_another_model(
    tiny_model_folder, tiny_tokenizer, dialogues, tmp_path, monkeypatch
):
    """The limit is lowered here: what passes it with a whole model, a tiny one does not."""
    monkeypatch.setattr(merge, "LARGEST_ROUNDING", 1e-4)
    source = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, tied=True, dtype=torch.bfloat16)
    facts, _ = tune_folder(source, dialogues, settings(trains="full", body_dtype="float32"), 1, tmp_path)
    assert "float32" in facts["warnings"][0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32


def test_low_rank_changes_of_embeddings_are_merged(folders, tokenizer, dialogues, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders[False])
    chosen = settings(trains="lora", lora={"rank": 4, "alpha": 2, "targets": ["embed_tokens", "q_proj"]})
    trained, _ = tune(model, tokenizer, dialogues, tmp_path / "work", chosen)
    (tmp_path / "out").mkdir()
    assert write_merged(model, trained.weights, folders[False], tmp_path / "out")["merged_error"] < 1e-4
    before, after = (
        Checkpoint(folder).load("model.embed_tokens.weight") for folder in (folders[False], tmp_path / "out")
    )
    assert not torch.equal(before, after)


def test_rounding_of_layers_is_no_error_of_merging(folders, tokenizer, dialogues, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(folders[True])
    chosen = settings(trains="embeddings+lora", lora={"rank": 4, "alpha": 1})
    trained, _ = tune(model, tokenizer, dialogues, tmp_path / "work", chosen)
    (tmp_path / "out").mkdir()
    rounded = write_merged(model, trained.weights, folders[True], tmp_path / "out")["merged_error"]
    monkeypatch.setattr(merge, "LARGEST_ERROR", rounded / 2)  # in float32 that is too much
    written = model, trained.weights, folders[True], tmp_path / "out"
    assert 0 < merge.merged_error(*written) < rounded / 2
    for change in (0.01, float("nan")):  # this no rounding explains
        trained.weights["model.embed_tokens.weight"][-1] += change
        with pytest.raises(LeptaError, match="the merged model's logits differ from the trained one's by"):
            merge.merged_error(*written)


def test_a_body_that_trained_in_16_bits_is_compared_on_exact_weights(folders, dialogues, tmp_path):
    """Rounding of the body alone may change single logits by more than training does."""
    chosen = settings(trains="embeddings+lora", lora={"rank": 4, "alpha": 1}, body_dtype="bfloat16")
    facts, _ = tune_folder(folders[False], dialogues, chosen, 1, tmp_path)
    assert facts["merged_error"] < 1e-4


@pytest.mark.parametrize(
    ("tied", "lora", "says"),
    [
        (False, {"targets": ["lm_head"]}, "lm_head is the head"),
        (True, {"targets": ["embed_tokens"]}, "embed_tokens is trained whole or tied"),
        (False, {"layers": [2]}, r"no layer 2; this model has 2, from 0 or -2 on"),
        (False, {"targets": ["query"]}, "linear layers here: down_proj"),
    ],
)
def test_low_rank_changes_that_cannot_be(folders, tokenizer, dialogues, tmp_path, tied, lora, says):
    model = AutoModelForCausalLM.from_pretrained(folders[tied])
    with pytest.raises(LeptaError, match=says):
        tune(model, tokenizer, dialogues, tmp_path, settings(lora=lora))


def test_a_tiny_model_learns_its_conversations_by_heart(folders, tokenizer, dialogues, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders[True])
    chosen = settings(trains="full", epochs=150, learning_rate=5e-3, weight_decay=0.0)
    trained, counts = tune(model, tokenizer, dialogues[:4], tmp_path, chosen)
    assert counts["steps"] == 150
    losses = [entry["loss"] for entry in trained.curve]
    assert losses[-1] < 0.2 * losses[0]


def test_the_command(folders, tmp_path):
    command = ["tune", "--model", folders[False], "--output", "out", "--json"]
    command += ["--data", "starter:dialogues/valid.jsonl", "--batch", "8", "--rank", "4", "--alpha", "1"]
    command += ["--limit", "24"]
    planned = json.loads(lepta(*command, "--dry-run", cwd=tmp_path, check=0).stdout)
    assert planned["stages"] == [{"stage": "out", "current": False, "reason": "not made yet"}]
    cost = planned["cost"]
    assert not list(tmp_path.iterdir())
    facts = json.loads(lepta(*command, cwd=tmp_path, check=0).stdout)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["facts"] == {name: value for name, value in facts.items() if name != "output"}
    assert facts["examples"] == 24 and facts["steps"] == cost["steps"] == 3 and facts["tokens"] == cost["tokens"]
    assert cost["gigaflops_here"] > 0 and cost["minutes"] >= 0 and cost["memory_gib"] >= 0.5
    assert manifest["key"]["settings"]["limit"] == 24
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_a_dry_run_says_what_fills_memory_and_that_steps_are_few(smollm2_folder, capsys):
    def memory(**values):
        settings = TuneSettings.model_validate({"batch": 8} | values)
        command = TuneCommand(settings, 1, ["starter:dialogues/valid.jsonl"], limit=16)
        return tuning_cost(str(smollm2_folder), command)["memory_gib"]

    one = memory()
    assert memory(micro_batch=8) > one > 4 * 134_515_008 / 2**30  # the weights alone
    noted = " ".join(capsys.readouterr().err.split())
    assert "steps: 2, of 8 rows each, too few to learn from; --batch 1 makes 10" in noted


@pytest.mark.parametrize(("batch", "steps", "expected"), [(128, 1, 0), (10, 5, 0), (5, 10, 1), (4, 13, 1)])
def test_no_step_is_lost_to_warming_up(folders, tokenizer, dialogues, tmp_path, monkeypatch, batch, steps, expected):
    runs = []
    monkeypatch.setattr("lepta.training.tune.train", runs.append)
    model = AutoModelForCausalLM.from_pretrained(folders[False])
    _, counts = tune(model, tokenizer, dialogues, tmp_path, settings(batch=batch))
    assert (counts["steps"], runs[0].warmup_steps) == (steps, expected)


def test_a_single_step_learns(folders, dialogues, tmp_path):
    facts, _ = tune_folder(folders[False], dialogues, settings(batch=128), 1, tmp_path)
    before, after = Checkpoint(folders[False]), Checkpoint(tmp_path)
    assert facts["steps"] == 1 and not torch.equal(before.load("lm_head.weight"), after.load("lm_head.weight"))


def test_conversations_that_call_tools_are_left_out_and_counted(tokenizer, write_lines, tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Тверь"}}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows = [{"messages": [DIALOGUE[1], called]}, {"messages": DIALOGUE}, {"messages": [DIALOGUE[1], DIALOGUE[2]]}]
    rows[2]["messages"][1] = DIALOGUE[2] | {"tool_calls": []}
    file = write_lines("rows.jsonl", [json.dumps(row) for row in rows])
    store, counts = write_examples(read_conversations([str(file)]), tokenizer, 500, tmp_path / "examples")
    assert (counts["tool_calls"], counts["examples"]) == (1, 2) and len(store.lengths) == 2


def test_packing_is_refused_where_the_model_sees_across(tokenizer, dialogues, tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = OPTForCausalLM(OPTConfig(vocab_size=4000, word_embed_proj_dim=32, **sizes))
    with pytest.raises(LeptaError, match="packing: OPTForCausalLM sees from one document"):
        tune(model, tokenizer, dialogues, tmp_path, settings(packing=True))


def test_experts_are_written_one_by_one_as_they_were_stored(experts, dialogues, tmp_path):
    facts, _ = tune_folder(experts, dialogues[:8], settings(trains="full"), 1, tmp_path)
    before, after = Checkpoint(experts), Checkpoint(tmp_path)
    name = "model.layers.1.mlp.experts.3.gate_proj.weight"
    assert before.entries.keys() == after.entries.keys() and facts["merged_error"] < 1e-4
    assert not torch.equal(before.load(name), after.load(name))


def test_experts_that_low_rank_changes_do_not_reach_are_named(experts, dialogues, tmp_path):
    facts, _ = tune_folder(experts, dialogues[:8], settings(lora={"rank": 2}), 1, tmp_path)
    assert "model.layers.*.mlp.experts.down_proj" in facts["unreached"] and facts["merged_error"] < 1e-4
