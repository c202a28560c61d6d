import pytest

from worker.core.failures import Failures
from worker.core.records import TopicPartition

P0, P1, P2 = (TopicPartition("images", number) for number in range(3))


def test_a_way_of_failing_lasts_from_its_first_failure() -> None:
    failures = Failures()
    assert failures.failed("letters", 10.0, {P0: 5}) == 0.0
    assert failures.failed("letters", 14.0, {P0: 3}) == 4.0
    assert failures.failed("refused", 15.0, {P0: 3}) == 0.0
    assert "letters" in failures
    assert "size" not in failures


@pytest.mark.parametrize(("committed", "lasted"), [({P0: 4}, 9.0), ({P1: 5}, 9.0), ({P0: 5}, 0.0), ({P0: 6}, 0.0)])
def test_it_is_over_when_what_failed_was_committed_and_not_before(
    committed: dict[TopicPartition, int], lasted: float
) -> None:
    failures = Failures()
    failures.failed("letters", 1.0, {P0: 5})
    failures.succeeded(committed)
    assert bool(failures) is (lasted > 0)
    assert failures.failed("letters", 10.0, {P0: 5}) == lasted


def test_of_records_that_failed_together_the_rest_goes_on() -> None:
    failures = Failures()
    failures.failed("letters", 1.0, {P0: 5, P1: 7})
    failures.succeeded({P1: 7})
    assert failures.failed("letters", 4.0, {P1: 9}) == 0.0
    assert failures.failed("letters", 6.0, {P0: 5, P1: 9}) == 5.0


def test_the_highest_position_that_failed_must_be_passed() -> None:
    failures = Failures()
    failures.failed("letters", 1.0, {P0: 9})
    failures.failed("letters", 2.0, {P0: 5})
    failures.succeeded({P0: 5})
    assert "letters" in failures


def test_partitions_that_are_taken_away_take_their_failures_along() -> None:
    failures = Failures()
    failures.failed("letters", 1.0, {P0: 5, P1: 7})
    failures.revoked([P0, P2])
    assert failures.failed("letters", 3.0, {P0: 5}) == 0.0
    failures.revoked([P0, P1])
    assert not failures


def test_without_records_it_is_over_with_the_next_success() -> None:
    failures = Failures()
    failures.failed("refused", 1.0, {})
    assert failures.failed("refused", 3.0, {}) == 2.0
    failures.succeeded({P2: 0})
    assert not failures


def test_a_failure_without_records_goes_on_with_those_that_there_were() -> None:
    failures = Failures()
    failures.failed("letters", 1.0, {P0: 5})
    assert failures.failed("letters", 4.0, {}) == 3.0
    failures.succeeded({P1: 9})
    assert "letters" in failures


def test_a_way_can_be_forgotten() -> None:
    failures = Failures()
    failures.failed("letters", 1.0, {P0: 5})
    failures.forget("letters")
    failures.forget("never there")
    assert not failures
