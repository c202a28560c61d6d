"""The checks, in their order: each builds on what the ones before left running."""

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from tests.compose.account import Account
from tests.compose.engine import Engine, ExitCodes

WORKERS = 3
PARTITIONS = 6
BURST = 20_000
KILLED_AFTER = 2_000
# What one killed worker may repeat: its default max_in_flight_records.
MAX_REPEATED = 4096
SETTLE_S = 240
SERVICES = {"kafka", "topics", "train", "worker", "feed", "prometheus", "grafana"}
ONE_SHOT = {"topics", "train"}
UNCHECKED = {"feed"}
# A JVM that gets SIGTERM, a program that gets Ctrl-C.
CLEAN = {"worker": {0}, "prometheus": {0}, "grafana": {0}, "kafka": {0, 143}, "feed": {0, 130}}

INSIDE = """
import json, os
def writable(path):
    try:
        open(path + "/probe", "w").close()
        return True
    except OSError:
        return False
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({"uid": os.getuid(), "writable": [p for p in ("/", "/opt", "/bundles", "/tmp") if writable(p)],
    "no_new_privileges": status["NoNewPrivs"].strip(), "capabilities": int(status["CapBnd"], 16)}))
"""


class CheckFailedError(Exception):
    """A check's finding: what was expected, what was found."""


