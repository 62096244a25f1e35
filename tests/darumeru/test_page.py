"""Pages of a run and of two runs side by side: the numbers of the logs, and nothing of a model's text as markup."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.darumeru import log
from lepta.darumeru.backend import Asking
from lepta.darumeru.log import read_log, read_results
from lepta.darumeru.runner import run
from lepta.darumeru.tasks import tasks
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.report import darumeru
from lepta.report.darumeru import side_by_side, worth, write_comparison_page, write_run_page

NAMES = ["rucola", "parus", "multiq", "use", "summary_extractive", "copy_sentence_ru"]
ATTACK = '<script>alert("1")</script> & </p>'


class Reader(HTMLParser):
    """Keeps all tags, and texts by the tag they are in."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = set(), [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", " ".join(data.split())))

    def text(self, tag):
        return [text for place, text in self.texts if place == tag and text]


@pytest.fixture(scope="module")
def runs(tiny_model_folder, tmp_path_factory):
    """Two tiny models that were asked the same."""
    folders = []
    for seed in (0, 1):
        model = tiny_model_folder(hidden=16, seed=seed)
        loaded = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
        loaded[0].config.max_position_embeddings = 4096
        folders.append(tmp_path_factory.mktemp(f"model{seed}"))
        run(
            TransformersBackend(*loaded, f"tiny{seed}", Asking(chat=False)),
            "builtin",
            folders[-1],
            NAMES,
            1,
            limit=8,
            seed=5,
        )
    return folders


@pytest.fixture
def attacked(runs, tmp_path):
    """A run whose model wrote markup, and one sample of which failed."""
    folder = tmp_path / "attacked"
    shutil.copytree(runs[0], folder)
    log = folder / "samples" / "multiq.jsonl"
    header, *records = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    records[2]["answer"]["text"] = ATTACK
    records[5] = {"id": records[5]["id"], "error": f"failed {ATTACK}"}
    log.write_text("".join(json.dumps(line) + "\n" for line in [header, *records]), encoding="utf-8")
    return folder


def page_of(folder):
    write_run_page(folder, "a <model>")
    return (folder / "report.html").read_text(encoding="utf-8")


def compared(folders, names, file):
    sides = [read_results(folder) for folder in folders]
    pair = side_by_side(sides, names)
    write_comparison_page(folders, sides, pair, file)
    return pair


def test_page_has_the_numbers_of_the_summary(runs):
    page = page_of(runs[0])
    summary = json.loads((runs[0] / "summary.json").read_text())
    cells = Reader(page).text("td")
    for name in NAMES:
        score = summary["tasks"][name]["score"]
        assert f"{score['value']:.3f}" in cells
        assert score["low"] is None or f"{score['low']:.3f} to {score['high']:.3f}" in cells
    assert page.count('class="dot"') == len(NAMES) + len(summary["columns"])
    assert summary["model"] in page and read_log(runs[0] / "samples" / "use.jsonl")[0]["conditions"]["data"] in page
    assert "No Micro-Avg" in page


def test_page_fetches_nothing(runs):
    reader = Reader(page_of(runs[0]))
    assert not {"script", "link", "img", "iframe"} & reader.tags
    assert not {"src", "href", "onerror", "onclick"} & {name for name, _ in reader.attributes}


def test_what_models_write_is_text(attacked, runs, tmp_path):
    compared((runs[0], attacked), ("one", "<b>two"), tmp_path / "pair.html")
    for page in (page_of(attacked), (tmp_path / "pair.html").read_text(encoding="utf-8")):
        reader = Reader(page)
        assert any(ATTACK in text for text in reader.text("p")) and "<script" not in page
        assert "b" not in reader.tags and "model" not in reader.tags


def test_errors_come_first_and_then_the_worst(attacked):
    records = read_results(attacked)["multiq"][1]
    drill = darumeru._wrong(tasks()["multiq"], records)
    assert drill["errors"] == 1 and "error" in drill["shown"][0]["answers"][0]
    left = [item["answers"][0]["worth"] for item in drill["shown"][1:]]
    assert left == sorted(left) and all(value < 1 for value in left)


