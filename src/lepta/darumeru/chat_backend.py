"""A model behind an OpenAI-compatible chat server takes the benchmark: messages go there, only texts come back.

A chat server starts the assistant's turn itself, so the answer's lead-in cannot be given, and shows no probabilities of
given texts. Labels are therefore written by the model and read from its text; a text without one is a wrong answer.
Such results are another kind of measurement (`labels: generated`), which never goes on in, or is compared as, one of
the other kinds.
"""

import json
import re
from collections.abc import Mapping, Sequence

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Backend, Completion, GenerationRequest, Question
from lepta.darumeru.tasks import Message
from lepta.inference.client import Client, at_once

LABEL_TOKENS = 32  # for a label, and the words that a model may write before it
CHOSEN, LEFT = 0.0, -100.0  # log-probabilities that stand for the label that was written, and the others
ALIKE = {"A": "[AА]", "B": "[BВ]", "C": "[CС]"}  # Latin and Cyrillic letters that look the same
ENDS = r"(?=[^\S\n]*(?:[^\w\s]|\n|$))"  # a sign or the end of the line comes next
ANSWER = r"(?i:\bответ|\banswer)\W+(?i:(?:is|это)\W+)?"


class ChatBackend(Backend):
    """A model of a chat server, and its tokenizer here, which counts tokens by its chat template."""

    def __init__(self, client: Client, tokenizer: object, context: int = 4096, thinking: int = 0) -> None:
        super().__init__(tokenizer, True, context, thinking)
        self._client = client

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Address and name, and that labels are written, not weighed."""
        return {
            "backend": "chat server",
            "model": self._client.name,
            "labels": "generated",
            **self.asked_how,
        }

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as JSON, the lead-in of the unfinished turn apart."""
        begun = messages[-1]["role"] == "assistant"
        turns, lead_in = (messages[:-1], messages[-1]["content"]) if begun else (messages, "")
        return json.dumps({"messages": list(turns), "lead_in": lead_in}, ensure_ascii=False)

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the conversation has by the chat template here."""
        return super().count_tokens(super().render(json.loads(prompt)["messages"]))

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """0 for the label that the model writes, -100 for the others; no numbers if it writes none of them."""
        written = self.generate([GenerationRequest(question.prompt) for question in questions], LABEL_TOKENS)
        pairs = zip(questions, written, strict=True)
        return [_chosen(list(map(str.strip, question.continuations)), answer.text) for question, answer in pairs]

    def generate(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[Completion]:
        """Write a turn greedily; a lead-in that the model repeats is cut off."""
        return at_once(lambda request: self._completion(request, max_tokens), requests)

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Refused: a chat server does not tell how likely a given text is."""
        raise LeptaError(
            "summary_extractive: a chat server does not tell how likely given sentences are; name the other tasks with "
            "--tasks, or use --server-api completions"
        )

    def _completion(self, request: GenerationRequest, max_tokens: int) -> Completion:
        prompt = json.loads(request.prompt)
        reply = self._client.chat(prompt["messages"], max_tokens, self.thinking)
        text = reply.text.removeprefix(prompt["lead_in"])
        cut = request.cut(text)
        if cut != text or reply.thinking:  # the server counts more tokens than those of the text
            return Completion(cut.strip(), len(self.tokens(cut)))
        return Completion(text.strip(), reply.tokens - reply.ended)  # ended by a token that is not part of the text


def _chosen(labels: Sequence[str], text: str) -> tuple[float, ...]:
    """The label that a text begins with or calls its answer, before a sign or line end; else the first by itself.

    Letters and digits count as they are, words in any case. Cyrillic letters that look like a label stand for it only
    in the first two places: elsewhere they are words.
    """
    exact = [f"(?i:{label})" if len(label) > 1 else label for label in map(re.escape, labels)]
    alike = [ALIKE.get(label, way) for label, way in zip(labels, exact, strict=True)]
    for before, ways, after in ((r"^\W*", alike, ENDS), (ANSWER, alike, ENDS), (r"(?<!\w)", exact, r"(?!\w)")):
        if match := re.search(f"{before}(?:{'|'.join(f'({way})' for way in ways)}){after}", text):
            return tuple(CHOSEN if n == match.lastindex else LEFT for n in range(1, len(labels) + 1))
    return ()
