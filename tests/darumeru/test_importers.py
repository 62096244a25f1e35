"""Public formats become datasets; what is left out is counted, what is wrong is named."""

import gzip
import importlib.util
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.core.output import read_manifest
from lepta.darumeru.converters import FORMATS, oracle_sentences
from lepta.darumeru.data import load_dataset
from lepta.darumeru.importers import import_dataset, read_format
from lepta.darumeru.rows import DATASETS
from lepta.darumeru.sentences import sentences

EVAL = Path(os.environ.get("LEPTA_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "eval"


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) for row in content] if isinstance(content, list) else [content]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def _rows(kind, path, dataset):
    return read_format(kind, [path], dataset)[0]


def test_formats_make_datasets_that_exist():
    assert {dataset for kind in FORMATS.values() for dataset in kind.converters} <= set(DATASETS)


def test_rucola_csv(write):
    path = write("dev.csv", 'id,sentence,acceptable,error_type\n0,"Так, можно.",1,0\n1,Так не можно.,0,Syntax')
    assert [(row.sentence, row.answer) for row in _rows("rucola", path, "rucola")] == [
        ("Так, можно.", "1"),
        ("Так не можно.", "0"),
    ]


def test_rucola_without_answers(write):
    path = write("test.csv", "id,sentence,acceptable\n0,Так.,\n1,Вот.,1")
    assert read_format("rucola", [path], "rucola")[1] == {"the answer is not published": 1}


def test_mera_json(write):
    row = {
        "inputs": {"premise": "а", "choice1": "б", "choice2": "в"},
        "outputs": "2",
        "meta": {"task": "cause", "id": 5},
    }
    path = write("parus.json", json.dumps({"data": {"test": [row]}}))
    hidden = {"inputs": {"question": "?", "text": "т"}, "outputs": [{"segment": ""}], "meta": {"id": 1}}
    with pytest.raises(LeptaError, match="the answer is not published"):
        _rows("mera", write("multiq.json", json.dumps({"data": {"test": [hidden]}})), "multiq")
    made = _rows("mera", path, "parus")[0]
    assert (made.id, made.question, made.answer) == ("parus-5", "cause", "2")


def test_mmlu_csv(write):
    path = write("college_physics_test.csv", '"How, then?",1,2,3,4,C\nWhy?,a,b,c,d,A')
    made = _rows("mmlu", path, "mmlu_en")
    assert [(row.subject, row.question, row.answer) for row in made] == [
        ("college_physics", "How, then?", "C"),
        ("college_physics", "Why?", "A"),
    ]


def test_mmlu_redux(write):
    row = {"subject": "virology", "question": "?", "options": list("abcd"), "label": 3, "error_type": "ok"}
    made, left_out = read_format(
        "mmlu", [write("redux.jsonl", [row, row | {"error_type": "wrong_groundtruth"}, row | {"options": ["a"]}])],
        "mmlu_en",
    )  # fmt: skip
    assert [row.answer for row in made] == ["D"]
    assert left_out == {"marked as wrong: wrong groundtruth": 1, "1 choices, not 4": 1}


def test_squad_nested_and_flat(write):
    answer = [{"text": "кот", "answer_start": 4}, {"text": "кот", "answer_start": 4}]
    questions = {"context": "Вот кот.", "qas": [{"id": "x", "question": "Кто?", "answers": answer}]}
    nested = write("xquad.json", json.dumps({"data": [{"title": "t", "paragraphs": [questions]}], "version": "1"}))
    flat = write("x.jsonl", [{"context": "Вот кот.", "question": "Кто?", "answers": ["кот"]}])
    for path in (nested, flat):
        row = _rows("squad", path, "multiq")[0]
        assert (row.context, row.answers) == ("Вот кот.", ("кот",))


def test_small_formats(write):
    question = {"question": "Что?", "options": list("абвг"), "label": 1}
    assert _rows("choice", write("c.jsonl", [question]), "ruworldtree")[0].answer == "B"
    cause = {"premise": "а", "question": "Что стало причиной этого?", "options": ["б", "в"], "label": 1}
    assert _rows("parus", write("p.jsonl", [cause]), "parus")[0].question == "cause"
    pair = {"premise": "а", "hypothesis": "б"}
    pairs = [pair | {"label": label} for label in ("entailment", "contradiction", "neutral", "not_entailment")]
    assert [row.answer for row in _rows("nli", write("n.jsonl", pairs), "rcb")] == ["1", "2", "3", "3"]


