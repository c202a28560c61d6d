"""A model that hangs, in a worker of its own: the watchdog ends it, and the next one answers everything."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Broker
from tests.integration.test_reload import wait_for
from tests.integration.test_worker_process import Lane, expected
from tests.support.altered_worker import PROGRAM, STALL_S, hangs_while_loading, hangs_while_scoring
from tests.support.processes import WorkerProcess
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode

# A look each second, the report, and the process's end on a busy machine.
LATE_S = 5


@pytest.fixture
def lane(kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle) -> Lane:
    lane = Lane(kafka, topics, tiny_bundle)
    # One size of batch: the start, whose steps are watched as well, stays far from the limit.
    lane.settings |= {"delivery": "exactly_once", "max_batch_size": 8}
    return lane


def test_a_worker_whose_model_hangs_ends_and_the_next_one_answers_everything(lane: Lane, tmp_path: Path) -> None:
    seen = tmp_path / "livez-was-seen-to-fail"
    program = (PROGRAM, hangs_while_scoring.__name__, seen)
    with WorkerProcess(tmp_path / "hanging.log", lane.settings, program) as worker:
        worker.wait_ready()
        assert worker.get("/livez")[0] == 200
        lane.feed(30)
        began = time.monotonic()
        wait_for(lambda: worker.get("/livez")[0] != 200, worker, timeout_s=STALL_S + LATE_S)
        failing = worker.get("/livez")
        seen.touch()
        assert worker.wait(timeout=20) == ExitCode.STALLED, worker.text
        assert time.monotonic() - began < STALL_S + LATE_S
    assert failing[0] == 503
    assert "the scoring thread made no progress" in failing[1]
    report = stalled_report(worker)
    for thread, where in (("MainThread", "pipeline.py"), ("scoring", "in hang"), ("watchdog", "watchdog.py")):
        assert any(stack.startswith(f"{thread}:") and where in stack for stack in report), worker.text
    assert sum(lane.positions(at_least=0).values()) == 0
    with WorkerProcess(tmp_path / "sane.log", lane.settings) as worker:
        answers = lane.positions(at_least=30)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert answers == dict.fromkeys(expected(30), 1)


def test_a_worker_whose_model_hangs_while_it_is_loaded_ends(lane: Lane, tmp_path: Path) -> None:
    began = time.monotonic()
    program = (PROGRAM, hangs_while_loading.__name__, tmp_path)
    with WorkerProcess(tmp_path / "worker.log", lane.settings, program) as worker:
        assert worker.wait() == ExitCode.STALLED, worker.text
    assert time.monotonic() - began > STALL_S
    assert "the starting thread made no progress" in worker.text
    assert any(stack.startswith("MainThread:") and "in hang" in stack for stack in stalled_report(worker)), (
        worker.text
    )


def stalled_report(worker: WorkerProcess) -> list[str]:
    """The threads' stacks in the one line that tells of the end, each with the thread's name first."""
    lines = [json.loads(line) for line in worker.text.splitlines() if line.startswith("{")]
    [report] = [line["event"] for line in lines if line["level"] == "critical"]
    return str(report).split("\nthread ")[1:]
