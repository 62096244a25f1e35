"""Asks a model the benchmark's tasks: prompts that fit, batches, a log of every sample, and the summary.

Batches depend on the task and the settings alone, never on what is logged already, so a run that was killed and resumed
gives the same numbers to the last digit.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.output import write_json
from lepta.core.progress import progress
from lepta.darumeru.aggregate import Summary, conditions_of, summarise
from lepta.darumeru.backend import Backend, Completion, GenerationRequest, Question
from lepta.darumeru.data import Dataset, load_dataset
from lepta.darumeru.log import SUMMARY, UNFORESEEN, Record, Results, TaskLog, check_output, read_results, task_results
from lepta.darumeru.metrics import pick
from lepta.darumeru.tasks import NO_LABEL, Answer, Definition, Sample, Task, named_tasks
from lepta.version import __version__

BATCH = {"choose": 32, "generate": 64, "loglikelihood": 1}  # samples, at most
CACHE_TOKENS = 32_768  # KV-cache budget per batch of generation, in tokens of prompts and answers
DIGITS = 6  # of logged log-probabilities


@dataclass(frozen=True)
class PromptedSample:
    """A sample, how many examples found room in its prompt, the prompt and its length in tokens."""

    sample: Sample
    shots: int
    prompt: str
    tokens: int


def run(
    backend: Backend,
    source: str,
    output: Path,
    names: Sequence[str] = (),
    shots: int = 0,
    definition: Definition = "current",
    limit: int | None = None,
    seed: int = 1,
) -> Summary:
    """`ask` a model the tasks of these names (default: all) on data that is builtin, from the hub, or in a folder."""
    chosen, data = choose_tasks(source, names, definition)
    return ask(backend, chosen, data, output, shots, limit, seed)


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
    """Ask a model tasks; write `samples/TASK.jsonl` and `summary.json` of all tasks that are logged in the output.

    Samples that were logged there with the same model, data and settings are not asked again. There are `shots`
    examples before a question, fewer where they do not fit; `limit` are rows of each task, `seed` is that of the
    intervals. `report` is told one line about each task that is done. Tasks that are not whole are in `refused`.
    LeptaError if the output is a file or holds answers that depend on something else.
    """
    check_output(output)
    parts = {task.name: limited(task, data[task.dataset], limit) for task in chosen}
    settings = {**backend.identity, "lepta": __version__, "limit": limit}
    # All logs are opened first: one that holds answers of another run is an error before the first question is asked.
    logs = {task.name: TaskLog(output, _header(task, parts[task.name], shots, settings)) for task in chosen}
    for task in chosen:
        records = _run_task(task, parts[task.name], backend, shots, logs[task.name])
        said = f"{task.name}: {len(records)} samples"
        if errors := sum("error" in record for record in records):
            said += f", {errors} ERRORS"
        report(said)
    results = read_results(output)
    summary = summarise(task_results(results), seed=seed, partial=True)
    write_json(output / SUMMARY, _summary_json(summary, {"shots": shots, "seed": seed, **settings}, results))
    return summary


def choose_tasks(
    source: str, names: Sequence[str] = (), definition: Definition = "current"
) -> tuple[list[Task], dict[str, Dataset]]:
    """Tasks by their names (none: all), and their data by its names."""
    chosen = named_tasks(names, definition)
    datasets = dict.fromkeys(task.dataset for task in chosen)
    return chosen, {name: load_dataset(name, source) for name in datasets}


def limited(task: Task, dataset: Dataset, limit: int | None) -> Dataset:
    """The first rows that a task has questions about, of MMLU's subjects in turn."""
    if limit is None:
        return dataset
    return replace(dataset, test=tuple(row for row in dataset.test if task.make(task, row))).first(limit)


def fit(task: Task, dataset: Dataset, sample: Sample, shots: int, backend: Backend) -> PromptedSample:
    """Write the prompt with as many whole examples as find room beside the answer; an error if none is too many."""
    longest = 1 + max(map(len, map(backend.tokens, sample.continuations)), default=-1)
    room = backend.thinking + max(task.max_new_tokens, longest)
    examples = task.shots(dataset, sample, shots)
    for number in range(len(examples), -1, -1):
        prompt = backend.render(task.messages(sample, examples[:number]))
        tokens = backend.count_tokens(prompt)
        if tokens + room <= backend.context:
            return PromptedSample(sample, number, prompt, tokens)
    raise LeptaError(
        f"the prompt has {tokens} tokens without examples, the answer may take {room}; the context is {backend.context}"
    )


def _header(task: Task, dataset: Dataset, shots: int, settings: dict[str, Any]) -> dict[str, Any]:
    """All that a task's answers depend on."""
    asked = ["thinking", "labels"] if task.labels else ["thinking"]
    written = {name: settings[name] for name in asked if name in settings}
    return {
        "task": task.name,
        "definition": task.definition,
        "expected": len(task.samples(dataset)),
        "conditions": {**conditions_of(task, dataset, shots), **written},
        "run": settings,
    }


def _run_task(task: Task, dataset: Dataset, backend: Backend, shots: int, log: TaskLog) -> list[Record]:
    """Ask what is not logged yet; the records of all samples."""
    samples = task.samples(dataset)
    ids = [sample.id for sample in samples]
    if not log.records.keys() >= set(ids):
        _ask_samples(task, dataset, samples, backend, shots, log)
    log.finish(ids)
    return list(log.records.values())


