"""Committed positions that cannot be read, in the words that both clients' sources have for it."""

# A killed worker's transaction, which keeps positions from being read, is over in 18 s.
POSITIONS_DUE_S = 30.0


def unreadable_positions(seconds: float) -> list[str]:
    """What is missing where committed positions have not been readable for so long."""
    if seconds < POSITIONS_DUE_S:
        return []
    return [f"committed positions have not been readable for {seconds:.0f} s; an open transaction may hold them"]
