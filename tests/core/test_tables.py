"""Tables for the terminal."""

import pytest
from rich.console import Console

from lepta.cli.recipes import print_status
from lepta.core.tables import number_table, significant
from lepta.stages import Stage, Verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00012345, "0.000123"), (0.049, "0.0490"), (1.5, "1.50"), (66.84, "66.8"), (123456.7, "123,457")],
)
def test_a_small_number_is_not_zero(value, text):
    assert significant(value) == text


def test_two_long_names_leave_the_first_column_its_words_on_80_columns():
    table = number_table("task", "original short-answers", "calibrated short-answers", "difference", "95 %", "p")
    cells = ["Copy paragraph EN", "0.300", "0.340", "+0.040", "-0.110 to +0.230", "0.040"]
    table.add_row(*cells)
    with (console := Console(width=80)).capture() as shown:
        console.print(table)
    assert any(all(cell in line for cell in cells) for line in shown.get().splitlines())


def test_the_list_of_stages_keeps_their_names_whole_on_80_columns(monkeypatch, capsys):
    name = "calibration/short-answers/examples"
    monkeypatch.setenv("COLUMNS", "80")
    stage = Stage(name, {}, {}, lambda _: {})
    print_status([Verdict(stage, current=False, reason="after calibration/short-answers/answers")], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(name in line for line in lines) and max(map(len, lines)) <= 80
