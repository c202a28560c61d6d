"""Partitions change their leaders under load, with every broker up: as in a rolling balance of a cluster."""

import uuid
from contextlib import ExitStack
from pathlib import Path

from deploy.local_kafka import KafkaCluster
from tests.faults.accounting import account
from tests.faults.bundles import Shelf
from tests.faults.load import PARTITIONS, Load, Messages
from tests.faults.reader import Reader, read_input
from tests.integration.test_reload import wait_for
from tests.support.kafka import move_leaders
from tests.support.processes import WorkerProcess
from worker.core.errors import ExitCode

# As many as the steps below take time; far more than they should.
MOST = 100_000
RATE = 200.0
IN_FLIGHT = 1000
INTERNAL = ("__consumer_offsets", "__transaction_state")


def test_leaders_move_under_load_and_nothing_is_lost_nor_does_a_worker_end(
    guarded_kafka: KafkaCluster, tmp_path: Path
) -> None:
    cluster = guarded_kafka
    shelf = Shelf(tmp_path / "bundles")
    bundle = shelf.add()
    messages = Messages(shelf.images)
    name = f"moving-{uuid.uuid4().hex[:8]}"
    deliveries = ("at_least_once", "exactly_once")
    answers = {delivery: (f"{name}-{delivery}", f"{name}-{delivery}-letters") for delivery in deliveries}
    cluster.create_topics({topic: (PARTITIONS, {}) for output, _ in answers.values() for topic in (name, output)})
    cluster.create_topics(
        {letters: (PARTITIONS, {"max.message.bytes": 1_200_000}) for _, letters in answers.values()}
    )
    with ExitStack() as resources:
        workers, readers = {}, {}
        for delivery, (output, letters) in answers.items():
            settings = {
                "bundle": bundle.folder,
                "kafka__bootstrap_servers": cluster.bootstrap,
                "input_topic": name,
                "output_topic": output,
                "dead_letter_topic": letters,
                "group_id": output,
                "delivery": delivery,
                "max_in_flight_records": IN_FLIGHT,
                "max_batch_size": 64,
                "http_port": 0,
                "log_format": "json",
            }
            workers[delivery] = resources.enter_context(WorkerProcess(tmp_path / f"{delivery}.log", settings))
            readers[delivery] = Reader(cluster.bootstrap, output, letters)
            resources.callback(readers[delivery].close)
        load = Load(cluster.bootstrap, name, messages, MOST, RATE)
        resources.callback(load.close)
        for worker in workers.values():
            worker.wait_ready()
        load.start()

        def wait_answered(so_far: int) -> None:
            """Until every message that is acknowledged by now, and so many more, have their answers."""
            for delivery, worker in workers.items():
                wait_for(
                    lambda answered=readers[delivery].answered: len(answered) >= so_far,  # type: ignore[misc]
                    worker,
                    timeout_s=60,
                )

        wait_answered(200)
        topics = [name, *(topic for pair in answers.values() for topic in pair)]
        # The input alone, the answers alone, the coordinators' own topics alone, and all of them at once.
        for moved in ([name], topics[1:], INTERNAL, [*topics, *INTERNAL]):
            move_leaders(cluster.bootstrap, moved)
            wait_answered(len(load.acknowledged) + 100)
        assert len(load.acknowledged) < MOST, "the load was over before the leaders had moved"
        load.stop()
        for delivery, worker in workers.items():
            wait_for(
                lambda answered=readers[delivery].answered: load.acknowledged.keys() <= answered,  # type: ignore[misc]
                worker,
                timeout_s=60,
            )
            assert worker.terminate() == ExitCode.STOPPED, worker.text
        published = read_input(cluster.bootstrap, name, messages, load.acknowledged)
        results = {}
        for delivery, reader in readers.items():
            reader.close(timeout_s=30)
            assert reader.failure is None
            results[delivery] = account(
                published,
                reader.answers,
                reader.letters(messages, published),
                shelf.offline,
                exactly_once=delivery == "exactly_once",
                duplicates_allowed=4 * IN_FLIGHT,
            )
    assert load.failures == []
    for delivery, result in results.items():
        print(delivery, result)
        assert result.published == len(load.acknowledged)
        assert result.problems == (), (delivery, workers[delivery].text)
