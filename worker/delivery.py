"""The two delivery guarantees: what the pipeline does before and at a commit.

Everything else is the same for both. In `at_least_once` positions are committed by the consumer, after their
answers were acknowledged. In `exactly_once` answers, dead letters and positions stand in one Kafka transaction
(KIP-98; with the group's metadata, KIP-447): readers with `read_committed` see all of it or nothing.
"""

from typing import Protocol

from worker.core.records import Positions
from worker.ports import Source, Transactions


class Guarantee(Protocol):
    """How positions become durable."""

    @property
    def rolls_back(self) -> bool:
        """Whether what was published can be undone until it is committed, and must be if its partition is lost."""
        ...

    def flush(self) -> None:
        """Before a commit: have the fate of everything published decided, as far as the guarantee needs it."""
        ...

    def commit(self, positions: Positions, group: object) -> bool:
        """Commit positions. False: the group is rebalancing; poll, then try again.

        Args:
            positions: of records whose every answer was acknowledged.
            group: the consumer group's metadata as of the last poll, whose revocations were applied.

        Raises:
            DeliveryFailed: it did not succeed, or nobody knows whether it did.
        """
        ...


class AtLeastOnce:
    """Positions are committed by the consumer; what was acknowledged before may be repeated after a fault."""

    rolls_back = False

    def __init__(self, source: Source) -> None:
        self._source = source

    def flush(self) -> None:
        """Nothing: only what happens to be acknowledged is committed."""

    def commit(self, positions: Positions, group: object) -> bool:  # noqa: ARG002 - the consumer knows its group
        """See Guarantee."""
        return self._source.commit(positions)


class ExactlyOnce:
    """Positions are part of the transaction that holds the answers.

    The commit's order is the guarantee:

    1. flush: everything published has its answer from the broker;
    2. every future succeeded (the pipeline settles all of them; one that failed ends in DeliveryFailed);
    3. the positions go into the transaction, with the group's metadata: the broker refuses a member that the
       group has moved on without (a zombie);
    4. the transaction is committed.

    A batch that outlived its delivery timeout does not stop the client's commit: without step 2 its records
    would be missing from a transaction that commits their positions.
    """

    rolls_back = True

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def flush(self) -> None:
        """See Guarantee."""
        self._transactions.flush()

    def commit(self, positions: Positions, group: object) -> bool:
        """See Guarantee."""
        self._transactions.commit(positions, group)
        return True
