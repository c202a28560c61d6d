"""Rules of the split by groups: parts, days."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.roles import split
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
