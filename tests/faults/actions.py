"""What the steps of a schedule do.  A function's name is the step's action."""

import contextlib
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from deploy.local_kafka import KafkaCluster
from deploy.local_kafka.admin import Resource
from deploy.local_kafka.node import ClusterError
from tests.faults.bundles import Shelf
from tests.faults.fleet import Fleet
from tests.faults.load import PARTITIONS, POISON_EVERY, Load
from tests.faults.proxy import PRODUCE, Proxy
from tests.faults.reader import Reader
from tests.faults.rows import BURN_MARGIN, Step

MIB = 1 << 20
CLIENT_ID = "faults-worker"
SWAP_TIMEOUT_S = 40.0
LOOK_S = 0.2
# A broker that starts beside workers which start as well has a small part of two cores.
BROKER_TIMEOUT_S = 240.0
SLOW_NETWORK_S = 0.2
NOTICE_TIMEOUT_S = 40.0
JOIN_TIMEOUT_S = 30.0
# On a busy machine a slow model is slower still.
ENDURE_LONGER = 3
# Until a stopped node's replicas count as out of sync, and what was under way has been read.
SHRINK_S = 2.0
IN_SYNC_TIMEOUT_S = 120.0
_NOTICED = re.compile("were revoked|read again")
# A slow model's worker may hold its bytes in flight, one fetch of 32 MB, the next one, and what Python adds.
SLOW_GROWTH_BYTES = 192 * MIB


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
    burn_s: float = 0.0  # what a batch of the slow bundle takes at least
    revoked: int = 0  # how often the logs had spoken of it when the row began
    guests: int = 0
    # Steps run at once: one may hide what another does, or make it impossible.
    crowded: bool = False
    locks: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    problems: list[str] = field(default_factory=list)

    def missed(self, problem: str) -> None:
        """A fault was not met, which cannot be asked of each where they crowd."""
        if not self.crowded:
            self.problems.append(problem)

    @property
    def swap_timeout_s(self) -> float:
        """In a crowd workers may be starting, and their Kafka be away for a while."""
        return SWAP_TIMEOUT_S * (4 if self.crowded else 1)


def perform(stage: Stage, step: Step) -> None:
    """Wait, let messages come, and do what the step says, alone on the resource that it needs."""
    pause(step.wait_s)
    resource = RESOURCES.get(step.action, step.action)
    with contextlib.nullcontext() if resource is None else stage.locks[resource.format(step.target)]:
        _perform(stage, step)


def _perform(stage: Stage, step: Step) -> None:
    if step.action in {"kill", "terminate", "zombie"} and not stage.crowded:
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
    if not stage.crowded and (held := stage.fleet.held_beside(step.target)) < PARTITIONS:
        stage.problems.append(f"the group did not move on from worker {step.target}: the others hold {held}")
    stage.fleet.resume(step.target)
    if stage.crowded:  # another fault may have ended it meanwhile
        return
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


def stop_replica(stage: Stage, step: Step) -> None:
    """A node away for a while, without which no dead letter can be written."""
    stage.cluster.stop_node(step.target)
    pause(SHRINK_S)
    letters, published = stage.reader.letter_count, len(stage.load.acknowledged)
    pause(step.seconds)
    if stage.reader.letter_count != letters:
        stage.problems.append("dead letters came while their topic could not be written: the fault has missed")
    # Any so many messages in a row hold poison.
    if len(stage.load.acknowledged) - published < 2 * POISON_EVERY:
        stage.problems.append("too little was published to need a dead letter: the fault has missed")
    stage.cluster.start_node(step.target)
    _wait_in_sync(stage)


def kill_broker(stage: Stage, step: Step) -> None:
    """Kill -9, and a start on the same data."""
    stage.cluster.kill_node(step.target)
    _start_broker(stage, step)


def _start_broker(stage: Stage, step: Step) -> None:
    pause(step.seconds)
    stage.cluster.start_node(step.target)
    _wait_in_sync(stage)


