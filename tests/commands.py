"""Commands in processes of their own, as people run them, without the seconds that importing torch takes.

The process is forked from a server that has imported them, and LEPTA (the `multiprocessing` one). What looks at the
environment when it is imported is made anew, in the environment that the command is given.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from lepta.cli import COMMANDS

FORKS = multiprocessing.get_context("forkserver")
# Packages that look at nothing in the environment that a test may set, but these two, which `lepta.cli.main` sets.
PRELOAD = ["accelerate", "peft", "scipy.sparse", "torch", "transformers.trainer"]
PRELOAD += ["transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"]
PRELOAD += ["google.protobuf.descriptor_pb2", "pydantic.dataclasses", "pydantic.type_adapter", "rapidfuzz.process"]
PRELOAD += ["rich.progress", "sentencepiece.sentencepiece_model_pb2", "typer.main"]
PRELOAD += ["lepta.learning", "lepta.pipeline", *(f"lepta.cli.{module}" for module, _ in COMMANDS.values())]
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
INTERRUPT = 0.02  # seconds between looks at what a command does


class Command:
    """A command that runs; like `subprocess.Popen`, as far as tests need it."""

    def __init__(self, arguments, cwd=None, environment=None, largest_file=None, module="lepta"):
        self.arguments = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="lepta-test-")  # gone with this object
        self._output = Path(self._folder.name)
        given = (module, self.arguments, str(cwd or Path.cwd()), {**os.environ, **(environment or {})}, largest_file)
        with patch.dict(os.environ, QUIET):  # for the server, which the first process starts
            FORKS.set_forkserver_preload(PRELOAD)
            self._process = FORKS.Process(target=_run, args=(*given, str(self._output)))
            self._process.start()

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self._process.exitcode

    def text(self, name):
        """What it has written to `stdout` or `stderr`."""
        return (self._output / name).read_text(encoding="utf-8")


def lepta(*arguments, **options):
    """Run a command of LEPTA to its end; options as for `python`."""
    return python("lepta", *arguments, **options)


def python(module, *arguments, cwd=None, check=None, environment=None, largest_file=None, timeout=600):
    """Run `python -m` to its end; `check` is the exit status it has to have, `largest_file` a limit in bytes."""
    command = Command(arguments, cwd, environment, largest_file, module)
    status = command.wait(timeout)
    done = subprocess.CompletedProcess(command.arguments, status, command.text("stdout"), command.text("stderr"))
    assert check is None or status == check, done.stderr[-3000:]
    return done


def killed(*arguments, when, cwd=None, signal_number=signal.SIGKILL, environment=None, timeout=120):
    """Start a command and send it a signal once `when()` is true."""
    command = Command(arguments, cwd, environment)
    deadline = time.monotonic() + timeout
    while not when():
        assert time.monotonic() < deadline and command.poll() is None, command.text("stderr")
        time.sleep(INTERRUPT)
    command.send_signal(signal_number)
    return command.wait(timeout)


def _run(module, arguments, cwd, environment, largest_file, output):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    _make_terminals()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def _make_terminals():
    from lepta.cli import common
    from lepta.core import progress

    for console in (common.console, progress.console):
        vars(console).update(vars(progress.terminal(console.stderr)))
