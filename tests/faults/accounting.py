"""Holds what was published against what was answered, position by position. Pure.

Rules: a position (partition, offset) of the input topic identifies a message, never its id; the input topic as
read at the end is the truth; every count is of messages, `problems` says the rest in words.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Position = tuple[int, int]
"""(partition, offset) on the input topic."""


@dataclass(frozen=True)
class Published:
    """A message of the input topic.

    Attributes:
        id: as its verdict must name it.
        image: its number among the images that were scored offline; None for a poison message.
        at: when it was acknowledged, Unix time in seconds.
        topic, timestamp_ms: as the record has them.
    """

    id: str
    image: int | None
    at: float
    topic: str = ""
    timestamp_ms: int = -1


@dataclass(frozen=True)
class Answer:
    """A verdict as a reader saw it.

    Attributes:
        position: of the message that it answers.
        partition: of the output topic.
        at: when it came, Unix time in seconds.
        score: None unless the message was judged.
        version: of the bundle that it names.
    """

    position: Position
    partition: int
    at: float
    id: str
    score: float | None
    anomaly: bool | None
    version: str


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    Attributes:
        position: of the message that it names.
        version: of the bundle that it names.
        flaw: what is wrong with it, see tests.faults.letters.
        omitted: it holds its message but for the value, which its topic could not take.
    """

    position: Position
    version: str
    flaw: str | None = None
    omitted: bool = False


@dataclass(frozen=True)
class Offline:
    """What a bundle makes of the images, scored outside of any worker: float32 scores, and its threshold."""

    scores: Sequence[float]
    threshold: float
    tolerance: float


@dataclass(frozen=True)
class Account:
    """Numbers of messages; longest_gap_s as longest_gap() has it; problems: a sentence each."""

    published: int
    verdicts: int
    dead_letters: int
    lost: int
    duplicates: int
    out_of_order: int
    wrong_score: int
    longest_gap_s: float
    problems: tuple[str, ...]


def account(
    published: Mapping[Position, Published],
    answers: Sequence[Answer],
    letters: Sequence[Letter],
    offline: Mapping[str, Offline],
    *,
    exactly_once: bool,
    duplicates_allowed: int,
) -> Account:
    """Hold answers and dead letters against what was published.

    Args:
        published: everything on the input topic.
        answers: everything on the output topic, each partition in its order.
        letters: everything on the dead-letter topic.
        offline: by version, for every good bundle that may have judged.
        exactly_once: no answer and no letter may repeat.
        duplicates_allowed: otherwise, how many answers may: faults x max_in_flight_records.
    """
    known = [answer for answer in answers if answer.position in published]
    firsts = _first_occurrences(known)
    lost = len(published) - len(firsts)
    duplicates = len(known) - len(firsts)
    late = out_of_order(firsts)
    wrong = [answer for answer in known if not is_right(answer, published[answer.position], offline)]
    problems = []
    if strangers := len(answers) - len(known):
        problems.append(f"{strangers} answers are to messages that were never published")
    if lost:
        missing = sorted(set(published) - {answer.position for answer in firsts})
        problems.append(f"{lost} messages have no answer, the first at {_named(missing)}")
    if wrong:
        first = wrong[0]
        problems.append(f"{len(wrong)} answers are wrong; the first, to {_named([first.position])}: {first}")
    if late:
        problems.append(
            f"{len(late)} first answers came after one to a later message of their partition; "
            f"the first, to {_named([late[0].position])}, at {late[0].at:.3f}"
        )
    allowed = 0 if exactly_once else duplicates_allowed
    if duplicates > allowed:
        problems.append(f"{duplicates} answers repeat, {allowed} may")
    problems += _letter_problems(published, letters, offline, exactly_once=exactly_once)
    return Account(
        published=len(published),
        verdicts=len(answers),
        dead_letters=len(letters),
        lost=lost,
        duplicates=duplicates,
        out_of_order=len(late),
        wrong_score=len(wrong),
        longest_gap_s=longest_gap(published, firsts),
        problems=tuple(problems),
    )


def is_right(answer: Answer, message: Published, offline: Mapping[str, Offline]) -> bool:
    """Whether an answer says what its bundle makes of the image, in the message's own partition and name.

    Scores agree within the bundle's relative tolerance; `anomaly` must be what the answer's own score means.
    """
    if answer.id != message.id or answer.partition != answer.position[0]:
        return False
    bundle = offline.get(answer.version)
    if bundle is None:
        return False
    if message.image is None:
        return answer.score is None and answer.anomaly is None
    if answer.score is None:
        return False
    expected = bundle.scores[message.image]
    close = abs(answer.score - expected) <= bundle.tolerance * abs(expected)
    return close and answer.anomaly == (answer.score > bundle.threshold)


def out_of_order(firsts: Sequence[Answer]) -> list[Answer]:
    """The first answers that stand behind one to a later message of the same partition."""
    latest: dict[int, int] = {}
    late = []
    for answer in firsts:
        partition, offset = answer.position
        if offset < latest.get(partition, -1):
            late.append(answer)
        latest[partition] = max(offset, latest.get(partition, -1))
    return late


def longest_gap(published: Mapping[Position, Published], firsts: Sequence[Answer]) -> float:
    """The longest time in seconds that a partition stood still for readers while there was backlog in it.

    For each message in the order of its partition: from when its predecessor was answered, or from when it was
    published if that was later, to its own answer.
    """
    arrivals: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for answer in firsts:
        partition, offset = answer.position
        arrivals[partition].append((offset, answer.at))
    longest = 0.0
    for partition, answered in arrivals.items():
        before = 0.0
        for offset, at in sorted(answered):
            longest = max(longest, at - max(before, published[partition, offset].at))
            before = max(before, at)
    return longest


def _first_occurrences(answers: Sequence[Answer]) -> list[Answer]:
    seen: dict[Position, Answer] = {}
    for answer in answers:
        seen.setdefault(answer.position, answer)
    return list(seen.values())


def _letter_problems(
    published: Mapping[Position, Published],
    letters: Sequence[Letter],
    offline: Mapping[str, Offline],
    *,
    exactly_once: bool,
) -> list[str]:
    poison = {position for position, message in published.items() if message.image is None}
    counts = Counter(letter.position for letter in letters)
    problems = []
    if missing := sorted(poison - set(counts)):
        problems.append(f"{len(missing)} poison messages have no dead letter, the first at {_named(missing)}")
    if needless := sorted(set(counts) - poison):
        problems.append(f"{len(needless)} dead letters are for good messages, the first at {_named(needless)}")
    if exactly_once and (repeated := sorted(position for position, count in counts.items() if count > 1)):
        problems.append(f"{len(repeated)} messages have several dead letters, the first at {_named(repeated)}")
    if broken := [letter for letter in letters if letter.flaw is not None]:
        first = broken[0]
        where = _named([first.position])
        problems.append(f"{len(broken)} dead letters do not hold their record, the first at {where}: {first.flaw}")
    if strange := [letter for letter in letters if letter.version not in offline]:
        where = _named([strange[0].position])
        problems.append(f"{len(strange)} dead letters name an unknown bundle, the first at {where}")
    return problems


def _named(positions: Sequence[Position]) -> str:
    partition, offset = positions[0]
    return f"partition {partition}, offset {offset}"
