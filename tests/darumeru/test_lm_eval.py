"""lm-evaluation-harness runs our tasks and lends us its models: the same prompts, answers and scores either way."""

import json
import shutil

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Asking, GenerationRequest, Question
from lepta.darumeru.data import load_dataset, write_dataset
from lepta.darumeru.lm_eval_backend import LmEvalBackend, opened_lm_eval
from lepta.darumeru.log import read_log
from lepta.darumeru.rows import DATASETS
from lepta.darumeru.runner import run
from lepta.darumeru.tasks import tasks
from lepta.darumeru.transformers_backend import TransformersBackend

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'lepta[lm-eval]'")

NAMES = ["rucola", "parus", "mmlu_ru", "multiq", "summary_extractive", "copy_paragraph_ru"]  # all kinds of scores
ROWS = 4  # of each dataset; MMLU keeps all, since it needs its four categories


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tiny_extended):
    """A tiny random model with a small real tokenizer, chat template included: harnesses compute all logits."""
    return tiny_model_folder(rows=4300, tokenizer=tiny_extended, hidden=16, context=4096)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The first rows of the built-in items."""
    place = tmp_path_factory.mktemp("data")
    for name in DATASETS:
        dataset = load_dataset(name)
        write_dataset(place / name, dataset if name.startswith("mmlu") else dataset.first(ROWS), {"format": "builtin"})
    return str(place)


@pytest.fixture(scope="module")
def model(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def local(folder):
    """The same model in our own backend."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    return lambda chat: TransformersBackend(loaded, tokenizer, "tiny", Asking(chat))


@pytest.fixture
def tasks_folder(tmp_path, folder, data):
    """Write the folder by the command."""

    def write(shots, *options):
        command = ["darumeru", "export", "--output", str(tmp_path / "tasks"), "--data", data, "--shots", str(shots)]
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 0, done.output
        return tmp_path / "tasks"

    return write


def evaluated(model, place, names, chat=False):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, apply_chat_template=chat, bootstrap_iters=0
    )


def values(record):
    """What a sample is worth, less what lm-evaluation-harness cannot tell: the labels' probability, tokens emitted."""
    return {name: value for name, value in record["score"]["values"].items() if name not in ("label_mass", "length")}


@pytest.mark.parametrize(("chat", "shots"), [(False, 2), (True, 1), (True, 0)])
def test_the_same_prompts_answers_and_scores(folder, data, model, local, tasks_folder, tmp_path, chat, shots):
    """Choices, sentences and written answers; as plain text with examples, and by the chat template."""
    place = tasks_folder(shots, "--tokenizer", str(folder))
    found = evaluated(model, place, [f"darumeru_{name}" for name in NAMES], chat)
    summary = run(local(chat), data, tmp_path / "ours", NAMES, shots)
    for name in NAMES:
        task = tasks()[name]
        dataset = load_dataset(task.dataset, data)
        theirs = {sample["doc"]["id"]: sample for sample in found["samples"][f"darumeru_{name}"]}
        for sample in task.samples(dataset):
            prompt = local(chat).render(task.messages(sample, task.shots(dataset, sample, shots)))
            assert theirs[sample.id]["arguments"][0][0] == prompt
        _, records = read_log(tmp_path / "ours" / "samples" / f"{name}.jsonl")
        assert {record["id"]: values(record) for record in records} == {key: values(one) for key, one in theirs.items()}
        assert found["results"][f"darumeru_{name}"]["score,none"] == pytest.approx(summary.tasks[name].score.value)


def test_groups(folder, model, tasks_folder):
    """A column is the plain mean of its tasks, the whole Micro-Avg; a part of the tasks has no total."""
    whole = evaluated(model, tasks_folder(0, "--tokenizer", str(folder)), ["darumeru_mera", "darumeru_copy_ru"])
    scores = {name: result["score,none"] for name, result in whole["results"].items()}
    mera = [scores[f"darumeru_{name}"] for name, task in tasks().items() if task.column == "DaruMERA"]
    assert len(mera) == 8 and scores["darumeru_mera"] == pytest.approx(sum(mera) / 8)