def _ask_samples(
    task: Task, dataset: Dataset, samples: Sequence[Sample], backend: Backend, shots: int, log: TaskLog
) -> None:
    """Ask all samples but those of batches that are logged whole."""
    items: list[PromptedSample] = []
    failed: list[Record] = []
    for sample in samples:
        try:
            items.append(fit(task, dataset, sample, shots, backend))
        except LeptaError as error:
            failed.append({"id": sample.id, "error": str(error)})
    groups = [_batches(group, task, backend.thinking) for group in _groups(items)]
    done: set[str] = set()
    for batch in itertools.chain.from_iterable(groups):
        ids = {item.sample.id for item in batch}
        if ids <= log.records.keys():
            done |= ids
    log.keep(done)
    log.add(failed)
    with progress(f"{task.name}, samples", len(samples)) as bar:
        for group in groups:
            backend.share([item.prompt for item in itertools.chain.from_iterable(group)])
            for batch in group:
                if batch[0].sample.id not in done:
                    log.add(_records(task, backend, batch))
                bar.set(len(log.records))


def _groups(items: Sequence[PromptedSample]) -> list[list[PromptedSample]]:
    """Prompts that start alike, shortest first: with examples, those of one subject."""
    groups: dict[str, list[PromptedSample]] = {}
    for item in items:
        groups.setdefault(item.sample.row.stratum if item.shots else "", []).append(item)
    return [sorted(group, key=lambda item: item.tokens) for group in groups.values()]


def _batches(items: Sequence[PromptedSample], task: Task, thinking: int) -> list[list[PromptedSample]]:
    """Cut prompts, shortest first, into batches."""
    written = thinking
    if task.method == "generate":
        written += task.max_new_tokens
    batches: list[list[PromptedSample]] = [[]]
    for item in items:
        rows = len(batches[-1]) + 1
        # Prompts are padded to the longest of the batch, which is this one.
        too_long = written and rows * (item.tokens + written) > CACHE_TOKENS
        if batches[-1] and (too_long or rows > BATCH[task.method]):
            batches.append([])
        batches[-1].append(item)
    return batches


def _records(task: Task, backend: Backend, batch: Sequence[PromptedSample]) -> list[Record]:
    """Ask a batch; if that fails, each sample by itself, so that one bad sample is one error."""
    try:
        results = _ask_batch(task, backend, batch)
    except Exception as error:  # memory, a server, a tokenizer: whatever it is, it is logged and there is no total
        if len(batch) == 1:
            return [_failed(batch[0], error)]
        return [_records(task, backend, [item])[0] for item in batch]
    return [_record(task, backend, item, result) for item, result in zip(batch, results, strict=True)]


def _ask_batch(task: Task, backend: Backend, batch: Sequence[PromptedSample]) -> Sequence[Any]:
    """Results in the order of the batch; their kind depends on the task's method."""
    prompts = backend.think([item.prompt for item in batch])
    if task.method == "generate":
        requests = []
        for item, prompt in zip(batch, prompts, strict=True):
            stops = task.stop_for(item.sample, backend.chat)
            requests.append(GenerationRequest(prompt, stops, task.longest_for(item.sample)))
        return backend.generate(requests, task.max_new_tokens)
    questions = [Question(prompt, item.sample.continuations) for item, prompt in zip(batch, prompts, strict=True)]
    if task.method == "choose":
        return backend.choose(questions)
    return list(map(backend.sentence_logprobs, questions))


def _record(task: Task, backend: Backend, item: PromptedSample, result: Any) -> Record:
    sample = item.sample
    try:
        answer = _answer(task, backend, sample, result)
        score = task.score(sample, answer)
    except LeptaError as error:
        return _failed(item, error)
    shown = {key: value for key, value in asdict(answer).items() if value not in (None, ()) and "tokens" not in key}
    if task.method != "generate":
        shown["log_probs"] = [round(value, DIGITS) for value in result]
    if answer.label_mass is not None:
        shown["label_mass"] = round(answer.label_mass, DIGITS)
    return {
        "id": sample.id,
        "shots": item.shots,
        "prompt_tokens": item.tokens,
        "question": task.messages(sample)[0]["content"],
        "target": sample.target,
        "answer": shown,
        "score": asdict(score),
    }


def _failed(item: PromptedSample, error: Exception) -> Record:
    if isinstance(error, LeptaError):
        return {"id": item.sample.id, "error": str(error)}
    return {"id": item.sample.id, "error": f"{type(error).__name__}: {error}", UNFORESEEN: True}


def _answer(task: Task, backend: Backend, sample: Sample, result: Any) -> Answer:
    if isinstance(result, Completion):
        text = result.text.encode(errors="replace").decode()  # servers may cut a character in two
        if not task.name.startswith("copy"):
            return Answer(text=text, emitted=result.emitted)
        tokens, reference = backend.tokens(text.strip()), backend.tokens(sample.target.strip())
        return Answer(text=text, emitted=result.emitted, tokens=tokens, reference_tokens=reference)
    if task.method == "choose":
        mass = min(1.0, sum(map(math.exp, result)))
        return Answer(label=pick(task.labels, result) if result else NO_LABEL, label_mass=mass)
    return Answer(log_probs=tuple(result))


def _summary_json(summary: Summary, settings: dict[str, Any], results: Results) -> dict[str, Any]:
    """The summary with the settings, and for each task how many examples were shown."""
    facts = asdict(summary)
    for name, task in facts["tasks"].items():
        records = results[name][1]
        task["shots"] = sum(record["shots"] for record in records) / len(records)
    return {"definition": facts.pop("definition"), **settings, **facts}
