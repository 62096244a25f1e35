"""Stages run when they must, and leave nothing half done under a final name."""

import gc
import json
import os
import re
import weakref

import pytest

from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST, partial_of
from lepta.stages import CHECKPOINTS, Hashes, Pipeline, Stage


class Workshop:
    """Four real stages on files: double <- numbers, add <- double, both <- add and text; alone <- nothing."""

    def __init__(self, root):
        self.root, self.output, self.ran = root, root / "out", []
        self.numbers, self.text = root / "numbers.json", root / "text.txt"
        self.numbers.write_text("[1, 2, 3]")
        self.text.write_text("текст")
        self.settings = {"factor": 2, "plus": 10}
        self.fail_in = None

    def stage(self, name, inputs, settings, make, texts=None):
        """Make a stage that writes what `make` returns."""

        def run(folder):
            self.ran.append(name)
            (folder / "below").mkdir()
            (folder / "below" / "value.json").write_text(json.dumps(make()))
            if self.fail_in == name:
                raise ValueError("on purpose")
            return {"made": name}

        return Stage(name, inputs, settings, run, texts or {})

    def value(self, name):
        """Read the result of a stage."""
        return json.loads((self.output / name / "below" / "value.json").read_text())

    def pipeline(self):
        """Lay out the stages as a new process would."""
        out = self.output
        return Pipeline(
            out,
            [
                self.stage(
                    "double",
                    {"numbers": self.numbers},
                    {"factor": self.settings["factor"]},
                    lambda: [n * self.settings["factor"] for n in json.loads(self.numbers.read_text())],
                ),
                self.stage(
                    "add",
                    {"double": out / "double"},
                    {"plus": self.settings["plus"]},
                    lambda: [n + self.settings["plus"] for n in self.value("double")],
                ),
                self.stage("alone", {}, {}, lambda: "alone"),
                self.stage(
                    "both",
                    {"add": out / "add"},
                    {},
                    lambda: [self.value("add"), self.text.read_text()],
                    {"text": [str(self.text)]},
                ),
            ],
        )

    def run(self, **options):
        """Run a fresh pipeline (as a new process would) and name the stages that ran."""
        self.ran = []
        self.pipeline().run(**options)
        return self.ran


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture
def done(workshop):
    assert workshop.run() == ["double", "add", "alone", "both"]
    return workshop


def manifest(workshop, name):
    return json.loads((workshop.output / name / MANIFEST).read_text())


def rewrite(path, content):
    """Change a file and make sure that its time of change differs."""
    before = path.stat().st_mtime_ns
    path.write_text(content)
    os.utime(path, ns=(before + 1000, before + 1000))


def test_stages_get_the_results_of_those_before(done):
    assert done.value("both") == [[12, 14, 16], "текст"]


def test_nothing_runs_when_all_is_current(done):
    assert done.run() == []
    assert [verdict.reason for verdict in done.pipeline().status()] == ["up to date"] * 4


def test_hashes_may_be_lost(done):
    (done.output / ".hashes.json").unlink()
    assert done.run() == []


def test_changed_input_reruns_exactly_its_dependants(done):
    rewrite(done.numbers, "[1, 2, 4]")
    assert [verdict.current for verdict in done.pipeline().status()] == [False, False, True, False]
    assert done.run() == ["double", "add", "both"]
    assert done.value("both")[0] == [12, 14, 18]


def test_changed_text_source_reruns_its_stage(done):
    rewrite(done.text, "другой")
    assert done.run() == ["both"]
    assert done.value("both")[1] == "другой"


def test_changed_time_alone_reruns_nothing(done):
    os.utime(done.numbers, ns=(1, 1))
    os.utime(done.text, ns=(1, 1))
    for file in done.output.rglob("value.json"):
        os.utime(file, ns=(1, 1))
    assert done.run() == []


def test_result_that_comes_out_the_same_stops_the_chain(done):
    rewrite(done.numbers, "[ 1, 2, 3 ]")
    assert done.run() == ["double"]


