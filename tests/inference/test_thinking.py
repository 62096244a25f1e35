"""Thinking is on where it is asked for, has a budget, and is no part of any answer, text or probability.

The model is real, with weights chosen so that each token is followed by one that is known: it thinks two tokens, ends
its thinking, and answers with two more.
"""

import itertools
import json

import pytest
import torch
from serving import Posted, Server, started, stopped

from lepta.calibration.calibrate import make_examples
from lepta.calibration.settings import CalibrateSettings
from lepta.calibration.writers import LocalWriter, Sampling, ServerWriter
from lepta.core.errors import LeptaError
from lepta.core.journal import read_rows, write_rows
from lepta.darumeru.backend import Asking, GenerationRequest
from lepta.darumeru.runner import run
from lepta.darumeru.server_backend import ChatBackend, ServerBackend
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.inference.answers import answers
from lepta.inference.chat import begun_answer, chat_prompt
from lepta.inference.client import Client, Refused
from lepta.inference.generation import end_tokens
from lepta.inference.scoring import Question
from lepta.inference.thinking import BLOCKS, block_of, split_thinking, think_here
from lepta.models.load import load_model, load_tokenizer
from lepta.pipeline import pipeline_of
from lepta.recipe import Recipe
from lepta.training.conversations import conversation_example, messages_of

