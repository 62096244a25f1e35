"""Libraries say in ways of their own that a disk is full."""

import subprocess
import sys

import pytest

WRITERS = {
    "torch": "import torch; torch.save(torch.zeros(50_000), 'file')",
    "safetensors": "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(50_000)}, 'file')",
}
COMMAND = """
import resource, lepta.cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
def write(): {}
lepta.cli.app = write
lepta.cli.main()
"""


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_ends_in_one_line(library, tmp_path):
    command = [sys.executable, "-c", COMMAND.format(WRITERS[library])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "the disk is full" in done.stderr, done.stderr