def _wait_in_sync(stage: Stage) -> None:
    """Until the cluster works and every replica is in sync: before that the loss of another node is a second one."""
    stage.cluster.wait_ready(BROKER_TIMEOUT_S)
    if len(stage.cluster.nodes) == 1:
        return
    deadline = time.monotonic() + IN_SYNC_TIMEOUT_S
    while not _in_sync(stage.cluster.bootstrap):
        if time.monotonic() > deadline:
            raise ClusterError(f"not every replica was in sync {IN_SYNC_TIMEOUT_S:.0f} s after its node was back")
        pause(LOOK_S)


def _in_sync(bootstrap: str) -> bool:
    with contextlib.suppress(KafkaError):
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            return all(
                len(partition["isr_nodes"]) == len(partition["replica_nodes"])
                for topic in admin.describe_topics()
                for partition in topic["partitions"]
            )
        finally:
            admin.close()
    return False


def silence_broker(stage: Stage, step: Step) -> None:
    """SIGSTOP and SIGCONT: connections stay, nothing answers."""
    stage.cluster.pause_node(step.target)
    pause(step.seconds)
    stage.cluster.resume_node(step.target)
    _wait_in_sync(stage)


def cut(stage: Stage, step: Step) -> None:
    """Every connection of every worker, in the middle of its next request or answer."""
    before = _proxy(stage).connections_cut
    _proxy(stage).cut()
    pause(0.5)
    if _proxy(stage).connections_cut == before:
        stage.missed("there was no connection to cut: the workers do not use the proxy")


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
    before = _least_latency(stage, 0.0, time.time() - step.lead_s)
    began = time.time()
    _proxy(stage).delay_s = SLOW_NETWORK_S
    pause(step.seconds)
    # The last second's may have been answered after it.
    slow = _least_latency(stage, began + 1.0, time.time() - 1.0)
    _proxy(stage).delay_s = 0.0
    if not before < SLOW_NETWORK_S <= slow < math.inf:
        stage.missed(
            f"the quickest answer took {before:.3f} s, and {slow:.3f} s while each request took {SLOW_NETWORK_S} s "
            "longer: the fault has missed"
        )


def _least_latency(stage: Stage, since: float, until: float) -> float:
    """From Kafka's acknowledgement of a message to its answer at best; infinite where there was none."""
    published = stage.load.acknowledged
    return min(
        (
            answer.at - published[answer.position]
            for answer in stage.reader.answers[:]
            if since <= published.get(answer.position, 0.0) <= until
        ),
        default=math.inf,
    )


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
    # What was sent before, and what a quota lets through at once, is not counted.
    pause(step.seconds / 2)
    answered = len(stage.reader.answered)
    pause(step.seconds / 2)
    rate = (len(stage.reader.answered) - answered) / (step.seconds / 2)
    if rate > stage.load.rate / 2:
        stage.problems.append(
            f"{rate:.0f} answers a second under the quota, {stage.load.rate:.0f} messages: the fault has missed"
        )
    if len(stage.reader.answered) == answered:
        stage.problems.append("no answer at all came under the quota")
    stage.cluster.set_producer_quota(CLIENT_ID, None)


def guest(stage: Stage, step: Step) -> None:
    """Another member joins the group, takes partitions, does nothing with them, and leaves: two rebalances."""
    # Without its brokers, which may be away in a crowd, a client raises now and then.
    with contextlib.suppress(KafkaError):
        _visit(stage, step)
    stage.guests += 1
    if stage.fleet.said(REVOKED) - stage.revoked < stage.guests:
        stage.missed(f"guest {stage.guests} came and went, and no worker lost a partition to it")


def _visit(stage: Stage, step: Step) -> None:
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
            stage.missed(f"a guest got no partition within {JOIN_TIMEOUT_S:.0f} s: no rebalance took place")
        until = time.monotonic() + step.seconds
        while time.monotonic() < until:
            consumer.poll(timeout_ms=100, max_records=1)
    finally:
        consumer.close(autocommit=False, timeout_ms=5000)