def test_rwsd(write):
    good = {"text": "Кот ел, потому что <b>он</b> голоден.", "span": "кот", "refers": True}
    wrong = [good | {"span": "пёс"}, good | {"text": "Без отметки."}]
    made, left_out = read_format("rwsd", [write("r.jsonl", [good, *wrong])], "rwsd")
    assert made[0].text == "Кот ел, потому что он голоден." and made[0].span2 == "он"
    assert sum(left_out.values()) == 2


def test_exam(write):
    options = ["1) а", "2) б", "3) в"]
    choice = {"id": "e7/16", "task": "16", "text": "Выберите.", "options": options, "correct": [[0, 2], [0, 2]]}
    listed = choice | {"text": "Выберите. 1) а 2) б 3) в"}
    text = {"id": "e7/4", "task": "4", "text": "Найдите.", "answers": ["слово"]}
    made = _rows("use", write("u.jsonl", [choice, listed, text, text | {"answers": ["134"]}]), "use")
    assert [row.answers for row in made] == [("1,3",), ("1,3",), ("слово",), ("1,3,4",)]
    assert [row.points for row in made] == [2, 2, 1, 1]
    assert [len(row.choices) for row in made] == [3, 0, 0, 0]  # not shown twice
    assert {row.unit for row in made} == {"variant 7"}
    with pytest.raises(LeptaError, match=r"u\.jsonl, line 1: correct: \[3\] for 3 options"):
        _rows("use", write("u.jsonl", [choice | {"correct": [[3]]}]), "use")


def test_options_are_shown_with_the_numbers_that_are_asked_for(write):
    """A number that begins an option's text is no number of the option."""
    years = ["12 октября 1492 года открыта Америка.", "Колумб отплыл в августе.", "3.5 тысячи лет назад."]
    item = {"id": "e1/1", "task": "1", "text": "Где верно? (1) Текст.", "options": years, "correct": [[0, 2]]}
    shown = ("1) 12 октября 1492 года открыта Америка.", "2) Колумб отплыл в августе.", "3) 3.5 тысячи лет назад.")
    some = item | {"options": ["1) а", "й2) б", "3) в"], "correct": [[1, 2]]}
    in_text = item | {"text": "Где верно? " + " ".join(years)}  # without numbers there
    own = item | {"options": ["2) а", "3) б"], "correct": [[1]]}
    made = _rows("use", write("u.jsonl", [item, some, in_text, own]), "use")
    assert [row.choices for row in made] == [shown, ("1) а", "2) й2) б", "3) в"), shown, ("2) а", "3) б")]
    assert [row.answers for row in made] == [("1,3",), ("2,3",), ("1,3",), ("3",)]


def test_labels_that_are_not_known(write):
    """Nothing but what is known to be a class becomes one."""
    pronoun = {"text": "Кот ел, потому что <b>он</b> голоден.", "span": "кот"}
    rows = [pronoun | {"refers": value} for value in (True, "True", 1, "да", False, "false", "0", "Нет", None)]
    made, left_out = read_format("rwsd", [write("r.jsonl", rows)], "rwsd")
    assert [row.answer for row in made] == ["Да"] * 4 + ["Нет"] * 4
    assert left_out == {"refers is not published": 1}
    cause = {"premise": "а", "choice1": "б", "choice2": "в", "question": "cause", "label": 0}
    for kind, row, message in (
        ("rwsd", pronoun | {"refers": "maybe"}, r"x\.jsonl, line 1: refers: 'maybe'; expected one of true, 1, да"),
        ("parus", cause | {"question": "reason"}, "question: 'reason'; expected one of cause, effect"),
        ("parus", cause | {"label": 2}, "label: 2; expected one of 0, 1"),
    ):
        with pytest.raises(LeptaError, match=message):
            _rows(kind, write("x.jsonl", [row]), kind)


