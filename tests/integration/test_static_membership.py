"""Workers with names of their own in the group: a restart moves no partition, and a name has one bearer."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.conftest import Broker
from tests.integration.test_fleet import assigned
from tests.integration.test_reload import wait_for
from tests.integration.test_worker_process import Lane, expected
from tests.support.altered_worker import PROGRAM, waits_to_join
from tests.support.processes import WorkerProcess
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode


def test_a_restart_moves_no_partition_and_of_two_with_one_name_the_older_ends(
    kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, tiny_bundle)
    lane.settings |= {"delivery": "exactly_once", "max_batch_size": 8}
    with ExitStack() as resources:

        def start(log: str, name: str, *program: object) -> WorkerProcess:
            settings = {**lane.settings, "kafka__group_instance_id": name}
            worker = WorkerProcess(tmp_path / f"{log}.log", settings, program or ("-m", "worker"))
            return resources.enter_context(worker)

        first, neighbour = start("first", "left"), start("neighbour", "right")
        first.wait_ready()
        neighbour.wait_ready()
        wait_for(lambda: assigned(first) + assigned(neighbour) == 3 and assigned(neighbour) > 0, first, timeout_s=60)
        lane.feed(30)
        lane.positions(at_least=30)
        undisturbed = group_events(neighbour)
        partitions = held(first)

        # The second is ready but for the group, so that what is measured is the group and not the machine.
        second = start("second", "left", PROGRAM, waits_to_join.__name__, tmp_path / "join")
        wait_for(lambda: "loaded" in second.text, second, timeout_s=90)
        assert first.terminate() == ExitCode.STOPPED, first.text
        (tmp_path / "join").touch()
        second.wait_ready()
        wait_for(lambda: held(second) == partitions, second)
        lane.feed(30)
        assert lane.positions(at_least=60) == dict.fromkeys(expected(60), 1)
        assert group_events(neighbour) == undisturbed, neighbour.text

        third = start("third", "left")
        wait_for(lambda: "loaded" in third.text, third, timeout_s=90)
        lane.feed(1500)
        assert second.wait() == ExitCode.KAFKA_REFUSED, second.text
        assert "another member of the group has this worker's group_instance_id" in second.text
        assert "Traceback" not in second.text
        third.wait_ready()
        assert lane.positions(at_least=1560) == dict.fromkeys(expected(1560), 1)
        assert held(third) == partitions
        assert group_events(neighbour) == undisturbed, neighbour.text
        for worker in (third, neighbour):
            assert worker.terminate() == ExitCode.STOPPED, worker.text


def group_events(worker: WorkerProcess) -> list[tuple[str, str]]:
    """What the group gave to the worker and took from it, in order: partitions given, partitions taken."""
    return re.findall(r'"(?:assigned ([^"]+)|partitions ([^"]+) were revoked)', worker.text)


def held(worker: WorkerProcess) -> set[str]:
    """The partitions that the worker has by now, or had at its end."""
    partitions: set[str] = set()
    for given, taken in group_events(worker):
        partitions |= set(given.split(", ")) - {"", "nothing new"}
        partitions -= set(taken.split(", "))
    return partitions
