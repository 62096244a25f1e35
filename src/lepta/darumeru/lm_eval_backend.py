"""Any model class of lm-evaluation-harness (hf, vllm, ...) takes the benchmark, through its public methods.

They take and give text, so of what a model emitted only the text is known here.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError, optional
from lepta.darumeru.backend import USUAL, Asking, Backend, Completion, GenerationRequest, Question
from lepta.inference.scoring import Branch
from lepta.models.folder import MODEL_FILES
from lepta.models.load import complete_model, opened
from lepta.stages import Hashes
from lepta.text.locate import locate


class LmEvalBackend(Backend):
    """A model of lm-evaluation-harness (`lm_eval.api.model.LM`) with a tokenizer of transformers, as hf and vllm have.

    kind is the name of its class, name the content hash of the weights, arguments what else the class was told, such as
    "dtype=bfloat16".
    """

    def __init__(self, model: Any, kind: str, name: str, how: Asking = USUAL, arguments: str = "") -> None:
        tokenizer = getattr(model, "tokenizer", None)
        if not callable(tokenizer) or not hasattr(tokenizer, "apply_chat_template"):
            raise LeptaError(f"--lm-eval {kind}: this class shows no tokenizer of transformers; hf and vllm do")
        facts = {"backend": f"lm-eval {version('lm_eval')} {kind}", "arguments": arguments, "model": name}
        context = min(how.context, getattr(model, "max_length", None) or how.context)
        super().__init__(tokenizer, facts, replace(how, context=context))
        self._model = model

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Log-likelihood of each continuation of each question, over all its tokens."""
        for question in questions:
            self._exact(question, together=True)
        values = iter(self._loglikelihood(questions))
        return [tuple(itertools.islice(values, len(question.continuations))) for question in questions]

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Mean log-probability per token of each continuation: the sum is the class's, the number of tokens ours."""
        branches = self._exact(question, together=False)
        sums = self._loglikelihood([question])
        return tuple(value / (len(branch.ids) - branch.start) for value, branch in zip(sums, branches, strict=True))

    def generate(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[Completion]:
        """Continue greedily. Tokens emitted are those that the text has when it is encoded, at most `max_tokens`."""
        texts = self._generated(requests, max_tokens)
        # The harness ends a text at a stop with nothing before it; here such a stop does not count.
        again = [n for n, request in enumerate(requests) if request.stops and not texts[n].strip()]
        if again:
            whole = self._generated([replace(requests[n], stops=()) for n in again], max_tokens)
            for n, text in zip(again, whole, strict=True):
                texts[n] = text
        completions = []
        for request, text in zip(requests, texts, strict=True):
            cut = request.cut(text).strip()
            completions.append(Completion(cut, min(len(self.tokens(cut)), max_tokens)))
        return completions

    def _exact(self, question: Question, together: bool) -> list[Branch]:
        """Ids of the texts, if the prompt's own ids start all of them: the classes cut where the prompt alone ends."""
        branches = self.branches(question, together)
        (prompt,) = self.ids([question.prompt])
        if any(branch.start != len(prompt) for branch in branches):
            raise LeptaError(
                f"--lm-eval: the tokenizer joins the end of the prompt {question.prompt[-20:]!r} with what follows, "
                "which lm-eval counts wrongly; run without --lm-eval"
            )
        return branches

    def _generated(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[str]:
        """What the class writes after prompts, up to where it stops."""
        arguments = []
        for request in requests:
            options = {"max_gen_toks": max_tokens, "do_sample": False, "until": list(request.stops)}
            arguments.append((request.prompt, options))
        return list(self._model.generate_until(_instances("generate_until", arguments)))

    def _loglikelihood(self, questions: Sequence[Question]) -> list[float]:
        requests: list[tuple[str, str]] = []
        for question in questions:
            requests += [(question.prompt, text) for text in question.continuations]
        return [float(value) for value, _ in self._model.loglikelihood(_instances("loglikelihood", requests))]


def _instances(kind: str, requests: Sequence[tuple[str, Any]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=request, idx=n) for n, request in enumerate(requests)]


@contextmanager
def opened_lm_eval(source: str | Path, kind: str, arguments: str = "", how: Asking = USUAL) -> Iterator[LmEvalBackend]:
    """Load any model source by a class of lm-evaluation-harness, which is told its folder as `pretrained`.

    `arguments` are more of the class's own, "name=value,name=value".
    """
    with optional("--lm-eval", "lm-eval"):
        from lm_eval.api.registry import get_model
        from lm_eval.utils import simple_parse_args_string
    content = Hashes().content(locate(source, hub_files=MODEL_FILES))
    with opened(source) as checkpoint:
        try:
            # The classes draw missing tensors at random; on the meta device nothing of the model is in memory twice.
            complete_model(checkpoint.folder, device_map="meta")
            model = get_model(kind)(pretrained=str(checkpoint.folder), **simple_parse_args_string(arguments))
            backend = LmEvalBackend(model, kind, content, how, arguments)
        except LeptaError:
            raise
        except Exception as error:  # whatever a class raises: unknown name, missing package, bad argument
            raise LeptaError(f"--lm-eval {kind}: cannot be loaded ({type(error).__name__}: {error})") from error
        yield backend
