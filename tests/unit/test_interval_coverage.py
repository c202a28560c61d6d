"""A short form of `make interval-coverage`: a few hundred draws of its scenarios."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.bench.intervals import WANTED, Coverage, Scenario, main, measure
from training.thresholds import MIN_GROUPS, Percentile, fit_threshold, rate_interval
from training.thresholds.interval import clopper_pearson, design_effect, unseen_share

DRAWS = 300


def holds(scenario: Scenario, method: str = "percentile", seed: int = 1) -> Coverage:
    (found,) = measure(scenario, (method,), DRAWS, seed)
    return found


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("grouped", 50, 10, 0.8),
        Scenario("grouped", 100, 0, 0.8, "heavy"),
        Scenario("grouped", 50, 10, 0.3, "lognormal", bad=0.03),
        Scenario("grouped", MIN_GROUPS, 10, 0.8),
        Scenario("drifting", 50, 50, 0.5),
    ],
    ids=lambda scenario: scenario.title,
)
def test_the_interval_holds_for_grouped_images_and_one_that_ignores_groups_does_not(scenario: Scenario) -> None:
    found = holds(scenario)
    assert found.holds is not None
    assert found.ignoring_groups is not None
    assert found.holds >= WANTED
    assert found.ignoring_groups < 0.85 < WANTED


@pytest.mark.parametrize(
    "method", ["percentile", "mean_plus_k_std", "peaks_over_threshold", "conformal", "best_f1", "cost_weighted"]
)
def test_the_interval_of_independent_images_holds_for_every_method(method: str) -> None:
    found = holds(Scenario("independent", 500, family="gamma"), method)
    assert found.holds is not None
    assert found.holds >= WANTED


def test_resampling_groups_holds_less_often_than_what_is_stated() -> None:
    found = holds(Scenario("grouped", 50, 10, 0.8, "gamma"))
    assert found.bootstrap is not None
    assert found.holds is not None
    assert found.bootstrap < WANTED <= found.holds


@pytest.mark.parametrize(("climb", "rate"), [(1.0, 0.02), (2.0, 0.03)])
def test_a_one_way_drift_is_told_and_no_interval_stated(climb: float, rate: float) -> None:
    found = holds(Scenario("drifting", 100, 50, 0.1, one_way=climb))
    assert found.stated is not None
    assert found.stated < 0.01
    assert found.why is not None
    assert found.why.startswith("scores rise with time (rank correlation 0.")
    assert found.rate is not None
    assert found.rate > rate


def test_days_that_differ_at_random_have_an_interval() -> None:
    found = holds(Scenario("drifting", 50, 50, 0.5))
    assert found.stated is not None
    assert found.stated > 0.98


def test_scores_that_fall_with_time_are_told_too_and_only_where_groups_follow_time() -> None:
    groups = np.repeat(np.arange(40), 5)
    scores = (100 - groups + np.random.default_rng(0).random(200)).astype(np.float32)
    told = rate_interval(scores, np.float32(95), groups, in_time=True)
    assert told.limits is None
    assert (told.reason or "").startswith("scores fall with time (rank correlation -1.00)")
    assert rate_interval(scores, np.float32(95), groups).limits is not None


def test_of_independent_images_the_interval_is_that_of_order_statistics() -> None:
    # Of 500 scores the percentile 99 lies between the 495th and the 496th; shares above them are Beta distributed.
    scores = np.random.default_rng(0).random(500, np.float32)
    fit = fit_threshold(Percentile(99.0), scores)
    assert fit.interval == pytest.approx((stats.beta.ppf(0.025, 5, 496), stats.beta.ppf(0.975, 6, 495)))
    assert fit.interval == pytest.approx((0.0033, 0.0232), abs=2e-4)


def test_more_scores_narrow_the_interval() -> None:
    widths = [np.diff(clopper_pearson(n / 100, n))[0] for n in (100, 500, 5000)]
    assert widths == sorted(widths, reverse=True)


@given(st.integers(20, 60), st.integers(0, 1000), st.floats(0.5, 0.95))
def test_groups_of_one_are_independent_images(n: int, seed: int, quantile: float) -> None:
    scores = np.random.default_rng(seed).random(n, np.float32)
    threshold = np.float32(np.quantile(scores, quantile))
    grouped, independent = rate_interval(scores, threshold, np.arange(n)), rate_interval(scores, threshold, None)
    assert grouped.limits == pytest.approx(independent.limits)


@given(st.integers(20, 60), st.integers(2, 9), st.integers(0, 1000))
def test_copies_of_an_image_tell_nothing_new(groups: int, copies: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random(groups, np.float32)
    members = np.repeat(np.arange(groups), copies)
    threshold = np.float32(np.quantile(scores, 0.9))
    alone, copied = rate_interval(scores, threshold, None), rate_interval(scores[members], threshold, members)
    assert alone.limits is not None
    assert copied.limits is not None
    # With the correction for an estimated design effect it may be a little wider, never narrower.
    assert copied.limits[0] <= alone.limits[0] + 1e-9
    assert copied.limits[1] >= alone.limits[1] - 1e-9
    assert design_effect(scores[members], int((scores[members] > threshold).sum()), members) == pytest.approx(copies)


@given(st.integers(20, 50), st.integers(1, 9), st.integers(0, 1000))
def test_names_and_order_of_groups_mean_nothing(groups: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = rng.integers(0, groups, groups * size)
    scores = rng.random(len(members), np.float32)
    renamed, order = rng.permutation(groups) * 7 - 50, rng.permutation(len(members))
    threshold = np.float32(0.9)
    first = rate_interval(scores, threshold, members)
    again = rate_interval(scores[order], threshold, renamed[members][order].astype(np.intp))
    assert first.limits == pytest.approx(again.limits)


def test_the_upper_limit_leaves_room_for_groups_that_were_not_seen() -> None:
    groups = np.repeat(np.arange(50), 40)
    scores = np.random.default_rng(0).random(2000, np.float32)
    assert rate_interval(scores, np.float32(2), groups).limits == pytest.approx((0.0, 1 - 0.025 ** (1 / 50)))
    assert (1 - unseen_share(50)) ** 50 == pytest.approx(0.025)


@pytest.mark.parametrize("groups", [1, 2, MIN_GROUPS - 1])
def test_too_few_groups_promise_nothing_and_say_what_would(groups: int) -> None:
    members = np.arange(400) % groups
    fit = fit_threshold(Percentile(99.0), np.random.default_rng(0).random(400, np.float32), members)
    assert (fit.interval, fit.groups) == (None, groups)
    assert fit.no_interval == f"no promise from too few groups: {groups}; about 20 would do, 100 would say more"
    more = fit_threshold(Percentile(99.0), np.random.default_rng(0).random(400, np.float32), np.arange(400) % 20)
    assert more.interval is not None
    assert more.no_interval is None


def test_a_group_for_every_score() -> None:
    with pytest.raises(ValueError, match="each of the 400 scores, got 3"):
        fit_threshold(Percentile(), np.zeros(400, np.float32), np.arange(3))


def test_the_program_writes_what_it_shows_and_fails_below_what_is_wanted(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bench import intervals

    good, bad = Scenario("independent", 100), Scenario("independent", 500)
    monkeypatch.setattr(intervals, "scenarios", lambda: (good,))
    output = f"{tmp_path}/coverage.json"
    assert main(["--draws", "40", "--output", output]) == 0
    assert "independent: holds in at least" in capsys.readouterr().out
    monkeypatch.setattr(intervals, "scenarios", lambda: (bad,))
    monkeypatch.setattr(intervals, "WANTED", 1.01)
    assert main(["--draws", "10", "--output", output]) == 1
    assert "below 101%: 500 x 1, normal, percentile" in capsys.readouterr().out
