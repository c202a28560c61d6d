"""Runs one row: a Kafka, a fleet of workers, a load, the schedule's steps, and the account at the end."""

import itertools
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

from deploy.local_kafka import KafkaCluster
from deploy.local_kafka.cluster import USER
from tests.faults.accounting import Account, Letter, Position, account
from tests.faults.actions import CLIENT_ID, REVOKED, Stage, pause, perform
from tests.faults.bundles import Shelf
from tests.faults.fleet import Exit, Fleet
from tests.faults.load import LETTER_BYTES, PARTITIONS, Load, Messages
from tests.faults.proxy import Proxy
from tests.faults.reader import Reader, read_input
from tests.faults.rows import WORKERS, Row, Step

Mode = Literal["at_least_once", "exactly_once"]
MODES: tuple[Mode, ...] = ("at_least_once", "exactly_once")

INPUT, OUTPUT, LETTERS, GROUP = "images", "verdicts", "dead-letters", "faults"
# What a row's backlog is held against where no fault-free row was measured, messages a second.
RATE_UNMEASURED = 500.0
DRAIN_S = 60.0
SETTLE_S = 3.0
LAST_READ_S = 30.0
# Of a worker's start and stop, and of the group's coming to rest.
LOG_LINES = 24
# For so long after its end a fault may still be spoken of: sessions, transactions and retries run out.
AFTERMATH_S = 30.0
Span = tuple[float, float]
# A rate for the paced half of the load; a schedule without faults has no length to spread it over.
LEAST_SPREAD_S = 5.0


@dataclass(frozen=True)
class Options:
    """workers, messages: smaller ones for a quick look, otherwise the campaign's."""

    mode: Mode
    seed: int
    scale: float = 1.0
    rate: float = RATE_UNMEASURED
    workers: int = WORKERS
    folder: Path = Path("build/faults")


class Result(msgspec.Struct, frozen=True):
    """A row of build/faults.json."""

    name: str
    mode: str
    seed: int
    published: int
    verdicts: int
    dead_letters: int
    lost: int
    duplicates: int
    out_of_order: int
    wrong_score: int
    longest_gap_s: float
    seconds_to_drain: float
    ok: bool
    problems: list[str]


def schedule_of(row: Row, seed: int, scale: float) -> list[Step]:
    """A row's steps: the same for the same name, seed and scale."""
    return row.schedule(Random(f"{row.name}-{seed}"), scale)


def run_row(row: Row, options: Options, say: Callable[[str], None]) -> tuple[Result, float]:
    """Run a row in one mode.

    Returns:
        its result, and the rate at which verdicts came, in messages a second.

    Raises:
        FleetError, ClusterError: the row could not be brought to its start.
    """
    steps = schedule_of(row, options.seed, options.scale)
    folder = options.folder / f"{row.name}-{options.mode}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = max(row.least, round(row.messages * options.scale))
    with ExitStack() as resources:
        root = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="reconstream-faults-")))
        shelf = _fill_shelf(root / "bundles", row, options.scale)
        cluster = resources.enter_context(
            KafkaCluster(root / "kafka", row.nodes, proxied=row.proxied, secure=row.secure, acls=row.secure)
        )
        resources.callback(_keep_broker_logs, cluster, folder)
        proxy = resources.enter_context(Proxy(cluster.proxy_routes)) if row.proxied else None
        strict = {"min.insync.replicas": row.nodes} if row.strict_letters else {}
        cluster.create_topics(
            {
                INPUT: (PARTITIONS, {}),
                OUTPUT: (PARTITIONS, {}),
                LETTERS: (PARTITIONS, {"max.message.bytes": LETTER_BYTES, **strict}),
            }
        )
        # So that there are some of each kind at every scale.
        oversize_every = max(2, round(row.oversize_every * options.scale)) if row.oversize_every else 0
        messages = Messages(shelf.images, oversize_every)
        half = 0 if row.upfront else total // 2
        lanes = _lanes(steps)
        spread = max(
            LEAST_SPREAD_S, *(sum(step.wait_s + step.lead_s + step.seconds for step in lane) for lane in lanes)
        )
        load = Load(cluster.bootstrap, INPUT, messages, total, rate=half / spread)
        resources.callback(load.close)
        reader = Reader(cluster.bootstrap, OUTPUT, LETTERS)
        resources.callback(reader.close)
        fleet = Fleet(folder, min(options.workers, row.workers), _settings(row, options, cluster, shelf))
        resources.callback(fleet.close)
        if row.upfront:
            load.start()
            load.finish()
        if row.upfront:
            fleet.wait_ready()
        else:
            # Each join is a rebalance, in which at_least_once may repeat: none of them may be taken for a fault's.
            fleet.wait_whole(PARTITIONS)
            load.start()
        burst = (total - half) // max(1, len(steps))
        stage = Stage(cluster, proxy, fleet, load, reader, shelf, (INPUT, OUTPUT, LETTERS), GROUP, burst)
        stage.burn_s = row.burn_s(options.scale) if row.burn_s is not None else 0.0
        stage.revoked = fleet.said(REVOKED)
        stage.crowded = len(lanes) > 1
        spans = _perform_all(stage, lanes, say)
        # From the last fault's end on, and with all that is published only now.
        ended, answered = time.monotonic(), len(reader.answered)
        load.finish()
        backlog = len(load.acknowledged) - answered
        seconds, drained = _drain(load, reader, ended, DRAIN_S + backlog / options.rate)
        pause(SETTLE_S)
        fleet.wait_ready()  # one that is still recovering would rightly end with 1
        fleet.stop()
        reader.close(LAST_READ_S)
        published = read_input(cluster.bootstrap, INPUT, messages, load.acknowledged)
        letters = reader.letters(messages, published)
        result = account(
            published,
            reader.answers,
            letters,
            shelf.offline,
            exactly_once=options.mode == "exactly_once",
            duplicates_allowed=row.max_in_flight * sum(step.hits for step in steps),
        )
        problems = [*stage.problems, *load.failures, *result.problems]
        if oversize_every:
            problems += _oversize_problems(letters, {at for at, it in published.items() if messages.zipped(it.id)})
        problems += _log_problems(row, spans, fleet, say)
        problems += _run_problems(row, steps, fleet, set(load.acknowledged) - set(published))
        if reader.failure is not None:
            problems.append(f"the campaign's own reader failed: {reader.failure!r}")
        if not drained:
            limit = f"{DRAIN_S:.0f} s + {backlog} / {options.rate:.0f} per s"
            problems.append(f"the backlog was not worked off within {limit}")
        if row.max_gap_s is not None and result.longest_gap_s > row.max_gap_s:
            problems.append(
                f"a partition stood still for {result.longest_gap_s:.1f} s, {row.max_gap_s:.0f} s are allowed"
            )
    return _result(row, options, result, seconds, problems), measured_rate(reader)


