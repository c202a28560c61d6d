"""From MNIST to verdicts, with everything real: `make demo`.

Fits an autoencoder on the shipped sample, starts a real Apache Kafka on loopback (or uses the one
that KAFKA_BOOTSTRAP names), starts the worker as a process of its own, feeds it the evaluation images and a few
broken ones, shows what it answers, and holds every answer against what was sent.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.demo.accounting import Account, Sent, account, differs
from deploy.demo.worker_process import DemoError, WorkerProcess
from deploy.local_kafka import KafkaCluster, create_topics
from training.data import load
from training.evaluate import judge_bundle
from worker.core.bundle import Bundle, read_bundle
from worker.core.records import header
from worker.core.verdicts import Verdict
from worker.tools.board import VerdictBoard
from worker.tools.feed import Counts, Message, array_message, make_producer, publish

OUTPUT = Path("build/demo")
PARTITIONS = 3
RATE = 200
# Where among the images a broken message goes: one after so many good ones.
BROKEN_EVERY = 1500
TIMEOUT_S = 60.0

console = Console()


class Reader:
    """All of a topic, as committed, from the beginning on."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        self._partitions = [ClientPartition(topic, number) for number in range(PARTITIONS)]
        self._consumer.assign(self._partitions)

    def new(self, wait_ms: int = 0) -> list[Any]:
        """Records that came since the last call."""
        return [record for batch in self._consumer.poll(timeout_ms=wait_ms).values() for record in batch]

    def rest(self) -> list[Any]:
        """Every record up to the topic's end as it is now."""
        ends = self._consumer.end_offsets(self._partitions)
        records = []
        while any(self._consumer.position(partition) < end for partition, end in ends.items()):
            records += self.new(wait_ms=100)
        return records

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def broken_messages() -> list[Message]:
    """Messages as they come sooner or later: each is to be answered `unreadable` and dead-lettered."""
    good = array_message("broken", 0, np.zeros((28, 28, 1), np.uint8)).value or b""
    wrong_size = array_message("broken", 0, np.zeros((32, 32, 1), np.uint8)).value
    return [
        Message("broken-truncated", good[: len(good) // 2], "image/png"),
        Message("broken-text", b"this is no image", "image/png"),
        Message("broken-empty", b"", None),
        Message("broken-size", wrong_size, "image/png"),
        Message("broken-type", good, "application/pdf"),
        Message("broken-base64", b'{"image": "@@@"}', "application/json"),
    ]


def messages(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Iterator[Message]:
    """The evaluation images as PNGs, with the broken messages among them."""
    broken = iter(broken_messages())
    for index, (image, anomaly) in enumerate(zip(images, labels, strict=True)):
        if index % BROKEN_EVERY == BROKEN_EVERY // 2 and (one := next(broken, None)) is not None:
            yield one
        yield array_message("mnist", index, image, "anomaly" if anomaly else "normal")
    yield from broken


def step(title: str) -> None:
    """Say what comes next."""
    console.print(f"\n[bold]{title}[/bold]")


def run(*, keep: bool, rate: float) -> int:
    """The demo, from fit to summary; the exit status."""
    began = time.monotonic()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with ExitStack() as resources:
        step("1  fit an autoencoder, calibrate its threshold, write the bundle")
        bundle = fit()
        step("2  start Apache Kafka and the worker")
        bootstrap = os.environ.get("KAFKA_BOOTSTRAP") or start_kafka(resources)
        unique = uuid.uuid4().hex[:8]
        images, verdicts, letters = (f"demo-{unique}-{name}" for name in ("images", "verdicts", "dead-letters"))
        create_topics(
            bootstrap,
            {
                images: (PARTITIONS, {}),
                verdicts: (PARTITIONS, {}),
                letters: (PARTITIONS, {"max.message.bytes": (1 << 20) + (128 << 10)}),
            },
        )
        worker = WorkerProcess(
            OUTPUT / "worker.log",
            {
                "bundle": bundle.folder,
                "kafka__bootstrap_servers": bootstrap,
                "input_topic": images,
                "output_topic": verdicts,
                "dead_letter_topic": letters,
                "group_id": f"demo-{unique}",
                "http_port": 0,
            },
        )
        resources.callback(worker.kill)
        url = worker.wait_ready(TIMEOUT_S * 2)
        console.print(f"worker ready; metrics at [link]{url}/metrics[/link], its log in {worker.log}")
        step("3  feed it the evaluation images, and a few broken ones")
        dataset = load()
        feeder = Feeder(bootstrap, images, list(messages(dataset.evaluation[:], dataset.labels)), rate)
        verdict_reader, letter_reader = Reader(bootstrap, verdicts), Reader(bootstrap, letters)
        resources.callback(verdict_reader.close)
        resources.callback(letter_reader.close)
        answers, lettered, board = watch(worker, feeder, verdict_reader, letter_reader)
        if keep:
            console.print(
                f"\nKEEP: the worker goes on at {url} (Kafka: {bootstrap}, input topic {images}). Ctrl-C ends."
            )
            wait_for_interrupt(worker)
        step("4  stop the worker, and hold every answer against what was sent")
        code = worker.stop(TIMEOUT_S)
        answers += verdict_reader.rest()
        lettered += letter_reader.rest()
        input_reader = Reader(bootstrap, images)
        resources.callback(input_reader.close)
        sent = {(r.partition, r.offset): _sent(r) for r in input_reader.rest()}
        result = account(
            sent,
            [msgspec.json.decode(record.value, type=Verdict) for record in answers],
            [_source(record) for record in lettered],
            float(bundle.threshold),
        )
    problems = list(result.problems)
    if code != 0:
        problems.append(f"the worker exited with status {code}; see {worker.log}")
    if len(sent) != feeder.total:
        problems.append(f"{feeder.total} messages were published, {len(sent)} are on the topic")
    problems += compare_with_bundle(bundle, result, answers)
    (OUTPUT / "verdicts.jsonl").write_bytes(b"".join(record.value + b"\n" for record in answers))
    show(result, bundle, board, problems, url)
    write_summary(result, bundle, board, time.monotonic() - began)
    return 1 if problems else 0


def fit() -> Bundle:
    """Run reconstream-train as its users do."""
    command = [sys.executable, "-m", "training", "fit", "--output", str(OUTPUT / "bundles")]
    if subprocess.run(command, check=False).returncode != 0:
        raise DemoError("reconstream-train did not succeed; what it says stands above.")
    return read_bundle(OUTPUT / "bundles")


def start_kafka(resources: ExitStack) -> str:
    """A real Kafka of our own, with its data in a fresh folder; its address."""
    root = OUTPUT / f"kafka-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    cluster = resources.enter_context(KafkaCluster(root))
    console.print(f"Apache Kafka at {cluster.bootstrap} (its files: {root})")
    return cluster.bootstrap


class Feeder:
    """Publishes on a thread of its own, at a rate."""

    def __init__(self, bootstrap: str, topic: str, all_messages: Sequence[Message], rate: float) -> None:
        self.total = len(all_messages)
        self.counts = Counts()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(bootstrap, topic, all_messages, rate), daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether everything was published and acknowledged; raises what went wrong."""
        if self.error is not None:
            raise DemoError(f"feeding failed: {self.error}") from self.error
        return self.counts.acknowledged == self.total and not self._thread.is_alive()

    def _run(self, bootstrap: str, topic: str, all_messages: Sequence[Message], rate: float) -> None:
        try:
            producer = make_producer({"bootstrap_servers": bootstrap}, TIMEOUT_S)
            try:
                publish(producer, topic, PARTITIONS, all_messages, counts=self.counts, rate=rate)
            finally:
                producer.close(timeout=5)
        except Exception as error:  # noqa: BLE001 - raised again by `done`, on the main thread
            self.error = error


def watch(
    worker: WorkerProcess, feeder: Feeder, verdict_reader: Reader, letter_reader: Reader
) -> tuple[list[Any], list[Any], VerdictBoard]:
    """Show verdicts as they come, until there is one for every message."""
    board = VerdictBoard("Reconstream demo")
    answers: list[Any] = []
    letters: list[Any] = []

    def table() -> Any:
        counts = {"sent": f"{feeder.counts.published:,} of {feeder.total:,}", "dead letters": f"{len(letters):,}"}
        return board.render(counts)

    feeder.start()
    last = time.monotonic()
    with Live(console=console, get_renderable=table, refresh_per_second=4, transient=not console.is_terminal) as live:
        while not feeder.done or board.total < feeder.total or len(letters) < board.unreadable:
            worker.check()
            new = verdict_reader.new(wait_ms=200)
            for record in new:
                board.update(msgspec.json.decode(record.value, type=Verdict), record.timestamp)
            answers += new
            letters += letter_reader.new()
            if new or not feeder.done:
                last = time.monotonic()
            elif time.monotonic() - last > TIMEOUT_S:
                break  # the accounting will say what is missing
        live.refresh()
    return answers, letters, board


def wait_for_interrupt(worker: WorkerProcess) -> None:
    """Until Ctrl-C."""
    try:
        while True:
            worker.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        return


def compare_with_bundle(bundle: Bundle, result: Account, answers: Sequence[Any]) -> list[str]:
    """The verdicts' numbers must be those of `reconstream-train evaluate`."""
    stored = next(judged.evaluation for judged in judge_bundle(bundle.manifest, bundle.calibration) if judged.chosen)
    if stored is None:
        return ["the bundle has no evaluation"]
    scores = [
        verdict.score for record in answers if (verdict := msgspec.json.decode(record.value, type=Verdict)).score
    ]
    band = bundle.tolerance * float(bundle.threshold)
    near = int(np.sum(np.abs(np.array(scores, np.float64) - float(bundle.threshold)) <= band))
    difference = differs(result.evaluation, stored, near)
    return [f"the verdicts differ from reconstream-train evaluate: {difference}"] if difference else []


def show(result: Account, bundle: Bundle, board: VerdictBoard, problems: Sequence[str], url: str) -> None:
    """The comparison with the labels, where to look further, and what is not as promised."""
    found = result.evaluation
    table = Table(title="verdicts against labels (digit 1 is normal, every other digit an anomaly)")
    for name in ("TP", "TN", "FP", "FN", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    table.add_row(
        *map(str, (found.tp, found.tn, found.fp, found.fn)),
        *(f"{value:.4f}" for value in (found.precision, found.recall, found.f1)),
    )
    console.print(table)
    console.print(
        f"{result.published:,} published: {result.judged:,} judged, {result.unreadable:,} unreadable, "
        f"{result.dead_letters:,} dead letters; "
        f"latency p50 {board.latency_ms(50):.0f} ms, p99 {board.latency_ms(99):.0f} ms"
    )
    for problem in problems:
        console.print(f"[red]not as promised:[/red] {problem}")
    if not problems:
        console.print(
            "[green]every message has exactly one answer, and the numbers are those of the bundle's report[/green]"
        )
    console.print(f"report    {bundle.folder / 'report.html'}", soft_wrap=True)
    console.print(f"verdicts  {OUTPUT / 'verdicts.jsonl'}", soft_wrap=True)
    console.print(f"summary   {OUTPUT / 'summary.json'}", soft_wrap=True)
    console.print(f"metrics   {url}/metrics (while it ran; make demo KEEP=1 leaves it running)", soft_wrap=True)


def write_summary(result: Account, bundle: Bundle, board: VerdictBoard, seconds: float) -> None:
    """The figures, for programs."""
    found = result.evaluation
    summary = {
        "published": result.published,
        "judged": result.judged,
        "unreadable": result.unreadable,
        "dead_letters": result.dead_letters,
        "tp": found.tp,
        "tn": found.tn,
        "fp": found.fp,
        "fn": found.fn,
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
        "auroc": found.auroc,
        "threshold": float(bundle.threshold),
        "model_version": bundle.manifest.version,
        "latency_p50_ms": board.latency_ms(50),
        "latency_p99_ms": board.latency_ms(99),
        "problems": list(result.problems),
        "seconds": round(seconds, 1),
    }
    (OUTPUT / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _sent(record: Any) -> Sent:
    identity = (header(record.headers, "message-id") or b"").decode()
    return Sent(identity, None if identity.startswith("broken-") else identity.endswith("-labelanomaly"))


def _source(letter: Any) -> tuple[int, int]:
    partition, offset = (header(letter.headers, f"reconstream-source-{name}") for name in ("partition", "offset"))
    return int(partition or -1), int(offset or -1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument(
        "--rate", type=float, default=RATE, help="images per second (default: %(default)s; 0: no limit)"
    )
    given = parser.parse_args(arguments)
    try:
        return run(keep=given.keep, rate=given.rate)
    except DemoError as error:
        console.print(f"[red]demo:[/red] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
