"""Figures as people read them: rounding claims nothing that was not counted."""

import pytest

from training import words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.98765, "0.9877"),
        (0.99996, "> 0.9999"),
        (0.99994, "0.9999"),
        (0.00004, "< 0.0001"),
        (0.5, "0.5000"),
        (1.0, "1"),
        (1 - 1e-15, "1"),  # what a sum that is 1 may be
        (0.0, "0"),
    ],
)
def test_a_ratio_is_1_or_0_only_where_it_is(value: float, expected: str) -> None:
    assert words.ratio(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.98765, "98.8 %"),
        (0.9996, "> 99.9 %"),
        (0.0094, "0.94 %"),
        (0.00001, "< 0.01 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
    ],
)
def test_a_share_is_all_or_none_only_where_it_is(value: float, expected: str) -> None:
    assert words.percent(value) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((0.91189, 1.0), "91.1 to 100 %"),
        ((0.50001, 0.9991), "50 to 100 %"),
        ((0.5, 0.912), "50 to 91.2 %"),
        ((0.0, 0.00324), "0 to 0.33 %"),
        (None, "not known"),
    ],
)
def test_an_interval_is_rounded_outwards(limits: tuple[float, float] | None, expected: str) -> None:
    assert words.interval(limits) == expected


def test_a_lower_limit_is_rounded_down() -> None:
    assert words.at_least(0.9199) == "91.9 %"
    assert words.at_least(0.00129) == "0.12 %"
