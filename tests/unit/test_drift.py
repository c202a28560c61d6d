import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from worker.core.drift import (
    MIN_WINDOW,
    Drift,
    Ring,
    distance_from_uniform,
    level_places,
    rank_places,
    valid_quantiles,
)

# Of few different values, so that ties are common.
small = st.integers(-4, 4).map(float)
values_lists = st.lists(small, min_size=1, max_size=30)


def f32(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@given(values_lists, values_lists)
def test_a_mid_rank_is_the_share_below_and_half_of_the_equal(calibration: list[float], live: list[float]) -> None:
    expected = [
        (sum(c < value for c in calibration) + sum(c == value for c in calibration) / 2) / len(calibration)
        for value in live
    ]
    assert rank_places(f32(calibration))(f32(live)).tolist() == pytest.approx(expected)


def test_places_between_levels_are_interpolated_and_end_at_0_and_1() -> None:
    places = level_places({"0": 10.0, "0.5": 20.0, "1": 40.0})
    live = f32([5, 10, 15, 20, 30, 40, 41])
    assert places(live).tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_a_value_that_several_levels_share_has_the_place_in_their_middle() -> None:
    """A camera whose calibration images were all equally bright is at its own middle, not at an end."""
    assert level_places({"0": 0.5, "0.5": 0.5, "1": 0.5})(f32([0.4, 0.5, 0.6])).tolist() == [0, 0.5, 1]
    places = level_places({"0": 0.0, "0.2": 0.5, "0.6": 0.5, "1": 1.0})
    assert places(f32([0.5, 0.25, 0.75])).tolist() == pytest.approx([0.4, 0.1, 0.8])


def test_levels_are_numbers_whatever_their_order() -> None:
    places = level_places({"1": 2.0, "0.5": 1.0, "0.05": 0.5, "0": 0.0})
    assert places(f32([0.25, 1.5])).tolist() == pytest.approx([0.025, 0.75])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_distance_is_that_of_scipy(places: list[float]) -> None:
    ours = distance_from_uniform(np.array(places))
    assert ours == pytest.approx(stats.kstest(places, "uniform").statistic)


def test_the_distance_of_known_places() -> None:
    assert distance_from_uniform(np.full(1000, 0.5)) == 0.5
    assert distance_from_uniform(np.zeros(10)) == 1
    assert distance_from_uniform((np.arange(1000) + 0.5) / 1000) == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("quantiles", "valid"),
    [
        ({"0": 0.0, "0.5": 1.0, "1": 2.0}, True),
        ({"0.99": -3.0}, True),
        ({}, False),
        ({"median": 1.0}, False),
        ({"-0.1": 1.0}, False),
        ({"1.5": 1.0}, False),
        ({"nan": 1.0}, False),
        ({"0.5": math.nan}, False),
        ({"0.5": 1e39}, False),
    ],
)
def test_quantiles_are_finite_float32_by_levels_from_0_to_1(quantiles: dict[str, float], valid: bool) -> None:
    assert valid_quantiles(quantiles) == valid


@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=8))
def test_a_ring_holds_the_newest(size: int, batches: list[list[int]]) -> None:
    ring = Ring(size)
    everything: list[int] = []
    for batch in batches:
        ring.add(f32([float(value) for value in batch]))
        everything += batch
        assert sorted(ring.values.tolist()) == sorted(everything[-size:])
        assert len(ring) == min(size, len(everything))


def test_no_distance_below_the_smallest_window() -> None:
    drift = Drift({"error": rank_places(f32([1, 2, 3]))})
    assert (drift.distances(), drift.images) == ({}, 0)
    drift.add("error", np.full(MIN_WINDOW - 1, 2, np.float32))
    assert (drift.distances(), drift.images) == ({}, MIN_WINDOW - 1)
    drift.add("error", f32([2]))
    assert drift.distances() == {"error": pytest.approx(0.5)}


def test_what_the_calibration_does_not_know_is_passed_over() -> None:
    drift = Drift({"error": rank_places(f32([1, 2, 3]))})
    drift.add("brightness", f32([1]))
    assert drift.images == 0


@pytest.mark.parametrize("factor", [0.2, 5.0], ids=["all smaller: defocus", "all larger"])
def test_both_tails_are_far_and_the_same_world_is_near(factor: float) -> None:
    rng = np.random.default_rng(7)
    drift = Drift({"error": rank_places(rng.exponential(1, 500).astype(np.float32))})
    live = rng.exponential(1, 3000).astype(np.float32)
    drift.add("error", live)
    same = drift.distances()["error"]
    drift.add("error", live * np.float32(factor))
    assert same < 0.09
    assert drift.distances()["error"] > 0.4


def test_chance_exceeds_the_stated_limit_about_once_in_100_windows() -> None:
    """1.63 * sqrt(1/n + 1/m) of the module's docstring, for windows of 200 against 500 of the calibration."""
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(2000):
        calibration, live = rng.random(500, np.float32), rng.random(200, np.float32)
        distance = distance_from_uniform(rank_places(calibration)(live))
        above += distance > 1.63 * math.sqrt(1 / 200 + 1 / 500)
    assert 0.003 < above / 2000 < 0.02