@pytest.mark.parametrize(
    ("name", "value", "ran"), [("factor", 3, ["double", "add", "both"]), ("plus", 11, ["add", "both"])]
)
def test_changed_settings_rerun_their_stage_and_what_follows(done, name, value, ran):
    done.settings[name] = value
    assert f"{name} changed" in [verdict.reason for verdict in done.pipeline().status()]
    assert done.run() == ran


@pytest.mark.parametrize("how", ["changed", "deleted", "added"])
def test_tampered_output_reruns(done, how):
    path = done.output / "add" / "below" / "value.json"
    if how == "changed":
        rewrite(path, "[0, 0, 0]")
    elif how == "deleted":
        path.unlink()
    else:
        (done.output / "add" / "extra.txt").write_text("not ours")
    assert done.run() == ["add"]  # its new result is what it was, so what follows is current
    assert done.value("add") == [12, 14, 16]
    assert not (done.output / "add" / "extra.txt").exists()


def test_deleted_stage_is_made_again(done):
    (done.output / "add" / MANIFEST).unlink()
    assert done.run() == ["add"]


def test_manifest_of_another_version_reruns(done):
    content = manifest(done, "alone")
    content["key"]["lepta"] = "0.0.0"
    rewrite(done.output / "alone" / MANIFEST, json.dumps(content))
    assert [v.reason for v in done.pipeline().status() if not v.current] == ["made by version 0.0.0"]
    assert done.run() == ["alone"]


def test_manifest_tells_facts_inputs_and_outputs(done):
    content = manifest(done, "both")
    assert content["facts"] == {"made": "both"}
    assert content["sources"] == {"add": str(done.output / "add"), "text": [str(done.text)]}
    assert set(content["outputs"]) == {"below/value.json"}
    assert set(content["key"]["inputs"]) == {"add", "text"}


@pytest.mark.parametrize("first", [True, False], ids=["first run", "rerun"])
def test_failing_stage_leaves_no_folder_under_the_final_name(workshop, first):
    """On a rerun the earlier result stays as it was, and is known to be out of date."""
    if not first:
        workshop.run()
        workshop.settings["plus"] = 11
    workshop.fail_in = "add"
    with pytest.raises(ValueError, match="on purpose"):
        workshop.run()
    assert (workshop.output / "add").exists() is not first
    if not first:
        assert workshop.value("add") == [12, 14, 16]
    workshop.fail_in = None
    assert workshop.run() == (["add", "alone", "both"] if first else ["add", "both"])
    assert workshop.value("add")[0] == 2 + workshop.settings["plus"]
    assert [path.name for path in workshop.output.iterdir() if path.name.endswith((".partial", ".old"))] == []


def checkpointing(output, settings, fail):
    def run(folder):
        saved = folder / CHECKPOINTS / "step.txt"
        found = saved.read_text() if saved.exists() else None
        leftovers = sorted(path.name for path in folder.iterdir())
        saved.write_text("half way")
        (folder / "half.txt").write_text("half")
        if fail:
            raise KeyboardInterrupt
        return {"found": found, "leftovers": leftovers}

    return Pipeline(output, [Stage("train", {}, settings, run)])


@pytest.mark.parametrize(
    ("name", "content", "stays"),
    [
        ("x.txt", "x", False),
        ("checkpoint-7/trained.safetensors", "x", True),
        ("a.jsonl", "{}\n", True),
        ("a.jsonl", "", False),  # a journal that nothing came to
    ],
)
def test_a_stage_that_is_refused_leaves_nothing_but_work(tmp_path, name, content, stays):
    def run(folder):
        (folder / CHECKPOINTS / name).parent.mkdir(exist_ok=True)
        (folder / CHECKPOINTS / name).write_text(content)
        raise LeptaError("layer: 99")

    with pytest.raises(LeptaError, match="layer: 99"):
        Pipeline(tmp_path / "new", [Stage("train", {}, {}, run)]).run()
    assert partial_of(tmp_path / "new/train").exists() == stays
    assert (tmp_path / "new").exists() == stays


