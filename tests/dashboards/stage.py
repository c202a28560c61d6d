"""A real worker under load, with what the panels want to show: several streams, dead letters, a swap, a refusal."""

import contextlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.local_kafka import KafkaCluster, create_topics
from tests.dashboards.server import CheckError
from tests.faults.bundles import Shelf
from tests.faults.load import PARTITIONS, Load, Messages
from tests.support.processes import WorkerProcess
from worker.core.bundle import CURRENT

RATE = 150.0
TOTAL = 1_000_000
# More than the window from which on drift counts.
JUDGED_PER_BUNDLE = 600
TIMEOUT_S = 120.0


class Stage:
    """Kafka, bundles, a worker and its load; made by `open_stage`."""

    def __init__(self, worker: WorkerProcess, shelf: Shelf, load: Load) -> None:
        self.worker = worker
        self._shelf = shelf
        self._load = load

    @property
    def address(self) -> str:
        """host:port of the worker's pages."""
        assert self.worker.url is not None
        return self.worker.url.removeprefix("http://")

    def perform(self) -> None:
        """Judge with one bundle, swap to another, judge with that, refuse a damaged one."""
        self._load.start()
        self._await_judged(JUDGED_PER_BUNDLE)
        self._shelf.switch(1)
        self._await(lambda: self._sum('reloads_total{outcome="swapped"}') == 1, "the swap of the bundle")
        # While a model is loaded a scrape may take longer than a second: let some succeed before what comes next.
        self._await_judged(JUDGED_PER_BUNDLE)
        self._shelf.switch_to_damaged()
        self._await(lambda: self._sum('reloads_total{outcome="refused"}') == 1, "the refusal of a damaged bundle")
        self._shelf.switch_back()

    def exposition(self) -> str:
        """The worker's metrics page."""
        return self.worker.get("/metrics")[1]

    def _await_judged(self, more: int) -> None:
        wanted = self._sum('messages_total{status="judged"') + more
        self._await(lambda: self._sum('messages_total{status="judged"') >= wanted, f"{more} judged images")

    def _sum(self, beginning: str) -> float:
        pattern = rf"^reconstream_{re.escape(beginning)}.* (\S+)$"
        return sum(map(float, re.findall(pattern, self.exposition(), re.MULTILINE)))

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if self.worker.process.poll() is not None or time.monotonic() > deadline or self._load.failures:
                raise CheckError(f"{what} did not come: {self._load.failures[:3]}\n{self.worker.text[-4000:]}")
            threading.Event().wait(0.2)


@contextlib.contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """Start all of it in `folder`, and end it; KAFKA_BOOTSTRAP names a broker that is there already."""
    with contextlib.ExitStack() as resources:
        shelf = Shelf(folder / "bundles")
        shelf.add()
        shelf.add()
        shelf.switch(0)
        bootstrap = os.environ.get("KAFKA_BOOTSTRAP")
        if not bootstrap:
            bootstrap = resources.enter_context(KafkaCluster(folder / "kafka")).bootstrap
        unique = uuid.uuid4().hex[:8]
        images, verdicts, letters = (f"dashboards-{unique}-{name}" for name in ("images", "verdicts", "dead-letters"))
        create_topics(
            bootstrap,
            {
                images: (PARTITIONS, {}),
                verdicts: (PARTITIONS, {}),
                letters: (PARTITIONS, {"max.message.bytes": (1 << 20) + (128 << 10)}),
            },
        )
        worker = resources.enter_context(
            WorkerProcess(
                folder / "worker.log",
                {
                    "bundle": shelf.folder / CURRENT,
                    "reload_interval_s": 0.5,
                    "kafka__bootstrap_servers": bootstrap,
                    "input_topic": images,
                    "output_topic": verdicts,
                    "dead_letter_topic": letters,
                    "group_id": f"dashboards-{unique}",
                    "http_port": 0,
                },
            )
        )
        load = Load(bootstrap, images, Messages(shelf.images), TOTAL, RATE)
        resources.callback(load.close)
        worker.wait_ready()
        yield Stage(worker, shelf, load)
