"""Has a model take the benchmark: prompts that fit, batches, a log of every sample, and the summary.

Batches depend on the task and the settings alone, never on what is logged already, so a run that was killed and goes on
gives the same numbers to the last digit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.output import write_json
from lepta.core.progress import progress
from lepta.darumeru.aggregate import Summary, summarise, task_result
from lepta.darumeru.backend import Backend, Order, Question, Written
from lepta.darumeru.data import Dataset, load_dataset
from lepta.darumeru.log import SUMMARY, UNFORESEEN, Record, TaskLog, check_output, read_results
from lepta.darumeru.metrics import pick
from lepta.darumeru.tasks import NO_LABEL, Answer, Definition, Sample, Task, named_tasks
from lepta.version import __version__

BATCH = {"choose": 32, "generate": 64, "loglikelihood": 1}  # samples, at most
HELD = 32_768  # tokens of prompts and answers whose keys and values a batch may hold while it writes
DIGITS = 6  # of logged log-probabilities


@dataclass(frozen=True)
class Asked:
    """A sample with the prompt that it is asked with.

    Attributes
    ----------
    sample : Sample
    shots : int
        Examples that found room.
    prompt : str
    tokens : int
        Of the prompt.
    """

    sample: Sample
    shots: int
    prompt: str
    tokens: int


def run(
    backend: Backend,
    source: str,
    output: Path,
    names: Sequence[str] | None = None,
    shots: int = 0,
    definition: Definition = "current",
    limit: int | None = None,
    seed: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Ask a model the tasks and write `samples/TASK.jsonl` and `summary.json`.

    Parameters
    ----------
    backend : Backend
    source : str
        Of the data: "builtin", "hub" or a folder.
    output : Path
        Samples that are logged there by a run with the same model, data and settings are not asked again.
    names : sequence of str, optional
        Tasks; all of them by default.
    shots : int
        Examples before each question; fewer where they do not fit.
    definition : {"current", "legacy"}
    limit : int, optional
        Rows of each task; all of them by default.
    seed : int
        Of the intervals' bootstrap.
    report : callable
        Told one line about each task that is done.

    Returns
    -------
    Summary
        Of all tasks logged in the output; those not whole are in `refused`.

    Raises
    ------
    LeptaError
        If a task is unknown, its data is not there, or the output is a file or holds answers that depend on something
        else.
    """
    chosen, data = choose_tasks(source, names, definition)
    return ask(backend, chosen, data, output, shots, limit, seed, report)


