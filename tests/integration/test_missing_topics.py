"""A worker whose topics are missing says so at once, and how to make them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Broker
from tests.integration.test_worker_process import Lane
from tests.support.processes import WorkerProcess
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode

START_TIMEOUT_S = 120


@pytest.mark.parametrize(
    "missing",
    [["output_topic"], ["dead_letter_topic"], ["output_topic", "dead_letter_topic", "map_topic"]],
    ids=["output", "dead-letters", "all"],
)
def test_missing_topics_are_named_with_what_creates_them(
    kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle, tmp_path: Path, missing: list[str]
) -> None:
    lane = Lane(kafka, topics, tiny_bundle)
    names = {setting: f"no-such-{setting.replace('_', '-')}" for setting in missing}
    began = time.monotonic()
    localisation = "maps" if "map_topic" in missing else "off"
    settings = {**lane.settings, **names, "localisation": localisation, "start_timeout_s": START_TIMEOUT_S}
    with WorkerProcess(tmp_path / "worker.log", settings) as worker:
        assert worker.wait(timeout=START_TIMEOUT_S) == ExitCode.KAFKA_REFUSED, worker.text
    assert time.monotonic() - began < START_TIMEOUT_S / 2, "it waited for what only somebody can create"
    message = [line for line in worker.text.splitlines() if not line.startswith("{")]
    assert len(message) == len(missing), worker.text
    for name in names.values():
        [line] = [line for line in message if f"topic '{name}' does not exist" in line]
        assert "--create-topics" in line
    assert "loading" not in worker.text, "it found out before the model was loaded"
