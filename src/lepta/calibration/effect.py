"""What calibration did: text of both languages, the benchmark's copy tasks, and how answers are written."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lepta.calibration.settings import EffectSettings
from lepta.core.output import write_json
from lepta.darumeru.backend import Asking
from lepta.darumeru.runner import run
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.inference.answers import answers
from lepta.inference.bits import WINDOW, read_windows, score_text
from lepta.inference.chat import Message
from lepta.models.load import exact_dtype, load_model, load_tokenizer
from lepta.report.page import render
from lepta.vocabulary.change import new_ids

TEMPLATE, EFFECT = "calibration.html.j2", "effect.json"


def measure_effect(
    models: Mapping[str, Path],
    original: Path | None,
    prompts: Sequence[Sequence[Message]],
    settings: EffectSettings,
    data: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Measure models, by the names that the report shows, one after the other; write `effect.json` and `report.html`.

    `original` is a model or tokenizer with the original vocabulary, to tell which tokens are new. Each model answers
    the prompts, to be read side by side; `data` are facts for the report. Gives, for each model, `bits_per_byte` of
    each language, `tasks` (score with its interval), `new_token_share` and `answers`.
    """
    texts = {
        language: read_windows(sources, WINDOW, settings.characters)
        for language, sources in (("target", settings.target), ("source", settings.source))
        if sources
    }
    found = {}
    for name, place in models.items():
        model, tokenizer = load_model(place, exact_dtype()), load_tokenizer(place)
        scores = {}
        for language, text in texts.items():
            scores[language] = score_text(model, tokenizer, text, f"{name}: held-out text ({language})").bits_per_byte
        tasks = {}
        if settings.tasks:
            backend = TransformersBackend(model, tokenizer, name, Asking(thinking=settings.budget))
            samples = folder / "samples" / name
            summary = run(backend, settings.benchmark, samples, settings.tasks, limit=settings.limit)
            for task, part in summary.tasks.items():
                tasks[task] = asdict(part.score) | {"samples": part.samples, "parts": part.parts}
        fresh = None  # nothing is known of no new tokens, and of no prompts
        if original and prompts:
            fresh = new_ids(original, place) or None
        written = answers(model, tokenizer, prompts, settings.max_tokens, f"{name}: writing answers", settings.budget)
        found[name] = {
            "bits_per_byte": scores,
            "tasks": tasks,
            "new_token_share": written.share_of(fresh),
            "answers": written.texts,
        }
        del model, tokenizer
        gc.collect()
    effect = {"models": found, "prompts": [messages[-1]["content"] for messages in prompts], **data}
    write_json(folder / EFFECT, effect)
    (folder / "report.html").write_text(render(TEMPLATE, effect), encoding="utf-8", errors="replace")
    return found
