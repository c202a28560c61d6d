"""The output topic goes away, or shrinks, under a running worker."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from deploy.local_kafka import create_topics
from deploy.local_kafka.admin import delete_topic
from tests.conftest import Broker
from tests.integration.test_reload import wait_for
from tests.integration.test_worker_process import Lane
from tests.support.kafka import closing, committed, produce
from tests.support.processes import WorkerProcess
from worker.adapters.clients import CONFLUENT, KAFKA_PYTHON
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode
from worker.core.records import OutRecord

BOUND_S = 3


BOTH = [("at_least_once", KAFKA_PYTHON), ("exactly_once", KAFKA_PYTHON)]


@pytest.fixture(params=BOTH, ids="-".join)
def lane(kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle, request: pytest.FixtureRequest) -> Lane:
    delivery, client_name = request.param
    lane = Lane(kafka, topics, tiny_bundle, client_name)
    lane.settings["delivery"] = delivery
    return lane


def lanes(*chosen: tuple[str, str]) -> pytest.MarkDecorator:
    """Which lanes a test runs on; those of the other client are for `make test-confluent`."""
    parameters = [
        pytest.param(lane, id="-".join(lane), marks=pytest.mark.confluent if lane[1] == CONFLUENT else ())
        for lane in chosen
    ]
    return pytest.mark.parametrize("lane", parameters, indirect=True)


@lanes(*BOTH, ("exactly_once", CONFLUENT))
def test_an_output_topic_that_is_deleted_and_made_again_is_written_again(
    lane: Lane, kafka: Broker, tmp_path: Path
) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", lane.settings) as worker:
        lane.positions(at_least=30)
        delete_topic(kafka.bootstrap, lane.output)
        lane.feed(30)
        wait_for(lambda: f"'{lane.output}': it is gone" in worker.text, worker, timeout_s=60)
        create_topics(kafka.bootstrap, {lane.output: (3, {})})
        wait_for(lambda: sum(committed(lane.options, lane.group, lane.input).values()) == 60, worker)
        answers = lane.positions(at_least=30)
        assert {position for position in answers if position[1] >= 10} == {
            (partition, offset) for partition in range(3) for offset in range(10, 20)
        }
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert worker.text.count("does not let us write") <= 2, "one line per change of state, not per attempt"


def test_an_output_topic_that_stays_away_ends_the_worker_within_its_bound(
    lane: Lane, kafka: Broker, tmp_path: Path
) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, "refusal_timeout_s": BOUND_S}) as worker:
        lane.positions(at_least=30)
        delete_topic(kafka.bootstrap, lane.output)
        lane.feed(30)
        assert worker.wait(timeout=90) == ExitCode.KAFKA_REFUSED, worker.text
    assert lane.output in worker.text
    assert sum(committed(lane.options, lane.group, lane.input).values()) <= 30, (
        "what was not answered is not committed"
    )


@lanes(("exactly_once", KAFKA_PYTHON), ("at_least_once", CONFLUENT))
def test_an_output_topic_too_small_for_a_verdict_ends_the_worker_within_its_bound(
    lane: Lane, kafka: Broker, tmp_path: Path
) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, "refusal_timeout_s": BOUND_S}) as worker:
        lane.positions(at_least=30)
        with closing(KafkaAdminClient(bootstrap_servers=kafka.bootstrap)) as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, lane.output, {"max.message.bytes": "100"})])
        lane.feed(30)
        assert worker.wait(timeout=90) == ExitCode.KAFKA_REFUSED, worker.text
    assert lane.output in worker.text
    assert "max.message.bytes" in worker.text


@lanes(("at_least_once", KAFKA_PYTHON))
def test_an_input_topic_that_stays_away_ends_the_worker_within_its_bound(
    lane: Lane, kafka: Broker, tmp_path: Path
) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, "refusal_timeout_s": BOUND_S}) as worker:
        lane.positions(at_least=30)
        delete_topic(kafka.bootstrap, lane.input)
        assert worker.wait(timeout=60) == ExitCode.KAFKA_REFUSED, worker.text
    assert f"'{lane.input}': it is gone" in worker.text


@lanes(("exactly_once", KAFKA_PYTHON), ("exactly_once", CONFLUENT))
def test_an_input_topic_that_is_deleted_and_made_again_is_read_again(
    lane: Lane, kafka: Broker, tmp_path: Path
) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", lane.settings) as worker:
        lane.positions(at_least=30)
        delete_topic(kafka.bootstrap, lane.input)
        wait_for(lambda: f"'{lane.input}': it is gone" in worker.text, worker, timeout_s=60)
        create_topics(kafka.bootstrap, {lane.input: (3, {})})
        lane.feed(60)
        wait_for(lambda: sum(committed(lane.options, lane.group, lane.input).values()) == 60, worker, timeout_s=60)
        assert set(lane.positions(at_least=90)) == {
            (partition, offset) for partition in range(3) for offset in range(20)
        }
        assert worker.terminate() == ExitCode.STOPPED, worker.text


@lanes(("exactly_once", KAFKA_PYTHON), ("exactly_once", CONFLUENT))
def test_a_dead_letter_topic_that_stays_unwritable_ends_the_worker_within_its_bound(
    lane: Lane, kafka: Broker, tmp_path: Path
) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, "refusal_timeout_s": BOUND_S}) as worker:
        lane.positions(at_least=30)
        with closing(KafkaAdminClient(bootstrap_servers=kafka.bootstrap)) as admin:
            # From now on it takes nothing without a key: no letter, nor what seals a transaction that failed.
            admin.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, lane.letters, {"cleanup.policy": "compact"})]
            )
        produce(lane.options, [OutRecord(lane.input, 0, None, b"no image", [])])
        assert worker.wait(timeout=120) == ExitCode.KAFKA_UNREACHABLE, worker.text
    assert f"dead-letter topic '{lane.letters}' could not be written" in worker.text
    assert committed(lane.options, lane.group, lane.input)[0] == 10, "what was not answered is not committed"
    assert sum(lane.positions(at_least=0).values()) == 30
