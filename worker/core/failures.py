"""Ways of failing that go on, and for how long.

Rules: a way begins with the records that failed by it, and is over for a partition when a commit has passed them or
the partition is no longer ours; other records' success says nothing about them. A way that no record caused is over
with the next success.
"""

from collections.abc import Iterable, Mapping

from worker.core.records import Positions, TopicPartition

_NOWHERE = TopicPartition("", -1)


class Failures:
    """What fails now. Not thread-safe."""

    def __init__(self) -> None:
        # By way and partition: since when, and the position behind the records that failed.
        self._ways: dict[str, dict[TopicPartition, tuple[float, int]]] = {}

    def __contains__(self, way: str) -> bool:
        return way in self._ways

    def __bool__(self) -> bool:
        return bool(self._ways)

    def failed(self, way: str, now: float, until: Mapping[TopicPartition, int]) -> float:
        """Take down a failure.

        Args:
            way: how it failed.
            now: monotonic clock, in seconds.
            until: of the records that failed, by partition, the offset after the last; empty: no record is to blame,
                or the same as before are.

        Returns:
            for how many seconds this way has gone on, for any of these records.
        """
        known = self._ways.setdefault(way, {})
        if not until and not known:
            known[_NOWHERE] = now, 0
        for partition, offset in until.items():
            since, before = known.get(partition, (now, 0))
            known[partition] = since, max(offset, before)
        return now - min(known[partition][0] for partition in until or known)

    def forget(self, way: str) -> None:
        """This way can no longer be told from others."""
        self._ways.pop(way, None)

    def succeeded(self, positions: Positions) -> None:
        """These positions were committed."""
        self._end(
            (way, partition)
            for way, known in self._ways.items()
            for partition, (_, until) in known.items()
            if partition is _NOWHERE or positions.get(partition, -1) >= until
        )

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """These partitions are no longer ours."""
        gone = set(partitions)
        self._end((way, partition) for way, known in self._ways.items() for partition in known if partition in gone)

    def _end(self, over: Iterable[tuple[str, TopicPartition]]) -> None:
        for way, partition in tuple(over):
            del self._ways[way][partition]
            if not self._ways[way]:
                del self._ways[way]
