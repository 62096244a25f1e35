"""Time left, as logs tell it."""

from lepta.core import progress as module
from lepta.core.progress import progress


def test_time_left_goes_by_what_was_done_since_the_beginning(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("steps", 100) as meter:
        now[0] = 600  # a measurement before the first step
        meter.begin(50)  # of a run that goes on
        now[0] = 660
        meter.set(60)
    assert capsys.readouterr().err == "  steps 60 of 100, 4.0 min left\n"