def test_no_example_is_asked(write):
    """Neither in a file of examples that overlaps, nor in one that repeats itself; ids in two files mean nothing."""
    rows = [{"sentence": f"Так {n}.", "acceptable": n % 2} for n in range(20)]
    path, other = write("dev.jsonl", [*rows, rows[0] | {"acceptable": 1}]), write("train.jsonl", rows[6:12])
    for options, test in (({}, 15), ({"shots_files": [path]}, 15), ({"shots_files": [other]}, 16)):
        dataset, facts = import_dataset("rucola", [path], "rucola", **options)
        assert len(dataset.shots) == 5 and len(dataset.test) == test
        assert not {row.sentence for row in dataset.test} & {row.sentence for row in dataset.shots}
        left = len(dataset.shots) if options else 0
        assert facts["left_out"] == {"shares its text or exam with an example": 21 - test - (5 - left)}


def test_csv_that_is_damaged(write, tmp_path):
    blank = write("blank.csv", "id,sentence,acceptable\n\n0,Так.,1\n\n")
    assert [row.sentence for row in _rows("rucola", blank, "rucola")] == ["Так."]
    quote = write("quote.csv", 'id,sentence,acceptable\n0,"' + "Так. " * 30_000 + ",1")
    with pytest.raises(LeptaError, match=r"quote\.csv, line \d+: not CSV .*quotes are closed"):
        _rows("rucola", quote, "rucola")
    packed = tmp_path / "cut.csv.gz"
    packed.write_bytes(gzip.compress(blank.read_bytes())[:-12])
    with pytest.raises(LeptaError, match=r"cut\.csv\.gz: not a whole gzip file .*copy it again"):
        _rows("rucola", packed, "rucola")


def test_wrong_input_is_named(write):
    with pytest.raises(LeptaError, match=r"p\.jsonl, line 2: no field 'premise'; it has question"):
        _rows("parus", write("p.jsonl", '\n{"question": "cause", "label": 0, "options": ["а", "б"]}'), "parus")
    with pytest.raises(LeptaError, match=r"label: 7; expected A to D, or 0 to 3"):
        _rows("choice", write("c.jsonl", [{"question": "?", "options": list("абвг"), "label": 7}]), "ruworldtree")
    with pytest.raises(LeptaError, match="rucola makes rucola, not parus"):
        _rows("rucola", write("c.jsonl", []), "parus")
    with pytest.raises(LeptaError, match="no such format"):
        _rows("glue", write("c.jsonl", []), "parus")
    with pytest.raises(LeptaError, match="unknown type of file"):
        _rows("text", write("c.pdf", "x"), "copy_ru")
    with pytest.raises(LeptaError, match="line 2: 2 cells; expected 3"):
        _rows("rucola", write("c.csv", "id,sentence,acceptable\n1,a"), "rucola")


def test_sentences():
    text = (
        "А. С. Пушкин жил на ул. Мойка, д. 12. «Да?» — спросил он. «Нет!» Он ушёл… и вернулся! 3 дня шёл дождь.\nКонец"
    )
    assert sentences(text) == [
        "А. С. Пушкин жил на ул. Мойка, д. 12.",
        "«Да?» — спросил он.",
        "«Нет!»",
        "Он ушёл… и вернулся!",
        "3 дня шёл дождь.",
        "Конец",
    ]
    assert sentences('Mr. Fox paid 3.5 dollars. "Why?" She knew.') == [
        "Mr. Fox paid 3.5 dollars.",
        '"Why?"',
        "She knew.",
    ]
    assert sentences(" \n ") == []


def test_oracle():
    """Sentences that are the summary are found, and no others are added to them."""
    document = ["Погода была хорошая.", "Мост открыли в мае.", "Все пели песни.", "Проезд по мосту бесплатный."]
    assert oracle_sentences(document, "В мае открыли мост. Проезд по нему бесплатный.") == [1, 3]
    assert oracle_sentences(document, "Xyz") == []


