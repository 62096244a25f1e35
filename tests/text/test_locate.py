"""From names to places."""

import pytest

from lepta.core.errors import LeptaError
from lepta.text.locate import locate
from lepta.text.sources import text_files


def test_mistyped_paths_are_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "adapted").mkdir(parents=True)
    assert locate("my/adapted", []).is_dir()
    with pytest.raises(LeptaError, match=r"my/adaptd: no such file or folder; did you mean my/adapted\?"):
        locate("my/adaptd", [])
    with pytest.raises(LeptaError, match="my/other: no such file or folder; it is no hub id either"):
        locate("my/other", [])
    with pytest.raises(LeptaError, match="no such file or folder"):
        locate("/my/other", [])


def test_a_folder_that_is_half_written_is_not_proposed(tmp_path, monkeypatch):
    (tmp_path / "my" / ".distilled.partial").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeptaError, match=r"my/distilled: no such file or folder; it is no hub id either, since my is"):
        locate("my/distilled", [])


@pytest.mark.parametrize("name", ["~nouser/x", "a/b.git", "a/b--c", "a/..", "x" * 97 + "/y"])
def test_names_that_neither_a_path_nor_the_hub_has(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeptaError, match="^" + name):
        locate(name, [])
    with pytest.raises(LeptaError, match="^" + name):
        text_files(name)
