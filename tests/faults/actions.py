"""What the steps of a schedule do.  A function's name is the step's action."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from deploy.local_kafka import KafkaCluster
from deploy.local_kafka.admin import Resource
from tests.faults.bundles import Shelf
from tests.faults.fleet import Fleet
from tests.faults.load import PARTITIONS, Load
from tests.faults.proxy import PRODUCE, Proxy
from tests.faults.reader import Reader
from tests.faults.rows import Step

MIB = 1 << 20
CLIENT_ID = "faults-worker"
SWAP_TIMEOUT_S = 40.0
LOOK_S = 0.2
SLOW_NETWORK_S = 0.2
NOTICE_TIMEOUT_S = 40.0
JOIN_TIMEOUT_S = 30.0
_NOTICED = re.compile("were revoked|read again")
# A slow model's worker may hold its bytes in flight, one fetch of 32 MB, the next one, and what Python adds.
SLOW_GROWTH_BYTES = 192 * MIB
# A slow model's batch takes at least so large a part of the time for which it is watched: 37 s of 150 s.
SLOW_SHARE = 4


@dataclass
class Stage:
    """What the steps act on; `problems` is what they found wrong."""

    cluster: KafkaCluster
    proxy: Proxy | None
    fleet: Fleet
    load: Load
    reader: Reader
    shelf: Shelf
    topics: tuple[str, str, str]  # input, output, dead letters
    group: str
    burst: int
    problems: list[str] = field(default_factory=list)


def perform(stage: Stage, step: Step) -> None:
    """Wait, let messages come, and do what the step says."""
    pause(step.wait_s)
    if step.action in {"kill", "terminate", "zombie"}:
        # A worker that is still starting would feel nothing, and its own start is not what is tested here.
        stage.fleet.wait_ready()
        stage.fleet.wait_assigned(step.target)
    stage.load.burst(stage.burst)
    pause(step.lead_s)
    ACTIONS[step.action](stage, step)


def pause(seconds: float) -> None:
    """Let time pass: schedules are in seconds."""
    threading.Event().wait(seconds)


def kill(stage: Stage, step: Step) -> None:
    """Kill -9."""
    stage.fleet.kill(step.target)


def terminate(stage: Stage, step: Step) -> None:
    """SIGTERM, as an orchestrator does it."""
    stage.fleet.terminate(step.target)


def zombie(stage: Stage, step: Step) -> None:
    """SIGSTOP past the session timeout, then SIGCONT: it believes that its partitions are still its own."""
    before = len(_NOTICED.findall(stage.fleet.log_of(step.target)))
    stage.fleet.pause(step.target)
    pause(step.seconds)
    stage.fleet.resume(step.target)
    deadline = time.monotonic() + NOTICE_TIMEOUT_S
    while len(_NOTICED.findall(stage.fleet.log_of(step.target))) == before:
        if time.monotonic() > deadline:
            stage.problems.append(f"worker {step.target} was away and does not say so in its log")
            return
        pause(LOOK_S)


def stop_broker(stage: Stage, step: Step) -> None:
    """A controlled shutdown, and a start on the same data."""
    stage.cluster.stop_node(step.target)
    _start_broker(stage, step)


def kill_broker(stage: Stage, step: Step) -> None:
    """Kill -9, and a start on the same data."""
    stage.cluster.kill_node(step.target)
    _start_broker(stage, step)


def _start_broker(stage: Stage, step: Step) -> None:
    pause(step.seconds)
    stage.cluster.start_node(step.target)
    stage.cluster.wait_ready()


def silence_broker(stage: Stage, step: Step) -> None:
    """SIGSTOP and SIGCONT: connections stay, nothing answers."""
    stage.cluster.pause_node(step.target)
    pause(step.seconds)
    stage.cluster.resume_node(step.target)
    stage.cluster.wait_ready()


def cut(stage: Stage, step: Step) -> None:
    """Every connection of every worker, in the middle of its next request or answer."""
    before = _proxy(stage).connections_cut
    _proxy(stage).cut()
    pause(0.5)
    if _proxy(stage).connections_cut == before:
        stage.problems.append("there was no connection to cut: the workers do not use the proxy")


def hold_produce(stage: Stage, step: Step) -> None:
    """Produce requests get stuck past the delivery timeout, heartbeats pass; at last they are delivered, late."""
    _proxy(stage).hold(PRODUCE)
    pause(step.seconds)
    _proxy(stage).release()


def hold_everything(stage: Stage, step: Step) -> None:
    """The network between workers and brokers takes everything and delivers nothing, for a while."""
    _proxy(stage).hold()
    pause(step.seconds)
    _proxy(stage).release()


def slow_network(stage: Stage, step: Step) -> None:
    """Every request takes a while longer."""
    _proxy(stage).delay_s = SLOW_NETWORK_S
    pause(step.seconds)
    _proxy(stage).delay_s = 0.0


def withdraw(stage: Stage, step: Step) -> None:
    """The workers may no longer read, write, commit or open transactions; then they may again."""
    source, output, letters = stage.topics
    resources: list[tuple[Resource, str]] = [
        ("topic", source),
        ("topic", output),
        ("topic", letters),
        ("group", stage.group),
        ("transactional_id", "*"),
    ]
    kind, name = resources[step.target]
    stage.cluster.deny_app(kind, name)
    pause(step.seconds)
    stage.cluster.permit_app(kind, name)


def throttle(stage: Stage, step: Step) -> None:
    """A producer quota at a tenth of what the paced load needs."""
    answers = max(1, len(stage.reader.answers))
    need = stage.load.rate * stage.cluster.topic_bytes(stage.topics[1:]) / answers
    stage.cluster.set_producer_quota(CLIENT_ID, max(1, round(need / 10)))
    answered = len(stage.reader.answered)
    pause(step.seconds)
    if len(stage.load.acknowledged) - len(stage.reader.answered) < stage.load.rate:
        stage.problems.append("the workers kept up under the quota: the fault has missed")
    if len(stage.reader.answered) == answered:
        stage.problems.append("no answer at all came under the quota")
    stage.cluster.set_producer_quota(CLIENT_ID, None)


def guest(stage: Stage, step: Step) -> None:
    """Another member joins the group, takes partitions, does nothing with them, and leaves: two rebalances."""
    consumer = KafkaConsumer(
        stage.topics[0],
        bootstrap_servers=stage.cluster.bootstrap,
        group_id=stage.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        partition_assignment_strategy=(CooperativeStickyAssignor,),
        session_timeout_ms=10_000,
        heartbeat_interval_ms=500,
        reconnect_backoff_max_ms=1000,
    )
    try:
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not consumer.assignment() and time.monotonic() < deadline:
            consumer.poll(timeout_ms=100, max_records=1)
        if not consumer.assignment():
            stage.problems.append(f"a guest got no partition within {JOIN_TIMEOUT_S:.0f} s: no rebalance took place")
        until = time.monotonic() + step.seconds
        while time.monotonic() < until:
            consumer.poll(timeout_ms=100, max_records=1)
    finally:
        consumer.close(autocommit=False, timeout_ms=5000)


def swap(stage: Stage, step: Step) -> None:
    """Let `current` point to another bundle; its verdicts must come, without a restart."""
    version = stage.shelf.switch(step.target)
    seen = len(stage.reader.answers)
    deadline = time.monotonic() + SWAP_TIMEOUT_S
    while all(answer.version != version for answer in stage.reader.answers[seen:]):
        if time.monotonic() > deadline:
            stage.problems.append(f"no verdict of bundle {version} came within {SWAP_TIMEOUT_S:.0f} s of its swap")
            return
        stage.load.more(PARTITIONS)
        pause(LOOK_S)


def swap_damaged(stage: Stage, step: Step) -> None:
    """Let `current` point to a damaged bundle: it must be refused aloud, and the old one go on."""
    before = stage.fleet.logs().count(REFUSED)
    damage = stage.shelf.switch_to_damaged()
    deadline = time.monotonic() + SWAP_TIMEOUT_S
    while stage.fleet.logs().count(REFUSED) == before:
        if time.monotonic() > deadline:
            stage.problems.append(f"no log says within {SWAP_TIMEOUT_S:.0f} s that a bundle was refused ({damage})")
            break
        pause(LOOK_S)
    stage.shelf.switch_back()


def endure(stage: Stage, step: Step) -> None:
    """Watch a slow model: no rebalance, memory within bounds; then serve the quick bundle."""
    rebalances, memory = stage.fleet.metric(REBALANCES), max(stage.fleet.resident_bytes())
    batches, spent = _inferences(stage.fleet)
    until = time.monotonic() + step.seconds
    highest = memory
    while time.monotonic() < until:
        pause(1.0)
        highest = max(highest, *stage.fleet.resident_bytes())
    batches_now, spent_now = _inferences(stage.fleet)
    if batches_now == batches or (spent_now - spent) / (batches_now - batches) < step.seconds / SLOW_SHARE:
        stage.problems.append(f"{batches_now - batches:.0f} batches took {spent_now - spent:.0f} s: that is not slow")
    if stage.fleet.metric(REBALANCES) != rebalances:
        stage.problems.append("the group rebalanced while the model was slow")
    if highest - memory > SLOW_GROWTH_BYTES:
        stage.problems.append(f"memory grew by {(highest - memory) / MIB:.0f} MiB while the model was slow")
    stage.shelf.switch(0)
    for number in range(len(stage.fleet)):
        stage.fleet.terminate(number)


def _inferences(fleet: Fleet) -> tuple[float, float]:
    """How many batches the workers have scored, and the seconds that they took."""
    return fleet.metric(f"{INFERENCE}_count"), fleet.metric(f"{INFERENCE}_sum")


def work_off(stage: Stage, step: Step) -> None:
    """Watch the workers' memory while they work off all that was waiting for them."""
    lowest = min(stage.fleet.resident_bytes())
    highest = 0
    until = time.monotonic() + step.seconds
    while time.monotonic() < until and len(stage.reader.answered) < len(stage.load.acknowledged):
        pause(0.5)
        highest = max(highest, *stage.fleet.resident_bytes())
    if highest - lowest > SLOW_GROWTH_BYTES:
        stage.problems.append(f"memory grew by {(highest - lowest) / MIB:.0f} MiB over a backlog")


INFERENCE = "reconstream_inference_duration_seconds"
REBALANCES = "reconstream_rebalances_total"
REFUSED = "is refused"


def _proxy(stage: Stage) -> Proxy:
    assert stage.proxy is not None, "the row has no proxy: set proxied"
    return stage.proxy


ACTIONS: Mapping[str, Callable[[Stage, Step], None]] = MappingProxyType(
    {
        action.__name__: action
        for action in (
            *(kill, terminate, zombie, stop_broker, kill_broker, silence_broker, cut, hold_produce),
            *(hold_everything, slow_network, guest, swap, swap_damaged, endure, withdraw, throttle, work_off),
        )
    }
)
