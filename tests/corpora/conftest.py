"""A small raw corpus of distinct documents, and a way to prepare it."""

import json
import random
from pathlib import Path

import pytest
import regex

from lepta.corpora.prepare import prepare
from lepta.corpora.settings import CorpusSettings
from lepta.text.sources import read_documents

SENTENCE = regex.compile(r"(?<=[.!?…])\s+")


@pytest.fixture(scope="session")
def sentences():
    """Sentences of the starter corpus."""
    texts = read_documents(["starter:ru/train"])
    return sorted(
        {part for text in texts for part in SENTENCE.split(text) if 40 < len(part) < 200 and "\n" not in part}
    )


@pytest.fixture
def documents(sentences):
    """Documents of sentences that no two share."""
    mixed = random.Random(0).sample(sentences, len(sentences))
    return [" ".join(mixed[start : start + 8]) for start in range(0, 480, 8)]


@pytest.fixture
def write_rows(tmp_path):
    """Write a JSONL file of texts, or of rows as they are."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": row} if isinstance(row, str) or row is None else row for row in rows]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run(tmp_path):
    """Prepare a corpus in this process and give its report."""

    def run(sources, name="out", force=False, **more):
        sources = {key: value if isinstance(value, dict) else {"text": [str(value)]} for key, value in sources.items()}
        settings = CorpusSettings.model_validate({"sources": sources, "executor": {"workers": 1}} | more)
        return prepare(settings, tmp_path / name, force)

    return run


@pytest.fixture
def written(tmp_path):
    """Read the rows of a prepared corpus, by source."""

    def written(name="out"):
        from lepta.text.formats import read_rows

        folders = sorted((Path(tmp_path) / name / "text").iterdir())
        return {
            folder.name: [row.value for shard in sorted(folder.iterdir()) for row in read_rows(shard)]
            for folder in folders
        }

    return written
