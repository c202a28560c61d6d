"""Several workers of one group, and several partitions of one worker."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Broker
from tests.faults.accounting import account
from tests.faults.bundles import Shelf
from tests.faults.load import PARTITIONS, Load, Messages
from tests.faults.reader import Reader, read_input
from tests.integration.test_reload import wait_for
from tests.integration.test_worker_process import Lane
from tests.support.kafka import committed, produce, read_all
from tests.support.processes import WorkerProcess
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode
from worker.core.records import OutRecord

# As many as the steps below take time; far more than they should.
MOST = 100_000
RATE = 200.0
IN_FLIGHT = 1000


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_from_one_worker_to_three_and_back_under_load(
    kafka: Broker, topics: Callable[..., str], tmp_path: Path, delivery: str
) -> None:
    shelf = Shelf(tmp_path / "bundles")
    bundle = shelf.add()
    names = [topics(PARTITIONS), topics(PARTITIONS), topics(PARTITIONS, max_message_bytes=1_200_000)]
    messages = Messages(shelf.images)
    settings = {
        "bundle": bundle.folder,
        "kafka__bootstrap_servers": kafka.bootstrap,
        "input_topic": names[0],
        "output_topic": names[1],
        "dead_letter_topic": names[2],
        "group_id": names[0],
        "delivery": delivery,
        "max_in_flight_records": IN_FLIGHT,
        "max_batch_size": 64,
        "http_port": 0,
        "log_format": "json",
    }
    with ExitStack() as resources:

        def start(number: int) -> WorkerProcess:
            return resources.enter_context(WorkerProcess(tmp_path / f"worker-{number}.log", settings))

        reader = Reader(kafka.bootstrap, names[1], names[2])
        resources.callback(reader.close)
        load = Load(kafka.bootstrap, names[0], messages, MOST, RATE)
        resources.callback(load.close)
        first = start(0)
        first.wait_ready()
        load.start()
        others = [start(1), start(2)]
        for worker in others:
            worker.wait_ready()
            wait_assigned(worker, PARTITIONS // 3)
        assert others[0].terminate() == ExitCode.STOPPED, others[0].text
        # Its partitions have moved on: a generation that changes under a drain's commit would rightly fence it.
        wait_for(lambda: assigned(first) + assigned(others[1]) == PARTITIONS, first, timeout_s=60)
        assert others[1].terminate() == ExitCode.STOPPED, others[1].text
        wait_assigned(first, PARTITIONS)
        assert len(load.acknowledged) < MOST, "the load was over before the group had shrunk again"
        load.stop()
        wait_for(lambda: load.acknowledged.keys() <= reader.answered, first, timeout_s=120)
        assert first.terminate() == ExitCode.STOPPED, first.text
        reader.close(timeout_s=30)
        published = read_input(kafka.bootstrap, names[0], messages, load.acknowledged)
        result = account(
            published,
            reader.answers,
            reader.letters(messages, published),
            shelf.offline,
            exactly_once=delivery == "exactly_once",
            duplicates_allowed=4 * IN_FLIGHT,  # two joined and two left
        )
    assert load.failures == []
    assert result.published == len(load.acknowledged)
    assert result.problems == ()


def assigned(worker: WorkerProcess) -> float:
    return worker.metric("reconstream_assigned_partitions")


def wait_assigned(worker: WorkerProcess, partitions: int) -> None:
    wait_for(lambda: assigned(worker) == partitions, worker, timeout_s=60)


def test_a_partition_with_a_long_backlog_starves_no_other(
    kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle, tmp_path: Path, client_name: str
) -> None:
    lane = Lane(kafka, topics, tiny_bundle, client_name)
    height, width, channels = tiny_bundle.manifest.input_shape
    image = bytes([1]) * (height * width * channels)
    # 2 KB each: a fetch holds 1 MiB of a partition.
    padding = [("padding", bytes(2000))]
    produce(lane.options, [OutRecord(lane.input, 0, None, image, padding) for _ in range(10_000)])
    produce(lane.options, [OutRecord(lane.input, 1, None, image, [])])
    # Small batches, so that the backlog lasts.
    small = {"max_batch_size": 8, "max_in_flight_records": 256}
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, **small}) as worker:
        worker.wait_ready()
        wait_for(
            lambda: sum(committed(lane.options, lane.group, lane.input).values()) == 10_001, worker, timeout_s=120
        )
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    records = read_all(lane.options, lane.output)
    [alone] = [record.timestamp or 0 for record in records if record.partition == 1]
    before = sum((record.timestamp or 0) < alone for record in records)
    assert before < 5_000, f"{before} of 10,000 verdicts of another partition came before the one of its own"
