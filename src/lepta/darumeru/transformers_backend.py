"""A model of transformers takes the benchmark: from any source, or as it is in the middle of its training."""

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lepta.darumeru.backend import USUAL, Asking, Backend, Completion, GenerationRequest
from lepta.darumeru.log import logged_dtype
from lepta.inference.generation import generate_batch
from lepta.inference.scoring import Question, Scorer
from lepta.inference.thinking import split_thinking, think_here
from lepta.models.folder import MODEL_FILES
from lepta.models.load import load_model, load_tokenizer, opened
from lepta.models.precision import DTYPES
from lepta.stages import Hashes
from lepta.text.locate import locate

TAIL = 16  # last tokens in which a stop is looked for, of each new one; after as many the whole text is looked at


class TransformersBackend(Backend):
    """A causal LM of transformers, put into evaluation mode for each call and back, and its tokenizer.

    `name` tells the weights: a content hash, or whatever tells a live model from its earlier self. The context is less
    than what is asked for if the model was made for less. `reuse`: read once what prompts share.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, how: Asking = USUAL, reuse: bool = True) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters stay in it
        own = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        facts = {"backend": "transformers", "model": name, "dtype": str(self._model.dtype).removeprefix("torch.")}
        super().__init__(tokenizer, facts, replace(how, context=min(how.context, own or how.context)))
        with self._evaluating():
            self._scorer = Scorer(self._model, reuse)
        self._inner_padding = _allows_inner_padding(self._model, self.context)

    def share(self, prompts: Sequence[str]) -> None:
        """Find what all prompts start with; it is read when the first of them is."""
        self._scorer.share(self.ids(prompts))

    def think(self, prompts: Sequence[str]) -> list[str]:
        """Prompts with the model's thinking in them, if it is to think."""
        if not self.thinking:
            return list(prompts)
        with self._evaluating():
            return think_here(self._model, self._tokenizer, prompts, self.thinking, len(prompts)).prompts

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Log-likelihood of each continuation of each question, over all its tokens."""
        with self._evaluating():
            return self._scorer.choose([self.branches(question, together=True) for question in questions])

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Mean log-probability per token of each continuation; the prompt is read once."""
        branches = self.branches(question, together=False)
        with self._evaluating():
            found = self._scorer.score(branches, own_prefix=True)
        return tuple(sum(values) / len(values) for values in found)

    def generate(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[Completion]:
        """Continue greedily, in one batch; padding stands between what the prompts share and what is their own."""
        prompts = self.ids([request.prompt for request in requests])
        stop = _ends(self._tokenizer, requests, max(map(len, prompts)))
        with self._evaluating():
            begun = self._scorer.start(prompts) if self._inner_padding else (0, None)
            written = generate_batch(self._model, self._tokenizer, prompts, max_tokens, begun=begun, stop=stop)
        return [self._completion(one.ids, request) for one, request in zip(written, requests, strict=True)]

    def _completion(self, ids: Sequence[int], request: GenerationRequest) -> Completion:
        thinking, whole = split_thinking(self._decode(ids))
        text = request.cut(whole)
        if thinking:  # of a model that thinks unasked
            return Completion(text.strip(), len(self.tokens(text)))
        emitted = len(ids)
        if text != whole:
            # The fewest tokens whose text begins with what is left, by bisection: decoding is slow for long texts.
            emitted = bisect_left(range(len(ids)), True, key=lambda n: self._decode(ids[:n]).startswith(text))
        return Completion(text.strip(), emitted)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self._model.training
        self._model.eval()
        try:
            yield
        finally:
            self._model.train(was_training)


def _ends(tokenizer: Any, requests: Sequence[GenerationRequest], prompt: int) -> Callable[..., torch.Tensor] | None:
    """What ends a row whose newest tokens hold one of its stops, and every `TAIL` tokens one that is too long.

    `prompt` is the width of the prompts; None if no text can end early.
    """
    if not any(request.stops or request.longest is not None for request in requests):
        return None

    def ended(input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        written = input_ids.shape[1] - prompt
        seen = written if written % TAIL == 0 else min(TAIL, written)
        texts = tokenizer.batch_decode(input_ids[:, -seen:], skip_special_tokens=True)
        done = [request.cut(text) != text for text, request in zip(texts, requests, strict=True)]
        return torch.tensor(done, device=input_ids.device)

    return ended


def _allows_inner_padding(model: Any, context: int) -> bool:
    """Whether padding may stand inside a row: positions are told, and no window counts what is padded."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return "position_ids" in inspect.signature(model.forward).parameters and (window is None or window >= context)


@contextmanager
def opened_backend(
    source: str | Path, how: Asking, output: Path | None = None, dtype: str = "auto"
) -> Iterator[TransformersBackend]:
    """Load any model source as a backend; a folder that had to be made for it is removed when the block ends.

    `dtype` auto: a run that was begun in `output` is resumed in its precision, another is in that of `load_model`.
    """
    content = Hashes().content(locate(source, hub_files=MODEL_FILES))
    with opened(source) as checkpoint:
        begun = logged_dtype(output) if output and dtype == "auto" else dtype
        model = load_model(checkpoint.folder, DTYPES.get(begun or ""))
        yield TransformersBackend(model, load_tokenizer(checkpoint.folder), content, how)
