"""The benchmark: every contender answers the same waiting messages with the same model, in alternation.

Read the ratios first: they compare runs of one round on one machine. Absolute figures are that machine's on that day.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

import msgspec
import psutil
from kafka import KafkaProducer
from rich.console import Console
from rich.table import Table

from deploy.local_kafka import KafkaCluster
from tests.bench.contenders import CONTENDERS, MODEL, PARTITIONS, PEERS, Run, Stream, run
from tests.bench.latency import Curve, measure
from tests.bench.workloads import WORKLOADS, Material, prepare

OUTPUT = Path("build/bench.json")
LETTER_BYTES = 1 << 21
QUICK_IMAGES, QUICK_ROUNDS = 20_000, 2
LOAD_S, QUICK_LOAD_S = 30.0, 6.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Spread(msgspec.Struct, frozen=True):
    """Of one figure over all rounds."""

    min: float
    median: float
    max: float


class Figures(msgspec.Struct, frozen=True):
    """A contender's figures over all rounds."""

    name: str
    images_per_second: Spread
    cpu_us_per_image: Spread
    peak_rss_mib: Spread


class Result(msgspec.Struct, frozen=True):
    """build/bench.json.

    Attributes:
        ratios: each is the median of the rounds' own.
        confluent_us_beside_loop: CPU us a message of null_model_confluent, less pass_through_confluent's.
        latency: the curve.
    """

    machine: str
    versions: dict[str, str]
    images: dict[str, int]
    rounds: int
    seconds: float
    contenders: dict[str, list[Figures]]
    ratios: dict[str, Spread]
    confluent_us_beside_loop: Spread
    latency: Curve


Round = Mapping[str, Run]
"""One round of a workload, by contender."""


def _rate(name: str) -> Callable[[Round], float]:
    return lambda runs: runs[name].images_per_second


def _best_peer(runs: Round) -> float:
    return max(runs[name].images_per_second for name, contender in CONTENDERS.items() if contender.peer)


def _cpu(name: str) -> Callable[[Round], float]:
    return lambda runs: runs[name].cpu_us_per_image


# Ratio: workload, above, below.
RATIOS: Mapping[str, tuple[str, Callable[[Round], float], Callable[[Round], float]]] = {
    "throughput_vs_model": ("raw", _rate("at_least_once"), _rate(MODEL)),
    "throughput_vs_model_png": ("png", _rate("at_least_once"), _rate(MODEL)),
    "throughput_vs_model_jpeg": ("jpeg", _rate("at_least_once"), _rate(MODEL)),
    "throughput_vs_kafka_loop": ("raw", _rate("at_least_once"), _rate("kafka_loop")),
    "throughput_vs_naive": ("raw", _rate("at_least_once"), _rate("predict_per_message")),
    "shipped_vs_best_peer": ("raw", _rate("at_least_once"), _best_peer),
    "exactly_once_vs_at_least_once": ("raw", _rate("exactly_once"), _rate("at_least_once")),
    "confluent_vs_model": ("raw", _rate("confluent"), _rate(MODEL)),
    "confluent_vs_model_jpeg": ("jpeg", _rate("confluent"), _rate(MODEL)),
    "confluent_vs_best_peer": ("raw", _rate("confluent"), _best_peer),
    "confluent_exactly_once_vs_at_least_once": ("raw", _rate("confluent_exactly_once"), _rate("confluent")),
    "overhead_vs_kafka_loop": ("raw", _cpu("null_model"), _cpu("pass_through")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write build/bench.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--images", type=int, default=60_000, help="waiting for each contender (default 60,000)")
    parser.add_argument("--rounds", type=int, default=5, help="of all contenders (default 5)")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_IMAGES:,} raw images, {QUICK_ROUNDS} rounds: a first impression"
    )
    given = parser.parse_args(arguments)
    if not PEERS.exists():
        parser.error(f"{PEERS} is missing; `make bench` installs the peers")
    images, rounds = (QUICK_IMAGES, QUICK_ROUNDS) if given.quick else (given.images, given.rounds)
    began = time.monotonic()
    counts: dict[str, int] = {}
    runs: dict[str, list[dict[str, Run]]] = {}
    with tempfile.TemporaryDirectory(prefix="reconstream-bench-") as folder:
        root = Path(folder)
        null = prepare("raw", root / "null", null=True)
        with KafkaCluster(root / "kafka") as cluster:
            for workload in ("raw",) if given.quick else WORKLOADS:
                counts[workload] = max(1, round(images * WORKLOADS[workload].share))
                material = prepare(workload, root / workload)
                stream = Stream(cluster.bootstrap, f"images-{workload}", workload, counts[workload])
                runs[workload] = _rounds(cluster, stream, material, null, rounds, root)
            console.print("latency against offered load ...")
            curve = measure(
                cluster,
                prepare("raw", root / "latency"),
                root,
                capacity=statistics.median(map(_rate("at_least_once"), runs["raw"])),
                model_rate=statistics.median(map(_rate(MODEL), runs["raw"])),
                seconds=QUICK_LOAD_S if given.quick else LOAD_S,
            )
    result = _result(runs, counts, curve, rounds, time.monotonic() - began)
    known = msgspec.json.decode(OUTPUT.read_bytes()) if OUTPUT.exists() else {}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    whole = {**msgspec.to_builtins(result), **({"soak": known["soak"]} if "soak" in known else {})}
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
    _show(result)
    return 0