class Stack:
    """The running project as its user sees it: compose commands and three ports on this machine.

    Args:
        engine: runs the compose commands.
        ports: of kafka, prometheus and grafana on 127.0.0.1.
    """

    def __init__(self, engine: Engine, ports: Mapping[str, int]) -> None:
        self.engine = engine
        self.ports = ports
        self.repeated = 0
        self.version = ""

    def account(self) -> Account:
        """A reader of the topics; to be closed."""
        return Account(f"127.0.0.1:{self.ports['kafka']}")

    def get(self, service: str, path: str) -> Any:
        """The JSON that a service answers with."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[service], timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise CheckFailedError(f"{service} answered {path} with {answer.status}: {body[:200]!r}")
        return json.loads(body)

    def query(self, expression: str) -> dict[str, float]:
        """What Prometheus makes of an expression now, by instance."""
        answer = self.get("prometheus", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        return {row["metric"].get("instance", ""): float(row["value"][1]) for row in answer["data"]["result"]}


def the_files_are_read(stack: Stack) -> str:
    stack.engine.config("docker-compose.yml")
    stack.engine.config("docker-compose.yml", "docker-compose.gpu.yml")
    return "docker-compose.yml, alone and with docker-compose.gpu.yml"


def everything_is_healthy(stack: Stack) -> str:
    stack.engine.up(1)
    return _health(stack)


def messages_flow(stack: Stack) -> str:
    account = stack.account()
    try:
        first = account.published()
        _until(lambda: sum(account.published().values()) > sum(first.values()) + 100, "no 100 new images in 60 s", 60)
        missing = account.wait_answered(account.published(), SETTLE_S)
        if missing:
            raise CheckFailedError(f"{missing} images have no verdict")
        if set(account.statuses) != {"judged"} or len(account.versions) != 1:
            raise CheckFailedError(f"statuses {dict(account.statuses)}, model versions {dict(account.versions)}")
        stack.version = next(iter(account.versions))
        return f"{len(account.answered)} images, all judged, by model {stack.version}"
    finally:
        account.close()


def the_worker_is_confined(stack: Stack) -> str:
    found = json.loads(stack.engine.execute("worker", "python", "-c", INSIDE))
    expected = {"uid": 10001, "writable": ["/tmp"], "no_new_privileges": "1", "capabilities": 0}
    if found != expected:
        raise CheckFailedError(f"{found}, expected {expected}")
    return f"{found}"


def prometheus_has_worker_and_rules(stack: Stack) -> str:
    _until(lambda: sum(_worker_up(stack).values()) == 1, "no worker is up in 60 s", 60)
    groups = stack.get("prometheus", "/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    broken = [rule["name"] for rule in rules if rule["health"] == "err"]
    if not alerts or broken:
        raise CheckFailedError(f"{len(alerts)} alert rules, these cannot be evaluated: {broken}")
    return f"1 worker up, {len(rules) - len(alerts)} recording rules, {len(alerts)} alert rules"


def grafana_answers(stack: Stack) -> str:
    health = stack.get("grafana", "/api/health")
    if health.get("database") != "ok":
        raise CheckFailedError(f"/api/health says {health}")
    return f"version {health.get('version')}"


def three_workers_share_the_partitions(stack: Stack) -> str:
    stack.engine.up(WORKERS)
    share = PARTITIONS / WORKERS
    query = "reconstream_assigned_partitions"
    _until(
        lambda: list(stack.query(query).values()) == [share] * WORKERS,
        lambda: f"assigned partitions by worker are {stack.query(query)}, expected {share:g} each, after 120 s",
        120,
    )
    return f"{WORKERS} workers found by name, with {share:g} partitions each"


def a_killed_worker_loses_nothing(stack: Stack) -> str:
    account = stack.account()
    try:
        account.read()
        repeated, answered = account.repeated, len(account.answered)
        count = str(BURST)
        burst = stack.engine.start_execution(
            "feed", "reconstream-worker", "feed", "sample", "--loop", "--rate", "0", "--count", count
        )
        _until(lambda: _read(account) > answered + KILLED_AFTER, "the burst is not answered", SETTLE_S)
        unanswered = sum(account.published().values()) - len(account.answered)
        at = time.time()
        # Everything in the container but its first process, the init: that is the worker, and this shell, whose exit
        # status therefore says nothing.
        stack.engine.start_execution("worker", "sh", "-c", "kill -9 -1").communicate(timeout=60)
        said, _ = burst.communicate(timeout=SETTLE_S)
        if burst.returncode:
            raise CheckFailedError(f"the burst ended with {burst.returncode}: {said[-500:]}")
        _until(
            lambda: len(_up_since(stack)) == WORKERS and max(_up_since(stack).values()) > at,
            lambda: f"no worker was started again after the kill at {at:.0f}: {_up_since(stack)}",
            SETTLE_S,
        )
        ends = account.published()
        missing = account.wait_answered(ends, SETTLE_S)
        stack.repeated = account.repeated
        if missing or account.repeated - repeated > MAX_REPEATED:
            raise CheckFailedError(f"{missing} images lost, {account.repeated - repeated} answered again")
        return (
            f"killed with {unanswered:,} images unanswered, started again; of {sum(ends.values()):,} images 0 lost, "
            f"{account.repeated - repeated:,} answered again"
        )
    finally:
        account.close()


def down_is_clean(stack: Stack) -> str:
    return _clean(stack.engine.down(volumes=False), WORKERS)


def the_second_up_carries_on(stack: Stack) -> str:
    stack.engine.up(1)
    healthy = _health(stack)
    account = stack.account()
    try:
        before = account.published()
        _until(
            lambda: sum(account.published().values()) > sum(before.values()) + 100, "no 100 new images in 60 s", 60
        )
        ends = account.published()
        missing = account.wait_answered(ends, SETTLE_S)
        if missing or account.repeated != stack.repeated:
            raise CheckFailedError(f"{missing} images lost, {account.repeated - stack.repeated} answered again")
        if set(account.versions) != {stack.version}:
            raise CheckFailedError(f"model versions {dict(account.versions)}, expected {stack.version} alone")
        return f"the same model, {sum(ends.values()):,} images, 0 lost, 0 answered again; {healthy}"
    finally:
        account.close()


def the_last_down_is_clean(stack: Stack) -> str:
    return _clean(stack.engine.down(volumes=True), 1)


CHECKS: tuple[Callable[[Stack], str], ...] = (
    the_files_are_read,
    everything_is_healthy,
    messages_flow,
    the_worker_is_confined,
    prometheus_has_worker_and_rules,
    grafana_answers,
    three_workers_share_the_partitions,
    a_killed_worker_loses_nothing,
    down_is_clean,
    the_second_up_carries_on,
    the_last_down_is_clean,
)


def _health(stack: Stack) -> str:
    containers = stack.engine.containers()
    wrong = [
        one
        for one in containers
        if (one.service in ONE_SHOT and (one.state, one.exit_code) != ("exited", 0))
        or (one.service not in ONE_SHOT and one.state != "running")
        or (one.service not in ONE_SHOT | UNCHECKED and one.health != "healthy")
    ]
    absent = SERVICES - {one.service for one in containers}
    if wrong or absent:
        raise CheckFailedError(f"not as expected: {wrong}; absent: {sorted(absent)}")
    return f"{len(containers)} containers as expected"


def _clean(codes: ExitCodes, workers: int) -> str:
    wrong = {service: found for service, found in codes.items() if not set(found) <= CLEAN.get(service, {0})}
    if wrong or len(codes.get("worker", ())) != workers:
        raise CheckFailedError(f"exit codes {dict(codes)}, expected 0 of {workers} workers")
    return f"exit codes {dict(codes)}"


def _worker_up(stack: Stack) -> dict[str, float]:
    return stack.query('up{job="reconstream-worker"}')


def _up_since(stack: Stack) -> dict[str, float]:
    """Start times of the workers that Prometheus reaches now, Unix time in seconds."""
    return stack.query('process_start_time_seconds{job="reconstream-worker"} and (up{job="reconstream-worker"} == 1)')


def _read(account: Account) -> int:
    account.read()
    return len(account.answered)


def _until(condition: Callable[[], bool], complaint: str | Callable[[], str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise CheckFailedError(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.5)