def ask(
    backend: Backend,
    chosen: Sequence[Task],
    data: Mapping[str, Dataset],
    output: Path,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Do what `run` does, with tasks and data that are there already (see `choose_tasks`)."""
    check_output(output)
    parts = {task.name: part(task, data[task.dataset], limit) for task in chosen}
    settings = {**backend.identity, "lepta": __version__, "limit": limit}
    logs = {task.name: TaskLog(output, _header(task, parts[task.name], shots, settings)) for task in chosen}
    for task in chosen:
        _run_task(task, parts[task.name], backend, shots, logs[task.name])
        errors = sum("error" in record for record in logs[task.name].records.values())
        report(f"{task.name}: {len(logs[task.name].records)} samples" + (f", {errors} ERRORS" if errors else ""))
    found = read_results(output)
    summary = summarise([result for result, _ in found.values()], seed=seed, partial=True)
    write_json(
        output / SUMMARY, _written(summary, settings, shots, seed, {k: records for k, (_, records) in found.items()})
    )
    return summary


def choose_tasks(
    source: str, names: Sequence[str] | None = None, definition: Definition = "current"
) -> tuple[list[Task], dict[str, Dataset]]:
    """Tasks by their names, and their data by its names; arguments and errors as for `run`."""
    chosen = named_tasks(names or (), definition)
    return chosen, {name: load_dataset(name, source) for name in dict.fromkeys(task.dataset for task in chosen)}


def part(task: Task, dataset: Dataset, limit: int | None) -> Dataset:
    """The first rows that a task has questions about, of MMLU's subjects in turn."""
    if limit is None:
        return dataset
    return replace(dataset, test=tuple(row for row in dataset.test if task.make(task, row))).first(limit)


def fit(task: Task, dataset: Dataset, sample: Sample, shots: int, backend: Backend) -> Asked:
    """Write the prompt with as many examples as find room beside the answer; none is cut.

    Raises
    ------
    LeptaError
        If the question does not fit by itself.
    """
    room = max([task.max_new_tokens, *(len(backend.tokens(text)) + 1 for text in sample.continuations)])
    examples = task.shots(dataset, sample, shots)
    for number in range(len(examples), -1, -1):
        prompt = backend.render(task.messages(sample, examples[:number]))
        tokens = backend.count_tokens(prompt)
        if tokens + room <= backend.context:
            return Asked(sample, number, prompt, tokens)
    raise LeptaError(
        f"the prompt has {tokens} tokens without examples, the answer may take {room}; the context is {backend.context}"
    )


def _header(task: Task, dataset: Dataset, shots: int, settings: dict[str, Any]) -> dict[str, Any]:
    """All that a task's answers depend on."""
    empty = task_result(task, dataset, [], shots)
    written = {"labels": settings["labels"]} if task.labels and "labels" in settings else {}
    return {
        "task": task.name,
        "definition": task.definition,
        "expected": empty.expected,
        "conditions": {**empty.conditions, **written},
        "run": settings,
    }


def _run_task(task: Task, dataset: Dataset, backend: Backend, shots: int, log: TaskLog) -> None:
    samples = task.samples(dataset)
    if all(sample.id in log.records for sample in samples):
        log.finish([sample.id for sample in samples])
        return
    asked: list[Asked] = []
    failed: list[Record] = []
    for sample in samples:
        try:
            asked.append(fit(task, dataset, sample, shots, backend))
        except LeptaError as error:
            failed.append({"id": sample.id, "error": str(error)})
    groups = [_batches(group, task) for group in _groups(asked)]
    whole = [batch for group in groups for batch in group if all(one.sample.id in log.records for one in batch)]
    done = {one.sample.id for batch in whole for one in batch}
    log.keep(done)
    log.add(failed)
    with progress(task.name, len(samples)) as bar:
        for group in groups:
            backend.share([one.prompt for batch in group for one in batch])
            for batch in group:
                if batch[0].sample.id not in done:
                    log.add(_records(task, backend, batch))
                bar.set(len(log.records))
    log.finish([sample.id for sample in samples])


def _groups(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Samples that start alike, shortest first: with examples, those of one subject."""
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(one.sample.row.stratum if one.shots else "", []).append(one)
    return [sorted(group, key=lambda one: one.tokens) for group in groups.values()]


def _batches(asked: Sequence[Asked], task: Task) -> list[list[Asked]]:
    """Cut samples, shortest prompt first, into batches."""
    batches: list[list[Asked]] = []
    for one in asked:
        rows = len(batches[-1]) + 1 if batches else 1
        held = rows * (one.tokens + task.max_new_tokens) if task.method == "generate" else 0
        if batches and rows <= BATCH[task.method] and held <= HELD:
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


def _records(task: Task, backend: Backend, batch: Sequence[Asked]) -> list[Record]:
    """Ask a batch; if that fails, each sample by itself, so that one bad sample is one error."""
    try:
        results = _ask(task, backend, batch)
    except Exception as error:  # memory, a server, a tokenizer: whatever it is, it is logged and there is no total
        if len(batch) > 1:
            return [record for one in batch for record in _records(task, backend, [one])]
        return [_failed(batch[0], error)]
    return [_record(task, backend, one, result) for one, result in zip(batch, results, strict=True)]


def _record(task: Task, backend: Backend, one: Asked, result: Any) -> Record:
    try:
        answer = _answer(task, backend, one.sample, result)
        score = task.score(one.sample, answer)
    except LeptaError as error:
        return _failed(one, error)
    shown = {key: value for key, value in asdict(answer).items() if value not in (None, ()) and "tokens" not in key}
    if task.method != "generate":
        shown["log_probs"] = [round(value, DIGITS) for value in result]
    if answer.label_mass is not None:
        shown["label_mass"] = round(answer.label_mass, DIGITS)
    return {
        "id": one.sample.id,
        "shots": one.shots,
        "prompt_tokens": one.tokens,
        "question": _question(task, one.sample),
        "target": one.sample.target,
        "answer": shown,
        "score": asdict(score),
    }


def _question(task: Task, sample: Sample) -> str:
    """What was asked, without examples."""
    return next(turn["content"] for turn in task.messages(sample) if turn["role"] == "user")


def _failed(one: Asked, error: Exception) -> Record:
    if isinstance(error, LeptaError):
        return {"id": one.sample.id, "error": str(error)}
    return {"id": one.sample.id, "error": f"{type(error).__name__}: {error}", UNFORESEEN: True}


def _ask(task: Task, backend: Backend, batch: Sequence[Asked]) -> Sequence[Any]:
    """Results in the order of the batch; their kind depends on the task's method."""
    if task.method == "generate":
        orders = [_order(task, backend, one) for one in batch]
        return backend.generate(orders, task.max_new_tokens)
    questions = [Question(one.prompt, one.sample.continuations) for one in batch]
    if task.method == "choose":
        return backend.choose(questions)
    return [backend.sentence_logprobs(question) for question in questions]


def _order(task: Task, backend: Backend, one: Asked) -> Order:
    stops = () if backend.chat else task.stop_for(one.sample)
    return Order(one.prompt, stops, task.longest_for(one.sample))


def _answer(task: Task, backend: Backend, sample: Sample, result: Any) -> Answer:
    if isinstance(result, Written):
        text = result.text.encode(errors="replace").decode()  # servers may cut a character in two
        if not task.name.startswith("copy"):
            return Answer(text=text, emitted=result.emitted)
        tokens, reference = backend.tokens(text.strip()), backend.tokens(sample.target.strip())
        return Answer(text=text, emitted=result.emitted, tokens=tokens, reference_tokens=reference)
    if task.method == "choose":
        mass = min(1.0, sum(math.exp(value) for value in result))
        return Answer(label=pick(task.labels, result) if result else NO_LABEL, label_mass=mass)
    return Answer(log_probs=tuple(result))


def _written(
    summary: Summary, settings: dict[str, Any], shots: int, seed: int, records: dict[str, list[Record]]
) -> dict[str, Any]:
    """The summary as JSON."""
    facts = asdict(summary)
    for name, task in facts["tasks"].items():
        task["shots"] = sum(record["shots"] for record in records[name]) / len(records[name])
    return {
        "definition": facts["definition"],
        "shots": shots,
        "seed": seed,
        **settings,
        "tasks": facts["tasks"],
        "columns": facts["columns"],
        "micro_avg": facts["micro_avg"],
        "refused": facts["refused"],
    }
