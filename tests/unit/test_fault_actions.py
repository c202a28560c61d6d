"""The fault campaign's steps say when their fault was not met: each with a world in which it was, and one without."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import actions
from tests.faults.accounting import Answer
from tests.faults.load import PARTITIONS
from tests.faults.rows import Step


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "pause", lambda _seconds: None)


def stage(**parts: Any) -> actions.Stage:
    """A world of which a test names what its step touches."""
    named: dict[str, Any] = {
        name: SimpleNamespace(**parts.get(name, {}))
        for name in ("cluster", "proxy", "fleet", "load", "reader", "shelf")
    }
    return actions.Stage(**named, topics=("i", "o", "d"), group="g", burst=0)


def growing(*values: Any) -> Any:
    """A function that returns one value after the other, and the last for ever."""
    left = list(values)
    return lambda *_: left.pop(0) if len(left) > 1 else left[0]


class Sized:
    """Something whose length grows by its steps, whenever it is asked."""

    def __init__(self, *lengths: int) -> None:
        self._next = growing(*lengths)

    def __len__(self) -> int:
        return int(self._next())


@pytest.mark.parametrize(("held", "problems"), [(PARTITIONS, 0), (PARTITIONS - 1, 1)])
def test_a_zombie_whose_group_did_not_move_on(held: int, problems: int) -> None:
    log = growing("", "partitions were revoked")
    fleet = {"log_of": log, "pause": print, "resume": print, "held_beside": lambda _: held}
    world = stage(fleet=fleet)
    actions.zombie(world, Step("zombie", 0.0))
    assert len(world.problems) == problems


@pytest.mark.parametrize(("revoked", "problems"), [(4, 0), (3, 1)])
def test_a_guest_to_whom_nobody_lost_a_partition(
    monkeypatch: pytest.MonkeyPatch, revoked: int, problems: int
) -> None:
    monkeypatch.setattr(actions, "_visit", lambda *_: None)
    world = stage(fleet={"said": lambda _: revoked})
    world.revoked, world.guests = 2, 1
    actions.guest(world, Step("guest", 0.0))
    assert len(world.problems) == problems


@pytest.mark.parametrize(
    ("letters", "published", "problems"), [((5, 5), (100, 300), 0), ((5, 6), (100, 300), 1), ((5, 5), (100, 299), 1)]
)
def test_dead_letters_that_came_or_were_not_needed(
    letters: tuple[int, int], published: tuple[int, int], problems: int
) -> None:
    class Reader:
        _count = growing(*letters)

        @property
        def letter_count(self) -> int:
            return int(self._count())

    cluster = {"stop_node": print, "start_node": print, "wait_ready": lambda _: None, "nodes": [1]}
    world = stage(cluster=cluster, load={"acknowledged": Sized(*published)})
    world.reader = Reader()  # type: ignore[assignment]
    actions.stop_replica(world, Step("stop_replica", 0.0))
    assert len(world.problems) == problems


@pytest.mark.parametrize(
    ("before", "slow", "problems"), [(0.05, 0.25, 0), (0.05, 0.15, 1), (0.3, 0.4, 1), (0.05, None, 1)]
)
def test_a_network_that_was_not_slow(
    monkeypatch: pytest.MonkeyPatch, before: float, slow: float | None, problems: int
) -> None:
    now = time.time()
    clock = growing(now, now, now + 60)
    monkeypatch.setattr(actions, "time", SimpleNamespace(time=clock))
    waits = {(0, 0): (now - 5, before)} | ({} if slow is None else {(0, 1): (now + 30, slow)})
    answers = [Answer(at, 0, published + wait, "", 0.0, None, "") for at, (published, wait) in waits.items()]
    world = stage(
        load={"acknowledged": {at: published for at, (published, _) in waits.items()}}, reader={"answers": answers}
    )
    actions.slow_network(world, Step("slow_network", 0.0))
    assert len(world.problems) == problems


@pytest.mark.parametrize(("answered", "problems"), [((0, 100), 0), ((0, 501), 1), ((7, 7), 1)])
def test_a_quota_that_was_not_felt(answered: tuple[int, int], problems: int) -> None:
    world = stage(
        cluster={"topic_bytes": lambda _: 1000, "set_producer_quota": lambda *_: None},
        load={"rate": 100.0},
        reader={"answers": [1], "answered": Sized(*answered)},
    )
    actions.throttle(world, Step("throttle", 0.0, seconds=20.0))
    assert len(world.problems) == problems


@pytest.mark.parametrize(("batches", "seconds", "problems"), [(4, 240.0, 0), (4, 236.0, 1), (3, 240.0, 1)])
def test_a_model_that_was_not_slow(batches: int, seconds: float, problems: int) -> None:
    class Fleet:
        _inferences = growing((0, 0.0), (batches, seconds))

        def __len__(self) -> int:
            return 2

        def metric(self, name: str) -> float:
            if name.endswith("_count"):
                self._now = self._inferences()
                return float(self._now[0])
            return float(self._now[1]) if name.endswith("_sum") else 0.0

        def resident_bytes(self) -> list[int]:
            return [1, 1]

        def terminate(self, _number: int) -> None:
            pass

    world = stage(shelf={"switch": lambda _: ""})
    world.fleet = Fleet()  # type: ignore[assignment]
    world.burn_s = 66.0
    actions.endure(world, Step("endure", 0.0, seconds=0.01))
    assert len(world.problems) == problems


class Swapping:
    """A fleet of three whose logs say so often that they swapped or refused."""

    def __init__(self, *said: int) -> None:
        self.said = growing(*said)

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(("said", "version", "problems"), [(3, "v2", 0), (2, "v2", 1), (3, "v1", 1)])
def test_a_swap_that_not_every_worker_followed(
    monkeypatch: pytest.MonkeyPatch, said: int, version: str, problems: int
) -> None:
    monkeypatch.setattr(actions, "SWAP_TIMEOUT_S", 0.05)
    answers: list[Answer] = []
    world = stage(
        shelf={"switch": lambda _: "v2", "current": 0},
        load={"more": lambda _: answers.append(Answer((0, 0), 0, 0.0, "", 0.0, None, version))},
        reader={"answers": answers},
    )
    world.fleet = Swapping(0, said)  # type: ignore[assignment]
    actions.swap(world, Step("swap", 0.0, target=1))
    assert len(world.problems) == problems


@pytest.mark.parametrize(("said", "problems"), [(3, 0), (2, 1)])
def test_a_damaged_bundle_that_not_every_worker_refused(
    monkeypatch: pytest.MonkeyPatch, said: int, problems: int
) -> None:
    monkeypatch.setattr(actions, "SWAP_TIMEOUT_S", 0.05)
    world = stage(shelf={"switch_to_damaged": lambda: "a byte", "switch_back": lambda: None})
    world.fleet = Swapping(0, said)  # type: ignore[assignment]
    actions.swap_damaged(world, Step("swap_damaged", 0.0))
    assert len(world.problems) == problems
