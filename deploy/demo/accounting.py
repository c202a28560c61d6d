"""Holds what was published against what was answered, position by position. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from training.evaluate import Evaluation, evaluate
from worker.core.verdicts import Verdict

Position = tuple[int, int]
"""(partition, offset) on the input topic."""


class Sent(msgspec.Struct, frozen=True):
    """A record of the input topic: its id, and whether its image is an anomaly; None where it is broken."""

    id: str
    anomaly: bool | None


@dataclass(frozen=True)
class Account:
    """Every message and its answers.

    Attributes:
        published, judged, unreadable, dead_letters: numbers of records.
        problems: whatever is not as promised, a sentence each; empty when every message has exactly one answer.
        evaluation: of the verdicts against the labels.
    """

    published: int
    judged: int
    unreadable: int
    dead_letters: int
    problems: tuple[str, ...]
    evaluation: Evaluation


def account(
    sent: Mapping[Position, Sent], verdicts: Sequence[Verdict], letters: Sequence[Position], threshold: float
) -> Account:
    """Hold verdicts and dead letters against what was sent.

    Args:
        sent: everything on the input topic.
        verdicts: everything on the output topic.
        letters: the source position of every dead letter.
        threshold: the bundle's, float32.

    Raises:
        ValueError: nothing was judged.
    """
    problems: list[str] = []
    answers = Counter((verdict.source.partition, verdict.source.offset) for verdict in verdicts)
    problems += _differences("answer", answers, sent)
    broken = [position for position, record in sent.items() if record.anomaly is None]
    problems += _differences("dead letter", Counter(letters), broken)
    scores: list[float] = []
    labels: list[bool] = []
    unreadable = 0
    for verdict in verdicts:
        record = sent.get((verdict.source.partition, verdict.source.offset))
        if record is None:
            continue
        if verdict.id != record.id:
            problems.append(f"the answer to {record.id} calls it {verdict.id}")
        if verdict.status == "unreadable":
            unreadable += 1
        expected = "unreadable" if record.anomaly is None else "judged"
        if verdict.status != expected or (verdict.score is None) != (record.anomaly is None):
            problems.append(f"{record.id} was answered {verdict.status} ({verdict.reason})")
        elif verdict.score is not None and record.anomaly is not None:
            scores.append(verdict.score)
            labels.append(record.anomaly)
            if verdict.anomaly != (np.float32(verdict.score) > np.float32(threshold)):
                problems.append(f"{record.id}: anomaly is {verdict.anomaly}, score {verdict.score}")
    return Account(
        published=len(sent),
        judged=len(scores),
        unreadable=unreadable,
        dead_letters=len(letters),
        problems=tuple(problems),
        evaluation=evaluate(np.array(scores, np.float32), np.array(labels, np.bool_), threshold),
    )


def differs(ours: Evaluation, stored: Evaluation, near: int) -> str | None:
    """Whether two evaluations of the same images differ by more than the `near` images at the threshold."""
    pairs = [("tp", ours.tp, stored.tp), ("tn", ours.tn, stored.tn), ("fp", ours.fp, stored.fp)]
    pairs.append(("fn", ours.fn, stored.fn))
    apart = [f"{name} {a} here, {b} in the bundle" for name, a, b in pairs if abs(a - b) > near]
    return "; ".join(apart) or None


def _differences(
    what: str, found: Mapping[Position, int], expected: Sequence[Position] | Mapping[Position, Sent]
) -> list[str]:
    wanted = set(expected)
    missing = [position for position in wanted if position not in found]
    repeated = [position for position, count in found.items() if count > 1]
    stray = [position for position in found if position not in wanted]
    problems = []
    for positions, complaint in (
        (missing, f"without {what}"),
        (repeated, f"with more than one {what}"),
        (stray, f"of no message, with {what}"),
    ):
        if positions:
            problems.append(f"{len(positions)} positions {complaint}: {sorted(positions)[:5]}")
    return problems
