"""How many questions of the benchmark a model answers per second, beside another way to ask the same.

    python benchmarks/darumeru.py --model MODEL --task rucola --shots 5
    python benchmarks/darumeru.py --model MODEL --task mmlu_en --data FOLDER --limit 200 --shots 5 --against lm-eval
    python benchmarks/darumeru.py --model MODEL --task summary_extractive --limit 10 --against naive

--against nothing-shared   our own runner, which reads each prompt from its first token
          lm-eval          the class hf of lm-evaluation-harness on the same rows and prompts, at its best batch size
          naive            one forward pass of the whole text for each sentence (summary_extractive)

The model is loaded once, on a CPU in float32. All are asked one row before the clock starts. Rows are the first of the
file: of MMLU one subject, whose examples are shared. A row of each subject would share nothing.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lepta.darumeru.backend import Asking, Question
from lepta.darumeru.data import Dataset, load_dataset, write_dataset
from lepta.darumeru.lm_eval_export import export
from lepta.darumeru.log import read_log
from lepta.darumeru.runner import fit, run
from lepta.darumeru.tasks import Answer, Task, tasks
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.models.load import load_model, load_tokenizer, model_folder

BATCHES = (1, 4, 16)  # of lm-evaluation-harness; the fastest counts

TASKS = "tasks"  # folder of lm-evaluation-harness, beside the rows

Values = dict[str, dict[str, float]]  # sample -> what its answer is worth


@dataclass(frozen=True)
class Job:
    """What is asked: a model, and a folder with the rows of one task."""

    model: Any
    tokenizer: Any
    task: str
    data: str
    shots: int
    chat: bool

    def backend(self, reuse: bool = True) -> TransformersBackend:
        """The model as our runner asks it."""
        return TransformersBackend(self.model, self.tokenizer, "benchmark", Asking(chat=self.chat), reuse=reuse)


def ours(job: Job, reuse: bool = True) -> Values:
    """Our runner, log and totals included."""
    with tempfile.TemporaryDirectory() as folder:
        run(job.backend(reuse), job.data, Path(folder), [job.task], job.shots)
        _, records = read_log(Path(folder) / "samples" / f"{job.task}.jsonl")
    if errors := [record["error"] for record in records if "error" in record]:
        raise SystemExit(f"{len(errors)} samples failed, the first: {errors[0]}")
    return {record["id"]: record["score"]["values"] for record in records}


def lm_eval(job: Job, batch: int) -> Values:
    """lm-evaluation-harness on the same rows and prompts: its requests, its model class, our scores."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=job.model, tokenizer=job.tokenizer, batch_size=batch)
    manager = TaskManager(include_path=f"{job.data}/{TASKS}", include_defaults=False)
    (task,) = manager.load([f"darumeru_{job.task}"])["tasks"].values()
    task.build_all_requests(apply_chat_template=job.chat, chat_template=model.apply_chat_template)
    ask = getattr(model, task.instances[0].request_type)
    results: dict[int, list[Any]] = {}
    for request, result in zip(task.instances, ask(task.instances), strict=True):
        results.setdefault(request.doc_id, []).append(result)
    documents = list(task.test_docs())
    scores = [task.process_results(documents[n], result)["score"] for n, result in results.items()]
    return {score["id"]: score["values"] for score in scores}


@torch.inference_mode()
def naive(job: Job) -> Values:
    """The whole text anew for each sentence."""
    task, backend = tasks()[job.task], job.backend()
    dataset = load_dataset(task.dataset, job.data)
    scores = []
    for sample in task.samples(dataset):
        question = Question(fit(task, dataset, sample, job.shots, backend).prompt, sample.continuations)
        means = []
        for branch in backend.branches(question, together=False):
            ids = torch.tensor([branch.ids], device=job.model.device)
            log_probs = torch.log_softmax(job.model(ids).logits[0, branch.start - 1 : -1].float(), -1)
            means.append(float(log_probs.gather(1, ids[0, branch.start :, None]).mean()))
        scores.append(task.score(sample, Answer(log_probs=tuple(means))))
    return {score.id: dict(score.values) for score in scores}


WAYS: dict[str, dict[str, Callable[[Job], Values]]] = {
    "nothing-shared": {"": lambda job: ours(job, reuse=False)},
    "lm-eval": {f"batch size {size}": lambda job, size=size: lm_eval(job, size) for size in BATCHES},
    "naive": {"": naive},
}


def write_rows(folder: Path, task: Task, dataset: Dataset, number: int | None) -> None:
    """The first rows that a task has questions about, as a folder of datasets."""
    rows = [row for row in dataset.test if task.make(task, row)][:number]
    write_dataset(folder / task.dataset, replace(dataset, test=tuple(rows)), {"format": dataset.source})


def timed(ask: Callable[[Job], Values], job: Job) -> tuple[float, float, Values]:
    """Questions per second, seconds of processor time, and what the answers are worth."""
    started, worked = time.perf_counter(), time.process_time()
    values = ask(job)
    return len(values) / (time.perf_counter() - started), time.process_time() - worked, values


def main() -> None:
    """Measure both ways and compare the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--task", default="rucola")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--against", choices=list(WAYS), default="nothing-shared")
    options = parser.parse_args()
    task = tasks()[options.task]
    dataset = load_dataset(task.dataset, options.data)
    with tempfile.TemporaryDirectory() as place:
        for name, number in (("rows", options.limit), ("one", 1)):
            write_rows(Path(place) / name, task, dataset, number)
            if options.against == "lm-eval":
                export(Path(place) / name / TASKS, str(Path(place) / name), options.shots, names=[task.name])
        (Path(place) / "model").mkdir()
        folder = model_folder(options.model, Path(place) / "model")
        model = load_model(folder), load_tokenizer(folder)
        job, warming = (
            Job(*model, options.task, f"{place}/{name}", options.shots, options.chat) for name in ("rows", "one")
        )
        for ask in [ours, *WAYS[options.against].values()]:
            ask(warming)
        speed, work, values = timed(ours, job)
        others = {name: timed(ask, job) for name, ask in WAYS[options.against].items()}
    best = max(others, key=lambda name: others[name][0])
    key = "answer" if task.method == "choose" else task.measure.headline[0]
    result = {
        "task": options.task,
        "shots": options.shots,
        "questions": len(values),
        "per_second": round(speed, 3),
        f"per_second, {options.against}": {name or "as it is": round(found[0], 3) for name, found in others.items()},
        "times as fast": round(speed / others[best][0], 2),
        "times as fast, by processor time": round(others[best][1] / work, 2),  # on a busy machine look at this
        "different answers": sum(values[one][key] != others[best][2][one][key] for one in values),
    }
    if task.method == "choose":
        sides = (values, others[best][2])
        result["accuracy"] = [round(sum(one["correct"] for one in side.values()) / len(side), 4) for side in sides]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
