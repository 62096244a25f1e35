"""Self-calibration from end to end on tiny models, in this process and behind a server that fails in many ways."""

import json
import threading
import time
from collections import Counter

import commands
import pytest
import torch
from serving import Posted, Proxy, started, stopped, transformers_serve
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.calibration import writers
from lepta.calibration.answers import count_answers, write_answers
from lepta.calibration.calibrate import Place, make_answers
from lepta.calibration.judge import FORM, count_grades, grade_answers, load_rubric, read_grades
from lepta.calibration.prompts import Prompt, read_prompts
from lepta.calibration.settings import CalibrateSettings, JudgeSettings
from lepta.calibration.writers import Answer, LocalWriter, Refusal, Sampling, ServerWriter
from lepta.core.errors import LeptaError
from lepta.core.journal import Journal, read_rows
from lepta.plan.calibration import calibration_cost_here

QUESTIONS = ["Почему небо голубое?", "Что такое вода?", "Name a colour.", "Сколько будет два плюс два?", "Кто ты?"]


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tiny_tokenizer, tiny_extended):
    """A tiny model with the original vocabulary, and one with the extended."""
    return (
        tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, context=4096),
        tiny_model_folder(rows=4300, tokenizer=tiny_extended, seed=1),
    )


@pytest.fixture(scope="module")
def loaded(folders):
    return AutoModelForCausalLM.from_pretrained(folders[0]).eval(), AutoTokenizer.from_pretrained(folders[0])


class Server:
    """Chat completions of a model of transformers over HTTP; `faults` are done first, one a request."""

    def __init__(self, model, tokenizer):
        self.writer = LocalWriter(model, tokenizer, 4096, 1)
        self.faults, self.requests, self.lock, self.dies_after = [], 0, threading.Lock(), None
        self.formed, self.takes_forms = 0, True
        outer = self

        class Handler(Posted):
            def do_POST(self):
                request = json.loads(self.sent())
                with outer.lock:
                    outer.requests += 1
                    dead = outer.dies_after is not None and outer.requests > outer.dies_after
                    fault = 500 if dead else outer.faults.pop(0) if outer.faults else None
                    if fault == "slow":
                        time.sleep(2.5)
                    status = fault if isinstance(fault, int) else 200
                    body = fault if isinstance(fault, bytes) else b"{}"
                    if fault is None:
                        status, body = outer.answer(request)
                self.reply(status, body)

        self.http, self.url = started(Handler)

    def answer(self, request):
        sampling = Sampling(request["max_tokens"], temperature=request["temperature"], seed=request["seed"])
        formed = "response_format" in request
        self.formed += formed
        if formed and not self.takes_forms:
            return 400, b"response_format: not here"
        (found,) = self.writer.write([request["messages"]], sampling, FORM if formed else None)
        if isinstance(found, Refusal):
            return 400, found.reason.encode()
        (answer,) = found
        choice = {"message": {"content": answer.text}, "finish_reason": "stop" if answer.whole else "length"}
        return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": answer.tokens}}).encode()


@pytest.fixture
def server(loaded):
    server = Server(*loaded)
    yield server
    stopped(server)


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


def test_settings_in_a_models_files_change_no_answer(loaded, monkeypatch):
    writer, ways = LocalWriter(*loaded, 400, 2), [Sampling(12), Sampling(8, 3, 1.0)]
    expected = [writer.write(asked(*QUESTIONS), sampling) for sampling in ways]
    for name, value in {"num_beams": 2, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "top_p": 0.1}.items():
        monkeypatch.setattr(loaded[0].generation_config, name, value)
    assert [writer.write(asked(*QUESTIONS), sampling) for sampling in ways] == expected


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
    writer = ServerWriter(server.url, "tiny", wait=0.01, seconds=2)
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
        write_answers(iter(prompts), writer, Sampling(3), Journal(tmp_path / "answers.jsonl"))
    assert len(list(read_rows(tmp_path / "answers.jsonl"))) == 7
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "half of a ro')  # killed while it wrote
    server.dies_after, before = None, server.requests
    rows = Journal(tmp_path / "answers.jsonl")
    write_answers(iter(prompts), writer, Sampling(3), rows)
    assert server.requests - before == 5
    found = list(read_rows(rows.file))
    assert [row["id"] for row in found] == [prompt.id for prompt in prompts]
    assert sum(count_answers(found)[name] for name in ("answered", "refused", "empty", "unfinished")) == 12


