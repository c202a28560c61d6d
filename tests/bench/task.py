"""What a contender's program is asked, and what it says of itself.

A contender is a process of its own, so that CPU time and memory are its own: `python -m tests.bench.<name> TASK`, the
task as JSON. It answers the first `count` messages, commits, prints its cost() as JSON and ends. Import this before
anything heavy is measured: it needs nothing but the standard library, so that a peer's environment can stay its own.
"""

import json
import resource
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """One run.

    Attributes:
        bootstrap: of Kafka.
        source, output: topics.
        group: consumer group.
        bundle: folder of the bundle.
        batch: images in a batch.
        count: messages to answer.
        encoding: of the images, one of tests.bench.workloads.
    """

    bootstrap: str
    source: str
    output: str
    group: str
    bundle: str
    batch: int
    count: int
    encoding: str


def asked() -> Task:
    """The task in the program's first argument."""
    return Task(**json.loads(sys.argv[1]))


def cpu_s() -> float:
    """CPU seconds of this process so far, all threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cost(since: float, count: int) -> dict[str, float]:
    """What `count` images cost, from `since`, an earlier cpu_s()."""
    return {
        "cpu_us_per_image": (cpu_s() - since) / count * 1e6,
        "peak_rss_mib": _peak_rss_kib() / 1024,
    }


def _peak_rss_kib() -> int:
    """The kernel's high-water mark of this program; getrusage's would be that of the process that started it."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def report(since: float, count: int) -> None:
    """Print cost()."""
    sys.stdout.write(json.dumps(cost(since, count)) + "\n")


def answer(partition: int, offset: int, error: float, threshold: float, **more: Any) -> bytes:
    """A verdict's essentials, as the obvious program would write them."""
    return json.dumps(
        {
            "source": {"partition": partition, "offset": offset},
            "error": error,
            "threshold": threshold,
            "anomaly": error > threshold,
            **more,
        }
    ).encode()
