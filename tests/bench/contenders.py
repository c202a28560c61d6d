"""The contenders: each answers the same messages with the same bundle, and says how fast and at what cost.

Rules: a contender is a process of its own, so that its CPU time and memory are its own; its rate is that of its
answers' timestamps on its output topic; every answer is held against the offline error of its message.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import psutil
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

from tests.bench.task import Task
from tests.bench.workloads import WORKLOADS, Material
from tests.support.kafka import closing, committed
from tests.support.processes import WorkerProcess

LOOK_S = 0.1
RUN_TIMEOUT_S = 600.0
PARTITIONS = 6
# A rate is taken between the shares of the answers where start and end no longer show.
FIRST, LAST = 0.1, 0.95
MIB = 1 << 20
ANSWERED = "reconstream_messages_total"
PEERS = Path(".venv-peers/bin/python")


class Run(msgspec.Struct, frozen=True):
    """One contender in one round: images a second, microseconds of CPU an image, peak resident MiB."""

    images_per_second: float
    cpu_us_per_image: float
    peak_rss_mib: float


class Cost(msgspec.Struct, frozen=True):
    """What a program says of itself, see tests.bench.task."""

    cpu_us_per_image: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        module: its program; None for a worker as users start it.
        settings: of the worker.
        null: with the model that costs nothing.
        peer: its program runs in the peers' environment.
        at_most: answers no more messages than these.
        scores: its answers have an error to be checked.
        workloads: those that it takes part in.
    """

    module: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    null: bool = False
    peer: bool = False
    at_most: int | None = None
    scores: bool = True
    workloads: tuple[str, ...] = ("raw",)


MODEL = "bare_model"
CONFLUENT: Mapping[str, object] = MappingProxyType({"kafka__client": "confluent"})
CONTENDERS: Mapping[str, Contender] = MappingProxyType(
    {
        MODEL: Contender("tests.bench.bare_model", workloads=tuple(WORKLOADS)),
        "at_least_once": Contender(settings={"delivery": "at_least_once"}, workloads=tuple(WORKLOADS)),
        "exactly_once": Contender(settings={"delivery": "exactly_once"}),
        "confluent": Contender(settings={"delivery": "at_least_once", **CONFLUENT}, workloads=tuple(WORKLOADS)),
        "confluent_exactly_once": Contender(settings={"delivery": "exactly_once", **CONFLUENT}),
        "kafka_loop": Contender("tests.bench.kafka_loop", workloads=tuple(WORKLOADS)),
        "quixstreams": Contender("tests.bench.peers.quixstreams_sink", peer=True),
        "bytewax": Contender("tests.bench.peers.bytewax_flow", peer=True),
        "predict_per_message": Contender("tests.bench.predict_per_message", at_most=300),
        "null_model": Contender(null=True),
        "null_model_confluent": Contender(settings=CONFLUENT, null=True),
        "pass_through": Contender("tests.bench.pass_through", null=True, scores=False),
        "pass_through_confluent": Contender("tests.bench.pass_through_confluent", null=True, scores=False),
    }
)


@dataclass(frozen=True)
class Stream:
    """The messages that wait for every contender: `count` of a workload's on `topic`."""

    bootstrap: str
    topic: str
    workload: str
    count: int

    @property
    def batch(self) -> int:
        return WORKLOADS[self.workload].batch


def run(contender: Contender, stream: Stream, material: Material, log: Path, output: str) -> Run:
    """One contender on the waiting messages.

    Args:
        contender: who.
        stream: what waits.
        material: the bundle to serve, and what it makes of each message.
        log: file for what it logs.
        output: its output topic, empty; the dead-letter topic is this with `-letters`.

    Raises:
        AssertionError: it ended otherwise than asked, or its answers are not one right one for every message.
    """
    count = min(stream.count, contender.at_most or stream.count)
    if contender.module is None:
        cost = _run_worker(contender, stream, material, log, output)
    else:
        task = Task(
            stream.bootstrap, stream.topic, output, output, str(material.bundle), stream.batch, count, stream.workload
        )
        said = _run_program(contender, task, log)
        if contender.module == CONTENDERS[MODEL].module:
            return msgspec.convert(said, Run)
        cost = msgspec.convert(said, Cost)
    return Run(
        images_per_second=_checked_rate(contender, stream, material, output, count),
        cpu_us_per_image=cost.cpu_us_per_image,
        peak_rss_mib=cost.peak_rss_mib,
    )


