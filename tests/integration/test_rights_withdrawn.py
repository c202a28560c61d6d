"""Rights on output and dead-letter topic withdrawn from running workers of both guarantees, and given back."""

import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.local_kafka import KafkaCluster
from tests.conftest import Broker
from tests.integration.test_reload import wait_for
from tests.integration.test_worker_process import Lane, expected
from tests.support.bundles import tiny_images
from tests.support.kafka import committed, produce, read_all
from tests.support.processes import WorkerProcess
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode
from worker.core.records import OutRecord

BOUND_S = 2
POISON = (0, 10)  # partition and offset, behind the first 30


class Pair:
    """A lane and a worker of each delivery, all as user `app`.

    They are asked the same together: a start takes longer than all that is asked.
    """

    def __init__(self, cluster: KafkaCluster, bundle: Bundle, folder: Path, deliveries: Sequence[str]) -> None:
        self.cluster = cluster
        self._bundle = bundle
        self._folder = folder
        self._denied: set[str] = set()
        self._resources = ExitStack()
        self.lanes = {delivery: self._lane(delivery) for delivery in deliveries}
        self.workers: dict[str, WorkerProcess] = {}

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
        self.permit(*self._denied)

    def __iter__(self) -> Iterator[tuple[Lane, WorkerProcess]]:
        return ((lane, self.workers[delivery]) for delivery, lane in self.lanes.items())

    def start(self, name: str, **more: object) -> None:
        for delivery, lane in self.lanes.items():
            log = self._folder / f"{name}-{delivery}.log"
            self.workers[delivery] = self._resources.enter_context(WorkerProcess(log, {**lane.settings, **more}))

    def deny(self, *topics: str) -> None:
        for topic in topics:
            self._denied.add(topic)
            self.cluster.deny_app("topic", topic)

    def permit(self, *topics: str) -> None:
        for topic in topics:
            self.cluster.permit_app("topic", topic)
            self._denied.discard(topic)

    @property
    def exactly_once(self) -> list[Lane]:
        return [lane for delivery, lane in self.lanes.items() if delivery == "exactly_once"]

    @property
    def outputs(self) -> list[str]:
        return [lane.output for lane in self.lanes.values()]

    @property
    def letters(self) -> list[str]:
        return [lane.letters for lane in self.lanes.values()]

    def _lane(self, delivery: str) -> Lane:
        cluster = self.cluster

        def create(partitions: int = 3, **config: object) -> str:
            name = f"guarded-{uuid.uuid4().hex[:12]}"
            cluster.create_topics(
                {name: (partitions, {key.replace("_", "."): value for key, value in config.items()})}
            )
            return name

        lane = Lane(Broker(cluster.bootstrap), create, self._bundle)
        lane.settings |= {
            "kafka__bootstrap_servers": cluster.bootstrap_for("SASL_PLAINTEXT"),
            "kafka__security_protocol": "SASL_PLAINTEXT",
            "kafka__sasl_mechanism": "SCRAM-SHA-512",
            "kafka__sasl_username": "app",
            "kafka__sasl_password": cluster.app_password,
            "delivery": delivery,
            "max_batch_size": 8,
        }
        return lane


@pytest.fixture(params=[("at_least_once", "exactly_once")], ids=["both"])
def pair(
    guarded_kafka: KafkaCluster, tiny_bundle: Bundle, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Pair]:
    with Pair(guarded_kafka, tiny_bundle, tmp_path, request.param) as pair:
        yield pair


def test_rights_that_come_back_in_time_are_used_without_a_restart(pair: Pair) -> None:
    for lane in pair.lanes.values():
        lane.feed(30)
    pair.start("worker")
    for lane, _ in pair:
        lane.positions(at_least=30)

    pair.deny(*pair.outputs)
    for lane, _ in pair:
        lane.feed(30)
    for lane, worker in pair:
        wait_for(lambda lane=lane, worker=worker: told_of(worker, lane.output), worker, timeout_s=60)  # type: ignore[misc]
    pair.permit(*pair.outputs)
    for lane, worker in pair:
        lane.wait_answered(60, worker)

    pair.deny(*pair.letters)
    for lane, _ in pair:
        feed_poison_and_neighbours(lane)
    for lane, worker in pair:
        wait_for(lambda lane=lane, worker=worker: told_of(worker, lane.letters), worker, timeout_s=60)  # type: ignore[misc]
    pair.permit(*pair.letters)
    for lane, worker in pair:
        lane.wait_answered(64, worker)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
        assert committed(lane.options, lane.group, lane.input) == {0: 22, 1: 21, 2: 21}
    check_letters(pair, (0, 20))
    for lane in pair.exactly_once:
        assert set(lane.positions(at_least=64).values()) == {1}


def test_rights_that_stay_away_end_the_worker_within_its_bound_and_the_next_one_skips_nothing(pair: Pair) -> None:
    for lane in pair.lanes.values():
        lane.feed(30)
    pair.start("letters", refusal_timeout_s=BOUND_S)
    for lane, _ in pair:
        lane.positions(at_least=30)

    pair.deny(*pair.letters)
    for lane, _ in pair:
        feed_poison_and_neighbours(lane)
    for lane, worker in pair:
        assert worker.wait(timeout=90) == ExitCode.KAFKA_UNREACHABLE, worker.text
        assert f"dead-letter topic '{lane.letters}' could not be written" in worker.text
        assert committed(lane.options, lane.group, lane.input)[0] == 10, "what was not answered is not committed"
        assert read_all(lane.options, lane.letters) == []
    for lane in pair.exactly_once:
        assert POISON not in lane.positions(at_least=30), "its letter was not written"

    pair.permit(*pair.letters)
    pair.start("output", refusal_timeout_s=BOUND_S)
    for lane, worker in pair:
        lane.wait_answered(34, worker)
    check_letters(pair, POISON)
    for lane in pair.exactly_once:
        assert set(lane.positions(at_least=34).values()) == {1}

    pair.deny(*pair.outputs)
    for lane, _ in pair:
        lane.feed(30)
    for lane, worker in pair:
        assert worker.wait(timeout=90) == ExitCode.KAFKA_REFUSED, worker.text
        assert lane.output in worker.text.splitlines()[-1], worker.text
        assert sum(committed(lane.options, lane.group, lane.input).values()) == 34
        assert set(lane.positions(at_least=34)) == {*expected(30), POISON, (0, 11), (1, 10), (2, 10)}


def feed_poison_and_neighbours(lane: Lane) -> None:
    """One message that needs a letter, one behind it, and one in each of the other two partitions."""
    image = tiny_images(1)[0].tobytes()
    values = [(0, b"no image"), (0, image), (1, image), (2, image)]
    produce(lane.options, [OutRecord(lane.input, partition, None, value, []) for partition, value in values])


def check_letters(pair: Pair, position: tuple[int, int]) -> None:
    """The poison message's letter is there, and no other's; once in exactly_once."""
    for delivery, lane in pair.lanes.items():
        letters = read_all(lane.options, lane.letters, 1)
        assert {letter.value for letter in letters} == {b"no image"}
        assert {(letter.partition, dict(letter.headers)["reconstream-source-offset"]) for letter in letters} == {
            (position[0], str(position[1]).encode())
        }
        assert delivery == "at_least_once" or len(letters) == 1


def told_of(worker: WorkerProcess, topic: str) -> bool:
    return re.search(f"does not let us write[^\\n]*{topic}", worker.text) is not None
