"""Rows are checked, errors name file, line and field, and content is hashed."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lepta.core.errors import LeptaError
from lepta.darumeru.data import SHOTS, TEST, load_dataset, read_rows, write_dataset
from lepta.darumeru.examples import set_aside
from lepta.darumeru.rows import DATASETS, make_row
from lepta.text.sources import BUILTIN_ITEMS

PARUS = {"id": "a", "premise": "Шёл дождь.", "question": "effect", "choices": ["Лужи.", "Снег."], "answer": "1"}
RWSD = {"id": "a", "text": "Кошка спит, она сыта.", "span1": "Кошка", "span2": "она", "answer": "Да"}
USE = {"id": "a", "variant": 1, "task": 16, "kind": "choice", "question": "?", "choices": [], "answers": ["1,3"]}
USE["points"] = 2
GAZETA = {"id": "a", "sentences": ["Раз.", "Два.", "Три."], "summary": "Два.", "extractive": [1]}
MMLU = {"id": "a", "subject": "astronomy", "question": "?", "choices": ["1", "2", "3", "4"], "answer": "A"}


@pytest.mark.parametrize("name", DATASETS)
def test_builtin(name):
    dataset = load_dataset(name)
    assert len(dataset.test) >= 12 and len(dataset.shots) >= 5
    assert not {row.model_dump_json(exclude={"id"}) for row in dataset.test} & {
        row.model_dump_json(exclude={"id"}) for row in dataset.shots
    }


@pytest.mark.parametrize(
    ("name", "row", "change", "message"),
    [
        ("parus", PARUS, {"answer": "3"}, "answer: Input should be '1' or '2'"),
        ("parus", PARUS, {"answer": 1}, "answer"),
        ("parus", PARUS, {"premis": "x"}, "premis: unknown key; did you mean 'premise'"),
        ("parus", PARUS, {"choices": ["one"]}, "choices.1: missing"),
        ("parus", PARUS, {"choices": ["one", 2]}, "choices.1: Input should be a valid string"),
        ("parus", PARUS, {"premise": "  "}, "premise"),
        ("rwsd", RWSD, {"span1": "Собака"}, "span1: 'Собака' is not in the text"),
        ("rwsd", RWSD, {"answer": "да"}, "answer"),
        ("use", USE, {"points": 1}, "points: 1, but a right answer gets 2"),
        ("use", USE, {"answers": ["1 и 3"]}, "expected numbers joined by commas"),
        ("use", USE, {"kind": "text", "points": 1}, "has no letter"),
        ("use", USE, {"answers": ["1,3", "2"]}, "answers: '2' gets 1 of 2 points as an answer"),
        ("use", USE, {"answers": ["3,3"]}, "answers: '3,3' gets 1 of 2 points as an answer"),
        ("use", USE, {"variant": "1"}, "variant"),
        ("gazeta", GAZETA, {"extractive": [3]}, "extractive: 3 is beyond the last of 3 sentences"),
        ("gazeta", GAZETA, {"extractive": [-1]}, "extractive.0"),
        ("gazeta", GAZETA, {"extractive": [1, 1]}, "twice"),
        ("gazeta", GAZETA, {"extractive": []}, "extractive"),
        ("gazeta", GAZETA, {"extractive": [0, 1, 2]}, "all sentences"),
        ("mmlu_ru", MMLU, {"subject": "astronomia"}, "did you mean 'astronomy'"),
        ("mmlu_ru", MMLU, {"answer": "E"}, "answer"),
        ("multiq", {"id": "a", "context": "c", "question": "q"}, {"answers": []}, "answers"),
        ("rucola", {"id": "a", "sentence": "s"}, {"answer": "2"}, "answer"),
        ("copy_ru", {"id": "a", "text": "s"}, {"kind": "word"}, "kind"),
    ],
)
def test_wrong_rows(name, row, change, message):
    if name not in ("multiq", "rucola"):
        make_row(name, row, "here")
    with pytest.raises(LeptaError, match="here: ") as error:
        make_row(name, row | change, "here")
    assert message in str(error.value)


def test_rows_do_not_change():
    row = make_row("parus", PARUS, "here")
    with pytest.raises(ValueError, match="frozen"):
        row.premise = "другое"


def _folder(tmp_path: Path, lines: list[str], name: str = "parus") -> Path:
    shutil.copytree(BUILTIN_ITEMS / name, tmp_path / name)
    (tmp_path / name / TEST).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_error_names_file_line_and_field(tmp_path):
    folder = _folder(tmp_path, [json.dumps(PARUS), "", json.dumps(PARUS | {"id": "b", "answer": "5"})])
    with pytest.raises(LeptaError, match=r"parus/test\.jsonl, line 3: answer: "):
        load_dataset("parus", str(folder))


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 1: not JSON"), ("[1]", "line 1: not an object"), ("", "no rows to ask")],
)
def test_broken_files(tmp_path, line, message):
    with pytest.raises(LeptaError, match=message):
        load_dataset("parus", str(_folder(tmp_path, [line])))


def test_duplicate_ids(tmp_path):
    with pytest.raises(LeptaError, match="line 2: id: 'a' is in line 1 too"):
        load_dataset("parus", str(_folder(tmp_path, [json.dumps(PARUS)] * 2)))


def test_id_shared_with_an_example(tmp_path):
    with pytest.raises(LeptaError, match="'parus-shot-1' is there twice"):
        load_dataset("parus", str(_folder(tmp_path, [json.dumps(PARUS | {"id": "parus-shot-1"})])))


def test_missing(tmp_path):
    with pytest.raises(LeptaError, match="no such folder"):
        load_dataset("parus", str(tmp_path / "nowhere"))
    with pytest.raises(LeptaError, match=r"test\.jsonl: no such file"):
        load_dataset("parus", str(tmp_path))
    with pytest.raises(LeptaError, match="did you mean 'parus'"):
        load_dataset("paurs")


def test_damaged_gzip(tmp_path):
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PARUS).encode())[:-4])
    with pytest.raises(LeptaError, match="not a whole gzip file"):
        read_rows("parus", path)


def test_hash_is_of_content(tmp_path):
    """The same rows, packed and with keys in another order, have the same hash; one letter makes another."""
    original = load_dataset("parus")
    rows = [json.loads(line) for line in (BUILTIN_ITEMS / "parus" / TEST).read_text().splitlines()]
    folder = _folder(tmp_path, [json.dumps(dict(reversed(row.items()))) for row in rows])
    assert load_dataset("parus", str(folder)).sha256 == original.sha256
    plain = folder / "parus" / TEST
    (folder / "parus" / f"{TEST}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(LeptaError, match="keep one of them"):
        load_dataset("parus", str(folder))
    plain.unlink()
    assert load_dataset("parus", str(folder)).sha256 == original.sha256
    (folder / "parus" / f"{TEST}.gz").unlink()
    other = original.shots[0].model_copy(update={"premise": "Другое."})
    assert replace(original, shots=(other, *original.shots[1:])).sha256 != original.sha256
    rows[0]["premise"] += "!"
    plain.write_text("\n".join(map(json.dumps, rows)))
    assert load_dataset("parus", str(folder)).sha256 != original.sha256


@pytest.mark.parametrize("name", DATASETS)
def test_write_and_read_again(name, tmp_path):
    dataset = load_dataset(name)
    write_dataset(tmp_path / name, dataset, {"format": "builtin"})
    again = load_dataset(name, str(tmp_path))
    assert again.test == dataset.test and again.shots == dataset.shots
    facts = json.loads((tmp_path / name / "source.json").read_text())
    assert facts["sha256"] == dataset.sha256 and facts["test"] == len(dataset.test)
    assert (tmp_path / name / SHOTS).is_file()


def test_set_aside_balances_and_separates():
    """Examples show each label in turn, and no text of an example is asked about."""
    rows = [row for row in load_dataset("rwsd").test]
    test, shots = set_aside(rows, 4)
    assert sorted(row.label for row in shots) == ["Да", "Да", "Нет", "Нет"]
    assert not {row.unit for row in test} & {row.unit for row in shots}
    twins = [row.model_copy(update={"id": f"{row.id}-again", "span1": row.span2}) for row in rows]
    test, shots = set_aside([*rows, *twins], 4)
    assert len(test) == 2 * (len(rows) - 4) and not {row.unit for row in test} & {row.unit for row in shots}
    test, shots = set_aside(load_dataset("mmlu_ru").test, 1)
    assert len(shots) == 12 and len(test) == 12


def test_hub_without_network():
    with pytest.raises(LeptaError, match="give a local folder, or use builtin data"):
        load_dataset("parus", "hub")
