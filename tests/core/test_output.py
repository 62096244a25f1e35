"""Output gets its name when it is whole, and is written by one run at a time."""

from pathlib import Path

import pytest

from lepta.core.errors import LeptaError
from lepta.core.output import MANIFEST, publishing


def test_publishing_gives_the_name_only_at_the_end(tmp_path):
    with publishing(tmp_path / "result") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "result").exists()
    assert (tmp_path / "result" / "a.txt").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_publishing_refuses_an_existing_folder_and_leaves_it_alone(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "mine.txt").write_text("mine")
    with pytest.raises(LeptaError, match=r"result: exists already.*--force"), publishing(tmp_path / "result"):
        pytest.fail("the block must not run")
    assert (tmp_path / "result" / "mine.txt").read_text() == "mine"


def test_publishing_replaces_when_told(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "old.txt").write_text("old")
    (tmp_path / "result" / MANIFEST).write_text("{}")
    with publishing(tmp_path / "result", replace=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_publishing_replaces_no_folder_that_was_not_written_here(tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "thesis", Path(".")):
        with pytest.raises(LeptaError, match=r"LEPTA did not write it.*remove it yourself"), publishing(place, True):
            raise AssertionError("it would be gone")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_publishing_replaces_no_file_by_a_folder(tmp_path):
    (tmp_path / "model.gguf").write_text("weights")
    with pytest.raises(LeptaError, match=r"model.gguf: is a file"), publishing(tmp_path / "model.gguf", True):
        pytest.fail("the block must not run")
    assert (tmp_path / "model.gguf").read_text() == "weights"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), LeptaError("x")], ids=repr)
@pytest.mark.parametrize("existing", [True, False])
def test_publishing_cleans_up_on_error(tmp_path, error, existing):
    if existing:
        (tmp_path / "result").mkdir()
        (tmp_path / "result" / MANIFEST).write_text("{}")
    with pytest.raises(type(error)), publishing(tmp_path / "result", replace=True) as folder:
        (folder / "a.txt").write_text("a")
        raise error
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == (["result", f"result/{MANIFEST}"] if existing else [])


def test_publishing_refuses_what_another_run_is_writing(tmp_path):
    with publishing(tmp_path / "result") as first:
        (first / "file").write_text("half")
        with pytest.raises(LeptaError, match="another run is writing it now"), publishing(tmp_path / "result"):
            raise AssertionError("two at once")
        assert (first / "file").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_publishing_says_when_the_disk_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LeptaError, match=r"cannot be written"), publishing(tmp_path / "file" / "result"):
        pytest.fail("the block must not run")


def test_files_are_for_all_whom_the_umask_lets_read(tmp_path):
    with publishing(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"x")
        (folder / "weights").chmod(0o600)
        (tmp_path / "shared").write_bytes(b"y")
        (tmp_path / "shared").chmod(0o600)
        (folder / "linked").hardlink_to(tmp_path / "shared")
        (folder / "usual").write_bytes(b"z")
    mode = {name: (tmp_path / "model" / name).stat().st_mode for name in ("weights", "linked", "usual")}
    assert mode["weights"] == mode["usual"]
    assert mode["linked"] & 0o777 == 0o600
