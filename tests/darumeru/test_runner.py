"""Runs that are killed go on, errors are seen, and nobody gets another model's answers."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.darumeru import runner
from lepta.darumeru.aggregate import compare, summarise
from lepta.darumeru.backend import Asking, Completion
from lepta.darumeru.data import load_dataset
from lepta.darumeru.log import TaskLog, logged_dtype, read_log, read_results
from lepta.darumeru.runner import BATCH, fit, run
from lepta.darumeru.tasks import tasks
from lepta.darumeru.transformers_backend import opened_backend
from lepta.report.darumeru import write_run_page


class Parrot:
    """A backend without a model: knows nothing, answers at once, and dies or fails when it is told to."""

    thinking, think = 0, list

    def __init__(self, name="parrot", chat=False, context=4096, dies=None, fails=""):
        self.name, self.chat, self.context, self.dies, self.fails, self.calls = name, chat, context, dies, fails, 0

    @property
    def identity(self):
        return {"backend": "parrot", "model": self.name, "context": self.context}

    def render(self, messages):
        return "\n\n".join(message["content"] for message in messages)

    def tokens(self, text):
        return tuple(map(hash, text.split()))

    def count_tokens(self, prompt):
        return len(prompt.split())

    def share(self, prompts):
        self.shared = prompts

    def _called(self, prompts):
        self.calls += 1
        if self.dies is not None and self.calls > self.dies:
            raise KeyboardInterrupt
        if self.fails and any(self.fails in prompt for prompt in prompts):
            raise RuntimeError("out of memory")

    def choose(self, questions):
        self._called([question.prompt for question in questions])
        return [tuple(-1.0 - (len(q.prompt) + n) % 5 for n in range(len(q.continuations))) for q in questions]

    def generate(self, requests, max_tokens):
        self._called([request.prompt for request in requests])
        return [Completion(request.prompt.split("\n\n")[-1], 3) for request in requests]

    def sentence_logprobs(self, question):
        self._called([question.prompt])
        return tuple(-float(len(text)) for text in question.continuations)


def files(folder: Path):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(Parrot(), "builtin", folder, shots=2)


def test_all_tasks(whole):
    folder, summary = whole
    assert not summary.refused and list(summary.tasks) == list(tasks())
    written = json.loads((folder / "summary.json").read_text())
    assert written["micro_avg"]["value"] == summary.micro_avg.value and len(written["columns"]) == 5
    assert set(written["tasks"]) == set(tasks()) and written["tasks"]["parus"]["shots"] == 2
    results = [result for result, _ in read_results(folder).values()]
    assert summarise(results).micro_avg == summary.micro_avg


def test_answers_after_thinking_are_not_compared_with_others(whole, tmp_path):
    class Thinker(Parrot):
        thinking = 8

        @property
        def identity(self):
            return super().identity | {"thinking": self.thinking}

    run(Thinker(), "builtin", tmp_path, shots=2, names=["parus"])
    sides = [[result for result, _ in read_results(folder).values()] for folder in (tmp_path, whole[0])]
    with pytest.raises(LeptaError, match="parus: the results differ in thinking"):
        compare(*sides)


@pytest.mark.parametrize("calls", [0, 1, 9, 30])
def test_a_killed_run_goes_on(whole, tmp_path, calls):
    """Killed between batches, and in the middle of a line."""
    with pytest.raises(KeyboardInterrupt):
        run(Parrot(dies=calls), "builtin", tmp_path, shots=2)
    begun = [path for path in (tmp_path / "samples").glob("*.jsonl") if path.read_bytes().count(b"\n") > 1]
    for path in sorted(begun, key=lambda path: path.stat().st_mtime_ns)[-1:]:
        path.write_bytes(path.read_bytes()[:-201])
    second = Parrot()
    run(second, "builtin", tmp_path, shots=2)
    assert files(tmp_path) == files(whole[0])
    third = Parrot()
    run(third, "builtin", tmp_path, shots=2)
    assert not third.calls and files(tmp_path) == files(whole[0])


def test_killed_before_samples_are_put_in_order(whole, tmp_path, monkeypatch):
    """All answers are there, but as they were asked, shortest first."""

    def dies(log, order):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TaskLog, "finish", dies)
        run(Parrot(), "builtin", tmp_path, shots=2)
    backend = Parrot()
    run(backend, "builtin", tmp_path, shots=2)
    assert files(tmp_path) == files(whole[0])


def test_part_of_a_batch_is_asked_anew(tmp_path):
    run(Parrot(), "builtin", tmp_path, ["rucola"], limit=3)
    log = tmp_path / "samples" / "rucola.jsonl"
    before = log.read_text()
    log.write_text("".join(before.splitlines(keepends=True)[:-1]))
    backend = Parrot()
    run(backend, "builtin", tmp_path, ["rucola"], limit=3)
    assert backend.calls == 1 and log.read_text() == before and BATCH["choose"] > 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"backend": Parrot("other")}, "run.model"),
        ({"shots": 3}, "conditions.shots"),
        ({"limit": 4}, "run.limit"),
        ({"definition": "legacy"}, "definition"),
    ],
)
def test_answers_of_another_run_are_refused(tmp_path, changed, named):
    given = {"backend": Parrot(), "source": "builtin", "output": tmp_path, "names": ["rucola"]}
    run(**given)
    before = files(tmp_path)
    with pytest.raises(LeptaError, match=named):
        run(**given | changed)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"backend": Parrot("other")}, "run.model"),
        ({"shots": 3}, "shots"),
        ({"definition": "legacy"}, "definition"),
    ],
)
def test_one_output_has_one_run(tmp_path, changed, named):
    """Tasks of another model, or asked otherwise, are no part of the same summary; a limit may be a task's own."""
    given = {"backend": Parrot(), "source": "builtin", "output": tmp_path / "mixed"}
    run(**given, names=["rucola"])
    assert set(run(**given, names=["parus"], limit=3).tasks) == {"rucola", "parus"}
    with pytest.raises(LeptaError, match=rf"parus\.jsonl: holds answers of another run \({named} changed\)"):
        run(**given | changed, names=["rwsd"])
    run(**given | changed | {"output": tmp_path / "other"}, names=["rwsd"])
    (tmp_path / "other" / "samples" / "rwsd.jsonl").rename(tmp_path / "mixed" / "samples" / "rwsd.jsonl")
    with pytest.raises(LeptaError, match=rf"rwsd\.jsonl: is of another run than parus\.jsonl \({named} differ\)"):
        read_results(tmp_path / "mixed")


