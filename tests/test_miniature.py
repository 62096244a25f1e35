"""The benchmark that trains models from scratch: its instructions, arithmetic and control, and a whole small run."""

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.miniature.__main__ import texts_of
from benchmarks.miniature.model import train_tokenizer, write_random_model
from benchmarks.miniature.results import Estimate, Table, scores
from benchmarks.miniature.settings import Shape, read
from benchmarks.miniature.stages import (
    LEP,
    MODELS,
    SHARED_MODELS,
    _propagate,
    _random_map,
    shared_pipeline,
    vocabulary_pipeline,
)
from benchmarks.miniature.tasks import NAMES, TASKS, held_out, pools, to_tune_on
from benchmarks.miniature.text import draw_text, passages
from lepta.core.reading import read_json
from lepta.models.folder import Checkpoint

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "src/lepta/data/starter"


@pytest.fixture(scope="module")
def starter():
    """Passages by language, of the text that comes with the project."""
    return {code: passages([str(STARTER / code / "train")]) for code in ("en", "ru")}


@pytest.mark.parametrize("language", ["en", "ru"])
def test_held_out_instructions_share_nothing_with_those_tuned_on(starter, language):
    tune, apart = pools(language, starter[language], seed=1)
    for part in ("words", "names", "sentences"):
        assert getattr(tune, part)
        assert getattr(apart, part)
        assert not set(getattr(tune, part)) & set(getattr(apart, part))
    trained = {item.prompt for item in to_tune_on(tune, tune, 2000, 0.5, seed=1)}
    assert not trained & {item.prompt for item in held_out(apart, 10, seed=1)}


def test_instructions_follow_from_the_seed(starter):
    def made(seed):
        english, russian = (pools(code, starter[code], seed)[0] for code in ("en", "ru"))
        return to_tune_on(english, russian, 300, 0.3, seed)

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert {item.task for item in made(1)} == set(TASKS)
    assert 50 < sum(item.language == "ru" for item in made(1)) < 130  # 0.3 of 300


def test_answers_are_right(starter):
    pool = pools("en", starter["en"], seed=3)[0]
    for item in to_tune_on(pool, pool, 400, 0.5, seed=3):
        asked = item.prompt.partition(": ")[2]
        words = asked.split()
        expected = {
            "repeat": asked,
            "sentence": asked,
            "first": words[0],
            "last": words[-1],
            "twice": f"{asked} {asked}",
            "name": next((word for word in words if word in NAMES["en"].split()), None),
            "named": "yes" if set(words) & set(NAMES["en"].split()) else "no",
        }
        assert item.answer == expected.get(item.task, item.answer)


def test_text_is_drawn_by_seed_and_held_out_text_is_not(tmp_path):
    settings = read().scales["smoke"].sample.model_copy(update={"ru": 20_000, "en": 20_000})
    side = {
        code: SimpleNamespace(train=[str(STARTER / code / "train")], valid=[str(STARTER / code / "valid")])
        for code in ("ru", "en")
    }
    written = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        draw_text(SimpleNamespace(**side), settings, seed, tmp_path / name)
        written[name] = {part: (tmp_path / name / f"ru/{part}.jsonl").read_bytes() for part in ("train", "valid")}
    assert written["one"] == written["again"]
    assert written["one"]["train"] != written["two"]["train"]
    assert written["one"]["valid"] == written["two"]["valid"]


