"""The contenders: each scores the same images with the same bundle, and says how fast and at what cost.

Rules: a contender is a process of its own, so that its CPU time and memory are its own; a worker's rate is that of
its records' timestamps on the output topic.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

from tests.support.kafka import closing, committed
from tests.support.processes import WorkerProcess

LOOK_S = 0.1
RUN_TIMEOUT_S = 300.0
# A rate is taken between the shares of the verdicts where start and end no longer show.
FIRST, LAST = 0.1, 0.95
MIB = 1 << 20


class Run(msgspec.Struct, frozen=True):
    """One contender in one round: images a second, microseconds of CPU an image, peak resident MiB."""

    images_per_second: float
    cpu_us_per_image: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Stream:
    """The messages that wait for every contender: `count` raw images on `topic`."""

    bootstrap: str
    topic: str
    count: int
    bundle: Path
    batch: int


def run_model(stream: Stream) -> Run:
    """The scorer alone, in batches, without Kafka."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bare_model",
        str(stream.bundle),
        str(stream.batch),
        str(stream.count),
    ]
    output = subprocess.run(command, check=True, capture_output=True, timeout=RUN_TIMEOUT_S).stdout
    return msgspec.json.decode(output.splitlines()[-1], type=Run)


def run_worker(stream: Stream, log: Path, output: str, settings: Mapping[str, object]) -> Run:
    """A worker on the waiting messages, to the last one's commit.

    Args:
        stream: what waits.
        log: file for the worker's log.
        output: its output topic, empty; the dead-letter topic is this with `-letters`.
        settings: beside the common ones.

    Raises:
        AssertionError: it did not judge every message, or ended otherwise than asked.
    """
    common = {
        "bundle": stream.bundle,
        "kafka__bootstrap_servers": stream.bootstrap,
        "input_topic": stream.topic,
        "output_topic": output,
        "dead_letter_topic": f"{output}-letters",
        "group_id": output,
        "max_batch_size": stream.batch,
        "http_port": 0,
        "log_format": "json",
    }
    options = {"bootstrap_servers": stream.bootstrap}
    with WorkerProcess(log, {**common, **settings}) as worker:
        worker.wait_ready()
        process = psutil.Process(worker.process.pid)
        before = sum(process.cpu_times()[:2])
        began = time.monotonic()
        look = threading.Event()
        peak = 0
        while sum(committed(options, output, stream.topic).values()) < stream.count:
            assert worker.process.poll() is None, worker.text
            assert time.monotonic() - began < RUN_TIMEOUT_S, f"not done in {RUN_TIMEOUT_S:.0f} s:\n{worker.text}"
            peak = max(peak, process.memory_info().rss)
            look.wait(LOOK_S)
        cpu = sum(process.cpu_times()[:2]) - before
        assert worker.terminate() == 0, worker.text
    return Run(
        images_per_second=_rate(stream, output),
        cpu_us_per_image=cpu / stream.count * 1e6,
        peak_rss_mib=peak / MIB,
    )


def _rate(stream: Stream, topic: str) -> float:
    """Verdicts a second by their own timestamps, without the first tenth and the last twentieth of them."""
    stamps: list[int] = []
    with closing(
        KafkaConsumer(
            bootstrap_servers=stream.bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=16 * MIB,
        )
    ) as consumer:
        consumer.assign([ClientPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()])
        empty = 0
        while len(stamps) < stream.count and empty < 100:
            polled = consumer.poll(timeout_ms=100, max_records=10_000)
            empty = 0 if polled else empty + 1
            stamps += [record.timestamp for records in polled.values() for record in records]
    assert len(stamps) == stream.count, f"{len(stamps)} verdicts for {stream.count} images"
    stamps.sort()
    first, last = int(FIRST * len(stamps)), int(LAST * len(stamps))
    return (last - first) / max(1e-3, (stamps[last] - stamps[first]) / 1000)
