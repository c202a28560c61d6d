from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.topic_rules import (
    DEAD_LETTER_ROOM_BYTES,
    OUTPUT_BYTES,
    Problem,
    TopicState,
    error_of,
    in_order,
    judge_topics,
)
from worker.core.errors import BundleError, ConfigurationError, ExitCode, KafkaRefused, KafkaUnreachable

KINDS = ("configuration", "bundle", "unreachable", "refused")
ERRORS = (ConfigurationError, BundleError, KafkaUnreachable, KafkaRefused)


@given(st.lists(st.sampled_from(KINDS), min_size=1))
def test_the_first_kind_decides_the_exit_status(kinds: list[str]) -> None:
    problems = [Problem(kind, f"problem {number}") for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    error = error_of(problems)
    assert type(error) is ERRORS[min(map(KINDS.index, kinds))]
    assert str(error).splitlines() == [problem.message for problem in in_order(problems)]
    assert sorted(str(error).splitlines()) == sorted(problem.message for problem in problems)


def test_exit_statuses() -> None:
    assert [cls.exit_code for cls in ERRORS] == [2, 3, 6, 4]
    assert error_of([Problem("refused", "no")]).exit_code == ExitCode.KAFKA_REFUSED


_LIMITS = st.none() | st.integers(1, 1 << 30)
_TOPICS = st.builds(
    TopicState, st.just("t"), st.integers(1, 50), _LIMITS, st.sampled_from([None, "delete", "compact,delete"])
)


@given(source=_TOPICS, output=_TOPICS, letters=_TOPICS, maps=st.none() | _TOPICS, limit=st.integers(1, 1 << 30))
def test_topics_without_a_problem_can_hold_every_answer(
    source: TopicState, output: TopicState, letters: TopicState, maps: TopicState | None, limit: int
) -> None:
    problems = judge_topics((source, output, letters, maps), limit)
    small = source.max_message_bytes is not None and limit < source.max_message_bytes
    assert any(problem.kind == "configuration" for problem in problems) == small
    fits = (
        all(
            topic.partitions >= source.partitions and "compact" not in (topic.cleanup_policy or "")
            for topic in (output, letters, maps or output)
        )
        and (
            source.max_message_bytes is None
            or letters.max_message_bytes is None
            or letters.max_message_bytes >= source.max_message_bytes + DEAD_LETTER_ROOM_BYTES
        )
        and all(
            topic.max_message_bytes is None or topic.max_message_bytes >= OUTPUT_BYTES
            for topic in (output, maps or output)
        )
    )
    assert any(problem.kind == "refused" for problem in problems) != fits


@given(source=st.none() | _TOPICS, others=st.lists(st.none() | _TOPICS, min_size=2, max_size=3))
def test_missing_topics_hide_no_problem_of_the_others(
    source: TopicState | None, others: list[TopicState | None]
) -> None:
    problems = judge_topics((source, *others), 1 << 30)
    if source is None:
        assert problems == []
    else:
        alone: list[Problem] = []
        for place, topic in enumerate(others):
            only = [topic if other == place else None for other in range(len(others))]
            alone += judge_topics((source, *only), 1 << 30)
        assert sorted(map(repr, problems)) == sorted(map(repr, alone))
