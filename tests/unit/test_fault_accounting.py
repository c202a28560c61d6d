"""The fault campaign's bookkeeping: each kind of damage is seen, and nothing is seen where there is none."""

from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.accounting import (
    Account,
    Answer,
    Letter,
    Offline,
    Position,
    Published,
    account,
    longest_gap,
    out_of_order,
)
from tests.faults.campaign import schedule_of
from tests.faults.rows import ROWS, Row

SCORES = (0.25, 0.5, 0.75)
OFFLINE = {"v1": Offline(SCORES, threshold=0.5, tolerance=1e-4), "v2": Offline((0.1, 0.2, 0.3), 0.15, 1e-4)}
# Two partitions; in each the fourth message of seven is poison.
PUBLISHED: Mapping[Position, Published] = {
    (partition, offset): Published(f"m-{partition}-{offset}", None if offset == 3 else offset % 3, at=float(offset))
    for partition in range(2)
    for offset in range(7)
}


def right_answer(position: Position, version: str = "v1", at: float | None = None) -> Answer:
    message = PUBLISHED[position]
    bundle = OFFLINE[version]
    score = None if message.image is None else bundle.scores[message.image]
    return Answer(
        position,
        position[0],
        message.at + 0.5 if at is None else at,
        message.id,
        score,
        None if score is None else score > bundle.threshold,
        version,
    )


ANSWERS = [right_answer(position) for position in PUBLISHED]
LETTERS = [Letter((partition, 3), "v1") for partition in range(2)]


def held(
    answers: Sequence[Answer] = ANSWERS,
    letters: Sequence[Letter] = LETTERS,
    *,
    exactly_once: bool = True,
    allowed: int = 0,
) -> Account:
    return account(PUBLISHED, answers, letters, OFFLINE, exactly_once=exactly_once, duplicates_allowed=allowed)


def changed(answer: Answer, **fields: object) -> Answer:
    return Answer(**{**answer.__dict__, **fields})


def test_one_right_answer_each_is_no_problem() -> None:
    result = held()
    assert result.problems == ()
    assert (result.published, result.verdicts, result.dead_letters) == (14, 14, 2)
    assert (result.lost, result.duplicates, result.out_of_order, result.wrong_score) == (0, 0, 0, 0)


@given(st.sets(st.sampled_from(sorted(PUBLISHED)), min_size=1))
def test_every_missing_answer_is_lost(missing: set[Position]) -> None:
    result = held([answer for answer in ANSWERS if answer.position not in missing])
    assert result.lost == len(missing)
    assert any("no answer" in problem for problem in result.problems)


@given(st.lists(st.sampled_from(sorted(PUBLISHED)), min_size=1))
def test_repeated_answers_are_counted_and_are_no_disorder(repeated: list[Position]) -> None:
    answers = [*ANSWERS, *(right_answer(position) for position in repeated)]
    result = held(answers)
    assert (result.duplicates, result.out_of_order, result.lost) == (len(repeated), 0, 0)
    assert any("repeat" in problem for problem in result.problems)
    within = held(answers, exactly_once=False, allowed=len(repeated))
    assert within.problems == ()
    beyond = held(answers, exactly_once=False, allowed=len(repeated) - 1)
    assert any("repeat" in problem for problem in beyond.problems)


@given(st.randoms(use_true_random=False))
def test_out_of_order_counts_first_answers_behind_a_later_one_of_their_partition(random: Random) -> None:
    order = list(range(7))
    random.shuffle(order)
    expected = sum(any(before > offset for before in order[:index]) for index, offset in enumerate(order))
    shuffled = [right_answer((0, offset)) for offset in order]
    others = [answer for answer in ANSWERS if answer.position[0] == 1]
    assert len(out_of_order([*shuffled, *others])) == expected
    assert held([*shuffled, *others]).out_of_order == expected


def test_two_partitions_may_take_turns() -> None:
    turns = sorted(ANSWERS, key=lambda answer: (answer.position[1], -answer.position[0]))
    assert held(turns).problems == ()


@pytest.mark.parametrize(
    "change",
    [
        {"score": 0.2502},
        {"score": None, "anomaly": None},
        {"anomaly": True},
        {"version": "never-served"},
        {"version": "v2"},
        {"id": "another"},
        {"partition": 1},
    ],
    ids="-".join,
)
def test_a_wrong_answer_is_seen(change: dict[str, object]) -> None:
    result = held([changed(ANSWERS[0], **change), *ANSWERS[1:]])
    assert result.wrong_score == 1
    assert any("wrong" in problem for problem in result.problems)


def test_a_score_for_poison_is_wrong() -> None:
    result = held([changed(answer, score=0.25) if answer.position == (0, 3) else answer for answer in ANSWERS])
    assert result.wrong_score == 1


def test_scores_agree_within_the_tolerance_and_with_the_bundle_that_judged() -> None:
    assert held([changed(ANSWERS[0], score=0.250024), *ANSWERS[1:]]).problems == ()
    assert held([right_answer((0, 0), "v2"), *ANSWERS[1:]]).problems == ()


def test_a_wrong_repetition_is_wrong_too() -> None:
    assert held([*ANSWERS, changed(ANSWERS[0], score=9.0)], exactly_once=False, allowed=1).wrong_score == 1


def test_an_answer_to_nothing_is_a_problem() -> None:
    result = held([*ANSWERS, changed(ANSWERS[0], position=(0, 99))])
    assert any("never published" in problem for problem in result.problems)
    assert result.duplicates == 0


@pytest.mark.parametrize(
    ("letters", "word"),
    [
        (LETTERS[:1], "no dead letter"),
        ([*LETTERS, Letter((0, 0), "v1")], "good messages"),
        ([*LETTERS, LETTERS[0]], "several dead letters"),
        ([Letter((0, 3), "v1", "its key is gone"), LETTERS[1]], "its key is gone"),
        ([Letter((0, 3), "v9"), LETTERS[1]], "unknown bundle"),
    ],
)
def test_dead_letters_are_held_against_the_poison(letters: list[Letter], word: str) -> None:
    [problem] = held(letters=letters).problems
    assert word in problem


def test_at_least_once_may_repeat_a_letter() -> None:
    assert held(letters=[*LETTERS, LETTERS[0]], exactly_once=False).problems == ()


def test_the_gap_is_time_with_backlog_and_without_an_answer() -> None:
    def gap(*times: tuple[float, float]) -> float:
        published = {(0, offset): Published("", 0, at) for offset, (at, _) in enumerate(times)}
        return longest_gap(published, [Answer((0, n), 0, at, "", 0, None, "") for n, (_, at) in enumerate(times)])

    assert gap((0, 1), (0.5, 2)) == 1, "from one answer to the next"
    assert gap((0, 1), (100, 101.5)) == 1.5, "no backlog, no gap"
    assert gap((0, 1), (1.5, 22)) == 20.5, "from when the backlog began"
    assert gap((0, 30), (5, 30), (10, 30)) == 30, "a batch that comes at once counts from its first"


def test_one_partition_does_not_hide_another_s_gap() -> None:
    answers = [right_answer((0, offset)) for offset in range(7)] + [right_answer((1, 0), at=40.0)]
    assert longest_gap(PUBLISHED, answers) == 40.0


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_a_schedule_depends_on_its_seed_alone(row: Row, scale: float) -> None:
    steps = schedule_of(row, 5, scale)
    assert schedule_of(row, 5, scale) == steps
    if len(steps) > 1:
        assert schedule_of(row, 6, scale) != steps
