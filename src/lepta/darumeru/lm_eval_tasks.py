"""The benchmark as tasks of lm-evaluation-harness: a folder of data and YAML files, and the class that they name.

The folder holds data, settings and hashes; prompts, labels, scores and totals are those of this package, so both
runners ask and count the same. `lm_eval --include_path FOLDER --tasks darumeru` needs this package installed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lepta.darumeru.backend import GenerationRequest, render_plain
from lepta.darumeru.data import load_dataset
from lepta.darumeru.lm_eval_export import DATA, TOKENIZER, check
from lepta.darumeru.measures import SampleScore
from lepta.darumeru.metrics import pick
from lepta.darumeru.tasks import Answer, Message, Sample, tasks
from lepta.models.load import load_tokenizer

METRIC = "score"


class DarumeruTask(ConfigurableTask):
    """One of the 17 tasks, from `task` and `metadata` of a YAML file that `lepta.darumeru.lm_eval_export` wrote."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        facts = config["metadata"]
        self._folder = Path(facts["config_source"]).parent
        self._darumeru = tasks(facts["definition"])[facts["name"]]
        dataset = load_dataset(self._darumeru.dataset, str(self._folder / DATA))
        check(self._folder, self._darumeru, dataset, facts)
        self._samples = {sample.id: sample for sample in self._darumeru.samples(dataset)}
        self._shown = {
            key: self._darumeru.messages(sample, self._darumeru.shots(dataset, sample, facts["shots"]))
            for key, sample in self._samples.items()
        }
        settings = {
            "task": config["task"],
            "metadata": {**facts, "version": self._darumeru.version},
            "output_type": "multiple_choice",
            "generation_kwargs": None,
            "test_split": "test",
            "num_fewshot": 0,  # examples are part of the prompt
            "doc_to_text": "question",
            "doc_to_target": "target",
            "metric_list": [],
        }
        if self._darumeru.method == "generate":
            settings |= {"output_type": "generate_until", "generation_kwargs": self._generation(())}
        super().__init__(config=settings)

    def download(self, *arguments: Any, **options: Any) -> None:
        """Put the samples where lm-evaluation-harness looks for documents."""
        documents = [
            {"id": key, "question": self._shown[key][-1]["content"], "target": sample.target}
            for key, sample in self._samples.items()
        ]
        self.dataset = {"test": datasets.Dataset.from_list(documents)}

    def fewshot_context(
        self,
        doc: Mapping[str, Any],
        num_fewshot: int = 0,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str:
        """Prompt of a sample: by the model's chat template, or plain text with blank lines between turns."""
        messages = self._shown[doc["id"]]
        if apply_chat_template and chat_template:
            begun = messages[-1]["role"] == "assistant"
            system: list[Message] = []
            if system_instruction:
                system = [{"role": "system", "content": system_instruction}]
            return chat_template([*system, *messages], add_generation_prompt=not begun)
        return render_plain(messages)

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **options: Any) -> list[Instance]:
        """What the model is asked for a sample: log-likelihoods of all continuations, or one text."""
        sample = self._samples[doc["id"]]
        chat = options.pop("apply_chat_template", False)
        options.pop("chat_template", None)
        kind, arguments = "loglikelihood", list[Any](sample.continuations)
        if self._darumeru.method == "generate":
            stops = self._darumeru.stop_for(sample, chat)
            kind, arguments = "generate_until", [self._generation(stops)]
        return [
            Instance(request_type=kind, doc=doc, arguments=(ctx, argument), idx=n, **options)
            for n, argument in enumerate(arguments)
        ]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """What the answer to a sample is worth, as plain data."""
        sample = self._samples[doc["id"]]
        return {METRIC: asdict(self._darumeru.score(sample, self._answer(sample, results)))}

    def aggregation(self) -> dict[str, Callable[[Sequence[Mapping[str, Any]]], float]]:
        """The task's score, from what all samples are worth."""
        return {METRIC: self._total}

    def higher_is_better(self) -> dict[str, bool]:
        """More is better in all tasks."""
        return {METRIC: True}

    def _total(self, records: Sequence[Mapping[str, Any]]) -> float:
        measure = self._darumeru.measure
        return float(measure.score(measure.units([SampleScore(**record) for record in records]).vectors.sum(0)))

    def _generation(self, stops: Sequence[str]) -> dict[str, Any]:
        return {"until": list(stops), "max_gen_toks": self._darumeru.max_new_tokens, "do_sample": False}

    def _answer(self, sample: Sample, results: Sequence[Any]) -> Answer:
        task = self._darumeru
        if task.method == "choose":
            return Answer(label=pick(task.labels, [value for value, _ in results]))
        if task.method == "loglikelihood":
            # The harness gives sums; the tokens of a sentence are those that it adds to the lead-in before it.
            lead_in = len(self._tokens(task.prompt.lead_in))
            means = []
            for text, (value, _) in zip(sample.continuations, results, strict=True):
                means.append(value / (len(self._tokens(task.prompt.lead_in + text)) - lead_in))
            return Answer(log_probs=tuple(means))
        text = GenerationRequest("", longest=task.longest_for(sample)).cut(results[0]).strip()
        if not task.name.startswith("copy"):
            return Answer(text=text)
        tokens = self._tokens(text)
        emitted = min(len(tokens), task.max_new_tokens)
        return Answer(text=text, emitted=emitted, tokens=tokens, reference_tokens=self._tokens(sample.target.strip()))

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._folder / TOKENIZER)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
