import msgspec
import numpy as np
import pytest

from deploy.demo.accounting import Account, Position, Sent, account, differs
from training.evaluate import Evaluation, evaluate
from worker.core.verdicts import ModelName, SourcePosition, Verdict

THRESHOLD = float(np.float32(0.1))
JUST_ABOVE = float(np.nextafter(np.float32(0.1), np.float32(1)))
SENT: dict[Position, Sent] = {
    (0, 0): Sent("normal", anomaly=False),
    (0, 1): Sent("strange", anomaly=True),
    (1, 0): Sent("missed", anomaly=True),
    (1, 1): Sent("alarm", anomaly=False),
    (1, 2): Sent("broken", anomaly=None),
}
SCORES = {"normal": THRESHOLD, "strange": JUST_ABOVE, "missed": 0.0, "alarm": 5.0, "broken": None}
LETTERS = [(1, 2)]


def verdict(position: Position, score: float | None, identity: str = "") -> Verdict:
    return Verdict(
        version=1,
        id=identity or SENT[position].id,
        stream="s",
        status="unreadable" if score is None else "judged",
        reason="not_an_image" if score is None else None,
        source=SourcePosition("images", *position, None),
        model=ModelName("m", "0123456789ab"),
        score=score,
        error=score,
        threshold=THRESHOLD,
        anomaly=None if score is None else score > THRESHOLD,
        p_value=None if score is None else 0.5,
        region=None,
        scored_at_ms=5,
    )


def answers() -> list[Verdict]:
    return [verdict(position, SCORES[sent.id]) for position, sent in SENT.items()]


def account_of(verdicts: list[Verdict], letters: list[Position] | None = None) -> Account:
    return account(SENT, verdicts, LETTERS if letters is None else letters, THRESHOLD)


def test_what_is_complete_has_no_problems() -> None:
    result = account_of(answers())
    assert result.problems == ()
    assert (result.published, result.judged, result.unreadable, result.dead_letters) == (5, 4, 1, 1)
    figures = result.evaluation
    assert (figures.tp, figures.tn, figures.fp, figures.fn) == (1, 1, 1, 1)
    assert (figures.precision, figures.recall, figures.f1, figures.auroc) == (0.5, 0.5, 0.5, 0.25)


def test_the_order_of_the_answers_does_not_matter() -> None:
    assert account_of(answers()[::-1]) == account_of(answers())


def changed(index: int, **fields: object) -> list[Verdict]:
    verdicts = answers()
    verdicts[index] = msgspec.structs.replace(verdicts[index], **fields)
    return verdicts


STRAY = SourcePosition("images", 1, 3, None)


@pytest.mark.parametrize(
    ("verdicts", "letters", "problem"),
    [
        (answers()[1:], LETTERS, "1 positions without answer: [(0, 0)]"),
        ([*answers(), answers()[1]], LETTERS, "1 positions with more than one answer: [(0, 1)]"),
        (
            [*answers(), msgspec.structs.replace(answers()[0], source=STRAY)],
            LETTERS,
            "1 positions of no message, with answer: [(1, 3)]",
        ),
        (answers(), [], "1 positions without dead letter: [(1, 2)]"),
        (answers(), [*LETTERS, *LETTERS], "1 positions with more than one dead letter: [(1, 2)]"),
        (answers(), [*LETTERS, (0, 0)], "1 positions of no message, with dead letter: [(0, 0)]"),
        (changed(0, id="another"), LETTERS, "the answer to normal calls it another"),
        (changed(0, anomaly=True), LETTERS, f"normal: anomaly is True, score {THRESHOLD}"),
        (changed(1, anomaly=False), LETTERS, f"strange: anomaly is False, score {JUST_ABOVE}"),
        (changed(1, anomaly=None), LETTERS, f"strange: anomaly is None, score {JUST_ABOVE}"),
        (changed(4, score=0.5, status="judged", reason=None), LETTERS, "broken was answered judged (None)"),
        (changed(4, score=0.5), LETTERS, "broken was answered unreadable (not_an_image)"),
        (changed(0, score=None), LETTERS, "normal was answered judged (None)"),
        (
            changed(3, score=None, status="unreadable", reason="wrong_size"),
            LETTERS,
            "alarm was answered unreadable (wrong_size)",
        ),
    ],
)
def test_each_fault_is_found_and_named(verdicts: list[Verdict], letters: list[Position], problem: str) -> None:
    assert account_of(verdicts, letters).problems == (problem,)


@pytest.mark.parametrize(("index", "status"), [(0, "unreadable"), (0, "expired"), (4, "judged"), (4, "expired")])
def test_a_status_that_disagrees_with_its_score_is_found(index: int, status: str) -> None:
    verdict = answers()[index]
    problem = f"{verdict.id} was answered {status} ({verdict.reason})"
    assert account_of(changed(index, status=status)).problems == (problem,)


def test_an_answer_in_another_ones_place_is_missing_and_repeated() -> None:
    verdicts = changed(0, source=SourcePosition("images", 0, 1, None))
    problems = account_of(verdicts).problems
    assert problems[:2] == ("1 positions without answer: [(0, 0)]", "1 positions with more than one answer: [(0, 1)]")
    assert "the answer to strange calls it normal" in problems


def test_a_long_list_is_cut() -> None:
    sent = {(0, offset): Sent(str(offset), anomaly=False) for offset in range(100)}
    one = msgspec.structs.replace(verdict((0, 0), 0.0), id="0")
    problem = "99 positions without answer: [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]"
    assert account(sent, [one], [], THRESHOLD).problems == (problem,)


def test_nothing_judged_is_no_account() -> None:
    with pytest.raises(ValueError, match="at least one labelled image"):
        account_of([])


def figures(**numbers: int) -> Evaluation:
    counts = {"tp": 10, "tn": 20, "fp": 3, "fn": 4} | numbers
    none = evaluate(np.zeros(1, np.float32), np.array([False]), THRESHOLD)
    return msgspec.structs.replace(none, **counts)


@pytest.mark.parametrize("name", ["tp", "tn", "fp", "fn"])
@pytest.mark.parametrize("sign", [1, -1])
def test_evaluations_differ_beyond_the_images_at_the_threshold(name: str, sign: int) -> None:
    base = {"tp": 10, "tn": 20, "fp": 3, "fn": 4}[name]
    assert differs(figures(), figures(), 0) is None
    assert differs(figures(**{name: base + 2 * sign}), figures(), 2) is None
    found = differs(figures(**{name: base + 3 * sign}), figures(), 2)
    assert found == f"{name} {base + 3 * sign} here, {base} in the bundle"
