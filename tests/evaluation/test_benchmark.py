"""Darumeru as a stage of a recipe: what cannot be asked is told, what failed is asked again."""

import json
from functools import partial

import pytest
import torch

from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST
from lepta.darumeru.settings import Benchmark
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.evaluation.benchmark import ask
from lepta.evaluation.evaluate import Model
from lepta.stages import Pipeline, Stage

SETTINGS = Benchmark(tasks=["rucola"], limit=4)


@pytest.fixture
def stage(tiny_model_folder, tiny_tokenizer, tmp_path):
    """Make a function that runs the stage, for a model with so long a context, and gives its facts."""

    def make(context):
        folder = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, context=context)
        asked = partial(ask, Model("original x", folder, adapted=False, chat=False), SETTINGS, 1)
        steps = [Stage("darumeru", {"model": folder}, SETTINGS.model_dump(), asked)]

        def run():
            Pipeline(tmp_path / "out", steps).run()
            return json.loads((tmp_path / "out" / "darumeru" / MANIFEST).read_text())["facts"]

        return run

    return make


def test_what_failed_is_asked_again_by_the_next_run(stage, tmp_path, monkeypatch):
    run, choose, asked = stage(512), TransformersBackend.choose, []

    def failing(self, questions):
        asked.append(len(questions))
        if len(questions) > 1 or len(asked) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return choose(self, questions)

    monkeypatch.setattr(TransformersBackend, "choose", failing)
    with pytest.raises(LeptaError, match=r"original x: 1 samples of rucola failed.*OutOfMemoryError.*run again"):
        run()
    assert asked == [4, 1, 1, 1, 1] and not (tmp_path / "out" / "darumeru").exists()
    monkeypatch.setattr(TransformersBackend, "choose", choose)
    assert run()["refused"].keys() == set()


def test_what_will_never_fit_is_no_reason_to_stop(stage):
    (reason,) = stage(48)()["refused"].values()
    assert "the context is 48" in reason
