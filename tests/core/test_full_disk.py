"""How unusual ends are told: libraries say in ways of their own that a disk is full; others are errors of LEPTA."""

import os
import subprocess
import sys

import pytest

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
WRITERS = {
    "torch": "import torch; torch.save(torch.zeros(50_000), 'file')",
    "safetensors": "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(50_000)}, 'file')",
}
COMMAND = """
import lepta.cli
def write(): {}
lepta.cli.app = write
lepta.cli.main()
"""


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_ends_in_one_line(library, tmp_path):
    command = [sys.executable, "-c", COMMAND.format(LIMIT + WRITERS[library])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "the disk is full" in done.stderr, done.stderr


def test_an_error_of_ours_ends_in_one_line_and_its_traceback_is_kept(tmp_path):
    asked = [sys.executable, "-c", COMMAND.format("raise KeyError('\x1b[2J')")]
    done = subprocess.run(
        asked, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 70 and done.stderr.count("\n") == 1
    assert "this is an error in LEPTA: KeyError" in done.stderr and "\x1b" not in done.stderr
    (kept,) = tmp_path.glob("lepta-error-*.txt")
    assert str(kept) in done.stderr and "in write" in kept.read_text()
    shown = subprocess.run([*asked, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in shown.stderr and "KeyError" in shown.stderr