def test_written_labels_are_not_compared_with_weighed_ones(tmp_path):
    class Writer(Parrot):
        @property
        def identity(self):
            return {**super().identity, "labels": "generated"}

    for backend, name in ((Parrot(), "weighed"), (Writer(), "written")):
        run(backend, "builtin", tmp_path / name, ["multiq", "rucola"])
    sides = [[result for result, _ in read_results(tmp_path / name).values()] for name in ("weighed", "written")]
    with pytest.raises(LeptaError, match="rucola: the results differ in labels"):
        compare(*sides)
    assert set(compare(*[side[:1] for side in sides])) == {"multiq"}  # which has no labels


def test_precision_is_part_of_what_answers_depend_on(backend_of, tmp_path, monkeypatch):
    backend = backend_of()
    run(backend, "builtin", tmp_path, ["rucola"], limit=1)
    assert read_log(tmp_path / "samples" / "rucola.jsonl")[0]["run"]["dtype"] == "float32"
    monkeypatch.setattr(type(backend._model), "dtype", torch.bfloat16)
    with pytest.raises(LeptaError, match=r"run\.dtype changed"):
        run(backend_of(), "builtin", tmp_path, ["rucola"], limit=1)


OF_ANOTHER_TASK = (
    b'{"task": "../x", "definition": "current", "expected": 2, "run": {}, '
    b'"conditions": {"version": 1, "prompt": "", "data": "", "shots": 0}}'
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "input should be a valid dictionary"),
        (b'{"task": "rucola"}', "definition: field required"),
        (OF_ANOTHER_TASK, "task: expected 'rucola', as the file is called"),
        (b"", "JSON"),
    ],
)
def test_a_damaged_log_is_named(tmp_path, line, message):
    run(Parrot(), "builtin", tmp_path, ["rucola"])
    log = tmp_path / "samples" / "rucola.jsonl"
    log.write_bytes(line + b"\n" + log.read_bytes().split(b"\n", 1)[1])
    for action in (lambda: read_results(tmp_path), lambda: run(Parrot(), "builtin", tmp_path, ["rucola"])):
        with pytest.raises(LeptaError, match=rf"rucola\.jsonl, line 1: .*{message}.*--force"):
            action()
    log.write_bytes(b"")
    with pytest.raises(LeptaError, match="line 1: not JSON"):
        read_results(tmp_path)