def _result(row: Row, options: Options, result: Account, seconds: float, problems: list[str]) -> Result:
    return Result(
        name=row.name,
        mode=options.mode,
        seed=options.seed,
        published=result.published,
        verdicts=result.verdicts,
        dead_letters=result.dead_letters,
        lost=result.lost,
        duplicates=result.duplicates,
        out_of_order=result.out_of_order,
        wrong_score=result.wrong_score,
        longest_gap_s=round(result.longest_gap_s, 2),
        seconds_to_drain=round(seconds, 2),
        ok=not problems,
        problems=problems,
    )


def failed_result(row: Row, options: Options, problem: str) -> Result:
    """Of a row that could not be run."""
    return _result(row, options, Account(0, 0, 0, 0, 0, 0, 0, 0.0, ()), 0.0, [problem])


def measured_rate(reader: Reader) -> float:
    """Messages a second from the first verdict to the last."""
    times = [answer.at for answer in reader.answers]
    return len(times) / max(1e-3, times[-1] - times[0]) if times else 0.0


def _fill_shelf(folder: Path, row: Row, scale: float) -> Shelf:
    shelf = Shelf(folder, row.shape)
    for number in range(row.bundles):
        last = number == row.bundles - 1
        shelf.add(burn_s=row.burn_s(scale) if row.burn_s is not None and last else 0.0)
    shelf.switch(row.first_bundle)
    return shelf


def _settings(row: Row, options: Options, cluster: KafkaCluster, shelf: Shelf) -> dict[str, object]:
    return {
        "bundle": shelf.folder,
        "kafka__bootstrap_servers": cluster.bootstrap_for_proxy if row.proxied else cluster.bootstrap,
        "kafka__client_id": CLIENT_ID,
        **(_login(cluster) if row.secure else {}),
        "input_topic": INPUT,
        "output_topic": OUTPUT,
        "dead_letter_topic": LETTERS,
        "group_id": GROUP,
        "delivery": options.mode,
        "max_batch_size": 64,
        "max_in_flight_records": row.max_in_flight,
        "commit_interval_ms": 100,
        "http_port": 0,
        "log_format": "json",
        **row.settings,
    }


def _login(cluster: KafkaCluster) -> dict[str, object]:
    return {
        "kafka__bootstrap_servers": cluster.bootstrap_for("SASL_PLAINTEXT"),
        "kafka__security_protocol": "SASL_PLAINTEXT",
        "kafka__sasl_mechanism": "SCRAM-SHA-512",
        "kafka__sasl_username": USER,
        "kafka__sasl_password": cluster.app_password,
    }


