"""How commands end: one line without escape sequences, and nothing left behind when they are told to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import lepta

from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.vocabulary.source import TokenizerSource

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
        asked = ["darumeru", "run", "--model", ".", "--output", "out", "--tasks", "rucola"]
        done = lepta(*asked, cwd=tmp_path, check=2)
    assert "out: another run is writing it now" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_a_command_removes_what_it_imported(tmp_path: Path, number: signal.Signals) -> None:
    from conftest import SMOLLM2

    asked = [*LEPTA, "init", "--model", SMOLLM2, "--tokenizer", SMOLLM2, "--output", str(tmp_path / "out")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = subprocess.Popen(
        asked,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # jobs in the background ignore it
    )
    try:
        end = time.monotonic() + 120
        while run.poll() is None and not any(temporary.glob("lepta-*")) and time.monotonic() < end:
            time.sleep(0.1)
        assert any(temporary.glob("lepta-*"))
        run.send_signal(number)
        assert run.wait(120) == 128 + number
        assert (
            run.stderr is not None
            and f"lepta: interrupted ({number.name}); no output is half-written".encode() in run.stderr.read()
        )
    finally:
        run.kill()
    assert list(temporary.glob("lepta-*")) == []


SWALLOWED = {
    "weakref callback": """
class Thing: pass
thing = Thing()
watch = weakref.ref(thing, lambda _: told())
del thing
""",
    "finaliser": """
class Thing:
    def __del__(self): told()
Thing()
""",
    "bare except": """
try: told()
except: pass
""",
    "another error in its place": """
try: told()
except SystemExit: raise ValueError("lost")
""",
}


@pytest.mark.parametrize("how", SWALLOWED)
def test_exception_of_a_signal_that_is_swallowed_is_raised_again(tmp_path: Path, how: str) -> None:
    assert _end_of(tmp_path, SWALLOWED[how] + "time.sleep(60)") == (143, 1, ["cleaned"])


def test_exception_of_a_signal_that_is_kept_ends_the_command_as_told(tmp_path: Path) -> None:
    keep = "try: told()\nexcept BaseException as error: kept.append(error)\n"
    assert _end_of(tmp_path, keep) == (143, 1, ["cleaned"])


def test_second_signal_at_once_does_not_cut_the_clean_up_short(tmp_path: Path) -> None:
    """`timeout` signals the process, and then its group."""
    assert _end_of(tmp_path, "told()", clean_up="told()") == (143, 1, ["cleaned"])


def _end_of(folder: Path, body: str, clean_up: str = "pass") -> tuple[int, int, list[str]]:
    """Exit code, messages and lines that a clean-up wrote, of a command that tells itself to stop: `told()`."""
    lines = [
        "import os, signal, sys, time, weakref",
        "import lepta.cli",
        "kept = []",
        "def told():",
        "    os.kill(os.getpid(), signal.SIGTERM)",
        "    time.sleep(0.01)",
        "def work():",
        *(f"    {line}" for line in body.splitlines()),
        "def command():",
        "    try:",
        "        work()",
        "        sys.exit(0)",  # as typer ends every command
        "    finally:",
        f"        {clean_up}",
        "        with open('cleaned', 'a') as file: file.write('cleaned\\n')",
        "lepta.cli.app = command",
        "lepta.cli.main()",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )
    said = done.stderr.count("lepta: interrupted (SIGTERM)")
    return done.returncode, said, (folder / "cleaned").read_text().splitlines()


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


@pytest.fixture(scope="module")
def places(
    tiny_model_folder: Callable[..., Path],
    tiny_tokenizer: TokenizerSource,
    tiny_extended: TokenizerSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """A model, the same with more tokens, text, conversations, and a run of the benchmark."""
    folder = tmp_path_factory.mktemp("places")
    model, made = tiny_model_folder(rows=4000, tied=True, tokenizer=tiny_tokenizer), folder / "initialised"
    made.mkdir()
    initialise(Checkpoint(model), tiny_extended, made)
    talk = [{"role": "user", "content": "Раз?"}, {"role": "assistant", "content": "Два."}]
    rows = [json.dumps({"messages": [{**talk[0], "content": f"Раз {n}?"}, talk[1]]}) for n in range(8)]
    (folder / "talk.jsonl").write_text("\n".join(rows) + "\n")
    lepta(
        "darumeru", "run", "--model", model, "--output", "asked", "--tasks", "rucola", "--limit", 2, cwd=folder, check=0
    )
    return {"MODEL": str(model), "MADE": str(made), "TALK": str(folder / "talk.jsonl"), "ASKED": str(folder / "asked")}


WRITERS = {
    "pretrain": "--model MADE --text starter:ru/valid --tokens 500 --batch 1 --keep last",
    "distill": "--original MODEL --model MADE --text starter:ru/valid --tokens 2000 --batch 4 --passage 80",
    "tune": "--model MODEL --data TALK --batch 2",
    "darumeru run": "--model MODEL --tasks rucola --limit 50",
    "darumeru compare": "ASKED ASKED",
}


@pytest.mark.parametrize("command", WRITERS)
def test_neither_a_full_disk_nor_a_place_that_takes_nothing_ends_otherwise(
    places: dict[str, str], command: str, tmp_path: Path
) -> None:
    line = [*command.split(), *(places.get(word, word) for word in WRITERS[command].split())]
    option = "--html" if command == "darumeru compare" else "--output"
    for output, limit in (("/proc/none/out", None), (tmp_path / "out", 2_000)):
        done = lepta(*line, option, output, check=2, largest_file=limit)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("lepta: ") and "Traceback" not in done.stderr, done.stderr
        assert any(words in last for words in ("out", "the disk is full", "files: ")), last
    assert not (tmp_path / "out" / "manifest.json").exists() and not list(tmp_path.glob("*.lock"))
