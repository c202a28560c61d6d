"""Progress of a thread: it finished its current step, or has nothing to do."""


class Progress:
    """The time of a thread's last finished step. Written by that thread, read by any.

    Args:
        name: of the thread, for messages.
        now: seconds on the monotonic clock.
    """

    __slots__ = ("last", "name")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.last = now

    def done(self, now: float) -> None:
        """A step was finished, or there was nothing to do."""
        self.last = now

    def age(self, now: float) -> float:
        """Seconds since the last finished step."""
        return now - self.last
