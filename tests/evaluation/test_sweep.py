"""The best way to propagate, where the variant can be loaded and where not."""

import json

import pytest

from lepta.core import progress
from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise
from lepta.embeddings.settings import PropagateSettings
from lepta.evaluation import sweep
from lepta.evaluation.sweep import Judge, propagate_best
from lepta.inference.bits import score_text
from lepta.models.folder import Checkpoint
from lepta.models.load import exact_dtype, load_model, load_tokenizer


@pytest.fixture(scope="module")
def family(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path_factory):
    base, instruct = (tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, seed=seed) for seed in range(2))
    adapted = tmp_path_factory.mktemp("adapted")
    initialise(Checkpoint(base), tiny_extended, adapted)
    return Checkpoint(base), Checkpoint(adapted), Checkpoint(instruct)


def counted(log, evaluations):
    """Whether a log says how many evaluations follow, then counts them all."""
    said = f"  {evaluations} evaluations, the variant is loaded for each"
    lines = [line.removeprefix(said) for line in log.splitlines() if line.startswith(said)]
    numbers = [line.split()[:3] for line in lines[1:]]
    return lines[0] == "" and numbers == [[str(done), "of", str(evaluations)] for done in range(1, evaluations + 1)]


@pytest.fixture
def talkative(monkeypatch):
    """Logs have a line for all that is done."""
    monkeypatch.setattr(progress, "SECONDS_BEFORE_LINE", 0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)


def best(family, folder, judge, **values):
    base, adapted, instruct = family
    folder.mkdir()
    (facts,) = propagate_best(base, adapted, [(instruct, folder)], PropagateSettings(**values), judge)
    return facts


def test_a_variant_for_which_there_is_no_room_is_judged_by_its_rows(family, tmp_path, monkeypatch):
    judge = Judge.of(["starter:ru/valid"], [])
    monkeypatch.setattr(sweep.os, "sysconf", lambda name: 100)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    facts = best(family, tmp_path / "auto", judge, method="auto")
    assert facts["chosen"]["by"].startswith("rows alone: ") and "to load it into" in facts["chosen"]["by"]
    with pytest.raises(LeptaError, match=r"several scales to choose from, but .* to load it into; give one of each"):
        best(family, tmp_path / "scales", judge, delta_scale=[1.0, 0.5])


def test_a_variant_that_does_not_load_is_judged_by_its_rows(family, tmp_path, monkeypatch):
    def refuses(*_):
        raise ImportError("a package is missing")

    monkeypatch.setattr(sweep, "load_model", refuses)
    facts = best(family, tmp_path / "auto", Judge.of(["starter:ru/valid"], []), method="auto")
    assert facts["chosen"] == {"by": "rows alone: the variant cannot be loaded here (a package is missing)"}


def test_scores_are_those_of_the_result(family, tmp_path, talkative, capsys):
    judge = Judge.of(["starter:ru/valid"], [])
    facts = best(family, tmp_path / "out", judge, method="swap", delta_scale=[2.0, 0.5, 1.0])
    chosen = facts["chosen"]
    model, tokenizer = load_model(tmp_path / "out", exact_dtype()), load_tokenizer(tmp_path / "out")
    found = {way["delta_scale"]: way["bits_per_byte"] for way in chosen["tried"]}
    assert set(found) == {2.0, 0.5, 1.0} and counted(capsys.readouterr().err, 3)
    assert score_text(model, tokenizer, judge.texts).bits_per_byte == pytest.approx(found[chosen["delta_scale"]])


def test_conversations_without_an_answer_are_named(family, tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    with pytest.raises(LeptaError, match="no turn of an assistant"):
        best(family, tmp_path / "out", Judge.of([], [str(file)]), method="auto")


def test_of_maps_that_are_equal_the_default_is_taken(family, tmp_path, monkeypatch, talkative, capsys):
    base, adapted, _ = family
    shown = []

    def noted(model, tokenizer, texts, description):
        shown.append(description)
        return score_text(model, tokenizer, texts, description)

    monkeypatch.setattr(sweep, "score_text", noted)
    facts = best((base, adapted, base), tmp_path / "out", Judge.of(["starter:ru/valid"], []), method="auto")
    assert counted(capsys.readouterr().err, 7)
    chosen = facts["chosen"]
    scores = [way["bits_per_byte"] for way in chosen["tried"]]
    assert max(scores) - min(scores) <= sweep.EQUAL  # the variant is the base: no map changes anything
    assert chosen["method"] == "anchored" and "better by no more than 0.0005" in chosen["why"]
    assert len(set(shown)) == len(scores) and "anchored, delta scale 1: held-out text" in shown