HYBRID = (  # as Qwen3 has it
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS = HYBRID.partition("{% if add_generation_prompt")[0] + (  # as DeepSeek-R1 and Qwen3's thinking models have it
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHANNELS = (  # as gpt-oss has it
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{# <|channel|>analysis<|message|> #}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ASKED = [{"role": "user", "content": "Раз?"}]
OFF = "<|im_start|>user\nРаз?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
THOUGHT, ANSWER = (" one", " two"), (" three", " four")
THINKS = ("".join(THOUGHT), True)


@pytest.fixture(scope="module")
def loaded(tiny_model_folder, tiny_tokenizer):
    folder = tiny_model_folder(rows=4002, tokenizer=tiny_tokenizer, hidden=64, context=4096)
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = HYBRID
    path = [tokenizer(text)["input_ids"] for text in ("<think>", *THOUGHT, "</think>", "\n\n", *ANSWER)]
    assert all(len(ids) == 1 for ids in path)
    chain = [ids[0] for ids in path] + [min(end_tokens(model, tokenizer))]
    follow = dict(itertools.pairwise(chain))
    del follow[chain[3]]  # what comes behind the block is given
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # a token's last state is its own row
        rows = model.get_input_embeddings().weight
        for token, after in follow.items():
            model.get_output_embeddings().weight[after] = rows[token] / rows[token].norm()
    return model, tokenizer


def with_template(tokenizer, template):
    copied = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    copied.add_tokens(["<think>", "</think>"])
    copied.chat_template = template
    return copied


def test_the_block_is_empty_unless_a_model_is_to_think(loaded):
    _, tokenizer = loaded
    lead_in = [*ASKED, {"role": "assistant", "content": "Ответ:"}]
    for thinking in (False, True):  # a prompt to be filled in is one that could be answered at once
        assert chat_prompt(tokenizer, ASKED, thinking) == OFF
        assert chat_prompt(tokenizer, lead_in, thinking) == f"{OFF}Ответ:"
    assert begun_answer(with_template(tokenizer, ALWAYS), ASKED) == OFF
    assert begun_answer(with_template(tokenizer, CHANNELS), ASKED).endswith(
        "<|start|>assistant<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>"
    )


def test_a_model_that_cannot_think_is_refused(loaded):
    plain = with_template(loaded[1], HYBRID.replace("think>", "thought>"))
    with pytest.raises(LeptaError, match=r"thinking: the chat template has no block for it \(<think>, \[THINK\], "):
        chat_prompt(plain, ASKED, thinking=True)
    with pytest.raises(LeptaError, match="thinking: needs a chat template"):
        TransformersBackend(loaded[0], loaded[1], "tiny", Asking(chat=False, thinking=8))


@pytest.mark.parametrize(
    ("budget", "said", "ended"), [(8, " one two", True), (3, " one two", True), (1, " one", False)]
)
def test_a_budget_that_is_used_up_ends_the_thinking(loaded, budget, said, ended):
    model, tokenizer = loaded
    thoughts = think_here(model, tokenizer, [chat_prompt(tokenizer, ASKED, True)], budget, 4)
    assert thoughts.prompts == [OFF.replace("\n\n</think>", f"{said}</think>")]
    assert thoughts.thinking == [said if ended else ""]


def test_answers_of_reports_hold_no_thinking(loaded):
    for budget in (0, 1, 8):
        assert answers(*loaded, [ASKED] * 3, 8, "answers", budget).texts == [" three four"] * 3


def test_calibration_keeps_thinking_apart(loaded, tmp_path):
    writer = LocalWriter(*loaded, 4096, 2)
    for samples, temperature in ((1, 0.0), (2, 1e-4)):
        sampling = Sampling(8, samples, temperature, thinking=8)
        (found, *_) = writer.write([ASKED] * 3, sampling)
        assert [(one.text, one.thinking, one.whole) for one in found] == [("three four", "one two", True)] * samples
    (refused,) = LocalWriter(*loaded, 40, 2).write([ASKED], Sampling(8, thinking=30))
    assert "with 38 for the answer too long for a context of 40" in refused.reason

    row = {"id": "1", "messages": ASKED, "answers": [vars(found[0])]}
    write_rows(tmp_path / "answers.jsonl", [row])
    settings = CalibrateSettings.model_validate({"prompts": ["x"], "answers": {"thinking": True}})
    assert settings.answers.budget == 1024 and CalibrateSettings(prompts=["x"]).answers.budget == 0
    make_examples({"answers": tmp_path}, settings, [], 1, tmp_path)
    (example,) = read_rows(tmp_path / "examples.jsonl")
    assert example["messages"][-1] == {"role": "assistant", "content": "three four", "reasoning_content": "one two"}


def counted(tokenizer, example):
    whole = tokenizer.decode(example["input_ids"])
    return whole, tokenizer.decode([label for label in example["labels"] if label >= 0])


@pytest.mark.parametrize("given", ["field", "inline"])
def test_tuning_learns_thinking_only_if_told_to(loaded, given):
    tokenizer = loaded[1]
    answer = {"role": "assistant", "content": "Два.", "reasoning_content": "Думаю."}
    if given == "inline":
        answer = {"role": "assistant", "content": "<think>\nДумаю.\n</think>\n\nДва."}
    messages = messages_of({"messages": [*ASKED, answer]}, "row")
    assert counted(tokenizer, conversation_example(tokenizer, messages)) == (f"{OFF}Два.<|im_end|>", "Два.<|im_end|>")
    written = "<think>\nДумаю.\n</think>\n\nДва.<|im_end|>"
    for template, learned in ((HYBRID, written), (ALWAYS, written.removeprefix("<think>\n"))):
        thinks = with_template(tokenizer, template)
        whole, said = counted(thinks, conversation_example(thinks, messages, thinking=True))
        assert whole == OFF.removesuffix("<think>\n\n</think>\n\n") + written
        assert said.lstrip("\n") == learned
    plain = [*ASKED, {"role": "assistant", "content": "Два."}]  # nothing to learn of thinking: as without it
    assert conversation_example(tokenizer, plain, thinking=True) == conversation_example(tokenizer, plain)


def test_thinking_that_is_no_text_is_refused():
    turn = {"role": "assistant", "content": "Два.", "reasoning_content": 7}
    with pytest.raises(LeptaError, match="row 1: no conversation"):
        messages_of({"messages": [*ASKED, turn]}, "row 1")


@pytest.fixture
def backends(loaded):
    server = Server(*loaded)
    client = Client(server.url, "tiny", wait=0.01)
    yield TransformersBackend(*loaded, "tiny", Asking(thinking=8)), ServerBackend(client, loaded[1], Asking(thinking=8))
    stopped(server)


def test_labels_and_texts_of_the_benchmark_come_after_the_thinking(loaded, backends):
    model, tokenizer = loaded
    silent = TransformersBackend(model, tokenizer, "tiny")
    assert "thinking" not in silent.identity
    prompt = OFF.replace("\n\n</think>", " one two</think>")
    for backend in backends:
        assert backend.identity["thinking"] == 8
        assert backend.think([backend.render(ASKED)]) == [prompt]
        (written,) = backend.generate([GenerationRequest(prompt)], 8)
        assert written.text.startswith("three four")
    question = Question(prompt, (" three", " four", " one"))
    assert backends[0].choose([question]) == silent.choose([question])
    assert silent.think([OFF]) == [OFF]


def test_a_run_of_the_benchmark_asks_thinking_models(loaded, tmp_path):
    model, tokenizer = loaded
    scores = {}
    for thinking in (0, 8):
        backend = TransformersBackend(model, tokenizer, "tiny", Asking(thinking=thinking))
        summary = run(backend, "builtin", tmp_path / str(thinking), ["parus", "copy_sentence_en"], limit=2)
        assert not {"parus", "copy_sentence_en"} & summary.refused.keys()
        log = (tmp_path / str(thinking) / "samples" / "copy_sentence_en.jsonl").read_text().splitlines()
        assert json.loads(log[0])["run"].get("thinking", 0) == thinking
        scores[thinking] = [json.loads(line)["answer"]["text"] for line in log[1:]]
    assert scores[8] == scores[0] and all(text.startswith("three") for text in scores[0])
    with pytest.raises(LeptaError, match=r"holds answers of another run \(run.thinking changed\)"):
        run(backend, "builtin", tmp_path / "0", ["parus"], limit=2)


class ChatServer:
    """Chat completions that answer with `message`; `strict` refuses what it does not know, as OpenAI's own does."""

    def __init__(self):
        self.message, self.strict, self.seen = {}, False, []
        outer = self

        class Handler(Posted):
            def do_POST(self):
                request = json.loads(self.sent())
                outer.seen.append(request)
                if outer.strict and "chat_template_kwargs" in request:
                    self.reply(400, b'{"error": "Unrecognized request argument supplied: chat_template_kwargs"}')
                    return
                choice = {"message": outer.message, "finish_reason": "stop"}
                self.reply(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 9}}).encode())

        self.http, self.url = started(Handler)


@pytest.fixture
def chat_server():
    server = ChatServer()
    yield server
    stopped(server)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Два.", "reasoning": "Думаю."},
        {"content": "\n\nДва.", "reasoning_content": "Думаю."},
        {"content": "<think>\nДумаю.\n</think>\n\nДва."},
        {"content": "Думаю.\n</think>\n\nДва."},  # the template began the block
    ],
)
def test_a_server_says_thinking_in_one_of_several_ways(chat_server, loaded, message):
    chat_server.message = message
    ((answer,),) = ServerWriter(chat_server.url, "tiny").write([ASKED], Sampling(100, thinking=50))
    assert (answer.text, answer.thinking) == ("Два.", "Думаю.")
    sent = chat_server.seen[-1]
    assert sent["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True} and sent["max_tokens"] == 150
    backend = ChatBackend(Client(chat_server.url, "tiny"), loaded[1])
    (written,) = backend.generate([GenerationRequest(backend.render(ASKED))], 20)
    assert written.text == "Два." and written.emitted == len(backend.tokens("Два."))
    assert chat_server.seen[-1]["chat_template_kwargs"]["enable_thinking"] is False
    assert chat_server.seen[-1]["max_tokens"] == 20


def test_thinking_without_end_leaves_no_answer(chat_server):
    chat_server.message = {"content": "<think>\nДумаю и думаю"}
    ((answer,),) = ServerWriter(chat_server.url, "tiny").write([ASKED], Sampling(100))
    assert answer.text == ""


def test_a_server_without_the_switch_is_asked_without_it_unless_it_is_to_think(chat_server):
    chat_server.strict, chat_server.message = True, {"content": "Два."}
    client = Client(chat_server.url, "tiny")
    assert [client.chat(ASKED, 9).text for _ in range(2)] == ["Два."] * 2
    assert len(chat_server.seen) == 3  # it is told once
    with pytest.raises(Refused, match="chat_template_kwargs"):
        Client(chat_server.url, "tiny").chat(ASKED, 9, thinking=5)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_all_families_are_known_by_their_template(block):
    assert block_of(f"... {block.start}...{block.end} ...") == block
    assert block_of("{{ messages }}") is None
    if not block.always:
        assert split_thinking(f"{block.start}Думаю.{block.end}{block.after}Два.") == ("Думаю.", "Два.")
        assert split_thinking(f"{block.start}Думаю") == ("Думаю", "")
    assert split_thinking("  Два < три. ") == ("", "  Два < три. ")


@pytest.mark.parametrize("where", ["calibrate", "behaviour", "darumeru"])
def test_a_recipe_whose_variant_cannot_think_is_refused_at_once(where, tiny_model_folder, tiny_tokenizer, write_lines):
    folder = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    side = {"language": "ru", "train": ["starter:ru/train"], "valid": ["starter:ru/valid"]}
    dialogue = json.dumps({"prompt": "Раз?", "answer": "Да: два."}, ensure_ascii=False)
    thinks = {"thinking": True}
    behaviour = {"dialogues": str(write_lines("d.jsonl", [dialogue])), **thinks}
    parts = {
        "calibrate": {"calibrate": {"prompts": ["x.jsonl"], "answers": thinks}},
        "behaviour": {"evaluate": {"behaviour": behaviour}},
        "darumeru": {"evaluate": {"darumeru": {"tasks": ["parus"], **thinks}}},
    }
    recipe = {
        "name": "thinks",
        "output": "out",
        "base": str(folder),
        "variants": {"chat": {"model": str(folder)}},
        "vocabulary": {"corpus": ["starter:ru/train"], "add": 100},
        "pretrain": {"tokens": 100},
        "text": {"target": side, "source": side},
        **parts[where],
    }
    with pytest.raises(LeptaError, match="its chat template has no block of thinking; leave `thinking` off"):
        pipeline_of(Recipe.model_validate(recipe))
