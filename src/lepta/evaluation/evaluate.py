"""Measure original and adapted models side by side, in one run on one machine."""

import gc
import itertools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.machine import load_above_cores
from lepta.core.progress import console
from lepta.evaluation.settings import Behaviour, EvaluateSettings
from lepta.inference.answers import answers
from lepta.inference.bits import read_windows, score_text
from lepta.inference.chat import Message
from lepta.inference.generation import behaviour_kept, generate, start_tokens
from lepta.inference.speed import characters_per_second, read, write
from lepta.models.load import load_model, load_tokenizer
from lepta.models.precision import name_of
from lepta.text.settings import Text
from lepta.training.conversations import read_conversations
from lepta.vocabulary.change import new_ids
from lepta.vocabulary.measure import pieces
from lepta.vocabulary.source import vocabulary_of

PASSAGE = 400  # characters that are shown as tokens
MOST_BITS = 2.0  # times the bits per byte of the original's own answers, up to which what follows an opening is text


@dataclass(frozen=True)
class Model:
    """A model in the comparison, by the name that reports show.

    `adapted`: it has the new vocabulary; `chat`: it is an instruct variant.
    """

    name: str
    folder: Path
    adapted: bool
    chat: bool


def evaluate(
    models: Sequence[Model], base: Path, original: str, adapted: str, text: Text, settings: EvaluateSettings
) -> dict[str, Any]:
    """Measure all models; `base` has the original vocabulary, which tells what tokens are new.

    Gives `text` (bits per byte and characters per token of each model in each language), `continuations`, `behaviour`
    (share of prompts and answers of each model), `dtype` (of each model), and of the two models named `original` and
    `adapted` their `speed` and `pieces` (a passage of each language as tokens).
    """
    held_out = {}
    for side in (text.target, text.source):
        held_out[side.language] = read_windows(side.valid, settings.window, settings.characters)
    result: dict[str, Any] = {"text": {}, "continuations": {}, "behaviour": {}, "dtype": {}}
    kept_for_speed: dict[str, tuple[Any, Any]] = {}
    for one in models:
        name = one.name
        fresh = new_ids(base, one.folder) if one.adapted else None
        model, tokenizer = load_model(one.folder), load_tokenizer(one.folder)
        result["dtype"][name] = name_of(model.dtype)
        scores = result["text"][name] = {}
        for language, texts in held_out.items():
            score = score_text(model, tokenizer, texts, f"{name}: held-out text ({language})")
            scores[language] = {
                "bits_per_byte": score.bits_per_byte,
                "characters_per_token": score.characters_per_token,
                "characters": score.characters,
                "tokens": score.tokens,
            }
        if settings.prompts and not one.chat:
            result["continuations"][name] = _continuations(model, tokenizer, name, fresh, settings)
        if settings.behaviour and (one.chat or not one.adapted):
            result["behaviour"][name] = _behaviour(model, tokenizer, name, fresh, settings.behaviour)
        if name in (original, adapted):
            kept_for_speed[name] = (model, tokenizer)
        del model, tokenizer
        gc.collect()  # models of 8B weights do not fit beside each other
    if settings.behaviour:
        _judge_answers(result["behaviour"], original, *kept_for_speed[original], settings.behaviour.mark)
    passage = held_out[text.target.language][0][: settings.speed_characters]
    result["speed"] = {"characters": len(passage), "busy": load_above_cores()}
    for key, work in (("read", read), ("write", write)):
        console.print(f"  measuring the speed: {key}", highlight=False)  # a bar would take a part of it
        result["speed"][key] = characters_per_second(kept_for_speed, passage, work, settings.speed_repeats)
    result["pair"] = {"original": original, "adapted": adapted}
    folders = {one.name: one.folder for one in models}
    old, new = vocabulary_of(folders[original]), vocabulary_of(folders[adapted])
    result["pieces"] = {}
    for language, texts in held_out.items():
        passage = texts[0][:PASSAGE]
        cuts = [pieces(old, passage), pieces(new, passage)]
        result["pieces"][language] = {"characters": len(passage), "cuts": cuts}
    return result


def _continuations(
    model: Any, tokenizer: Any, name: str, fresh: Set[int] | None, settings: EvaluateSettings
) -> dict[str, Any]:
    start = start_tokens(tokenizer)
    texts = generate(model, tokenizer, settings.prompts, settings.max_tokens, f"{name}: writing samples", start=start)
    return {
        "prompts": settings.prompts,
        "texts": texts.texts,
        "characters_per_second": texts.characters_per_second,
        "new_token_share": texts.share_of(fresh),
        "over_canonical": texts.over_canonical(tokenizer),
    }


def behaviour_dialogues(settings: Behaviour) -> list[list[Message]]:
    """Read the conversations whose style is counted; each ends with an answer.

    LeptaError if they cannot be read, there is none, one has no answer, or an answer has no mark to open up to.
    """
    dialogues = list(itertools.islice(read_conversations([settings.dialogues]), settings.prompts))
    for number, messages in enumerate(dialogues, 1):
        where = f"{settings.dialogues}, conversation {number}"
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise LeptaError(f"{where}: expected a question, and last an answer of role 'assistant'")
        if settings.mark not in messages[-1]["content"]:
            raise LeptaError(
                f"{where}: its answer has no {settings.mark!r}, up to which openings are compared; "
                "give evaluate.behaviour another mark, or other dialogues"
            )
    if not dialogues:
        raise LeptaError(f"{settings.dialogues}: no conversation in it")
    return dialogues


def _behaviour(model: Any, tokenizer: Any, name: str, fresh: Set[int] | None, settings: Behaviour) -> dict[str, Any]:
    dialogues = behaviour_dialogues(settings)
    prompts = [dialogue[:-1] for dialogue in dialogues]
    references = [dialogue[-1]["content"] for dialogue in dialogues]
    written = answers(model, tokenizer, prompts, settings.max_tokens, f"{name}: writing answers", settings.budget)
    kept = behaviour_kept(written.texts, references, settings.mark)
    return {
        "kept": sum(kept),
        "prompts": len(kept),
        "share": sum(kept) / len(kept),
        "new_token_share": written.share_of(fresh),
        "questions": [dialogue[-2]["content"] for dialogue in dialogues],
        "answers": written.texts,
        "kept_each": kept,
    }


def _judge_answers(behaviour: dict[str, Any], original: str, model: Any, tokenizer: Any, mark: str) -> None:
    """Add to each model's answers whether what follows the opening is text, and how many keep their style wholly.

    An opening alone may be followed by letters that are no words. So the original, `model`, reads what follows: it is
    text if that takes at most `MOST_BITS` times the bits per byte of the original's own answers.
    """
    own = [rest for answer in behaviour[original]["answers"] if (rest := _after(answer, mark))]
    if not own:
        return  # the original writes nothing after its opening, so there is nothing to compare with
    limit = MOST_BITS * score_text(model, tokenizer, own, "reading answers of the original").bits_per_byte
    for name, entry in behaviour.items():
        entry["text_each"] = []
        for answer in entry["answers"]:
            bits = math.inf
            if rest := _after(answer, mark):
                bits = score_text(model, tokenizer, [rest], f"{name}: reading its answers").bits_per_byte
            entry["text_each"].append(bits <= limit)
        entry["whole"] = sum(map(all, zip(entry["kept_each"], entry["text_each"], strict=True)))


def _after(answer: str, mark: str) -> str:
    """What follows the opening of an answer; all of one that has none."""
    return answer.split(mark, 1)[-1].strip()
