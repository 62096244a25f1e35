"""Self-calibration from end to end on tiny models, in this process and behind a server that fails in many ways."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.calibration import writers
from lepta.calibration.answers import count_answers, write_answers
from lepta.calibration.prompts import Prompt, read_prompts
from lepta.calibration.rows import Rows, stored_rows
from lepta.calibration.writers import Answer, LocalWriter, Refusal, Sampling, ServerWriter
from lepta.errors import LeptaError

QUESTIONS = ["Почему небо голубое?", "Что такое вода?", "Name a colour.", "Сколько будет два плюс два?", "Кто ты?"]


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tiny_tokenizer, tiny_extended):
    """A tiny model with the original vocabulary, and one with the extended."""
    return (
        tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer),
        tiny_model_folder(rows=4300, tokenizer=tiny_extended, seed=1),
    )


@pytest.fixture(scope="module")
def loaded(folders):
    return AutoModelForCausalLM.from_pretrained(folders[0]).eval(), AutoTokenizer.from_pretrained(folders[0])


class Server:
    """Chat completions of a model of transformers over HTTP; `faults` are done first, one a request."""

    def __init__(self, model, tokenizer):
        self.writer = LocalWriter(model, tokenizer, 400, 1)
        self.faults, self.requests, self.lock, self.dies_after = [], 0, threading.Lock(), None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests += 1
                    dead = outer.dies_after is not None and outer.requests > outer.dies_after
                    fault = 500 if dead else outer.faults.pop(0) if outer.faults else None
                    if fault == "slow":
                        time.sleep(1)
                    status = fault if isinstance(fault, int) else 200
                    body = fault if isinstance(fault, bytes) else b"{}"
                    if fault is None:
                        status, body = outer.answer(request)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, request):
        sampling = Sampling(request["max_tokens"], temperature=request["temperature"], seed=request["seed"])
        (found,) = self.writer.write([request["messages"]], sampling)
        if isinstance(found, Refusal):
            return 400, found.reason.encode()
        (answer,) = found
        choice = {"message": {"content": answer.text}, "finish_reason": "stop" if answer.whole else "length"}
        return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": answer.tokens}}).encode()


@pytest.fixture
def server(loaded):
    server = Server(*loaded)
    yield server
    server.http.shutdown()
    server.http.server_close()


def asked(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_a_server_writes_what_the_model_writes(loaded, server):
    local = LocalWriter(*loaded, 400, 3).write(asked(*QUESTIONS), Sampling(12))
    assert ServerWriter(server.url, "tiny", wait=0.01).write(asked(*QUESTIONS), Sampling(12)) == local
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template(asked(QUESTIONS[0])[0], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert local[0][0].text == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_samples_differ_and_are_the_same_when_asked_again(loaded):
    writer, sampling = LocalWriter(*loaded, 400, 2), Sampling(8, 3, 1.0)
    first, again = (writer.write(asked(*QUESTIONS), sampling) for _ in range(2))
    assert first == again and all(len({answer.text for answer in answers}) == 3 for answers in first)


def test_what_a_model_cannot_be_asked_is_refused_and_the_rest_is_answered(loaded):
    model, tokenizer = loaded
    strict = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    strict.chat_template = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + strict.chat_template
    )
    turns = [{"role": "system", "content": "Кратко."}, *asked(QUESTIONS[1])[0]]
    found = LocalWriter(model, strict, 400, 8).write([*asked("слово " * 300), turns, *asked(QUESTIONS[0])], Sampling(4))
    assert isinstance(found[0], Refusal) and "too long for a context of 400" in found[0].reason
    assert isinstance(found[1], Refusal) and "one turn" in found[1].reason and isinstance(found[2][0], Answer)


def test_faults_of_a_server(server, monkeypatch):
    writer = ServerWriter(server.url, "tiny", wait=0.01, seconds=0.5)
    server.faults = [503, 429, b'{"choices": []}', "slow"]
    assert isinstance(writer.write(asked("Раз"), Sampling(3))[0], list) and server.requests == 5
    server.faults = [400]
    assert writer.write(asked("Раз"), Sampling(3)) == [Refusal("400 {}")]
    reply = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}).encode()
    server.faults = [reply]
    assert writer.write(asked("Раз"), Sampling(3)) == [[Answer("", 0, True)]]
    server.faults = [401]
    with pytest.raises(LeptaError, match=r"401 .*tried 1 times.*what was answered is kept"):
        writer.write(asked("Раз"), Sampling(3))


def test_a_server_that_dies_midway_loses_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "AT_ONCE", 1)
    prompts = [Prompt(f"{n:024x}", ({"role": "user", "content": f"Вопрос {n}?"},)) for n in range(12)]
    writer = ServerWriter(server.url, "tiny", wait=0.001)
    writer.at_once = 2
    server.dies_after = 7
    with pytest.raises(LeptaError, match=r"500 .*see that the server runs and has tiny, and give the same"):
        write_answers(iter(prompts), writer, Sampling(3), Rows(tmp_path / "answers.jsonl"))
    assert len(list(stored_rows(tmp_path / "answers.jsonl"))) == 6
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "half of a ro')  # killed while it wrote
    server.dies_after, before = None, server.requests
    rows = Rows(tmp_path / "answers.jsonl")
    write_answers(iter(prompts), writer, Sampling(3), rows)
    assert server.requests - before == 6
    found = list(stored_rows(rows.file))
    assert [row["id"] for row in found] == [prompt.id for prompt in prompts]
    assert sum(count_answers(found)[name] for name in ("answered", "refused", "empty", "unfinished")) == 12


def test_prompts_are_different_and_end_with_a_question(write_lines):
    from collections import Counter

    rows = [
        {"prompt": "Раз?", "answer": "Два."},
        {"messages": [{"role": "user", "content": "Раз?"}, {"role": "assistant", "content": "Три."}]},
        {"system": "Кратко.", "prompt": "Раз?"},
        {"prompt": "  "},
        {"messages": [{"role": "user", "content": text} for text in ("Раз", "Два")]},
    ]
    file = write_lines("prompts.jsonl", [json.dumps(row) for row in rows])
    counts = Counter()
    found = list(read_prompts([str(file)], None, counts))
    assert [len(prompt.messages) for prompt in found] == [1, 2, 2]
    assert counts == {"read": 5, "duplicate": 1, "no_question": 1, "prompts": 3}
    assert len(list(read_prompts([str(file)], 2, Counter()))) == 2


def lepta(place, *arguments, check=0):
    command = [sys.executable, "-m", "lepta", "calibrate", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == check, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def options(folders):
    return [
        *("--model", folders[1], "--prompts", "starter:dialogues/valid.jsonl", "--limit", "12", "--shown", "2"),
        *("--copy-text", "starter:ru/valid", "--copies", "6", "--copy-characters", "150", "--max-length", "450"),
        *("--max-tokens", "24", "--batch", "4", "--task", "copy_sentence_ru", "--task-rows", "2", "--seed", "3"),
        *("--valid", "starter:ru/valid", "--source-valid", "starter:en/valid", "--learning-rate", "0.01"),
    ]


def test_the_command_from_end_to_end(folders, options, server, tmp_path):
    remote = ["--server", server.url, "--server-model", "tiny", "--judge-server", server.url, "--judge-model", "tiny"]
    server.writer._ends = list(range(0, 4000, 3))  # answers of a random model come to an end
    facts = json.loads(lepta(tmp_path, *options, *remote, "--output", "out", "--json").stdout)
    answers, examples = facts["answers"], facts["examples"]
    assert (answers["prompts"], answers["shown"]) == (12, 2)
    counts = answers["answers"]
    assert counts["prompts"] == 10
    assert sum(counts[name] for name in ("answered", "refused", "empty", "unfinished")) == 10
    assert counts["answered"] == facts["grades"]["graded"] + facts["grades"]["unreadable"] > 0
    assert examples["kept"] + examples["low_grades"] + examples["unreadable_grades"] == counts["answered"]
    assert examples["copied"] == 6 and examples["examples"] == 6 + examples["kept"] == facts["model"]["examples"]
    assert facts["grades"]["rubric"] == 1 and facts["model"]["merged_error"] < 1e-4
    before, after = facts["propagated"], facts["calibrated"]
    assert before["bits_per_byte"].keys() == {"target", "source"}
    assert before["bits_per_byte"] != after["bits_per_byte"] and after["tasks"]["copy_sentence_ru"]["samples"] == 2
    page = (tmp_path / "out" / "report" / "report.html").read_text(encoding="utf-8")
    assert "copy_sentence_ru" in page and "Answers side by side" in page
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    before = server.requests
    lepta(tmp_path, *options, *remote, "--output", "out", "--epochs", "2")  # other training costs no answer
    assert server.requests == before


def test_without_a_judge_and_with_the_original_here(folders, options, tmp_path):
    facts = json.loads(
        lepta(tmp_path, *options, "--original", folders[0], "--no-judge", "--output", "out", "--json").stdout
    )
    assert "grades" not in facts and facts["examples"]["copied"] == 6
    assert facts["calibrated"]["new_token_share"] is not None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--no-judge"], "give --original MODEL, or --server URL"),
        (["--original", "ORIGINAL"], "give one of --judge MODEL"),
        (["--original", "ORIGINAL", "--no-judge", "--samples", "3"], "several greedy answers are all the same"),
        (["--original", "ORIGINAL", "--no-judge", "--copy-text", "absent"], "absent: no such file or folder"),
        (["--original", "ORIGINAL", "--no-judge", "--output", "mine"], "answers: exists and is none of this command's"),
    ],
)
def test_bad_input_is_one_line(folders, options, tmp_path, more, says):
    (tmp_path / "mine" / "answers").mkdir(parents=True)
    more = [str(folders[0]) if value == "ORIGINAL" else value for value in more]
    error = lepta(tmp_path, *options, "--output", "out", *more, check=2).stderr
    assert says in error.splitlines()[-1] and "Traceback" not in error


def test_the_cost_is_told(folders, options, tmp_path):
    arguments = [*options, "--original", folders[0], "--no-judge", "--output", "out", "--dry-run", "--json"]
    facts = json.loads(lepta(tmp_path, *arguments).stdout)
    assert facts["prompts"] == 12 and facts["answer_tokens_at_most"] == 12 * 24 and facts["copies"] == 6
    assert not (tmp_path / "out").exists()


def test_rows_of_nothing(tmp_path):
    assert Rows(tmp_path / "new" / "rows.jsonl").done == set()
    assert torch.is_inference_mode_enabled() is False
