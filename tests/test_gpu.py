"""The benchmark for a GPU: it says so where there is none, and each of its parts runs on the CPU with tiny shapes."""

import json
import os
from pathlib import Path

import commands
import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[1]
QUICK = ["distill-1b"]
PARTS = list(gpu.LIMITS) if os.environ.get("LEPTA_SLOW") else QUICK


def run(*arguments):
    return commands.python("benchmarks.gpu", *arguments, cwd=ROOT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "no GPU here" in done.stderr


@pytest.mark.parametrize("part", PARTS)  # LEPTA_SLOW=1: all of them
def test_every_part_runs_on_the_cpu(part, tmp_path):
    done = run("--smoke", "--parts", part, "--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    kinds = [f"{part}, {kind}" for kind in ("lepta", "stock")] if part.startswith("pretrain") else [part]
    assert list(found) == kinds
    for result in found.values():
        assert "failed" not in result
        assert result.get("tokens_per_second", 1) > 0 and result.get("gib", 1) > 0
    assert f"| {kinds[0]} |" in done.stdout or f"- {kinds[0]}: " in done.stdout


def test_all_parts_together_have_nine_minutes():
    assert sum(gpu.LIMITS.values()) <= 540


def test_a_part_that_fails_or_takes_too_long_is_told_and_the_rest_goes_on(monkeypatch):
    assert gpu.started_part("no-such-part", "", True, 60)["failed"].startswith("KeyError")
    assert gpu.started_part("distill-1b", "", True, 0.5) == {"failed": "not done in 0 s"}
    results = {"device": "X", "memory_gib": 80.0, "seconds": 1.0, "parts": {"fsdp2": {"failed": "out of memory"}}}
    assert "| fsdp2 | out of memory | | |" in gpu.table(results)


def test_the_table_takes_its_own_place_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "page.md")
    gpu.PAGE.write_text("# Page\n\nText.\n")
    for text in ("first\n", "second\n"):
        gpu.publish(text)
    page = gpu.PAGE.read_text()
    assert page.startswith("# Page\n\nText.\n\n## On a GPU\n\n") and page.count(gpu.BEGIN) == 1
    assert "second" in page and "first" not in page