def test_a_form_is_filled_in_with_the_likeliest_values(loaded):
    model, tokenizer = loaded
    judged = [load_rubric().conversation(messages, "Да.") for messages in asked(*QUESTIONS)]
    found = LocalWriter(model, tokenizer, 4096, 2).write([*judged, *asked("слово " * 2000)], Sampling(24), FORM)
    assert isinstance(found.pop(), Refusal)
    for messages, (answer,) in zip(judged, found, strict=True):
        grades = read_grades(answer.text)
        for begun, grade in (
            ('{"grammar": ', "grammar"),
            (f'{{"grammar": {grades["grammar"]}, "relevance": ', "relevance"),
        ):
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + begun
            texts = [tokenizer(prompt + digit, add_special_tokens=False)["input_ids"] for digit in "12345"]
            with torch.no_grad():
                logits = model(torch.tensor([texts[0][:-1]])).logits[0, -1]
            assert len({tuple(text[:-1]) for text in texts}) == 1
            assert grades[grade] == 1 + int(torch.stack([logits[text[-1]] for text in texts]).argmax())
    writer, warm = LocalWriter(model, tokenizer, 4096, 8), [Sampling(24, temperature=5.0, seed=n) for n in (1, 1, 2)]
    drawn = [[answers[0].text for answers in writer.write(judged, sampling, FORM)] for sampling in warm]
    assert drawn[0] == drawn[1] != drawn[2] and all(read_grades(text) for texts in drawn for text in texts)


def test_a_server_takes_a_form_or_does_not(loaded, server):
    judged = [load_rubric().conversation(messages, "Да.") for messages in asked(*QUESTIONS)]
    local = LocalWriter(*loaded, 4096, 8).write(judged, Sampling(24), FORM)
    writer = ServerWriter(server.url, "tiny", wait=0.01)
    assert writer.write(judged, Sampling(24), FORM) == local and writer.keeps_form is None and server.formed == 5
    server.takes_forms = False
    assert all(isinstance(answers, list) for answers in writer.write(judged, Sampling(4), FORM))
    assert writer.keeps_form is False
    formed = server.formed
    writer.write(judged, Sampling(4), FORM)
    assert server.formed == formed  # it is not sent again
    fresh = ServerWriter(server.url, "tiny", wait=0.01)
    (refused,) = fresh.write(asked("слово " * 2000), Sampling(4), FORM)  # with a form or without
    assert isinstance(refused, Refusal) and "too long" in refused.reason and fresh.keeps_form is None


def answered(number):
    """Journal of answers to be graded."""
    answers = [{"text": "Ответ.", "tokens": 2, "whole": True}]
    return [{"id": f"{n:024x}", "messages": asked(f"Вопрос {n}?")[0], "answers": answers} for n in range(number)]


def test_a_judge_that_dies_midway_loses_no_grade(server, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "AT_ONCE", 1)
    settings, rows = JudgeSettings(model="tiny", repeat_share=0), answered(9)
    writer = ServerWriter(server.url, "tiny", wait=0.001)
    writer.at_once, server.dies_after = 4, 6
    with pytest.raises(LeptaError, match=r"500 .*see that the server runs and has tiny, and give the same"):
        grade_answers(rows, writer, settings, 1, Journal(tmp_path / "grades.jsonl"))
    assert [row["id"] for row in read_rows(tmp_path / "grades.jsonl")] == [row["id"] for row in rows[:6]]
    server.dies_after, before = None, server.requests
    file = Journal(tmp_path / "grades.jsonl")
    grade_answers(rows, writer, settings, 1, file)
    assert server.requests - before == 3 and count_grades(read_rows(file.file), 4)["graded"] == 9


def test_dropped_connections_and_replies_that_are_cut_off_are_asked_again(server, tmp_path):
    proxy = Proxy(server.url, share=0.4)
    prompts = [Prompt(f"{n:024x}", ({"role": "user", "content": f"Вопрос {n}?"},)) for n in range(12)]
    for name, url in (("straight", server.url), ("failing", proxy.url)):
        write_answers(iter(prompts), ServerWriter(url, "tiny", wait=0.001), Sampling(3), Journal(tmp_path / name))
    stopped(proxy)
    assert proxy.failed > 3 and (tmp_path / "straight").read_bytes() == (tmp_path / "failing").read_bytes()


