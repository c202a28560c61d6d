"""Rules of the splits: roles, groups (parts, days), and what validates."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.roles import FEWEST_VALIDATING, VALIDATION_SIZE, hold_out, split
from worker.core.errors import ConfigurationError


@given(
    st.integers(1, 200),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.01, 0.1]),
    st.integers(1, 20) | st.none(),
    st.integers(0, 1000),
)
def test_no_group_is_in_two_roles(
    count: int, names: int, faults: float, calibration_size: int | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, names, count)
    anomalous = rng.random(count) < faults
    faulty = set(groups[anomalous].tolist())
    try:
        roles = split(anomalous, calibration_size, seed, groups)
    except ConfigurationError:
        return
    fit, calibration, evaluation = (set(groups[role].tolist()) for role in roles)
    assert len(fit | calibration | evaluation) == len(fit) + len(calibration) + len(evaluation)
    assert sorted(np.concatenate(roles).tolist()) == list(range(count))
    assert fit
    assert calibration
    assert faulty <= evaluation
    assert bool(evaluation) == bool(faulty)
    assert calibration_size is None or len(roles[1]) >= calibration_size


@given(st.lists(st.booleans(), min_size=8, max_size=100), st.integers(2, 20), st.integers(0, 1000))
def test_groups_of_one_split_as_independent_images(anomalous: list[bool], size: int, seed: int) -> None:
    labels = np.array(anomalous, np.bool_)
    try:
        expected = split(labels, size, seed)
    except ConfigurationError:
        return
    for ours, theirs in zip(split(labels, size, seed, np.arange(len(labels))), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(st.lists(st.sampled_from(["", "anomaly", "test"]), min_size=8, max_size=100), st.integers(0, 1000))
def test_what_is_there_to_evaluate_alone_does(kinds: list[str], seed: int) -> None:
    anomalous, test = np.array(kinds) == "anomaly", np.array(kinds) == "test"
    try:
        fit, calibration, evaluation = split(anomalous, 2, seed, test=test)
    except ConfigurationError:
        assert (~anomalous & ~test).sum() < 4
        return
    np.testing.assert_array_equal(evaluation, np.flatnonzero(anomalous | test))
    assert sorted([*fit, *calibration, *evaluation]) == list(range(len(kinds)))
    assert len(calibration) == 2


@given(st.integers(0, 9000), st.integers(1, 400) | st.none(), st.integers(0, 1000))
def test_what_validates_does_not_learn(count: int, names: int | None, seed: int) -> None:
    groups = None if names is None else np.random.default_rng(seed).integers(0, names, count)
    learning, validating = hold_out(count, seed, groups)
    assert sorted([*learning, *validating]) == list(range(count))
    assert len(validating) == 0 or FEWEST_VALIDATING <= len(validating) <= min(VALIDATION_SIZE, count // 10)
    if groups is None:
        expected = min(VALIDATION_SIZE, count // 10)
        assert len(validating) == (expected if expected >= FEWEST_VALIDATING else 0)
    else:
        assert not set(groups[learning]) & set(groups[validating])
    np.testing.assert_array_equal(hold_out(count, seed, groups)[1], validating)