def swap(stage: Stage, step: Step) -> None:
    """Let `current` point to another bundle; its verdicts must come, without a restart."""
    assert stage.shelf.current != step.target, "a swap to what is current proves nothing"
    before = stage.fleet.said(SWAPPED)
    version = stage.shelf.switch(step.target)
    seen = len(stage.reader.answers)
    # A worker that starts meanwhile need not swap.
    workers = 0 if stage.crowded else len(stage.fleet)
    judged, swapped = False, 0
    deadline = time.monotonic() + stage.swap_timeout_s
    while not judged or swapped < workers:
        if time.monotonic() > deadline:
            verdicts = "verdicts came" if judged else "no verdict came"
            stage.problems.append(
                f"bundle {version}: {swapped} workers swapped, {verdicts} within {stage.swap_timeout_s:.0f} s"
            )
            return
        judged = any(answer.version == version for answer in stage.reader.answers[seen:])
        swapped = stage.fleet.said(SWAPPED) - before
        stage.load.more(PARTITIONS)
        pause(LOOK_S)


def swap_slow(stage: Stage, step: Step) -> None:
    """A bundle whose batches take seconds, for a while."""
    before = stage.shelf.current
    swap(stage, step)
    pause(step.seconds)
    stage.shelf.switch(before)


def swap_damaged(stage: Stage, step: Step) -> None:
    """Let `current` point to a damaged bundle: it must be refused aloud, and the old one go on.

    No worker is started meanwhile: it would rightly end.
    """
    while True:
        with stage.locks[STARTS]:
            if not stage.crowded or stage.fleet.settled():
                _swap_damaged(stage)
                return
        pause(LOOK_S)


def _swap_damaged(stage: Stage) -> None:
    before = stage.fleet.said(REFUSED)
    damage = stage.shelf.switch_to_damaged()
    deadline = time.monotonic() + stage.swap_timeout_s
    while stage.fleet.said(REFUSED) - before < len(stage.fleet):
        if time.monotonic() > deadline:
            stage.problems.append(
                f"not every log says within {stage.swap_timeout_s:.0f} s that a bundle was refused ({damage})"
            )
            break
        pause(LOOK_S)
    stage.shelf.switch_back()


def endure(stage: Stage, step: Step) -> None:
    """Watch a slow model: no rebalance, memory within bounds; then serve the quick bundle."""
    rebalances, memory = stage.fleet.metric(REBALANCES), max(stage.fleet.resident_bytes())
    batches, spent = _inferences(stage.fleet)
    until = time.monotonic() + step.seconds
    highest = memory
    count, took = 0.0, 0.0
    # Twice for each worker, however busy the machine is: the second batch is polled and sent around the first.
    while time.monotonic() < until or (
        count < 2 * len(stage.fleet) and time.monotonic() < until + ENDURE_LONGER * step.seconds
    ):
        pause(1.0)
        highest = max(highest, *stage.fleet.resident_bytes())
        batches_now, spent_now = _inferences(stage.fleet)
        count, took = batches_now - batches, spent_now - spent
    if count < 2 * len(stage.fleet) or took / count < stage.burn_s / BURN_MARGIN:
        stage.problems.append(
            f"{count:.0f} batches took {took:.0f} s: that is not {stage.burn_s / BURN_MARGIN:.0f} s each"
        )
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
REVOKED = "were revoked"
SWAPPED = "swapped: '"


# What a step must have for itself, so that what it does is undone before another does the same; {} is its target.
# Other steps have their own name for it; None: at any time, also twice at once.
STARTS = "starts of workers"
RESOURCES: Mapping[str, str | None] = MappingProxyType(
    {
        **dict.fromkeys(("stop_broker", "stop_replica", "kill_broker", "silence_broker"), "brokers"),
        **dict.fromkeys(("hold_produce", "hold_everything"), "requests"),
        **dict.fromkeys(("swap", "swap_slow", "swap_damaged"), "bundle"),
        **dict.fromkeys(("kill", "terminate"), STARTS),
        "zombie": "worker {}",
        "cut": None,
    }
)


def _proxy(stage: Stage) -> Proxy:
    assert stage.proxy is not None, "the row has no proxy: set proxied"
    return stage.proxy


ACTIONS: Mapping[str, Callable[[Stage, Step], None]] = MappingProxyType(
    {
        action.__name__: action
        for action in (
            *(kill, terminate, zombie, stop_broker, stop_replica, kill_broker, silence_broker, cut),
            *(
                hold_produce,
                hold_everything,
                slow_network,
                guest,
                swap,
                swap_slow,
                swap_damaged,
                endure,
                withdraw,
                throttle,
                work_off,
            ),
        )
    }
)
