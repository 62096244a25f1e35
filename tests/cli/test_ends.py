"""How commands end: one line without escape sequences, and nothing left behind when they are told to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LEPTA = [sys.executable, "-m", "lepta"]


def test_escape_sequences_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [*LEPTA, "status", "\x1b[2J\x9b31m.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stderr and "\x9b" not in done.stderr and r"\x1b[2J\x9b31m.yaml" in done.stderr


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seed_that_no_generator_takes_is_refused(tmp_path: Path, seed: str) -> None:
    asked = ["darumeru", "run", "--model", "none", "--output", "out", "--seed", seed]
    done = subprocess.run([*LEPTA, *asked], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--seed" in done.stderr and "Traceback" not in done.stderr


def test_second_run_of_the_benchmark_into_a_folder_is_refused(tmp_path: Path) -> None:
    from lepta.core.output import claimed

    with claimed(tmp_path / "out"):
        done = subprocess.run(
            [*LEPTA, "darumeru", "run", "--model", ".", "--output", "out", "--tasks", "rucola"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2 and "out: another run is writing it now" in done.stderr


def test_told_to_stop_a_command_removes_what_it_imported(tmp_path: Path) -> None:
    from conftest import SMOLLM2

    asked = [*LEPTA, "init", "--model", SMOLLM2, "--tokenizer", SMOLLM2, "--output", str(tmp_path / "out")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = subprocess.Popen(asked, env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 120
        while run.poll() is None and not any(temporary.glob("lepta-*")) and time.monotonic() < end:
            time.sleep(0.1)
        assert any(temporary.glob("lepta-*"))
        run.send_signal(signal.SIGTERM)
        assert run.wait(120) == 128 + signal.SIGTERM
    finally:
        run.kill()
    assert list(temporary.glob("lepta-*")) == []


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (["vocab", "build", "--tokenizer", "t", "--corpus", "c", "--add", "99999999999"], "add 99999999999"),
        (["vocab", "build", "--tokenizer", "t", "--corpus", "c", "--size", "99999999999"], "size 99999999999"),
        (["init", "--model", "m", "--tokenizer", "t", "--pad-to", "1000000000"], "--pad-to"),
    ],
)
def test_sizes_that_no_vocabulary_has_are_refused(tmp_path: Path, asked: list[str], name: str) -> None:
    done = subprocess.run(
        [*LEPTA, *asked, "--output", "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and name in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
