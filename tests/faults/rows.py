"""The campaign's rows: what each does to the workers and their Kafka, and what that may cost.

A row's schedule is a list of steps made from a seed; tests.faults.actions says what a step does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType

from tests.faults.bundles import SMALL, TUTORIAL

MESSAGES = 100_000
WORKERS = 3
# Each burns a core of the two that there are.
SLOW_WORKERS = 2
SLOW_BATCH_S = 60.0
BURN_MARGIN = 1.1
MAX_IN_FLIGHT = 1000
# Past the worker's session timeout of 6 s.
ZOMBIE_S = 14.0
# A burst is worked off within a few tenths of a second; the fault is to meet it.
LEAD_S = 0.15
# After a killed worker's partitions have moved on, and before the next one dies.
APART_S = 16.0


@dataclass(frozen=True)
class Step:
    """One fault.

    Attributes:
        action: its name in tests.faults.actions.
        wait_s: the pause before it.
        lead_s: how long before it a burst of messages begins, so that work is in flight.
        target: which worker, node or bundle.
        seconds: how long it lasts.
        hits: how many workers it makes repeat their work in flight.
        lane: the steps of a lane come one after the other, lanes run at once.
    """

    action: str
    wait_s: float
    lead_s: float = 0.1
    target: int = 0
    seconds: float = 0.0
    hits: int = 1
    lane: int = 0

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        lane = f"lane {self.lane}: " if self.lane else ""
        return f"{lane}wait {self.wait_s:.1f} s; burst; wait {self.lead_s:.2f} s; {self.action} {self.target}{lasts}"


@dataclass(frozen=True)
class Row:
    """One line of the campaign.

    Attributes:
        schedule: from a random generator and the scale.
        nodes, proxied: of the cluster.
        settings: of the workers, beside the common ones.
        max_in_flight: their max_in_flight_records; in at_least_once a fault may repeat so many answers.
        oversize_every: every so many-th poison message has 5 MB, at scale 1.
        workers: how many, at most.
        bundles: how many there are to swap; the last of them takes burn_s seconds a batch at least.
        first_bundle: the one that is current when the workers start.
        messages: at scale 1.
        least: messages at any scale.
        upfront: all messages are published before the first step, else half at a pace and half in bursts.
        secure: the workers log in, and their rights can be withdrawn.
        strict_letters: the dead-letter topic wants all replicas.
        evidence: what a worker's log must say, or the fault has missed.
        may_exit: exit codes that a worker may end with unasked, or when asked.
        lines_per_fault: how much a worker may log for each: twice what it needs to say that it began and ended.
        max_gap_s: the longest that a partition may stand still for readers.
    """

    name: str
    schedule: Callable[[Random, float], list[Step]]
    nodes: int = 1
    proxied: bool = False
    workers: int = WORKERS
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    max_in_flight: int = MAX_IN_FLIGHT
    oversize_every: int = 0
    bundles: int = 1
    first_bundle: int = 0
    shape: tuple[int, int, int] = SMALL
    burn_s: Callable[[float], float] | None = None
    messages: int = MESSAGES
    least: int = 500
    upfront: bool = False
    secure: bool = False
    strict_letters: bool = False
    evidence: str | None = None
    may_exit: frozenset[int] = frozenset()
    lines_per_fault: int = 8
    max_gap_s: float | None = None


def times(count: int, scale: float) -> int:
    """A number of faults at a scale; never none."""
    return max(1, round(count * scale))


def lasting(seconds: float, scale: float, least: float) -> float:
    """A duration at a scale; never below what makes it a fault."""
    return max(least, seconds * min(1.0, scale))


def _nothing(_rng: Random, _scale: float) -> list[Step]:
    return []


def _kill9(rng: Random, scale: float) -> list[Step]:
    return [
        Step("kill", 2.0 if index == 0 else APART_S, rng.uniform(0, LEAD_S), rng.randrange(WORKERS))
        for index in range(times(20, scale))
    ]


def _sigterm(rng: Random, scale: float) -> list[Step]:
    return [Step("terminate", 3.0, rng.uniform(0, LEAD_S), rng.randrange(WORKERS)) for _ in range(times(5, scale))]


def _zombie(rng: Random, scale: float) -> list[Step]:
    return [
        Step("zombie", 4.0, rng.uniform(0, LEAD_S), rng.randrange(WORKERS), ZOMBIE_S) for _ in range(times(3, scale))
    ]


def _broker_restart(rng: Random, scale: float) -> list[Step]:
    kinds = ["stop_broker"] * times(3, scale) + ["kill_broker"] * times(2, scale)
    rng.shuffle(kinds)
    return [Step(kind, 4.0, rng.uniform(0, LEAD_S), 1, rng.uniform(0.5, 3.0), WORKERS) for kind in kinds]


def _connections_cut(rng: Random, scale: float) -> list[Step]:
    return [Step("cut", rng.uniform(0.5, 3.0), rng.uniform(0, LEAD_S), hits=WORKERS) for _ in range(times(50, scale))]


def _no_broker(rng: Random, scale: float) -> list[Step]:
    return [
        Step("kill_broker", 2.0, rng.uniform(0, LEAD_S), 1, lasting(60, scale, 12), WORKERS),
        Step("silence_broker", 8.0, rng.uniform(0, LEAD_S), 1, lasting(60, scale, 12), WORKERS),
    ]


def _delivery_timeout(rng: Random, scale: float) -> list[Step]:
    # The first outlasts the delivery timeout of at_least_once (120 s), both that of a transaction (6 s).
    return [
        Step("hold_produce", 3.0, rng.uniform(0, LEAD_S), seconds=seconds, hits=WORKERS)
        for seconds in (126, 66)[: times(2, scale)]
    ]


def _rebalance(rng: Random, scale: float) -> list[Step]:
    steps = []
    for index in range(times(20, scale)):
        steps.append(Step("guest", rng.uniform(0.2, 2.0), rng.uniform(0, LEAD_S), 0, rng.uniform(0.5, 3.0), WORKERS))
        if index % 5 == 0:
            steps.append(Step("terminate", 1.0, rng.uniform(0, LEAD_S), rng.randrange(WORKERS), hits=WORKERS))
    return steps


def _bundle_swap(rng: Random, scale: float) -> list[Step]:
    kinds = ["swap"] * times(7, scale) + ["swap_damaged"] * times(3, scale)
    rng.shuffle(kinds)
    target = 0
    steps = []
    for kind in kinds:
        if kind == "swap":
            target = 1 - target
        steps.append(Step(kind, 2.0, rng.uniform(0, LEAD_S), target, hits=0))
    return steps


def _slow_model(rng: Random, scale: float) -> list[Step]:
    # Two batches of each worker at least, also where other processes have their share of the cores.
    return [Step("endure", 1.0, 0.0, 0, 2.6 * _burn(scale), SLOW_WORKERS)]


def _letters_unwritable(rng: Random, scale: float) -> list[Step]:
    return [Step("stop_replica", 3.0, rng.uniform(0, LEAD_S), rng.randint(1, 3), lasting(30, scale, 10), WORKERS)]


def _rights(rng: Random, scale: float) -> list[Step]:
    order = rng.sample(range(RIGHTS), RIGHTS)
    return [Step("withdraw", 3.0, rng.uniform(0, LEAD_S), which, lasting(15, scale, 8), WORKERS) for which in order]


def _quota(rng: Random, scale: float) -> list[Step]:
    return [Step("throttle", 5.0, rng.uniform(0, LEAD_S), 0, lasting(120, scale, 60), WORKERS)]


def _slow_network(rng: Random, scale: float) -> list[Step]:
    return [Step("slow_network", 3.0, rng.uniform(0, LEAD_S), 0, lasting(60, scale, 15), 0)]


def _backlog(_rng: Random, scale: float) -> list[Step]:
    # The backlog is there first: who joins later makes who was there before it repeat.
    return [Step("work_off", 0.0, 0.0, 0, lasting(600, scale, 60), WORKERS - 1)]


def _everything(rng: Random, scale: float) -> list[Step]:
    """Two lanes of faults at once, each until ten minutes are filled: every kind first, then as it comes."""
    both: Sequence[_Make] = (
        lambda wait, lead, worker: Step("kill", wait, lead, worker),
        lambda wait, lead, worker: Step("terminate", wait, lead, worker),
        lambda wait, lead, worker: Step("zombie", wait, lead, worker, ZOMBIE_S),
        lambda wait, lead, _: Step("cut", wait, lead, hits=WORKERS),
    )
    brokers: Sequence[_Make] = (
        lambda wait, lead, node: Step("stop_broker", wait, lead, node + 1, rng.uniform(1, 20), WORKERS),
        lambda wait, lead, node: Step("kill_broker", wait, lead, node + 1, rng.uniform(1, 20), WORKERS),
        lambda wait, lead, node: Step("silence_broker", wait, lead, node + 1, rng.uniform(1, 20), WORKERS),
        lambda wait, lead, _: Step("guest", wait, lead, 0, rng.uniform(0.5, 5), WORKERS),
    )
    network_and_bundles: Sequence[_Make] = (
        lambda wait, lead, _: Step("hold_everything", wait, lead, 0, rng.uniform(1, 20), WORKERS),
        lambda wait, lead, _: Step("hold_produce", wait, lead, 0, rng.uniform(5, 20), WORKERS),
        lambda wait, lead, _: Step("slow_network", wait, lead, 0, rng.uniform(5, 15), WORKERS),
        lambda wait, lead, _: Step("swap", wait, lead, hits=0),
        lambda wait, lead, _: Step("swap_damaged", wait, lead, hits=0),
        lambda wait, lead, _: Step("swap_slow", wait, lead, 2, rng.uniform(5, 15), hits=0),
    )
    return [
        *_lane(rng, scale, 0, (*both, *brokers)),
        *_alternating(_lane(rng, scale, 1, (*both, *network_and_bundles))),
    ]


_Make = Callable[[float, float, int], Step]


def _lane(rng: Random, scale: float, lane: int, kinds: Sequence[_Make]) -> list[Step]:
    order = rng.sample(kinds, len(kinds))
    steps: list[Step] = []
    while order or sum(step.wait_s + step.seconds for step in steps) < 600 * scale:
        make = order.pop() if order else rng.choice(kinds)
        steps.append(replace(make(rng.uniform(1, 12), rng.uniform(0, LEAD_S), rng.randrange(WORKERS)), lane=lane))
    return steps


def _alternating(steps: Sequence[Step]) -> Iterator[Step]:
    """Each swap goes to the other of the first two bundles: its verdicts tell that it took place."""
    target = 0
    for step in steps:
        if step.action == "swap":
            target = 1 - target
            yield replace(step, target=target)
        else:
            yield step


def _short(rng: Random, _scale: float) -> list[Step]:
    steps = [
        Step("kill", 2.0, rng.uniform(0, LEAD_S), rng.randrange(WORKERS)),
        Step("zombie", 2.0, rng.uniform(0, LEAD_S), rng.randrange(WORKERS), ZOMBIE_S),
        Step("stop_broker", 2.0, rng.uniform(0, LEAD_S), 1, rng.uniform(0.5, 2.0), WORKERS),
        Step("kill_broker", 2.0, rng.uniform(0, LEAD_S), 1, rng.uniform(0.5, 2.0), WORKERS),
        *(Step("cut", 1.0, rng.uniform(0, LEAD_S), hits=WORKERS) for _ in range(3)),
    ]
    rng.shuffle(steps)
    return steps


def _burn(scale: float) -> float:
    # Twice the 30 s after which the group would throw out a member that does not poll, and what a clock may err.
    return lasting(SLOW_BATCH_S * BURN_MARGIN, scale, 12)


# Kinds of resources whose rights are withdrawn, see tests.faults.actions.
RIGHTS = 5
RELOADING = MappingProxyType({"reload_interval_s": 1})

ROWS: Mapping[str, Row] = MappingProxyType(
    {
        row.name: row
        for row in (
            Row("fault_free", _nothing),
            Row("kill9", _kill9, max_gap_s=15.0),
            Row("sigterm", _sigterm),
            Row("zombie", _zombie),
            Row("broker_restart", _broker_restart, evidence="read again"),
            Row("connections_cut", _connections_cut, proxied=True),
            Row("no_broker_60s", _no_broker, evidence="read again"),
            Row("delivery_timeout_in_transaction", _delivery_timeout, proxied=True, evidence="read again"),
            Row(
                "rebalance_during_commit",
                _rebalance,
                settings={"commit_interval_ms": 20},
                # One that is stopped while the group moves on cannot commit its last work, and says so.
                may_exit=frozenset({1}),
            ),
            Row("bundle_swap", _bundle_swap, settings=RELOADING, bundles=2, lines_per_fault=6),
            Row(
                "slow_model",
                _slow_model,
                workers=SLOW_WORKERS,
                # A minute of a core alone is up to three beside others that share it.
                settings={
                    "max_batch_size": 8,
                    "drain_timeout_s": 5,
                    "start_timeout_s": 120,
                    "stall_timeout_s": 600,
                },
                bundles=2,
                first_bundle=1,
                burn_s=_burn,
                upfront=True,
                may_exit=frozenset({1}),
            ),
            Row("dead_letters_unwritable_30s", _letters_unwritable, nodes=3, strict_letters=True),
            Row("rights_withdrawn", _rights, secure=True, evidence="Kafka does not let us"),
            # Kafka holds an answer back for 10 s at most: what one request may carry must be less than comes in that
            # time, or no quota would be felt.
            Row(
                "producer_quota",
                _quota,
                max_in_flight=128,
                least=20_000,
                lines_per_fault=4,
            ),
            Row("slow_network", _slow_network, proxied=True, lines_per_fault=4),
            Row("oversize_compressed", _nothing, oversize_every=50),
            Row(
                "everything",
                _everything,
                nodes=3,
                proxied=True,
                settings=RELOADING,
                oversize_every=100,
                bundles=3,
                # Three workers that burn, beside three brokers on two cores: longer, and nothing else would move.
                burn_s=lambda _: 0.5,
                shape=TUTORIAL,
                strict_letters=True,
                evidence="read again",
                may_exit=frozenset({1}),
                # Those that overlap are spoken of together.
                lines_per_fault=3,
            ),
        )
    }
)

# Beside the campaign. short: its form for the test suite, one fleet that meets one of each of the commonest faults.
OTHERS: Mapping[str, Row] = MappingProxyType(
    {
        row.name: row
        for row in (
            Row("short", _short, proxied=True, evidence="read again"),
            Row("million_waiting", _backlog, messages=1_000_000, upfront=True),
        )
    }
)
