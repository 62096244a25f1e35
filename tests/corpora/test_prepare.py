"""Corpora from raw text to text for training: what is kept, in what order, and what is said of the rest."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
import unicodedata

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepta.core.errors import LeptaError
from lepta.corpora import steps, work
from lepta.corpora.settings import CorpusSettings
from lepta.stages import Hashes
from lepta.text.sources import read_documents, read_labelled, text_files

ANY = {"min_characters": 1, "min_words": 1}


def texts_of(rows):
    return [row["text"] for row in rows]


def check_sums(report):
    """What was read is what was kept and what was dropped, and the total is the sum of the sources."""
    for row in [*report["sources"].values(), report["total"]]:
        for unit in ("documents", "characters"):
            assert row["read"][unit] == row["kept"][unit] + sum(lost[unit] for lost in row["dropped"].values())
    for unit in ("documents", "characters"):
        for part in ("read", "kept", "written"):
            assert report["total"][part][unit] == sum(row[part][unit] for row in report["sources"].values())


def test_distinct_documents_are_all_kept_in_their_order(run, written, write_rows, documents):
    report = run({"books": write_rows("a.jsonl", documents)})
    check_sums(report)
    assert texts_of(written()["books"]) == documents
    assert set(written()["books"][0]) == {"text", "source", "doc"}
    assert report["total"]["dropped"] == {}
    assert report["total"]["written"]["characters"] == sum(map(len, documents))


def test_the_folder_is_a_text_source(run, tmp_path, write_rows, documents):
    run({"books": write_rows("a.jsonl", [{"text": documents[0], "doc": "work 7"}, *documents[1:]])})
    found = list(read_labelled([str(tmp_path / "out")]))
    assert [document.text for document in found] == documents
    assert (found[0].source, found[0].name) == ("books", "work 7")
    assert [file.name for file in text_files(str(tmp_path / "out"))] == ["00000.jsonl.zst"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"text", "report.json", "manifest.json"}
    assert not list(tmp_path.glob(".*"))  # neither work nor a half-written folder


def near(text):
    """The same text with one word in another form."""
    words = text.split()
    words[len(words) // 2] = "совершенно"
    return " ".join(words)


def test_planted_duplicates_fall_and_the_first_of_each_stays(run, written, write_rows, documents):
    first, second = (
        write_rows("a.jsonl", documents[:30]),
        write_rows(
            "b.jsonl",
            [*documents[20:30], *documents[30:], *map(near, documents[:10]), documents[40], "  " + documents[41]],
        ),
    )
    report = run({"best": first, "rest": second})
    check_sums(report)
    assert texts_of(written()["best"]) == documents[:30]
    assert texts_of(written()["rest"]) == documents[30:]
    assert report["sources"]["rest"]["dropped"]["duplicate"]["documents"] == 22
    assert "duplicate" not in report["sources"]["best"]["dropped"]


def test_duplicates_stay_if_that_is_off_and_short_ones_fall_too(run, written, write_rows):
    path = write_rows("a.jsonl", ["Да, конечно", "Нет", "да конечно!", "Нет"])
    run({"a": path}, name="off", deduplicate=False, filters=ANY)
    run({"a": path}, name="on", filters=ANY)
    assert texts_of(written("off")["a"]) == ["Да, конечно", "Нет", "да конечно!", "Нет"]
    assert texts_of(written("on")["a"]) == ["Да, конечно", "Нет"]


def test_weights_repeat_and_thin_out_by_content(run, written, write_rows, documents):
    path = write_rows("a.jsonl", documents)
    for weight in (2, 0.5, 1.5):
        report = run({"a": {"text": [str(path)], "weight": weight}}, name=f"w{weight}")
        check_sums(report)
        assert report["total"]["written"]["documents"] == len(written(f"w{weight}")["a"])
    assert texts_of(written("w2")["a"]) == documents * 2  # the second copies after all first ones
    half, more = texts_of(written("w0.5")["a"]), texts_of(written("w1.5")["a"])
    assert 15 < len(half) < 45
    assert more == documents + half
    assert half == [text for text in documents if text in set(half)]
    run({"a": {"text": [str(path)], "weight": 0.5}}, name="seed", seed=2)
    assert texts_of(written("seed")["a"]) != half


def files(folder):
    return Hashes().files(folder)


@pytest.fixture
def small_parts(monkeypatch):
    """Many tasks and shards out of little text."""
    monkeypatch.setattr(work, "TASK", 10_000)
    monkeypatch.setattr(steps, "SHARD", 4_000)


@pytest.mark.usefixtures("small_parts")
def test_parts_make_no_difference_to_what_is_kept(run, written, write_rows, documents):
    for name, part in (("a", documents[:20]), ("b", documents[10:40]), ("c", [*documents[30:], documents[0]])):
        write_rows(f"raw/{name}.jsonl", part)
    report = run({"raw": write_rows("raw/a.jsonl", documents[:20]).parent})
    check_sums(report)
    assert texts_of(written()["raw"]) == documents
    assert len(text_files(str(write_rows("raw/a.jsonl", []).parents[1] / "out"))) > 3


def test_workers_make_no_difference_to_any_byte(run, tmp_path, write_rows, documents):
    for number in range(3):
        write_rows(f"raw{number}/a.jsonl", [*documents[number * 20 :], *documents[:7]])
    sources = {f"s{number}": {"text": [str(tmp_path / f"raw{number}")], "weight": 1.5} for number in range(3)}
    for workers in (1, 2):
        run(sources, name=f"w{workers}", executor={"workers": workers})
    assert files(tmp_path / "w1") == files(tmp_path / "w2")
    manifests = [json.loads((tmp_path / f"w{n}" / "manifest.json").read_text()) for n in (1, 2)]
    assert manifests[0] == manifests[1]
    assert set(manifests[0]["key"]["inputs"]) == set(sources)


def test_gzip_is_as_exact(run, tmp_path, write_rows, documents):
    path = write_rows("a.jsonl", documents)
    for name in ("one", "two"):
        run({"a": path}, name=name, compression="gz")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert list(read_documents([str(tmp_path / "one")])) == documents


def test_contaminated_documents_are_dropped(run, written, write_rows, documents):
    question = " ".join(documents[5].upper().split()[3:20])
    against = write_rows("benchmark/b.jsonl", [{"question": question, "answer": "да"}])
    report = run({"a": write_rows("a.jsonl", documents)}, decontaminate={"against": [str(against)]})
    check_sums(report)
    assert texts_of(written()["a"]) == documents[:5] + documents[6:]
    assert report["sources"]["a"]["dropped"]["contaminated"]["documents"] == 1
    assert report["against"] == {"strings": 2, "too_short": 1, "runs": 5}


@pytest.mark.parametrize(
    ("change", "clean"),
    [
        (lambda words: [unicodedata.normalize("NFD", word) for word in words], {}),
        (lambda words: [word[:3] + "\u00ad" + word[3:] for word in words], {}),
        (lambda words: [f"<b>{word[:2]}</b>{word[2:]}&nbsp;&mdash;" for word in words], {}),
        (lambda words: [f"[{word}](https://a.org/{number})" for number, word in enumerate(words)], {}),
        (lambda words: [*words[:8], "DNA", *words[8:]], {"scripts": ["Cyrillic"]}),
        (lambda words: [word + " " + "x" * 20 for word in words], {"scripts": ["Cyrillic"], "foreign_share": 1}),
    ],
    ids=["normal form", "soft hyphens", "markup", "links", "foreign letters", "foreign line"],
)
def test_what_cleaning_changes_is_found_all_the_same(run, write_rows, documents, change, clean):
    """Both where the benchmark is written in another way, and where the document is."""
    question = documents[5].split()[3:20]
    for name, item, text in (
        ("benchmark", change(question), documents[5]),
        ("document", question, " ".join([*documents[5].split()[:3], *change(question), *documents[5].split()[20:]])),
        ("both", change(question), " ".join(["Вопрос:", *change(question), documents[6]])),
    ):
        against = write_rows(f"asked/{name}.jsonl", [{"question": " ".join(item)}])
        source = write_rows(f"{name}.jsonl", [*documents[:5], text, *documents[7:]])
        limits = {"max_repeated_ngrams": {}}
        report = run({"a": source}, name=name, decontaminate={"against": [str(against)]}, clean=clean, filters=limits)
        dropped = report["sources"]["a"]["dropped"]
        assert [sample["text"] for sample in dropped["contaminated"]["samples"]] == [text[:300]], name


def test_strings_that_cleaning_makes_too_short_are_counted(run, write_rows, documents):
    rows = [{"question": " ".join(documents[5].split()[:11]) + " https://example.org/a/b"}, {"question": documents[6]}]
    report = run(
        {"a": write_rows("a.jsonl", documents)}, decontaminate={"against": [str(write_rows("b/b.jsonl", rows))]}
    )
    assert report["against"]["too_short"] == 1
    assert report["total"]["dropped"]["contaminated"]["documents"] == 1


def test_report_counts_reasons_with_samples(run, write_rows, documents):
    report = run(
        {"a": write_rows("a.jsonl", [*["", None, "  "] * 3, *(f"Коротко {n}." for n in range(9)), *documents])}
    )
    check_sums(report)
    dropped = report["sources"]["a"]["dropped"]
    assert {reason: lost["documents"] for reason, lost in dropped.items()} == {"empty": 9, "short": 9}
    assert [sample["text"] for sample in dropped["short"]["samples"]] == [f"Коротко {n}." for n in range(5)]


def test_removed_characters_are_counted_in_kept_documents(run, write_rows, documents):
    report = run({"a": write_rows("a.jsonl", [f"<b>{documents[0]}</b> 😀😀", *documents[1:]])})
    row = report["sources"]["a"]
    assert row["removed"] == {"markup": 7, "symbols": 2, "whitespace": 1}
    assert row["written"]["characters"] == row["kept"]["characters"] - 10


NOISE = st.lists(
    st.one_of(
        st.sampled_from(["", None, " ", "Слово", "<p>да</p> " * 60, "слово за словом " * 30, "東京 " * 100]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=400),
        st.integers(0, 59),
    ),
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=NOISE, weight=st.sampled_from([0.3, 1, 2.7]))
def test_counts_add_up_whatever_comes(run, written, write_rows, documents, rows, weight):
    mixed = [documents[row] if isinstance(row, int) else row for row in [*rows, 0, 1, 2, 3, 4, 5, 6, 7]]
    source = {"text": [str(write_rows("a.jsonl", mixed))], "weight": weight}
    report = run({"a": source}, force=True, clean={"scripts": ["Cyrillic", "Latin"]})
    check_sums(report)
    assert report["total"]["read"] == {
        "documents": len(mixed),
        "characters": sum(len(text or "") for text in mixed),
    }
    rows_written = written()["a"]
    assert report["total"]["written"] == {
        "documents": len(rows_written),
        "characters": sum(map(len, texts_of(rows_written))),
    }


def nothing_left(tmp_path):
    return not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def cut_gzip(path):
    path.write_bytes(gzip.compress(path.read_bytes())[:-3000])
    return path.rename(path.with_suffix(".jsonl.gz"))


def test_cut_shard_in_the_middle_stops_with_its_name(run, tmp_path, write_rows, documents):
    write_rows("raw/a.jsonl", documents[:20])
    cut_gzip(write_rows("raw/b.jsonl", documents[20:40]))
    write_rows("raw/c.jsonl", documents[40:])
    with pytest.raises(LeptaError, match=r"raw/b\.jsonl\.gz: not a whole gzip file, it ends after line \d+"):
        run({"raw": tmp_path / "raw"})
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_line_that_is_not_json_stops_with_its_number(run, tmp_path, write_rows, documents, workers):
    with (path := write_rows("a.jsonl", documents)).open("a") as file:
        file.write("{'no': json}\n")
    sources = {"good": write_rows("b.jsonl", documents[:3]), "bad": path}
    with pytest.raises(LeptaError, match=rf"a\.jsonl, line {len(documents) + 1}: not JSON"):
        run(sources, executor={"workers": workers})
    assert nothing_left(tmp_path)


def test_what_is_damaged_can_be_skipped_and_is_counted(run, tmp_path, write_rows, documents, written):
    write_rows("raw/a.jsonl", documents[:20])
    cut_gzip(write_rows("raw/b.jsonl", documents[20:40]))
    with write_rows("raw/c.jsonl", documents[40:]).open("a") as file:
        file.write("no json\n")
    report = run({"raw": tmp_path / "raw"}, on_error="skip")
    check_sums(report)
    dropped = report["sources"]["raw"]["dropped"]["unreadable"]
    assert (dropped["documents"], dropped["characters"]) == (2, 0)
    assert ["b.jsonl.gz" in sample["text"] for sample in dropped["samples"]] == [True, False]
    assert set(documents[:20] + documents[40:]) <= set(texts_of(written()["raw"]))


def test_wrong_field_names_those_that_exist(run, tmp_path, write_rows):
    path = write_rows("a.jsonl", [{"title": "a", "content": "b"}])
    with pytest.raises(LeptaError, match="field 'text', it has title, content"):
        run({"a": path})
    with pytest.raises(LeptaError, match="field 'body', it has title, content"):
        run({"a": {"text": [str(path)], "field": "body"}})
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(("source", "key"), [("{}", "body"), ("dataset:{}", "body"), ("{}?field=text", "text")])
def test_field_of_a_source(run, written, write_rows, documents, source, key):
    """That of the settings, unless the text source names one itself."""
    folder = write_rows("raw/a.jsonl", [{key: text} for text in documents]).parent
    run({"a": {"text": [source.format(folder)], "field": "body"}})
    assert texts_of(written()["a"]) == documents


def test_nothing_left_says_why(run, tmp_path, write_rows):
    with pytest.raises(LeptaError, match=r"no document is left \(short 3\); see filters"):
        run({"a": write_rows("a.jsonl", ["а", "б", "в"])})
    assert nothing_left(tmp_path)


def test_line_of_50_megabytes(run, written, write_rows, sentences, documents):
    giant = "\n".join(sentences[n % len(sentences)] for n in range(200_000))
    assert len(giant.encode()) > 30_000_000
    rows = [documents[0], giant, giant.replace("\n", " ")[:1_000_000], documents[1]]
    limits = {"max_repeated_ngrams": {}, "max_repeated_lines": None, "max_repeated_line_characters": None}
    started = time.process_time()
    report = run({"a": write_rows("a.jsonl", rows)}, filters=limits)
    assert time.process_time() - started < 60
    assert {reason: lost["documents"] for reason, lost in report["total"]["dropped"].items()} == {"long line": 1}
    assert len(written()["a"]) == 3


def test_output_that_exists_is_replaced_only_by_force(run, written, write_rows, documents):
    run({"a": write_rows("a.jsonl", documents[:5])})
    with pytest.raises(LeptaError, match="exists already"):
        run({"a": write_rows("a.jsonl", documents)})
    assert len(written()["a"]) == 5
    run({"a": write_rows("a.jsonl", documents)}, force=True)
    assert texts_of(written()["a"]) == documents


def command(folder, path, *options):
    values = {"sources": {"raw": {"text": [str(path)]}}, "output": str(folder / "out"), "executor": {"workers": 2}}
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", "lepta", "corpus", "prepare", str(folder / "c.yaml"), *options]


def test_command_prints_json_and_keeps_errors_to_one_line(tmp_path, write_rows, documents):
    path = write_rows("raw/a.jsonl", documents)
    done = subprocess.run(command(tmp_path, path.parent, "--json"), capture_output=True, text=True, check=True)
    check_sums(json.loads(done.stdout))
    for name in ("b", "c"):
        write_rows(f"raw/{name}.jsonl", documents[:3]).open("a").write("no json\n")
    failed = subprocess.run(command(tmp_path, path.parent, "--force"), capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("lepta: ") and "raw/b.jsonl, line 4: not JSON" in last
    assert "Traceback" not in failed.stderr and "datatrove" not in failed.stderr
    assert (tmp_path / "out" / "report.json").is_file()  # what was there stays


@pytest.mark.parametrize("limit", [100, 2_000, 10_000], ids=["at once", "in a worker", "later"])
def test_full_disk_is_one_line_and_the_run_goes_on_afterwards(run, tmp_path, write_rows, documents, limit):
    """A limit of the size of files fails as a full disk does: an OSError in the middle of a write."""
    path = write_rows("a.jsonl", documents)
    failed = subprocess.run(
        command(tmp_path, path),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert failed.returncode == 2, failed.stderr
    assert "File too large" in failed.stderr.strip().splitlines()[-1]
    assert "Traceback" not in failed.stderr
    run({"raw": path}, name="out")
    run({"raw": path}, name="other")
    assert files(tmp_path / "out") == files(tmp_path / "other")


def test_dry_run_writes_nothing_and_estimates(tmp_path, write_rows, documents):
    path = write_rows("a.jsonl", [*documents[1:], f"<p>{documents[0]}</p> 😀", "Коротко"])
    done = subprocess.run(command(tmp_path, path, "--dry-run", "--json"), capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["estimate"]["raw"]["characters"] == sum(map(len, documents))
    assert facts["sample"]["raw"]["dropped"] == {"short": 1}
    shown = subprocess.run(command(tmp_path, path, "--dry-run"), capture_output=True, text=True, check=True).stdout
    shown = " ".join(shown.split())
    assert f"1 of {len(documents) + 1}: 1 short" in shown
    assert "Sampled: the first 2,000,000 characters" in shown and "Duplicates were not looked for" in shown
    assert {file.name for file in tmp_path.iterdir()} == {"a.jsonl", "c.yaml"}


def test_killed_run_goes_on_and_ends_in_the_same_bytes(run, tmp_path, write_rows, documents, sentences):
    mixed = [" ".join(sentences[n % 97 : n % 97 + 5] + sentences[n // 7 : n // 7 + 7]) for n in range(800)]
    path = write_rows("raw/a.jsonl", mixed)
    process = subprocess.Popen(command(tmp_path, path.parent), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / ".out.work" / "counts" / "clean").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    clean = (tmp_path / ".out.work" / "clean" / "000000-000000.jsonl.zst").stat().st_mtime_ns
    run({"raw": path.parent}, name="out")
    run({"raw": path.parent}, name="other")
    assert files(tmp_path / "out") == files(tmp_path / "other")
    assert clean
    assert not list(tmp_path.glob(".*"))


def test_run_interrupted_while_it_publishes_goes_on_with_all_of_its_text(
    run, tmp_path, written, write_rows, documents, monkeypatch
):
    def interrupted(*parts):
        raise KeyboardInterrupt

    path = write_rows("a.jsonl", documents)
    with monkeypatch.context() as patch:
        patch.setattr("lepta.corpora.prepare.write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run({"a": path})
    assert not (tmp_path / "out").exists()
    run({"a": path})
    assert texts_of(written()["a"]) == documents
    assert not list(tmp_path.glob(".*"))


def test_plan_depends_on_the_files_only(tmp_path, write_rows, documents, monkeypatch):
    monkeypatch.setattr(work, "TASK", 4000)
    for number in range(6):
        write_rows(f"raw/{number}.jsonl", documents[number : number + 1])
    values = {"sources": {"a": {"text": [str(tmp_path / "raw")]}, "b": {"text": ["dataset:x/y"]}}}
    tasks = work.divide(CorpusSettings.model_validate(values))
    assert [part.place for task in tasks for part in task.inputs] == [
        *(str(tmp_path / "raw" / f"{number}.jsonl") for number in range(6)),
        "dataset:x/y",
    ]
    assert 1 < len(tasks) < 7


def test_corpus_commands_do_not_slow_down_the_help():
    code = "import sys, lepta, lepta.cli; assert not {'datatrove', 'pyarrow', 'zstandard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
