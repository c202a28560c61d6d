"""Figures for people.

Rule: rounding never claims what was not counted. 0.99996 is not 1, one of 20,000 is not none, and an interval is
rounded outwards.
"""

import math

NEARLY = 1e-9
"""What sums of floats may miss 0 and 1 by."""


def ratio(value: float) -> str:
    """A figure between 0 and 1: "0.9876", "> 0.9999", "1"."""
    return _between(value, 1, 4)


def percent(value: float) -> str:
    """A share: "98.8 %", "> 99.9 %", "0.06 %", "100 %"."""
    return f"{_between(100 * value, 100, 2 if value < 0.01 else 1)} %"


def interval(limits: tuple[float, float] | None) -> str:
    """The limits of a share, rounded outwards: "91.1 to 100 %"."""
    if limits is None:
        return "not known"
    low, high = limits
    digits = 2 if high < 0.01 else 1
    return f"{_down(low, digits):g} to {-_down(-high, digits):g} %"


def at_least(limit: float) -> str:
    """The lower limit of a share, rounded down: "91.1 %"."""
    return f"{_down(limit, 2 if limit < 0.01 else 1):g} %"


def _between(value: float, top: int, digits: int) -> str:
    if value <= NEARLY or value >= top - NEARLY:
        return str(top if value > NEARLY else 0)
    step = 10.0**-digits
    rounded = round(value, digits)
    if 0 < rounded < top:
        return f"{value:.{digits}f}"
    return f"< {step:.{digits}f}" if rounded <= 0 else f"> {top - step:.{digits}f}"


def _down(share: float, digits: int) -> float:
    """A share in %, rounded down."""
    scale: int = 10**digits
    return math.floor(100 * share * scale + NEARLY) / scale
