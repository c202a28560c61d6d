"""The fault campaign's lanes and log bound: steps that would undo each other wait, and a chatty worker is seen."""

import threading
import time
from types import MappingProxyType
from typing import Any

import pytest

from tests.faults import actions
from tests.faults.campaign import (
    AFTERMATH_S,
    LOG_LINES,
    _lanes,
    _log_problems,
    _may_end_so,
    _perform_all,
    schedule_of,
)
from tests.faults.fleet import Exit
from tests.faults.rows import ROWS, Row, Step

QUIET = Row("quiet", lambda _rng, _scale: [], lines_per_fault=3)


class Bystander:
    """A fleet or a load of which nothing is asked."""

    def __init__(self, *exits: Exit) -> None:
        self.exits = list(exits)

    def burst(self, _count: int) -> None:
        pass


def stage() -> actions.Stage:
    nobody: Any = Bystander()
    return actions.Stage(nobody, None, nobody, nobody, nobody, nobody, ("i", "o", "d"), "g", 0, crowded=True)


def ended(code: int = 0, lines: int = 0, *, asked: bool = True, began: float = 0.0, until: float = 1000.0) -> Exit:
    return Exit(0, 0, code, asked, began, until, ("a line",) * lines)


def test_everything_runs_two_lanes_and_all_of_its_kinds() -> None:
    steps = schedule_of(ROWS["everything"], 1, 0.02)
    assert len(_lanes(steps)) == 2
    assert {step.action for step in steps} >= {
        *("kill", "terminate", "zombie", "cut", "guest", "stop_broker", "kill_broker", "silence_broker"),
        *("hold_everything", "hold_produce", "slow_network", "swap", "swap_damaged", "swap_slow"),
    }
    brokers = {step.lane for step in steps if actions.RESOURCES.get(step.action) == "brokers"}
    assert brokers == {0}


def test_lanes_run_at_once_and_steps_that_need_the_same_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[str] = []
    met: set[frozenset[str]] = set()
    lock = threading.Lock()

    def act(_stage: actions.Stage, step: Step) -> None:
        with lock:
            under_way.append(step.action)
            met.add(frozenset(under_way))
            assert len(under_way) == len(set(under_way)), "twice at once"
        threading.Event().wait(0.02)
        with lock:
            under_way.remove(step.action)

    monkeypatch.setattr(actions, "ACTIONS", MappingProxyType(dict.fromkeys(actions.ACTIONS, act)))
    one = [Step(action, 0.0, 0.0, 1, lane=0) for action in ("stop_broker", "zombie", "kill_broker", "swap") * 5]
    two = [
        Step(action, 0.0, 0.0, 1, lane=1) for action in ("kill_broker", "zombie", "stop_broker", "slow_network") * 5
    ]
    spans = _perform_all(stage(), _lanes([*one, *two]), lambda _text: None)
    assert len(spans) == 40
    assert frozenset({"stop_broker", "kill_broker"}) not in met
    assert any(len(together) == 2 for together in met)


def test_a_lane_that_fails_ends_the_others_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(_stage: actions.Stage, step: Step) -> None:
        if step.lane:
            raise OSError("no such process")
        threading.Event().wait(0.01)

    monkeypatch.setattr(actions, "ACTIONS", MappingProxyType(dict.fromkeys(actions.ACTIONS, act)))
    steps = [Step("cut", 0.0, 0.0)] * 10_000 + [Step("cut", 0.0, 0.0, lane=1)]
    began = time.monotonic()
    with pytest.raises(OSError, match="no such process"):
        _perform_all(stage(), _lanes(steps), lambda _text: None)
    assert time.monotonic() - began < 30


def logged(*exits: Exit, spans: list[tuple[float, float]]) -> list[str]:
    fleet: Any = Bystander(*exits)
    return _log_problems(QUIET, spans, fleet, lambda _text: None)


def test_a_worker_may_log_its_own_lines_and_a_few_for_each_fault_that_it_met() -> None:
    assert logged(ended(lines=LOG_LINES), spans=[]) == []
    assert logged(ended(lines=LOG_LINES + 1), spans=[]) != []
    assert logged(ended(lines=LOG_LINES + 3), spans=[(10.0, 11.0)]) == []
    assert logged(ended(lines=LOG_LINES + 4), spans=[(10.0, 11.0)]) != []


def test_a_fault_before_or_after_a_worker_s_life_allows_it_nothing() -> None:
    worker = ended(lines=LOG_LINES + 1, began=100.0, until=200.0)
    assert logged(worker, spans=[(10.0, 99.0 - AFTERMATH_S), (200.0, 210.0)]) != []
    assert logged(worker, spans=[(10.0, 101.0 - AFTERMATH_S)]) == []


@pytest.mark.parametrize(
    ("end", "fine"),
    [
        (ended(0), True),
        (ended(0, asked=False), False),
        (ended(-9), True),
        (ended(-9, asked=False), False),
        (ended(-15), True),
        (ended(-15, lines=1), False),
        (ended(1), False),
        (ended(5), False),
    ],
)
def test_how_a_worker_may_end(end: Exit, fine: bool) -> None:
    assert _may_end_so(QUIET, [Step("kill", 0.0)], end) is fine
    assert _may_end_so(QUIET, [Step("terminate", 0.0)], end) is (fine and end.code != -9)