def test_induction_head_finds_what_came_next_before(starter, tmp_path):
    shape = Shape(width=128, layers=2, heads=4, vocabulary=600, russian=0)
    write_random_model(shape, train_tokenizer(starter["en"], 600), 1, tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    once = torch.randperm(500, generator=torch.Generator().manual_seed(1))[:20] + 50
    with torch.no_grad():
        first, second = model(torch.cat([once, once])[None], output_attentions=True).attentions
    places = torch.arange(20, 39)
    assert (first[0, 0, places, places - 1] > 0.9).all()
    found = (second[0, 0, places].argmax(-1) == places - 19).float().mean()
    assert found > 0.2  # of 40 places, before any training


def table(swap, ridge, upper):
    """Results of one vocabulary: one number for each seed."""
    worse = {method: [value + 9 for value in swap] for method in LEP}
    models = worse | {"swap": swap, "ridge": ridge, "upper bound": upper}
    seeds = {
        str(n): {"vocabularies": {"bpe": {"models": {m: {"ru": {"answers": v[n]}} for m, v in models.items()}}}}
        for n in range(len(swap))
    }
    return Table({"seeds": seeds})


def test_gap_between_swap_and_the_upper_bound():
    found = table(swap=[2.0, 2.2], ridge=[1.3, 1.5], upper=[1.0, 1.2])
    assert found.best("bpe") == "ridge"
    assert found.gap_closed("bpe", "ridge") == pytest.approx(0.7)
    assert found.gap_closed("bpe", "swap") == 0
    assert found.difference("bpe", "ridge", "swap", "ru", "answers").mean == pytest.approx(-0.7)
    no_gap = table(swap=[1.0, 1.0], ridge=[1.1, 1.1], upper=[1.2, 1.2])
    assert math.isnan(no_gap.gap_closed("bpe", "ridge"))


def test_interval_is_students():
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert not estimate.differs_from_zero
    assert math.isnan(Estimate.of([1.0]).half_width)


def test_random_map_keeps_lengths_and_loses_directions(starter, tmp_path):
    tokenizer = train_tokenizer(starter["en"], 600)
    shape = Shape(width=32, layers=2, heads=2, vocabulary=600, russian=0)
    folders = {name: tmp_path / name for name in ("base", "instruct", "swap", "random", "again")}
    for folder in folders.values():
        (folder / "checkpoints").mkdir(parents=True)
    write_random_model(shape, tokenizer, 1, folders["base"])
    write_random_model(shape, tokenizer, 2, folders["instruct"])
    base, instruct = folders["base"], folders["instruct"]
    _propagate(base, base, instruct, "swap", folders["swap"])
    for name in ("random", "again"):
        _random_map(base, base, instruct, 1, folders[name])
    for matrix in Checkpoint(base).embedding_names:
        swapped, rotated, again = (
            np.asarray(Checkpoint(folders[name]).rows_of(matrix)[:].float())[10:]
            for name in ("swap", "random", "again")
        )
        norms = [np.linalg.norm(rows, axis=1) for rows in (swapped, rotated)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-4)
        cosines = (swapped * rotated).sum(axis=1) / norms[0] / norms[1]
        assert abs(cosines).mean() < 0.3
        assert (rotated == again).all()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of corpora as --data takes it."""
    folder = tmp_path_factory.mktemp("data")
    for code in ("ru", "en"):
        corpus = folder / f"corpus_{code}"
        corpus.mkdir()
        for part, name in (("train", "train.jsonl.gz"), ("valid", "valid.jsonl")):
            rows = [json.dumps({"text": text}) + "\n" for text in passages([str(STARTER / code / part)])]
            with (gzip.open if name.endswith("gz") else open)(corpus / name, "wt", encoding="utf-8") as file:
                file.writelines(rows)
    return folder


def test_small_run_measures_everything_and_the_same_seed_gives_the_same_numbers(data, tmp_path, monkeypatch):
    for kind in ("merges", "unigram"):  # learned from fewer words than usual to save seconds
        monkeypatch.setattr(f"lepta.vocabulary.{kind}.OCCURRENCES", 50_000)
    settings = read()
    scale, texts, measured = settings.scales["smoke"], texts_of(data, settings.texts), []
    for name in ("one", "again"):
        shared_pipeline(texts, scale, 1, tmp_path / name).run(report=lambda line: None)
        measured.append(scores(tmp_path / name, SHARED_MODELS))
    assert measured[0] == measured[1]
    vocabulary_pipeline(scale, 1, tmp_path / "one", "extended").run(report=lambda line: None)
    found = scores(tmp_path / "one/extended", MODELS)
    for languages in found.values():
        assert all(math.isfinite(value) for measures in languages.values() for value in measures.values())
    original, swapped = measured[0]["instruct"], found["swap"]
    assert swapped["ru"]["characters_per_token"] > 1.2 * original["ru"]["characters_per_token"]
    assert swapped["en"]["characters_per_token"] == pytest.approx(original["en"]["characters_per_token"], rel=0.02)
    assert all(rate > 0 for rate in read_json(tmp_path / "one/extended/speed/speed.json").values())
    body = Checkpoint(tmp_path / "one/extended/upper"), Checkpoint(tmp_path / "one/extended/tuned-body")
    rows = Checkpoint(tmp_path / "one/extended/auto")
    for name in body[1].embedding_names:
        assert torch.equal(body[1].rows_of(name)[:], rows.rows_of(name)[:])
        assert not torch.equal(body[1].rows_of(name)[:], body[0].rows_of(name)[:])
    replaced = vocabulary_pipeline(scale, 1, tmp_path / "one", "unigram")  # its old rows are not the first ones
    replaced.stages = replaced.stages[:3]
    replaced.run(report=lambda line: None)
    assert read_json(tmp_path / "one/unigram/adapted/manifest.json")["facts"]["tokens"] > 0


def test_run_stops_when_its_minutes_are_over(data, tmp_path):
    options = ["--scale", "smoke", "--data", data, "--work", tmp_path, "--minutes", "0.02"]
    done = commands.python("benchmarks.miniature", *options, cwd=ROOT, check=0)
    assert "give the same command again" in done.stdout
    assert not (tmp_path / "smoke/results.json").exists()