@pytest.mark.parametrize(
    ("settings", "options", "found"),
    [({"a": 1}, {}, "half way"), ({"a": 2}, {}, None), ({"a": 1}, {"force": True}, None)],
    ids=["same settings", "changed settings", "forced"],
)
def test_interrupted_stage_finds_its_checkpoints_if_they_still_fit(tmp_path, settings, options, found):
    with pytest.raises(KeyboardInterrupt):
        checkpointing(tmp_path, {"a": 1}, fail=True).run()
    assert partial_of(tmp_path / "train").exists()
    assert not (tmp_path / "train").exists()
    checkpointing(tmp_path, settings, fail=False).run(**options)
    content = json.loads((tmp_path / "train" / MANIFEST).read_text())
    assert content["facts"] == {"found": found, "leftovers": [CHECKPOINTS]}
    assert set(content["outputs"]) == {"half.txt"}
    assert not (tmp_path / "train" / CHECKPOINTS).exists()


def test_work_goes_only_after_the_result_has_its_name(tmp_path, monkeypatch):
    found = []

    def run(folder):
        found.append((folder / CHECKPOINTS / "1.safetensors").exists())
        (folder / CHECKPOINTS / "1.safetensors").write_text("work")
        (folder / "model").write_text("weights")
        return {}

    def interrupted(hashes, folder):
        raise KeyboardInterrupt

    pipeline = Pipeline(tmp_path, [Stage("train", {}, {}, run)])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Hashes, "files", interrupted)
        pipeline.run()
    pipeline.run()
    assert found == [False, True]
    work = tmp_path / "train" / CHECKPOINTS
    assert not work.exists()
    work.mkdir()
    (work / "1.safetensors").write_text("killed before it went")
    pipeline.run()
    assert len(found) == 2
    assert not work.exists()


