import pytest

from training.plan import affordable_epochs, enough_epochs, patience_for
from worker.core.errors import ConfigurationError


def test_a_small_source_gets_more_epochs() -> None:
    assert [enough_epochs(20, steps) for steps in (1, 2, 49, 50, 51, 1000)] == [1000, 500, 21, 20, 20, 20]


def test_a_budget_limits_the_epochs_and_leaves_a_tenth() -> None:
    assert [affordable_epochs(40, each_s, 60) for each_s in (3240, 400, 81, 80)] == [1, 8, 40, 40]


def test_a_budget_too_small_for_one_epoch_is_refused_with_what_would_do() -> None:
    with pytest.raises(
        ConfigurationError, match=r"0\.5 minutes were given; one epoch takes about 6 min 40 s .* 8 min"
    ):
        affordable_epochs(40, 400, 0.5)
    assert affordable_epochs(40, 400, 8) == 1


def test_a_quarter_of_the_epochs_may_bring_nothing() -> None:
    assert [patience_for(epochs) for epochs in (1, 4, 5, 40)] == [1, 1, 2, 10]