def _run_program(contender: Contender, task: Task, log: Path) -> Any:
    assert contender.module is not None
    python = str(PEERS.absolute()) if contender.peer else sys.executable
    with log.open("wb") as stderr:
        done = subprocess.run(
            [python, "-m", contender.module, msgspec.json.encode(asdict(task)).decode()],
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, log.read_text("utf-8", errors="replace")[-4000:]
    return msgspec.json.decode(done.stdout.splitlines()[-1])


def _run_worker(contender: Contender, stream: Stream, material: Material, log: Path, output: str) -> Cost:
    """A worker, from a tenth of the messages to the last one's commit."""
    common = {
        "bundle": material.bundle,
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
    with WorkerProcess(log, {**common, **contender.settings}) as worker:
        process = psutil.Process(worker.process.pid)
        look = threading.Event()
        began = time.monotonic()
        peak = 0

        def wait_until(condition: Callable[[], bool]) -> None:
            nonlocal peak
            while not condition():
                assert worker.process.poll() is None, worker.text
                assert time.monotonic() - began < RUN_TIMEOUT_S, f"not done in {RUN_TIMEOUT_S:.0f} s:\n{worker.text}"
                peak = max(peak, process.memory_info().rss)
                look.wait(LOOK_S)

        def cpu_s() -> float:
            used = process.cpu_times()
            return float(used.user + used.system)

        # It begins with what waits as soon as it can, before it is ready.
        wait_until(lambda: worker.url is not None and worker.metric(ANSWERED) >= FIRST * stream.count)
        messages, before = worker.metric(ANSWERED), cpu_s()
        wait_until(lambda: sum(committed(options, output, stream.topic).values()) >= stream.count)
        messages, cpu = worker.metric(ANSWERED) - messages, cpu_s() - before
        assert worker.terminate() == 0, worker.text
    assert messages > stream.count / 2, f"{stream.count} images are too few to measure it: it was done at once"
    return Cost(cpu / messages * 1e6, peak / MIB)


class _Position(msgspec.Struct, frozen=True):
    partition: int
    offset: int


class _Answer(msgspec.Struct, frozen=True):
    """What a verdict and tests.bench.task.answer have in common."""

    source: _Position
    error: float


def _checked_rate(contender: Contender, stream: Stream, material: Material, topic: str, count: int) -> float:
    """Answers a second by their own timestamps, without the first tenth and the last twentieth of them."""
    stamps: list[int] = []
    values: list[bytes] = []
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
        while len(stamps) < count and empty < 100:
            polled = consumer.poll(timeout_ms=100, max_records=10_000)
            empty = 0 if polled else empty + 1
            for records in polled.values():
                stamps += [record.timestamp for record in records]
                values += [record.value for record in records]
    assert len(stamps) == count, f"{len(stamps)} answers for {count} messages"
    if contender.scores:
        _check(msgspec.json.Decoder(_Answer), values, material)
    stamps.sort()
    first, last = int(FIRST * count), int(LAST * count)
    return (last - first) / max(1e-3, (stamps[last] - stamps[first]) / 1000)


def _check(decoder: "msgspec.json.Decoder[_Answer]", values: list[bytes], material: Material) -> None:
    answers = [decoder.decode(value) for value in values]
    # Messages were published in turn to all partitions, and their kinds in turn.
    numbers = [answer.source.offset * PARTITIONS + answer.source.partition for answer in answers]
    assert len(set(numbers)) == len(numbers), "a message was answered twice"
    expected = [material.errors[number % len(material.errors)] for number in numbers]
    np.testing.assert_allclose([answer.error for answer in answers], expected, rtol=material.tolerance)
