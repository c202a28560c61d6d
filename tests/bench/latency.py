"""Latency against offered load: from a record's timestamp to its verdict's, which the broker sets when it appends it.

Both are of one machine's clock, and read_committed readers see a verdict of at_least_once from then on.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

from deploy.local_kafka import KafkaCluster
from tests.bench.contenders import MIB, PARTITIONS
from tests.bench.workloads import WORKLOADS, Material
from tests.support.kafka import closing
from tests.support.processes import WorkerProcess

# Of what the worker can do when everything waits for it.
SHARES = (0.1, 0.5, 0.8, 0.95, 1.2)
HALF = 0.5
SINGLE_RATE = 5.0
DRAIN_S = 60.0
MARGIN_MS = 20.0
DELAY_MS = 10.0


class Latency(msgspec.Struct, frozen=True):
    """One offered load.

    Attributes:
        share: of the capacity.
        offered: images a second.
        images: how many were judged.
        p50_ms, p99_ms, max_ms: from a record's timestamp to its verdict's.
        late_ms: the most by which the publisher itself was late; part of the above.
        waiting: images not yet answered when the last was published.
        peak_rss_mib: of the worker, so far.
        ready: whether /readyz said so all the while.
    """

    share: float
    offered: float
    images: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_ms: float
    waiting: int
    peak_rss_mib: float
    ready: bool


class Curve(msgspec.Struct, frozen=True):
    """The latency curve.

    Attributes:
        loads: by share, the last of them more than the worker can do.
        p99_ms_half_load: at half the capacity.
        bound_ms: its goal: max_batch_delay_ms, two full batches, and a margin of 20 ms.
        p99_ms_single: of single images on an idle worker.
    """

    loads: list[Latency]
    p99_ms_half_load: float
    bound_ms: float
    p99_ms_single: float


def measure(
    cluster: KafkaCluster, material: Material, root: Path, *, capacity: float, model_rate: float, seconds: float
) -> Curve:
    """One worker under every load in turn.

    Args:
        cluster: Kafka.
        material: of the raw workload.
        root: for the log.
        capacity: images a second of the worker.
        model_rate: images a second of the bare model.
        seconds: of each load.
    """
    topics = {"images": "latency-images", "verdicts": "latency-verdicts", "letters": "latency-letters"}
    cluster.create_topics(
        {
            topics["images"]: (PARTITIONS, {}),
            topics["verdicts"]: (PARTITIONS, {"message.timestamp.type": "LogAppendTime"}),
            topics["letters"]: (PARTITIONS, {"max.message.bytes": 2 * MIB}),
        }
    )
    batch = WORKLOADS["raw"].batch
    settings = {
        "bundle": material.bundle,
        "kafka__bootstrap_servers": cluster.bootstrap,
        "input_topic": topics["images"],
        "output_topic": topics["verdicts"],
        "dead_letter_topic": topics["letters"],
        "group_id": "latency",
        "max_batch_size": batch,
        "max_batch_delay_ms": DELAY_MS,
        "http_port": 0,
        "log_format": "json",
    }
    with WorkerProcess(root / "latency.log", settings) as worker:
        worker.wait_ready()
        with closing(
            KafkaConsumer(bootstrap_servers=cluster.bootstrap, max_partition_fetch_bytes=16 * MIB, fetch_min_bytes=1)
        ) as verdicts:
            partitions = [ClientPartition(topics["verdicts"], number) for number in range(PARTITIONS)]
            verdicts.assign(partitions)
            verdicts.seek_to_beginning()
            single = _one(cluster, worker, verdicts, topics["images"], 0.0, SINGLE_RATE, seconds)
            loads = [
                _one(cluster, worker, verdicts, topics["images"], share, share * capacity, seconds)
                for share in SHARES
            ]
        assert worker.terminate() == 0, worker.text
    return Curve(
        loads=loads,
        p99_ms_half_load=next(one.p99_ms for one in loads if one.share == HALF),
        bound_ms=round(DELAY_MS + 2 * batch / model_rate * 1000 + MARGIN_MS, 1),
        p99_ms_single=single.p99_ms,
    )


class _Source(msgspec.Struct):
    timestamp_ms: int


class _Verdict(msgspec.Struct):
    source: _Source


def _one(
    cluster: KafkaCluster,
    worker: WorkerProcess,
    verdicts: KafkaConsumer,
    topic: str,
    share: float,
    rate: float,
    seconds: float,
) -> Latency:
    order = {"bootstrap": cluster.bootstrap, "topic": topic, "rate": rate, "seconds": seconds}
    process = psutil.Process(worker.process.pid)
    expected = int(rate * seconds)
    answers: list[tuple[int, int]] = []
    peak, ready = 0, True
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.publisher", json.dumps(order)], stdout=subprocess.PIPE
    ) as publisher:
        look = threading.Event()
        # Nothing is read while it publishes: whoever reads competes with the worker for the processors.
        while publisher.poll() is None:
            peak = max(peak, process.memory_info().rss)
            ready = ready and worker.get("/readyz")[0] == 200
            look.wait(1.0)
        ended_ms = int(time.time() * 1000)
        assert publisher.stdout is not None
        late_ms = json.loads(publisher.stdout.read().splitlines()[-1])["late_ms"]
    deadline = time.monotonic() + DRAIN_S
    while len(answers) < expected:
        assert time.monotonic() < deadline, f"{len(answers)} of {expected} answers came in time"
        answers += _read(verdicts)
    latencies = [appended - due for appended, due in answers]
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    return Latency(
        share=share,
        offered=round(rate, 1),
        images=len(answers),
        p50_ms=round(p50, 1),
        p99_ms=round(p99, 1),
        max_ms=float(max(latencies)),
        late_ms=round(late_ms, 1),
        waiting=sum(appended > ended_ms for appended, _ in answers),
        peak_rss_mib=round(max(peak, process.memory_info().rss) / MIB, 1),
        ready=ready,
    )


def _read(verdicts: KafkaConsumer) -> Iterator[tuple[int, int]]:
    """When each verdict was appended, and its record's timestamp, in milliseconds."""
    decode = msgspec.json.Decoder(_Verdict).decode
    for records in verdicts.poll(timeout_ms=200, max_records=10_000).values():
        for record in records:
            yield record.timestamp, decode(record.value).source.timestamp_ms
