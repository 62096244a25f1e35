"""Time left, as logs tell it; what comes from files and may command the terminal."""

import io
import json
import time

from rich.table import Table

from lepta.cli.common import print_json
from lepta.core import progress as module
from lepta.core.progress import Terminal, progress, step


def test_time_left_goes_by_what_was_done_since_the_beginning(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("steps", 100) as meter:
        now[0] = 600  # a measurement before the first step
        meter.begin(50)  # of a run that goes on
        now[0] = 660
        meter.set(60)
    assert capsys.readouterr().err == "  steps 60 of 100 6.0 s each, 4.0 min left\n"


def test_a_log_names_what_takes_long_before_it_ends(monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS_BEFORE_LINE", 0.1)
    with step("short"):
        pass
    with step("long"):
        time.sleep(0.3)
        assert capsys.readouterr().err == "  long\n"
    with progress("windows", 10):  # nothing is done yet, so there is nothing to count
        time.sleep(0.3)
        assert capsys.readouterr().err == "  windows\n"
    assert not capsys.readouterr().err


def test_control_characters_of_texts_are_shown_and_not_sent(capsys):
    out = io.StringIO()
    console = Terminal(file=out, width=80)
    table = Table("name")
    table.add_row("\x1b[2J\x9b31m")
    console.print("a\x1b]0;title", markup=False)
    console.print(table)
    assert "\x1b" not in out.getvalue() and "\x9b" not in out.getvalue() and r"\x1b[2J\x9b31m" in out.getvalue()
    with progress("hashing \x1b[2J", 1) as meter:
        meter.set(1)
    print_json({"name": "\x9b31m\u202e"})
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err and "\x9b" not in shown.out and json.loads(shown.out)["name"] == "\x9b31m\u202e"


def test_a_notebook_has_bars_where_it_can_draw_them(monkeypatch, capsys):
    monkeypatch.setattr(module, "console", Terminal(stderr=True, force_jupyter=True))
    for there, kind in ((None, module._Lines), (object(), module._Bar)):
        monkeypatch.setattr(module, "find_spec", lambda name, there=there: there)
        monkeypatch.setattr(module.Progress, "start", lambda self: None)  # IPython draws
        monkeypatch.setattr(module.Progress, "stop", lambda self: None)
        with progress("steps", 100) as meter:
            assert type(meter) is kind
