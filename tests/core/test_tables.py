"""Tables for the terminal."""

import pytest

from lepta.core.tables import significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00012345, "0.000123"), (0.049, "0.0490"), (1.5, "1.50"), (66.84, "66.8"), (123456.7, "123,457")],
)
def test_a_small_number_is_not_zero(value, text):
    assert significant(value) == text