def test_what_an_interrupted_stage_has_left_is_told_before_it_runs(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        checkpointing(tmp_path, {}, fail=True).run()
    assert checkpointing(tmp_path, {}, False).status()[0].reason == "interrupted, starts again"
    (partial_of(tmp_path / "train") / CHECKPOINTS / "answers.jsonl").write_text("{}\n")
    assert checkpointing(tmp_path, {}, False).status()[0].reason == "interrupted, goes on"


def test_from_runs_that_stage_and_all_after_it(done):
    assert [verdict.current for verdict in done.pipeline().status(start="alone")] == [True, True, False, False]
    assert done.run(start="alone") == ["alone", "both"]


def test_force_runs_everything(done):
    assert done.run(force=True) == ["double", "add", "alone", "both"]


def test_from_an_unknown_stage_raises_and_names_the_known_ones(done):
    with pytest.raises(LeptaError, match=r"--from ad: no such stage; .*double, add, alone, both"):
        done.run(start="ad")
    assert done.ran == []


def test_status_from_an_unknown_stage_raises_too(done):
    with pytest.raises(LeptaError, match="--from ad: no such stage"):
        done.pipeline().status(start="ad")


def test_status_runs_and_writes_nothing(workshop):
    assert {verdict.current for verdict in workshop.pipeline().status()} == {False}
    assert workshop.ran == []
    assert not workshop.output.exists()


def test_missing_input_raises_naming_it(workshop):
    workshop.numbers.unlink()
    with pytest.raises(LeptaError, match=r"numbers\.json: no such file or folder"):
        workshop.run()
    assert not (workshop.output / "double").exists()


def test_reasons_name_stages_whatever_a_stage_calls_its_inputs(workshop):
    first = workshop.stage("made", {"numbers": workshop.numbers}, {}, lambda: json.loads(workshop.numbers.read_text()))
    inputs = {"model": workshop.output / "made"}

    def pipeline():
        return Pipeline(workshop.output, [first, workshop.stage("trained", inputs, {}, lambda: "trained")])

    pipeline().run()
    rewrite(workshop.numbers, "[1, 2, 4]")
    assert [verdict.reason for verdict in pipeline().status()] == ["numbers changed", "after made"]
    lines = []
    pipeline().run(report=lines.append)
    assert "trained: running (made changed)" in lines


def test_report_tells_why_each_stage_runs(done):
    done.settings["plus"] = 11
    lines = []
    done.run(report=lines.append)
    assert lines[:2] == ["double: up to date", "add: running (plus changed)"]
    assert lines[-2] == "both: running (add changed)"
    assert re.fullmatch(r"both: done in \d+ s", lines[-1])  # a busy machine takes longer than a moment


def test_hash_of_a_folder_follows_names_and_contents_not_the_manifest(tmp_path):
    hashes = Hashes(tmp_path / "hashes.json")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = hashes.content(folder)
    (folder / MANIFEST).write_text("{}")
    assert hashes.content(folder) == first
    (folder / "a").rename(folder / "b")
    assert hashes.content(folder) != first


def test_hashes_are_remembered_between_runs(tmp_path):
    path = tmp_path / "a"
    path.write_text("1")
    hashes = Hashes(tmp_path / "hashes.json")
    first = hashes.file(path)
    hashes.save()
    stamp = path.stat().st_mtime_ns
    path.write_text("2")
    os.utime(path, ns=(stamp, stamp))  # same size and time: the remembered hash is taken
    assert Hashes(tmp_path / "hashes.json").file(path) == first
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert Hashes(tmp_path / "hashes.json").file(path) != first


def test_checkpoints_of_other_settings_are_refused_and_kept(tmp_path):
    def train(folder):
        (folder / CHECKPOINTS / "checkpoint-7").mkdir(parents=True)
        (folder / CHECKPOINTS / "checkpoint-7" / "trained.safetensors").write_bytes(b"hours of work")
        raise ValueError("on purpose")

    def pipeline(rate, run=train):
        return Pipeline(tmp_path, [Stage("pretrained", {}, {"rate": rate, "seed": 1}, run)])

    with pytest.raises(ValueError, match="on purpose"):
        pipeline(0.1).run()
    kept = partial_of(tmp_path / "pretrained") / CHECKPOINTS / "checkpoint-7" / "trained.safetensors"
    with pytest.raises(LeptaError, match=r"other settings \(rate changed\); .* start over with --force"):
        pipeline(0.2).run()
    assert kept.read_bytes() == b"hours of work"
    seen = []
    pipeline(0.1, lambda folder: seen.append(kept.exists()) or {}).run()
    with pytest.raises(ValueError, match="on purpose"):
        pipeline(0.2).run(force=True)
    assert seen == [True]
    pipeline(0.3, lambda folder: seen.append(kept.exists()) or {}).run(start="pretrained")
    assert seen == [True, False]


def test_stages_of_all_processes_are_announced(tmp_path):
    announced = []
    stages = [Stage(name, {}, {}, lambda folder: {}, together=name == "trained") for name in ("made", "trained")]
    Pipeline(tmp_path, stages, announced.append).run()
    assert announced == ["trained"]


def test_what_a_stage_held_is_gone_when_the_next_one_runs(tmp_path):
    class Model:
        """An object that refers to itself, as a model does that was trained."""

        def __init__(self):
            self.itself = self

    held, alive = [], []

    def first(folder):
        model = Model()
        held.append(weakref.ref(model))
        (folder / "x").touch()
        return {}

    def second(folder):
        alive.append(held[0]() is not None)
        (folder / "x").touch()
        return {}

    gc.disable()  # whenever Python itself would look for such objects
    try:
        Pipeline(tmp_path, [Stage("first", {}, {}, first), Stage("second", {}, {}, second)]).run()
    finally:
        gc.enable()
    assert alive == [False]