def _rounds(
    cluster: KafkaCluster, stream: Stream, material: Material, null: Material, rounds: int, root: Path
) -> list[dict[str, Run]]:
    """All contenders of a workload, in alternation."""
    cluster.create_topics({stream.topic: (PARTITIONS, {})})
    _publish(stream, material.values)
    names = [name for name, contender in CONTENDERS.items() if stream.workload in contender.workloads]
    done: list[dict[str, Run]] = []
    for number in range(rounds):
        done.append({})
        # Turned round every other time, so that what wanders in one direction favours nobody.
        for name in names[:: 1 if number % 2 == 0 else -1]:
            contender = CONTENDERS[name]
            output = f"{stream.workload}-{name}-{number}"
            letters = {"max.message.bytes": LETTER_BYTES}
            cluster.create_topics({output: (PARTITIONS, {}), f"{output}-letters": (PARTITIONS, letters)})
            used = null if contender.null else material
            one = run(contender, stream, used, root / f"{output}.log", output)
            done[-1][name] = one
            console.print(
                f"{stream.workload}, round {number + 1}/{rounds}, {name}: "
                f"{one.images_per_second:,.0f} images a second, {one.cpu_us_per_image:,.0f} us of CPU an image"
            )
    return done


def _publish(stream: Stream, values: Sequence[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=stream.bootstrap, acks="all", linger_ms=20, batch_size=1 << 18)
    headers = [("content-type", WORKLOADS[stream.workload].content_type.encode())]
    for number in range(stream.count):
        producer.send(stream.topic, values[number % len(values)], None, headers, number % PARTITIONS)
    producer.flush()
    producer.close()


def _spread(values: Sequence[float]) -> Spread:
    return Spread(round(min(values), 4), round(statistics.median(values), 4), round(max(values), 4))


def _result(
    runs: Mapping[str, Sequence[Round]], counts: dict[str, int], curve: Curve, rounds: int, seconds: float
) -> Result:
    return Result(
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB",
        versions={
            of.name: of.version for of in map(distribution, ("kafka-python", "confluent-kafka", "keras", "numpy"))
        },
        images=counts,
        rounds=rounds,
        seconds=round(seconds, 1),
        contenders={
            workload: [
                Figures(
                    name,
                    _spread([one[name].images_per_second for one in of]),
                    _spread([one[name].cpu_us_per_image for one in of]),
                    _spread([one[name].peak_rss_mib for one in of]),
                )
                for name in of[0]
            ]
            for workload, of in runs.items()
        },
        ratios={
            name: _spread([above(one) / below(one) for one in runs[workload]])
            for name, (workload, above, below) in RATIOS.items()
            if workload in runs
        },
        confluent_us_beside_loop=_spread(
            [_cpu("null_model_confluent")(one) - _cpu("pass_through_confluent")(one) for one in runs["raw"]]
        ),
        latency=curve,
    )


def _show(result: Result) -> None:
    ratios = Table(title=f"Ratios, {result.rounds} rounds")
    for column in ("ratio", "median", "min", "max"):
        ratios.add_column(column, justify="left" if column == "ratio" else "right")
    for name, spread in result.ratios.items():
        ratios.add_row(name, *(f"{value:.3f}" for value in (spread.median, spread.min, spread.max)))
    beside = result.confluent_us_beside_loop
    ratios.add_row(
        "confluent, us beside its loop", *(f"{value:.1f}" for value in (beside.median, beside.min, beside.max))
    )
    console.print(ratios)
    for workload, of in result.contenders.items():
        table = Table(title=f"{workload}: {result.images[workload]:,} images, {result.machine}")
        for column in ("contender", "images a second", "CPU us an image", "peak MiB"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for one in of:
            figures = (one.images_per_second, one.cpu_us_per_image, one.peak_rss_mib)
            table.add_row(one.name, *(f"{spread.median:,.0f}" for spread in figures))
        console.print(table)
    curve = result.latency
    table = Table(
        title=f"Latency in ms, at_least_once; goal at half load: {curve.bound_ms:.0f}; "
        f"single images, p99: {curve.p99_ms_single:.0f}"
    )
    for column in ("load", "images a second", "p50", "p99", "max", "publisher late", "waiting", "peak MiB", "ready"):
        table.add_column(column, justify="right")
    for load in curve.loads:
        milliseconds = (load.p50_ms, load.p99_ms, load.max_ms, load.late_ms)
        table.add_row(
            f"{load.share:.0%}",
            f"{load.offered:,.0f}",
            *(f"{value:,.0f}" for value in milliseconds),
            f"{load.waiting:,}",
            f"{load.peak_rss_mib:,.0f}",
            "yes" if load.ready else "no",
        )
    console.print(table)
    console.print(f"{OUTPUT} written, {result.seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