def test_a_total_only_of_all_tasks(folder, tasks_folder):
    part = tasks_folder(0)
    assert "aggregate_metric_list" not in yaml.safe_load((part / "darumeru.yaml").read_text())
    assert not list(part.glob("copy*.yaml")) and (part / "darumeru_mera.yaml").is_file()
    whole = tasks_folder(0, "--tokenizer", str(folder), "--force")
    group = yaml.safe_load((whole / "darumeru.yaml").read_text())
    columns = [yaml.safe_load((whole / f"{name}.yaml").read_text()) for name in group["task"]]
    assert sum(len(column["task"]) for column in columns) == len(tasks())
    assert all(not one["aggregate_metric_list"][0]["weight_by_size"] for one in [group, *columns])


def test_changed_data_is_refused(tasks_folder):
    from lm_eval.tasks import TaskManager

    place = tasks_folder(0)
    rows = place / "data" / "rucola" / "test.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(LeptaError, match=r"rucola: data changed since"):
        TaskManager(include_path=str(place), include_defaults=False).load(["darumeru_rucola"])


@pytest.mark.parametrize("chat", [False, True])
def test_a_class_of_theirs_as_our_backend(data, model, local, tmp_path, chat):
    theirs, ours = LmEvalBackend(model, "hf", "tiny", Asking(chat=chat)), local(chat)
    questions = [Question(f"{n}. Вопрос?\n\nОтвет:", (" Да", " Нет", " 1", " 2, потом")) for n in range(3)]
    for mine, other in zip(ours.choose(questions), theirs.choose(questions), strict=True):
        assert other == pytest.approx(mine, abs=1e-4)
    assert theirs.sentence_logprobs(questions[0]) == pytest.approx(ours.sentence_logprobs(questions[0]), abs=1e-4)
    first, second = (run(one, data, tmp_path / str(n), NAMES, 1) for n, one in enumerate((ours, theirs)))
    assert {name: task.score.value for name, task in second.tasks.items()} == {
        name: pytest.approx(task.score.value) for name, task in first.tasks.items()
    }
    for name in ("rucola", "parus", "mmlu_ru", "summary_extractive"):
        logs = [read_log(tmp_path / str(n) / "samples" / f"{name}.jsonl")[1] for n in (0, 1)]
        for mine, other in zip(*logs, strict=True):
            assert other["answer"].get("label") == mine["answer"].get("label")
            assert other["answer"]["log_probs"] == pytest.approx(mine["answer"]["log_probs"], abs=1e-4)


def test_the_command_with_a_class_of_theirs(folder, data, tmp_path):
    command = ["darumeru", "run", "--model", str(folder), "--data", data, "--tasks", "rucola", "--plain"]
    given = [*command, "--lm-eval", "hf", "--lm-eval-args", "dtype=float32,device=cpu", "--shots", "0"]
    done = CliRunner().invoke(app, [*given, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    header, records = read_log(tmp_path / "out" / "samples" / "rucola.jsonl")
    assert header["run"]["backend"].endswith(" hf") and len(records) == ROWS
    refused = CliRunner().invoke(app, [*command, "--lm-eval", "no-such-class", "--output", str(tmp_path / "none")])
    assert isinstance(refused.exception, LeptaError) and "no-such-class: cannot be loaded" in str(refused.exception)


def test_missing_tensors_are_refused(folder, data, tmp_path):
    """The classes of lm-evaluation-harness would draw them at random."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(LeptaError, match=r"no weights for model\.layers\.2\."), opened_lm_eval(broken, "hf"):
        pass


def test_a_class_without_a_tokenizer_is_refused(model):
    with pytest.raises(LeptaError, match="shows no tokenizer"):
        LmEvalBackend(model.model, "no-tokenizer", "tiny")


def test_joined_tokens_are_refused(model):
    """The prompt's last token goes on in the label: lm-evaluation-harness would count another token than ours."""
    with pytest.raises(LeptaError, match="joins the end of the prompt"):
        LmEvalBackend(model, "hf", "tiny", Asking(chat=False)).choose([Question("The answer is th", ("e", "ink"))])


def test_line_breaks_before_an_answer_do_not_end_it(model, monkeypatch):
    """A class ends there, so it is asked again."""
    texts = {"Раз": "\nМосква\nКиев", "Два": "Рига\nКиев"}

    def generate_until(requests):
        prompts = [request.args for request in requests]
        return [
            texts[prompt].split(*options["until"])[0] if options["until"] else texts[prompt]
            for prompt, options in prompts
        ]

    monkeypatch.setattr(model, "generate_until", generate_until)
    backend = LmEvalBackend(model, "hf", "tiny", Asking(chat=False))
    assert [written.text for written in backend.generate([GenerationRequest(text, ("\n",)) for text in texts], 9)] == [
        "Москва",
        "Рига",
    ]