def _drain(load: Load, reader: Reader, began: float, limit_s: float) -> tuple[float, bool]:
    """Wait until every message is answered; how long it took since it began, and whether that was within the limit.

    It goes on for twice the limit, to tell a slow drain from a loss.
    """
    look = threading.Event()
    while not load.acknowledged.keys() <= reader.answered:
        if time.monotonic() - began > 2 * limit_s or reader.failure is not None:
            break
        look.wait(0.2)
    seconds = time.monotonic() - began
    return seconds, seconds <= limit_s


def _run_problems(row: Row, steps: Sequence[Step], fleet: Fleet, vanished: set[Position]) -> list[str]:
    problems = [_exit_problem(end) for end in fleet.exits if not _may_end_so(row, steps, end)]
    if vanished:
        problems.append(f"{len(vanished)} acknowledged messages are not on the input topic: Kafka lost them")
    logs = fleet.logs()
    if row.evidence is not None and steps and not any(word in logs for word in row.evidence.split("|")):
        problems.append(f"no worker's log says {row.evidence}: the fault has missed")
    lines = logs.splitlines()
    # kafka-python has tracebacks of its own for a connection that is gone; how often it may speak is bounded below.
    if any("Traceback" in line and '"logger": "kafka.' not in line for line in lines):
        problems.append("a worker logged a traceback")
    return problems


def _lanes(steps: Sequence[Step]) -> list[list[Step]]:
    lanes: dict[int, list[Step]] = {0: []}
    for step in steps:
        lanes.setdefault(step.lane, []).append(step)
    return list(lanes.values())


def _perform_all(stage: Stage, lanes: Sequence[Sequence[Step]], say: Callable[[str], None]) -> list[Span]:
    """Perform the steps, each lane on a thread of its own; returns when each was under way.

    Raises what the first lane that fails has raised; the others then end with their present step.
    """
    began = time.monotonic()
    count = sum(map(len, lanes))
    numbers = itertools.count(1)
    spans: list[Span] = []
    failures: list[BaseException] = []

    def follow(lane: Sequence[Step]) -> None:
        try:
            for step in lane:
                if failures:
                    return
                since = time.monotonic()
                say(f"  {since - began:6.1f} s  {next(numbers)}/{count}  {step}")
                perform(stage, step)
                spans.append((since, time.monotonic()))
        except BaseException as error:  # noqa: BLE001 - it is raised again, on the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(lane,), name=f"lane {n}") for n, lane in enumerate(lanes)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return spans


def _log_problems(row: Row, spans: Sequence[Span], fleet: Fleet, say: Callable[[str], None]) -> list[str]:
    """Each incarnation may log its start and end, and so many lines for each fault that it lived through."""
    problems = []
    most = (0, 0)
    for end in fleet.exits:
        faults = sum(since < end.ended and until + AFTERMATH_S > end.began for since, until in spans)
        allowed = LOG_LINES + row.lines_per_fault * faults
        most = max(most, (len(end.said), faults), key=lambda it: it[0] - row.lines_per_fault * it[1])
        if len(end.said) > allowed:
            problems.append(
                f"worker-{end.worker}-{end.incarnation:03}.log has {len(end.said)} lines, {allowed} are enough for "
                f"one per change of state: it lived through {faults} faults"
            )
    say(f"  the longest log of a worker: {most[0]} lines for {most[1]} faults")
    return problems


def _oversize_problems(letters: Sequence[Letter], oversize: set[Position]) -> list[str]:
    """Both kinds must have been met: what its letter can hold, and what it cannot."""
    return [
        f"no dead letter of a message of 5 MB came {kind} its value: the fault has missed"
        for omitted, kind in ((False, "with"), (True, "without"))
        if not any(letter.position in oversize and letter.omitted == omitted for letter in letters)
    ]


def _may_end_so(row: Row, steps: Sequence[Step], end: Exit) -> bool:
    if not end.asked:
        return False
    # SIGTERM ends a process that has not come to its first line yet, and so to no handler of its own.
    unborn = end.code == -signal.SIGTERM and not end.said
    killed = end.code == -signal.SIGKILL and any(step.action == "kill" for step in steps)
    return end.code == 0 or end.code in row.may_exit or killed or unborn


def _exit_problem(end: Exit) -> str:
    asked = "when it was asked to stop" if end.asked else "by itself"
    log = f"worker-{end.worker}-{end.incarnation:03}.log"
    return f"worker {end.worker} ended {asked} with exit code {end.code}, see {log}"


def _keep_broker_logs(cluster: KafkaCluster, folder: Path) -> None:
    for node in cluster.nodes:
        if node.log_file.exists():
            shutil.copy(node.log_file, folder / f"broker-{node.number}.log")
