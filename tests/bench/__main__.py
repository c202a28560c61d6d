"""The benchmark: every contender judges the same waiting images with the same model, in alternation.

Read the ratios first: they compare runs of one round on one machine. Absolute figures are that machine's on that day.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

import msgspec
import psutil
from kafka import KafkaProducer
from rich.console import Console
from rich.table import Table

from deploy.local_kafka import KafkaCluster
from tests.bench.contenders import Run, Stream, run_model, run_worker
from tests.faults.bundles import TUTORIAL, Shelf

OUTPUT = Path("build/bench.json")
PARTITIONS = 6
BATCH = 256
WORKERS: Mapping[str, Mapping[str, object]] = {
    "at_least_once": {"delivery": "at_least_once"},
    "exactly_once": {"delivery": "exactly_once"},
}
MODEL = "bare_model"
# Ratio: (above, below).
RATIOS = {
    "throughput_vs_model": ("at_least_once", MODEL),
    "exactly_once_vs_at_least_once": ("exactly_once", "at_least_once"),
}
LETTER_BYTES = 1 << 21

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Spread(msgspec.Struct, frozen=True):
    """Of one figure over all rounds."""

    min: float
    median: float
    max: float


class Contender(msgspec.Struct, frozen=True):
    """A contender's figures over all rounds."""

    name: str
    images_per_second: Spread
    cpu_us_per_image: Spread
    peak_rss_mib: Spread


class Result(msgspec.Struct, frozen=True):
    """build/bench.json. A ratio is the median of the rounds' ratios."""

    machine: str
    versions: dict[str, str]
    images: int
    rounds: int
    contenders: list[Contender]
    ratios: dict[str, Spread]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write build/bench.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--images", type=int, default=60_000, help="waiting for each contender (default 60,000)")
    parser.add_argument("--rounds", type=int, default=5, help="of all contenders (default 5)")
    given = parser.parse_args(arguments)
    runs: dict[str, list[Run]] = {name: [] for name in (MODEL, *WORKERS)}
    with tempfile.TemporaryDirectory(prefix="reconstream-bench-") as folder:
        root = Path(folder)
        shelf = Shelf(root / "bundles", TUTORIAL)
        bundle = shelf.add()
        with KafkaCluster(root / "kafka") as cluster:
            stream = Stream(cluster.bootstrap, "images", given.images, bundle.folder, BATCH)
            cluster.create_topics({"images": (PARTITIONS, {})})
            _publish(stream, [image.tobytes() for image in shelf.images])
            for number in range(given.rounds):
                # Turned round every other time, so that what wanders in one direction favours nobody.
                for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
                    run = _run(name, stream, cluster, root, number)
                    runs[name].append(run)
                    console.print(
                        f"round {number + 1}/{given.rounds}  {name}: {run.images_per_second:,.0f} images a second"
                    )
    result = _result(runs, given.images, given.rounds)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    _show(result)
    return 0


def _run(name: str, stream: Stream, cluster: KafkaCluster, root: Path, number: int) -> Run:
    if name == MODEL:
        return run_model(stream)
    output = f"{name}-{number}"
    letters = {"max.message.bytes": LETTER_BYTES}
    cluster.create_topics({output: (PARTITIONS, {}), f"{output}-letters": (PARTITIONS, letters)})
    return run_worker(stream, root / f"{output}.log", output, WORKERS[name])


def _publish(stream: Stream, values: Sequence[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=stream.bootstrap, acks="all", linger_ms=20, batch_size=1 << 18)
    headers = [("content-type", b"application/octet-stream")]
    for number in range(stream.count):
        producer.send(stream.topic, values[number % len(values)], None, headers, number % PARTITIONS)
    producer.flush()
    producer.close()


def _spread(values: Sequence[float]) -> Spread:
    return Spread(round(min(values), 4), round(statistics.median(values), 4), round(max(values), 4))


def _result(runs: Mapping[str, Sequence[Run]], images: int, rounds: int) -> Result:
    return Result(
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB",
        versions={of.name: of.version for of in map(distribution, ("kafka-python", "keras", "numpy"))},
        images=images,
        rounds=rounds,
        contenders=[
            Contender(
                name,
                _spread([run.images_per_second for run in of]),
                _spread([run.cpu_us_per_image for run in of]),
                _spread([run.peak_rss_mib for run in of]),
            )
            for name, of in runs.items()
        ],
        ratios={
            name: _spread(
                [a.images_per_second / b.images_per_second for a, b in zip(runs[above], runs[below], strict=True)]
            )
            for name, (above, below) in RATIOS.items()
        },
    )


def _show(result: Result) -> None:
    ratios = Table(title=f"Ratios of images a second, {result.rounds} rounds")
    for column in ("ratio", "median", "min", "max"):
        ratios.add_column(column, justify="left" if column == "ratio" else "right")
    for name, spread in result.ratios.items():
        ratios.add_row(name, *(f"{value:.3f}" for value in (spread.median, spread.min, spread.max)))
    console.print(ratios)
    table = Table(title=f"{result.machine}, {result.images:,} images")
    for column in ("contender", "images a second", "CPU us an image", "peak MiB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for of in result.contenders:
        figures = (of.images_per_second, of.cpu_us_per_image, of.peak_rss_mib)
        table.add_row(of.name, *(f"{spread.median:,.0f}" for spread in figures))
    console.print(table)
    console.print(f"{OUTPUT} written")


if __name__ == "__main__":
    sys.exit(main())
