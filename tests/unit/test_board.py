import io
import math
import re
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from worker.core.verdicts import ModelName, SourcePosition, Verdict
from worker.tools.board import EDGES, THRESHOLD_EDGE, VerdictBoard


def verdict(score: float | None = 0.01, threshold: float = 0.02, **changes: Any) -> Verdict:
    judged = score is not None
    given_fields = Verdict(
        version=1,
        id="image-1",
        stream="camera-1",
        status="judged" if judged else "unreadable",
        reason=None if judged else "not_an_image",
        source=SourcePosition("images", 0, 1, 1_000_000),
        model=ModelName("digits", "0123456789ab"),
        score=score,
        error=score,
        threshold=threshold,
        anomaly=score > threshold if score is not None else None,
        p_value=0.5 if judged else None,
        region=None,
        scored_at_ms=1_000_004,
    )
    return msgspec.structs.replace(given_fields, **changes)


def drawn(board: VerdictBoard, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(board.render(**options))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_an_empty_board_can_be_drawn() -> None:
    assert "no verdict yet" in drawn(VerdictBoard())


def test_what_came_is_counted_and_drawn() -> None:
    board = VerdictBoard("line 4")
    for _ in range(3):
        board.update(verdict(), 1_000_010)
    board.update(verdict(0.0314159, id="[red]bad[/red]"), 1_000_010)
    board.update(verdict(None), 1_000_020)
    board.update(verdict(None, status="expired"), 1_000_020)
    board.strange += 1
    assert (board.judged, board.anomalies, board.unreadable, board.expired, board.total) == (4, 1, 1, 1, 6)
    text = drawn(board, extra={"sent": "7"})
    for words in ("line 4", "sent", "digits 0123456789ab", "threshold", "0.02", "[red]bad[/red]", "0.031416"):
        assert words in text
    for row in (r"judged +4", r"anomalies +1", r"unreadable +1", r"expired +1", r"no verdicts +1"):
        assert re.search(row + " ", text)


def test_the_last_anomalies_come_first_and_are_few() -> None:
    board = VerdictBoard()
    for number in range(20):
        board.update(verdict(1.0, id=f"image-{number:02d}"), 1_000_000)
    text = drawn(board)
    assert text.index("image-19") < text.index("image-15")
    assert "image-14" not in text


@given(
    scores=st.lists(st.floats(0, 1e6, width=32), max_size=50),
    threshold=st.floats(2.0**-40, 1e6, width=32),
)
def test_bars_hold_every_score_and_the_line_parts_anomalies(scores: list[float], threshold: float) -> None:
    board = VerdictBoard()
    for score in scores:
        board.update(verdict(score, threshold), 0)
    assert sum(board.bars) == len(scores)
    assert sum(board.bars[THRESHOLD_EDGE + 1 :]) == board.anomalies == sum(score > threshold for score in scores)
    drawn(board)


def test_bars_are_where_their_labels_say() -> None:
    board = VerdictBoard()
    board.update(verdict(EDGES[2] * 0.02 * 1.01), 0)
    assert board.bars[3] == 1
    assert f"from {EDGES[2] * 0.02:.4g} │█" in drawn(board)


@given(latencies=st.lists(st.integers(-1000, 10**7), min_size=1, max_size=200), percentile=st.integers(0, 100))
def test_latency_is_the_percentile_and_never_negative(latencies: list[int], percentile: int) -> None:
    board = VerdictBoard()
    assert board.latency_ms(50) is None
    for latency in latencies:
        board.update(verdict(), 1_000_000 + latency)
    expected = float(np.percentile([max(0, latency) for latency in latencies], percentile))
    found = board.latency_ms(percentile)
    assert found is not None
    assert math.isclose(found, expected)


def test_a_record_without_time_has_no_latency() -> None:
    board = VerdictBoard()
    board.update(verdict(source=SourcePosition("images", 0, 1, None)), 1_000_000)
    assert board.latency_ms(50) is None


def test_the_rate_is_that_of_the_last_seconds() -> None:
    board = VerdictBoard()
    assert board.rate == 0
    for number in range(11):
        board.update(verdict(), 1_000_000 + 100 * number)
    assert board.rate == 10
    for number in range(101):
        board.update(verdict(), 2_000_000 + 10 * number)
    assert board.rate == 100


def test_two_verdicts_that_came_together_are_not_a_thousand_a_second() -> None:
    board = VerdictBoard()
    board.update(verdict(), 5)
    board.update(verdict(), 5)
    assert board.rate == 1


def test_partitions_out_of_step_do_not_break_the_rate() -> None:
    board = VerdictBoard()
    for published in (10_000, 1_000, 9_000, 20_000):
        board.update(verdict(), published)
        assert 0 <= board.rate <= 2
