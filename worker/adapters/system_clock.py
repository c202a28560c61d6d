"""The computer's own clock, as a worker.ports.Clock."""

import time


class SystemClock:
    """Real time."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""
        return time.monotonic()

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC. May jump when the computer's clock is set."""
        return time.time_ns() // 1_000_000