def test_an_output_that_is_a_file(tmp_path):
    """It is said before a model is read."""
    (tmp_path / "file").write_text("mine")
    given = ["--model", str(tmp_path), "--output", str(tmp_path / "file"), "--force"]
    done = CliRunner().invoke(app, ["darumeru", "run", *given])
    assert isinstance(done.exception, LeptaError) and "file: is a file; expected a folder" in str(done.exception)
    with pytest.raises(LeptaError, match="is a file; expected a folder"):
        run(Parrot(), "builtin", tmp_path / "file", ["rucola"])


def test_other_data_is_refused(tmp_path):
    run(Parrot(), "builtin", tmp_path / "out", ["rucola"])
    source = tmp_path / "data" / "rucola"
    source.mkdir(parents=True)
    rows = [{"id": "a", "sentence": "Кот спит.", "answer": "1"}, {"id": "b", "sentence": "Спит кот в.", "answer": "0"}]
    for name in ("test", "shots"):
        lines = [json.dumps(row | {"id": name + row["id"]}) for row in rows]
        (source / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.raises(LeptaError, match=r"conditions\.data"):
        run(Parrot(), str(tmp_path / "data"), tmp_path / "out", ["rucola"])


def test_one_bad_sample_is_one_error_and_no_total(whole, tmp_path):
    """The others of its batch keep their own answers."""
    text = load_dataset("rucola").test[2].sentence
    summary = run(Parrot(fails=text), "builtin", tmp_path, shots=2)
    assert summary.micro_avg is None and "DaruMERA" not in summary.columns and len(summary.columns) == 4
    bad = tasks()["rucola"].samples(load_dataset("rucola"))[2].id
    assert summary.refused == {"rucola": f"1 errors, the first: {bad}: RuntimeError: out of memory"}
    log, expected = (read_log(folder / "samples" / "rucola.jsonl")[1] for folder in (tmp_path, whole[0]))
    assert [one if "error" in one else two for one, two in zip(log, expected, strict=True)] == log
    run(Parrot(), "builtin", tmp_path, shots=2)  # an error is asked anew
    assert files(tmp_path) == files(whole[0])


def test_answers_that_were_lost_are_not_made_up_for(tmp_path):
    """A backend that leaves out what failed would shift all answers after it."""

    class Forgetful(Parrot):
        def choose(self, questions):
            return super().choose(questions)[1:]

    with pytest.raises(ValueError, match="shorter"):
        run(Forgetful(), "builtin", tmp_path, ["rucola"])


def test_a_text_without_a_label_is_a_wrong_answer(tmp_path):
    """Of a model that writes its labels: it is counted, and the others keep theirs."""

    class Writer(Parrot):
        def choose(self, questions):
            return [() if n == 0 else values for n, values in enumerate(super().choose(questions))]

    names = ["rucola", "parus", "mmlu_ru"]
    whole, some = (
        run(Parrot(), "builtin", tmp_path / "whole", names),
        run(Writer(), "builtin", tmp_path / "some", names),
    )
    assert set(some.tasks) == set(names)
    for name in names:
        before, after = (read_log(tmp_path / side / "samples" / f"{name}.jsonl")[1] for side in ("whole", "some"))
        lost = [n for n, record in enumerate(after) if not record["answer"]["label"]]
        assert lost and all(after[n]["score"]["values"]["correct"] == 0 for n in lost)
        assert all(after[n] == before[n] for n in range(len(after)) if n not in lost)
    assert some.tasks["rucola"].parts["label_mass"] < whole.tasks["rucola"].parts["label_mass"]
    write_run_page(tmp_path / "some", "some")
    assert "(none of the labels)" in (tmp_path / "some" / "report.html").read_text()


def test_half_a_character_is_an_answer(tmp_path):
    """JSON from a server may hold it, UTF-8 may not."""

    class Cut(Parrot):
        def generate(self, requests, max_tokens):
            return [Completion("раз \ud83d\0", 3) for _ in requests]

    assert set(run(Cut(), "builtin", tmp_path, ["multiq"]).tasks) == {"multiq"}
    record = read_log(tmp_path / "samples" / "multiq.jsonl")[1][0]
    assert record["answer"]["text"] == "раз ?\0"
    write_run_page(tmp_path, "cut")


def test_a_task_is_asked_beside_others_as_by_itself(tmp_path):
    """A long answer takes room from its own examples, not from those of the next task."""
    names = ["copy_paragraph_en", "copy_sentence_ru"]  # in the order in which they are asked
    run(Parrot(context=1300), "builtin", tmp_path / "together", names, shots=5)
    run(Parrot(context=1300), "builtin", tmp_path / "alone", names[-1:], shots=5)
    logs = [tmp_path / place / "samples" / "copy_sentence_ru.jsonl" for place in ("together", "alone")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
    long = read_log(tmp_path / "together" / "samples" / "copy_paragraph_en.jsonl")[1]
    assert {record["shots"] for record in read_log(logs[0])[1]} == {5}
    assert all(record["shots"] < 5 for record in long)


def test_examples_are_dropped_whole_until_the_prompt_fits():
    task = tasks()["rucola"]
    dataset = load_dataset("rucola")
    sample = task.samples(dataset)[0]
    sizes = [fit(task, dataset, sample, number, Parrot()).tokens for number in range(4)]
    assert sizes == sorted(set(sizes))
    for number, size in enumerate(sizes):
        room = 1 + len(sample.continuations[0].split())
        found = fit(task, dataset, sample, 3, Parrot(context=size + room))
        assert (found.shots, found.tokens) == (number, size)
        expected = task.messages(sample, task.shots(dataset, sample, number))
        assert found.prompt == Parrot().render(expected)
    with pytest.raises(LeptaError, match="without examples"):
        fit(task, dataset, sample, 3, Parrot(context=sizes[0]))


def test_a_sample_that_does_not_fit_is_an_error(tmp_path):
    summary = run(Parrot(context=200), "builtin", tmp_path, ["copy_paragraph_ru", "rucola"], shots=50)
    assert "the context is 200" in summary.refused["copy_paragraph_ru"]
    records = read_log(tmp_path / "samples" / "rucola.jsonl")[1]
    assert 0 < records[0]["shots"] < 50 and "rucola" in summary.tasks


def test_unknown_task():
    with pytest.raises(LeptaError, match="parsu: no such task"):
        run(Parrot(), "builtin", Path("unused"), ["parsu"])


def test_a_limit_counts_rows_of_the_task(tmp_path):
    summary = run(Parrot(), "builtin", tmp_path, limit=2)
    counts = {name: task.samples for name, task in summary.tasks.items()}
    assert counts == {name: 4 if name == "parus" else 2 for name in tasks() if not name.startswith("mmlu")}
    assert "all four" in summary.refused["mmlu_ru"] and summary.micro_avg is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_run_goes_on_in_the_precision_it_began_with(tiny_model_folder, tmp_path, monkeypatch):
    folder, output = tiny_model_folder(), tmp_path / "run"
    given = {"source": "builtin", "limit": 2}
    for fastest, name in ((torch.bfloat16, "rucola"), (torch.float32, "parus")):
        monkeypatch.setattr("lepta.models.load.fastest_on_cpu", lambda config, dtype=fastest: dtype)
        with opened_backend(folder, Asking(chat=False), output=output) as backend:
            assert backend.identity["dtype"] == "bfloat16"
            run(backend, output=output, names=[name], **given)
    with opened_backend(folder, Asking(chat=False), output=tmp_path / "another") as backend:
        assert backend.identity["dtype"] == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_precisions_that_differ_are_told(tiny_model_folder, tmp_path):
    model = str(tiny_model_folder())

    def asked(dtype: str, *more: str):
        given = ["--output", str(tmp_path / dtype), "--tasks", "rucola", "--limit", "2", "--plain", "--shots", "0"]
        return CliRunner().invoke(app, ["darumeru", "run", "--model", model, *given, *more])

    def compared(first: str, second: str) -> str:
        done = CliRunner().invoke(app, ["darumeru", "compare", str(tmp_path / first), str(tmp_path / second)])
        assert done.exit_code == 0
        return done.stderr

    for dtype in ("float32", "bfloat16"):
        assert asked(dtype, "--dtype", dtype).exit_code == 0
        assert logged_dtype(tmp_path / dtype) == dtype
    assert "asked in float32" in (told := compared("float32", "bfloat16")) and "--dtype" in told
    assert "asked in" not in compared("float32", "float32")
    assert "run.dtype changed" in str(asked("float32", "--dtype", "bfloat16").exception)
    elsewhere = asked("float32", "--dtype", "float32", "--lm-eval", "hf")
    assert "--dtype: is for a model that runs here" in str(elsewhere.exception)


def test_every_task_of_a_real_model_killed_and_resumed(backend_of, tmp_path, monkeypatch):
    """A tiny random model, killed in the middle of a task: same files, to the last digit."""
    names = ["rucola", "rwsd", "mmlu_ru", "multiq", "summary_extractive"]
    monkeypatch.setitem(BATCH, "choose", 4)
    given = {"source": "builtin", "names": names, "shots": 1, "limit": 9}
    run(backend_of(), output=tmp_path / "whole", **given)
    backend = backend_of()
    choose, calls = backend.choose, []

    def dying(questions):
        calls.append(questions)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return choose(questions)

    monkeypatch.setattr(backend, "choose", dying)
    with pytest.raises(KeyboardInterrupt):
        run(backend, output=tmp_path / "killed", **given)
    run(backend_of(), output=tmp_path / "killed", **given)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_commands(tiny_model_folder, tmp_path, monkeypatch):
    """Run, show and compare from the command line; a run with errors does not end in 0."""
    reads = []
    monkeypatch.setattr(runner, "load_dataset", lambda name, source: reads.append(name) or load_dataset(name, source))
    folders = []
    for seed in (0, 1):
        model = tiny_model_folder(hidden=16, seed=seed)
        folders.append(tmp_path / f"model{seed}")
        given = ["--model", str(model), "--output", str(folders[-1]), "--tasks", "rucola,parus", "--limit", "6"]
        done = CliRunner().invoke(app, ["darumeru", "run", *given, "--plain", "--shots", "0"])
        assert done.exit_code == 0 and "RuCoLA" in done.stdout, done.output
        assert "MultiQ" not in done.stdout and "Micro-Avg" not in done.stdout, "only what was asked"
    assert reads == ["parus", "rucola"] * 2  # once for each run
    shown = json.loads(CliRunner().invoke(app, ["darumeru", "show", str(folders[0]), "--json"]).stdout)
    assert set(shown["tasks"]) == {"rucola", "parus"} and shown["micro_avg"] is None
    compared = CliRunner().invoke(app, ["darumeru", "compare", *map(str, folders)], env={"COLUMNS": "120"})
    assert compared.exit_code == 0 and "model1 less model0" in compared.stdout
    other = tiny_model_folder(hidden=16, seed=2)
    for file in other.iterdir():
        file.replace(model / file.name)
    replaced = CliRunner().invoke(app, ["darumeru", "run", *given, "--plain", "--shots", "0"])
    assert "run.model changed" in str(replaced.exception)  # other weights under the same name
    given[-1] = "7"  # another limit
    refused = CliRunner().invoke(app, ["darumeru", "run", *given, "--plain", "--shots", "0"])
    assert isinstance(refused.exception, LeptaError)
    copies = ["--tasks", "copy_paragraph_ru", "--context", "300", "--plain", "--shots", "0", "--force"]
    failed = CliRunner().invoke(app, ["darumeru", "run", *given[:4], *copies])
    assert failed.exit_code == 1 and "the context is 300" in failed.stdout
