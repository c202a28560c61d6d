"""The soak: one worker under a steady load for an hour; memory, open files, threads and traces must not grow.

The model costs nothing, so that what is watched is the worker. Kafka keeps little of what has passed. The result goes
into build/bench.json as `soak`, beside what `make bench` has put there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.local_kafka import KafkaCluster
from tests.bench.contenders import ANSWERED, MIB, PARTITIONS
from tests.bench.traced_worker import PROGRAM
from tests.bench.workloads import WORKLOADS, prepare
from tests.support.processes import WorkerProcess

OUTPUT = Path("build/bench.json")
SAMPLE_S = 5.0
LAST_S = 60.0
# The share of the samples that a figure is the median of.
SHARE = 0.1
GOAL_MIB = 4.0


class Sample(msgspec.Struct, frozen=True):
    """The worker at one moment."""

    rss_mib: float
    files: int
    threads: int


class Soak(msgspec.Struct, frozen=True):
    """The result.

    Attributes:
        minutes, images: how long, and how many were judged.
        rss_growth_mb_second_half: MiB, the median of the last tenth of the samples less that of the tenth behind the
            middle.
        traces: how often the model was traced, from the start on.
        traces_after_ready: of them, how many after the worker had said that it was ready; 0.
        files, threads: in the middle and at the end.
    """

    minutes: float
    images: int
    rss_mib: float
    rss_growth_mb_second_half: float
    traces: int
    traces_after_ready: int
    files: tuple[int, int]
    threads: tuple[int, int]

    @property
    def ok(self) -> bool:
        """Whether nothing grew."""
        steady = self.files[1] <= self.files[0] and self.threads[1] <= self.threads[0]
        return steady and self.rss_growth_mb_second_half <= GOAL_MIB and self.traces_after_ready == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; 1 when something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--rate", type=float, default=2000.0, help="images a second (default 2000)")
    parser.add_argument("--client", default="kafka-python", help="of the worker: kafka-python (default) or confluent")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="reconstream-soak-") as folder:
        soak = run(Path(folder), given.minutes * 60, given.rate, given.client)
    known = json.loads(OUTPUT.read_bytes()) if OUTPUT.exists() else {}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode({**known, "soak": soak}), indent=2) + b"\n")
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(soak), indent=2).decode() + f"\n{OUTPUT} written\n")
    return 0 if soak.ok else 1


def run(root: Path, seconds: float, rate: float, client: str) -> Soak:
    """A worker under `rate` images a second for `seconds`.

    Raises:
        AssertionError: it ended, or did not answer everything.
    """
    material = prepare("raw", root / "null", null=True)
    passing = {"retention.bytes": 64 * MIB, "segment.bytes": 32 * MIB}
    with KafkaCluster(root / "kafka") as cluster:
        cluster.create_topics(
            {
                "images": (PARTITIONS, passing),
                "verdicts": (PARTITIONS, passing),
                "dead-letters": (PARTITIONS, {"max.message.bytes": 2 * MIB}),
            }
        )
        settings = {
            "bundle": material.bundle,
            "kafka__bootstrap_servers": cluster.bootstrap,
            "kafka__client": client,
            "max_batch_size": WORKLOADS["raw"].batch,
            "http_port": 0,
            "log_format": "json",
        }
        traces = root / "traces"
        with WorkerProcess(root / "worker.log", settings, (PROGRAM, traces)) as worker:
            worker.wait_ready()
            before = len(traces.read_text("ascii").splitlines())
            order = {"bootstrap": cluster.bootstrap, "topic": "images", "rate": rate, "seconds": seconds}
            with subprocess.Popen(
                [sys.executable, "-m", "tests.bench.publisher", json.dumps(order)], stdout=subprocess.PIPE
            ) as publisher:
                samples = _watch(worker, publisher, seconds)
            wanted = int(rate * seconds)
            _wait_answered(worker, wanted)
            assert worker.terminate() == 0, worker.text
        after = len(traces.read_text("ascii").splitlines())
    width = max(1, round(len(samples) * SHARE))
    half = len(samples) // 2
    middle, end = samples[half : half + width], samples[-width:]
    resident = [statistics.median(one.rss_mib for one in part) for part in (middle, end)]
    return Soak(
        minutes=round(seconds / 60, 1),
        images=wanted,
        rss_mib=round(resident[1], 1),
        rss_growth_mb_second_half=round(resident[1] - resident[0], 2),
        traces=after,
        traces_after_ready=after - before,
        files=(max(one.files for one in middle), max(one.files for one in end)),
        threads=(max(one.threads for one in middle), max(one.threads for one in end)),
    )


def _watch(worker: WorkerProcess, publisher: "subprocess.Popen[bytes]", seconds: float) -> list[Sample]:
    process = psutil.Process(worker.process.pid)
    samples: list[Sample] = []
    look = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("soaking", total=seconds)
        began = time.monotonic()
        while publisher.poll() is None:
            look.wait(SAMPLE_S)
            assert worker.process.poll() is None, worker.text
            with process.oneshot():
                rss = process.memory_info().rss / MIB
                samples.append(Sample(rss, process.num_fds(), process.num_threads()))
            progress.update(task, completed=time.monotonic() - began, description=f"{rss:,.0f} MiB")
    return samples


def _wait_answered(worker: WorkerProcess, wanted: int) -> None:
    look = threading.Event()
    deadline = time.monotonic() + LAST_S
    while (answered := worker.metric(ANSWERED)) < wanted:
        assert time.monotonic() < deadline, f"{answered:.0f} of {wanted} images were answered"
        look.wait(0.2)


if __name__ == "__main__":
    sys.exit(main())
