"""Corpus files: what is accepted, and what is said about the rest."""

from pathlib import Path

import pytest
import yaml

from lepta.core.errors import LeptaError
from lepta.corpora.settings import read_corpus_settings


@pytest.fixture
def read(tmp_path):
    """Read a file with one source and what else is given."""

    def read(**more):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({"sources": {"news": {"text": ["starter:ru/train"]}}} | more))
        return read_corpus_settings(path)

    return read


def test_sources_are_enough(read):
    settings = read()
    assert settings.sources["news"].weight == 1
    assert (settings.clean.scripts, settings.on_error, settings.executor.kind) == ([], "stop", "local")
    assert settings.deduplicate.ngram == 5
    assert settings.decontaminate is None


def test_example_is_valid_and_its_comments_too():
    place = Path(__file__).parents[2] / "recipes" / "corpus_ru.yaml"
    assert list(read_corpus_settings(place).sources) == ["russian", "english"]


def test_what_can_be_off_is(read):
    settings = read(deduplicate=False, decontaminate=False, clean={"unicode": False})
    assert (settings.deduplicate, settings.decontaminate, settings.clean.unicode) == (None, None, None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cleen": {}}, "cleen: unknown key; did you mean 'clean'?"),
        ({"clean": {"script": []}}, "clean.script: unknown key; did you mean 'scripts'?"),
        ({"deduplicate": {"bucket": 3}}, "deduplicate.bucket: unknown key; did you mean 'buckets'?"),
        ({"executor": {"worker": 3}}, "executor.worker: unknown key; did you mean 'workers'?"),
        ({"executor": {"kind": "slurm"}}, "executor: kind slurm needs `partition`"),
        ({"executor": {"kind": "local", "workers": 0}}, "executor.workers: .*greater than or equal to 1"),
        ({"clean": {"scripts": ["Cyrilic"]}}, "clean.scripts: unknown script 'Cyrilic'"),
        ({"sources": {"a": {"text": ["wordfreq:ru"]}}}, "sources.a.text: wordfreq:ru is a list of words"),
        ({"sources": {"a": {"text": ["x.txt"], "wieght": 2}}}, "sources.a.wieght: unknown key; did you mean 'weight'?"),
        ({"sources": {"a/b": {"text": ["x.txt"]}}}, "sources.a/b"),
        ({"sources": {}}, "sources: .*at least 1"),
    ],
)
def test_mistakes_are_named_with_their_place(read, more, words):
    with pytest.raises(LeptaError, match=rf"c\.yaml: .*{words}".replace("?", r"\?")):
        read(**more)
