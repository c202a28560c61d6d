"""Whether the consumer group has us as a member, and Kafka answers: read in librdkafka's statistics."""

import time
from collections.abc import Sequence

import msgspec

COORDINATOR = "GroupCoordinator"


class _Broker(msgspec.Struct):
    state: str = ""
    rxidle: int = -1  # microseconds since it said something


class _Group(msgspec.Struct):
    state: str = ""
    join_state: str = ""


class _Statistics(msgspec.Struct):
    """The little that is read of them."""

    brokers: dict[str, _Broker] = {}
    cgrp: _Group | None = None


class Membership:
    """Told by the thread that owns the consumer, asked by any.

    Args:
        session_timeout_s: the longest silence of the group's coordinator, which answers every heartbeat.
    """

    def __init__(self, session_timeout_s: float) -> None:
        self._session_timeout_s = session_timeout_s
        self._state = "not asked"
        self._looked_at = 0.0
        self._answered_at: float | None = None
        self._decoder = msgspec.json.Decoder(_Statistics)

    def assigned(self) -> None:
        """The group has given us its answer."""
        self._looked_at = self._answered_at = time.monotonic()

    def on_statistics(self, text: str) -> None:
        """Called by librdkafka."""
        statistics = self._decoder.decode(text)
        group, coordinator = statistics.cgrp, statistics.brokers.get(COORDINATOR)
        if group is None or coordinator is None:
            return
        self._state = f"{group.state}, {group.join_state}"
        self._looked_at = time.monotonic()
        settled = self._answered_at is not None or group.join_state == "steady"
        if settled and coordinator.state == "UP" and coordinator.rxidle >= 0:
            self._answered_at = self._looked_at - coordinator.rxidle / 1e6

    def missing(self) -> Sequence[str]:
        """What is not as it should be; empty when all is well."""
        answered_at = self._answered_at
        if answered_at is None:
            return [f"the consumer group has not answered yet (member state {self._state})"]
        # As of the last statistics: none come while the consumer is not polled, which says nothing of Kafka.
        silent = self._looked_at - answered_at
        if silent > self._session_timeout_s:
            return [f"Kafka has not answered a heartbeat for {silent:.0f} s"]
        return []