def test_wrong_answers_are_those_of_the_log(runs):
    page = page_of(runs[0])
    for name in ("rucola", "parus"):
        records = read_results(runs[0])[name][1]
        wrong = [record for record in records if record["answer"]["label"] != record["target"]]
        assert wrong and f"<strong>{tasks()[name].title}</strong>: {len(wrong)} of {len(records)}" in page
    record = read_results(runs[0])["rucola"][1][0]
    assert 0 <= worth(tasks()["rucola"], record) <= 1


def test_many_answers_are_capped_and_counted(runs, monkeypatch):
    monkeypatch.setattr(darumeru, "SHOWN", 3)
    page = page_of(runs[0])
    wrong = int(re.search(r"<strong>MultiQ</strong>: (\d+) of", page)[1])
    assert wrong > 3 and f"showing 3 of {wrong}" in page


def test_answers_that_changed(runs, tmp_path):
    """Right to wrong and back, counted from the labels themselves."""
    pair = compared(runs, ("one", "two"), tmp_path / "pair.html")
    page = (tmp_path / "pair.html").read_text(encoding="utf-8")
    changed = 0
    for name in ("rucola", "parus"):
        first, second = ({r["id"]: r["answer"]["label"] == r["target"] for r in read_results(f)[name][1]} for f in runs)
        for word, style, before in (("worse", "lost", True), ("better", "kept", False)):
            number = sum(first[key] == before and second[key] != before for key in first)
            line = (
                rf'<strong>{tasks()[name].title}</strong>: <span class="{style}">{word}</span>, (\d+) of {len(first)}'
            )
            found = re.search(line, page)
            assert (int(found[1]) if found else 0) == number
            changed += number
    assert changed
    row = next(row for row in pair["rows"] if row["name"] == "rucola")
    assert row["difference"]["value"] == pytest.approx(row["scores"][1]["value"] - row["scores"][0]["value"])
    assert f"{row['difference']['value']:+.3f}" in Reader(page).text("td")


def test_nothing_whole_in_both_is_no_difference(attacked, runs, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, kept in zip(folders, ("rucola", "multiq"), strict=True):
        shutil.copytree(attacked if kept == "multiq" else runs[1], folder)
        for path in (folder / "samples").glob("*.jsonl"):
            if path.stem != kept:
                path.unlink()
    pair = side_by_side([read_results(folder) for folder in folders], ("one", "two"))
    assert not any(row["difference"] for row in pair["rows"])
    assert len(pair["refused"]) == 1 and pair["refused"][0].startswith("two: MultiQ: 1 errors")


def test_commands(runs, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(log, "read_log", lambda path: reads.append(path) or read_log(path))
    page = tmp_path / "page.html"
    arguments = ["darumeru", "compare", *map(str, runs), "--html", str(page)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert done.exit_code == 0 and "Answers that changed" in page.read_text()
    assert len(reads) == len(set(reads)) == 2 * len(NAMES)
    assert isinstance(CliRunner().invoke(app, arguments).exception, LeptaError)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert "A row with - is the mean of tasks" in CliRunner().invoke(app, ["darumeru", "show", str(runs[0])]).stdout
    shown = json.loads(CliRunner().invoke(app, ["darumeru", "show", str(runs[0]), "--json"]).stdout)
    written = json.loads((runs[0] / "summary.json").read_text())
    assert written["seed"] == 5
    assert {name: task["score"] for name, task in shown["tasks"].items()} == {
        name: task["score"] for name, task in written["tasks"].items()
    }


def test_models_have_the_names_that_tell_them_apart(runs, tmp_path):
    folders = [tmp_path / name / "run" for name in ("one", "two")]
    for source, folder in zip(runs, folders, strict=True):
        shutil.copytree(source, folder)
    done = CliRunner().invoke(app, ["darumeru", "compare", *map(str, folders)], env={"COLUMNS": "120"})
    said = " ".join(done.stdout.split())  # lines are folded
    assert "two/run less one/run" in said and "above 0, two/run is better" in said
    assert "A difference counts where this leaves out 0" in said
