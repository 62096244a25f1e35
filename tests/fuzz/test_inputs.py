"""What users and servers give, damaged: rows, conversations, benchmark data, answers of servers, chat templates."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz.conftest import TEMPLATE
from fuzz.mutations import HOSTILE, accepted, changed, damaged
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lepta.calibration.judge import FORM
from lepta.calibration.prompts import read_prompts
from lepta.calibration.writers import Sampling, ServerWriter
from lepta.darumeru.backend import Asking, GenerationRequest, Question
from lepta.darumeru.data import read_rows
from lepta.darumeru.importers import import_dataset
from lepta.darumeru.server_backend import ChatBackend, ServerBackend
from lepta.inference.chat import chat_prompt
from lepta.inference.client import Client
from lepta.models.load import load_tokenizer
from lepta.text.sources import BUILTIN_ITEMS, read_documents
from lepta.training.conversations import conversation_example, read_conversations
from lepta.training.preference import read_preferences

TALK = {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "thing", "tool_calls": []}]}
PAIR = {"prompt": "the", "chosen": "thing", "rejected": "in", "system": "in", "answer": "x", "label": True}
READERS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "documents": ({"text": "Привет", "source": "a", "doc": 1}, lambda file: list(read_documents([str(file)]))),
    "conversations": (TALK, lambda file: list(read_conversations([str(file)]))),
    "preferences": (PAIR, lambda file: list(read_preferences([str(file)], "dpo"))),
    "prompts": (TALK, lambda file: list(read_prompts([str(file)], 10, Counter()))),
}


@given(name=st.sampled_from(sorted(READERS)), packed=st.booleans(), data=st.data())
def test_rows(tmp_path_factory: pytest.TempPathFactory, name: str, packed: bool, data: st.DataObject) -> None:
    start, read = READERS[name]
    content = (json.dumps(start) + "\n" + json.dumps(data.draw(changed(start))) + "\n").encode()
    content = gzip.compress(content) if packed else content
    content = data.draw(st.one_of(st.just(content), damaged(content)))
    file = tmp_path_factory.mktemp("t") / ("rows.jsonl" + ".gz" * packed)
    file.write_bytes(content)
    accepted(lambda: read(file), "rows.jsonl")


@given(name=st.sampled_from(["rummlu", "mmlu_ru", "multiq", "rcb", "rwsd", "use", "gazeta", "copy_ru"]), data=st.data())
def test_rows_of_the_benchmark(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    lines = (BUILTIN_ITEMS / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path_factory.mktemp("t") / "test.jsonl"
    file.write_text(lines[0] + "\n" + json.dumps(data.draw(changed(json.loads(lines[1])))) + "\n", encoding="utf-8")
    accepted(lambda: read_rows(name, file), "test.jsonl")


MERA = {"inputs": {"premise": "a b", "hypothesis": "c"}, "outputs": "1", "meta": {"id": 1}}
SQUAD = {"context": "a b", "qas": [{"id": "1", "question": "q", "answers": [{"text": "a"}]}]}
PUBLISHED = {
    "mera": ("rcb", {"data": {"test": [MERA]}}),
    "squad": ("multiq", {"data": [{"paragraphs": [SQUAD]}]}),
    "choice": ("ruopenbookqa", [{"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "A", "id": 7}]),
}


@given(name=st.sampled_from(sorted(PUBLISHED)), data=st.data())
def test_published_datasets(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    task, content = PUBLISHED[name]
    file = tmp_path_factory.mktemp("t") / "data.json"
    file.write_text(json.dumps(data.draw(changed(content))))
    accepted(lambda: import_dataset(name, [file], task, [], 0, 1, 1), "")


COMPLETION = {
    "choices": [
        {
            "text": " A thing",
            "message": {"role": "assistant", "content": '{"grammar": 5, "relevance": 4}'},
            "finish_reason": "stop",
            "logprobs": {"top_logprobs": [{" A": -0.5, " B": -1.5}], "token_logprobs": [None, -1.0, -2.0, -0.1]},
        }
    ],
    "usage": {"completion_tokens": 3},
}


@pytest.fixture(scope="session")
def loaded(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """The small tokenizer as transformers has it."""
    folder = tmp_path_factory.mktemp("loaded")
    tokenizer.save(folder)
    return load_tokenizer(folder)


@given(data=st.data())
def test_answers_of_a_server(loaded: PreTrainedTokenizerFast, data: st.DataObject) -> None:
    reply = json.dumps(data.draw(changed(COMPLETION))).encode()
    reply = data.draw(st.one_of(st.just(reply), damaged(reply)))
    client, writer = Client("http://unused/v1", "tiny", wait=0), ServerWriter("http://unused/v1", "tiny", wait=0)
    client._exchange = writer._client._exchange = lambda *_: (200, reply)  # type: ignore[method-assign]
    completions, chat = ServerBackend(client, loaded, Asking(chat=False)), ChatBackend(client, loaded)
    question, request = Question("the", (" A", " B")), GenerationRequest("the", ("\n",))
    asked = chat.render([{"role": "user", "content": "the"}])
    for ask in (
        lambda: completions.choose([question]),
        lambda: completions.generate([request], 4),
        lambda: completions.sentence_logprobs(Question("t", ("h",))),
        lambda: chat.choose([Question(asked, ("A", "B"))]),
        lambda: chat.generate([GenerationRequest(asked)], 4),
        lambda: writer.write([[{"role": "user", "content": "the"}]], Sampling(4), FORM),
    ):
        accepted(ask, "")


EXPRESSIONS = [
    "{{ messages }}",
    "{{ messages[5] }}",
    "{{ nothing.at.all }}",
    "{{ raise_exception('\x1b[2J') }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 9999999 }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'config.json' %}",
    r"{{ '\ud800' }}",
    "{% set x = 10 ** 10 ** 9 %}",
    "{{ messages | map(attribute='content') | list }}",
    "{%",
    "",
]


@given(first=st.sampled_from(EXPRESSIONS), last=st.sampled_from(EXPRESSIONS), content=st.sampled_from(HOSTILE))
def test_chat_templates(
    loaded: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, first: str, last: str, content: Any
) -> None:
    monkeypatch.setattr("lepta.inference.chat.SECONDS", 0.5)
    monkeypatch.setattr(loaded, "chat_template", first + TEMPLATE + last)
    messages = [{"role": "user", "content": str(content)}, {"role": "assistant", "content": "thing"}]
    accepted(lambda: chat_prompt(loaded, messages[:1]), "chat template")
    accepted(lambda: conversation_example(loaded, messages), "chat template")