def test_summaries(write):
    text = "Погода была совсем хорошая. Мост открыли в мае.\nВсе громко пели песни.\n- /x"
    row = _rows("summaries", write("s.jsonl", [{"text": text, "summary": "Открыли мост в мае."}]), "gazeta")[0]
    assert row.sentences == ("Погода была совсем хорошая.", "Мост открыли в мае.", "Все громко пели песни.")
    assert row.extractive == (1,)


def _story(number):
    return " ".join(
        f"Это предложение номер {number}-{i}, и оно достаточно длинное, чтобы его можно было переписать целиком."
        for i in range(6)
    )


def test_texts_to_copy(write):
    path = write("stories.txt", "\n".join(_story(number) for number in range(12)))
    made, facts = import_dataset("text", [path], "copy_ru", shots=2, rows=4, seed=1)
    again, _ = import_dataset("text", [path], "copy_ru", shots=2, rows=4, seed=1)
    other, _ = import_dataset("text", [path], "copy_ru", shots=2, rows=4, seed=2)
    assert made.sha256 == again.sha256 != other.sha256
    assert [row.kind for row in made.test].count("sentence") == [row.kind for row in made.test].count("paragraph") == 4
    assert len(made.shots) == 4 and len(facts["files"]["stories.txt"]) == 64
    paragraphs = [row.text for row in made.test + made.shots if row.kind == "paragraph"]
    drawn = [row.text for row in made.test + made.shots if row.kind == "sentence"]
    assert not any(sentence in paragraph for sentence in drawn for paragraph in paragraphs)
    with pytest.raises(LeptaError, match="expected 105 of each"):
        import_dataset("text", [path], "copy_ru")


def test_command(write, tmp_path):
    path = write("dev.jsonl", [{"sentence": f"Так {n}.", "acceptable": n % 2} for n in range(12)])
    arguments = ["darumeru", "import", "rucola", str(path), "--task", "rucola", "--output", str(tmp_path / "data")]
    run = CliRunner().invoke(app, [*arguments, "--json"])
    assert run.exit_code == 0, run.output
    assert len(load_dataset("rucola", str(tmp_path / "data")).test) == 7
    assert isinstance(CliRunner().invoke(app, arguments).exception, LeptaError)  # there already
    facts = json.loads((tmp_path / "data" / "rucola" / "source.json").read_text())
    assert facts["format"] == "rucola" and list(facts["files"]) == ["dev.jsonl"]
    assert str(tmp_path) not in json.dumps(facts)


def _build(source, output):
    """Run the benchmark's script that makes a whole folder."""
    script = Path(__file__).parents[2] / "benchmarks" / "darumeru_data.py"
    spec = importlib.util.spec_from_file_location("darumeru_data", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(source, output, force=False)


@pytest.mark.skipif(not EVAL.is_dir(), reason=f"no evaluation sets at {EVAL}; LEPTA_SHARED names another place")
def test_folder_from_public_sets(tmp_path):
    """All 14 datasets, checked when they are read again; RuCoLA is its whole validation part."""
    table = {row["dataset"]: row for row in _build(EVAL, tmp_path / "data")}
    assert set(table) == set(DATASETS)
    for name in DATASETS:
        assert len(load_dataset(name, str(tmp_path / "data")).test) == table[name]["test"]
    assert table["rucola"]["test"] == 2787 and table["rummlu"]["from"] == "built-in items"
    assert table["mmlu_en"]["left out"] == 371  # 370 that MMLU-Redux found wrong, and one that repeats an example


def test_folder_without_public_sets(tmp_path):
    (tmp_path / "empty").mkdir()
    assert {row["from"] for row in _build(tmp_path / "empty", tmp_path / "data")} == {"built-in items"}


def test_the_manifest_names_all_files_that_were_read(tmp_path):
    files = [tmp_path / part / "rows.csv" for part in ("test", "dev")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(f"id,sentence,acceptable\n{number},Предложение {number}.,1\n", encoding="utf-8")
    test, dev = map(str, files)
    arguments = ["darumeru", "import", "rucola", test, "--shots-file", dev, "--task", "rucola"]
    CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "data")], catch_exceptions=False)
    assert read_manifest(tmp_path / "data" / "rucola")["key"]["inputs"].keys() == {"test/rows.csv", "dev/rows.csv"}