def test_a_real_server_answers_and_grades(folders, tmp_path):
    """`transformers serve` takes no notice of a form: a model that follows none gives no grade."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="`transformers serve` needs it: pip install 'transformers[serving]'")
    answers, grades = Journal(tmp_path / "answers.jsonl"), Journal(tmp_path / "grades.jsonl")
    with transformers_serve(folders[0]) as url:
        writer = ServerWriter(url, str(folders[0]))
        write_answers(read_prompts(["starter:dialogues/valid.jsonl"], 3, Counter()), writer, Sampling(6), answers)
        grade_answers(answered(2), writer, JudgeSettings(model="tiny", tries=2, max_tokens=8), 1, grades)
    counts = count_answers(read_rows(answers.file))
    assert counts["prompts"] == 3 and counts["refused"] == 0 and counts["answer_tokens"] > 0
    assert count_grades(read_rows(grades.file), 4)["unreadable"] == 2 and writer.keeps_form is None


def test_prompts_are_different_and_end_with_a_question(write_lines):
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
    return commands.lepta("calibrate", *arguments, cwd=place, check=check)


@pytest.fixture(scope="module")
def options(folders):
    return [
        *("--model", folders[1], "--prompts", "starter:dialogues/valid.jsonl", "--limit", "12", "--shown", "2"),
        *("--copy-text", "starter:ru/valid", "--copies", "6", "--copy-characters", "150", "--max-length", "450"),
        *("--max-tokens", "24", "--batch", "4", "--task", "copy_sentence_ru", "--task-rows", "2", "--seed", "3"),
        *("--valid", "starter:ru/valid", "--source-valid", "starter:en/valid", "--learning-rate", "0.01"),
    ]


def test_the_command_from_end_to_end(folders, options, server, tmp_path, monkeypatch):
    remote = ["--server", server.url, "--server-model", "tiny", "--judge-server", server.url, "--judge-model", "tiny"]
    ends = list(range(0, 4000, 3))  # answers of a random model come to an end
    monkeypatch.setattr(server.writer._model.generation_config, "eos_token_id", ends)
    facts = json.loads(lepta(tmp_path, *options, *remote, "--output", "out", "--json").stdout)
    answers, examples = facts["answers"], facts["examples"]
    assert (answers["prompts"], answers["shown"]) == (12, 2)
    counts = answers["answers"]
    assert counts["prompts"] == 10
    assert sum(counts[name] for name in ("answered", "refused", "empty", "unfinished")) == 10
    assert counts["answered"] == facts["grades"]["graded"] + facts["grades"]["unreadable"] > 0
    assert facts["grades"]["unreadable"] == 0
    assert examples["kept"] + examples["low_grades"] + examples["unreadable_grades"] == counts["answered"]
    assert examples["copied"] == 6 and examples["examples"] == 6 + examples["kept"] == facts["model"]["examples"]
    assert (
        facts["grades"]["rubric"] == 2
        and facts["grades"]["form"] == "asked for"
        and facts["model"]["merged_error"] < 1e-4
    )
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
    shown = lepta(tmp_path, *options, "--original", folders[0], "--no-judge", "--output", "out").stdout
    assert "Examples\nkept: " in shown and "texts to repeat: 6\n" in shown
    assert "\nMeasured after\n" in shown and "new tokens in its answers: " in shown


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--no-judge"], "give either --original or --server"),
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
    assert facts["prompts"] == 12 and facts["shown"] == 2 and facts["answers"] == 10 and facts["copies"] == 6
    assert facts["answer_tokens_at_most"] == 10 * 24 and facts["steps_at_most"] == 4
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_all_put_aside_are_told_before_a_model_is_asked(folders, tmp_path):
    all_shown = CalibrateSettings(prompts=["starter:dialogues/valid.jsonl"], limit=5, shown=8)
    says = r"calibrate: 5 different prompts in starter:dialogues/valid\.jsonl, and the first 8 are put aside"
    with pytest.raises(LeptaError, match=says):
        make_answers(Place("absent"), all_shown, 1, tmp_path)
    with pytest.raises(LeptaError, match=says):
        calibration_cost_here(folders[1], all_shown)
