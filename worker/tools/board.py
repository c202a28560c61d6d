"""The live table of verdicts: counts, rate, latency, how far scores are from the threshold, the last anomalies.

Rule: pure; it is told what came and when, and draws it.
"""

import bisect
from collections import deque
from collections.abc import Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from worker.core.verdicts import Verdict

# Score / threshold at the bars' edges: half octaves, so that one picture suits every model.
EDGES = tuple(2.0 ** (half / 2) for half in range(-6, 7))
THRESHOLD_EDGE = EDGES.index(1.0)
BAR_WIDTH = 40
LATENCIES_KEPT = 10_000
ANOMALIES_KEPT = 5
RATE_WINDOW_MS = 5000


class VerdictBoard:
    """Counts verdicts and draws them; `update` with each, `render` whenever there is time.

    Attributes:
        judged, anomalies, unreadable, expired: numbers of verdicts.
        strange: records that are no verdicts; counted by whoever reads them.
        bars: numbers of scores between EDGES, below the first and above the last.
    """

    def __init__(self, title: str = "verdicts") -> None:
        self.title = title
        self.judged = 0
        self.anomalies = 0
        self.unreadable = 0
        self.expired = 0
        self.strange = 0
        self.bars = [0] * (len(EDGES) + 1)
        self._threshold: float | None = None
        self._model = ""
        self._latencies_ms: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self._recent: deque[int] = deque()
        self._last: deque[Verdict] = deque(maxlen=ANOMALIES_KEPT)

    def update(self, verdict: Verdict, published_ms: int) -> None:
        """Take in a verdict that was published at `published_ms` (milliseconds since the epoch)."""
        self._model = f"{verdict.model.name} {verdict.model.version}"
        self._threshold = verdict.threshold
        if verdict.source.timestamp_ms is not None:
            # Clocks of two machines may disagree.
            self._latencies_ms.append(max(0, published_ms - verdict.source.timestamp_ms))
        # Partitions are read in turn, so that times may step back.
        self._recent.append(max(published_ms, self._recent[-1]) if self._recent else published_ms)
        while self._recent[0] < self._recent[-1] - RATE_WINDOW_MS:
            self._recent.popleft()
        if verdict.status == "unreadable":
            self.unreadable += 1
        elif verdict.status == "expired":
            self.expired += 1
        elif verdict.score is not None:
            self.judged += 1
            self.bars[_bar(verdict.score, verdict.threshold)] += 1
            if verdict.anomaly:
                self.anomalies += 1
                self._last.append(verdict)

    @property
    def total(self) -> int:
        """Number of verdicts."""
        return self.judged + self.unreadable + self.expired

    @property
    def rate(self) -> float:
        """Verdicts per second, over the last five seconds of what was published."""
        if len(self._recent) < 2:
            return 0.0
        return (len(self._recent) - 1) * 1000 / max(1000, self._recent[-1] - self._recent[0])

    def latency_ms(self, percentile: float) -> float | None:
        """Percentile of the time from record to published verdict, over the last 10,000; None without any."""
        if not self._latencies_ms:
            return None
        return float(np.percentile(np.asarray(self._latencies_ms), percentile))

    def render(self, extra: Mapping[str, str] | None = None) -> RenderableType:
        """The table as it is now; `extra` rows, name to text, stand above the others."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column()
        rows.add_column(justify="right")
        for name, text in {**(extra or {}), **self._rows()}.items():
            rows.add_row(name, Text(text))
        parts: list[RenderableType] = [rows, Text(), self._histogram()]
        if self._last:
            parts += [Text(), self._anomalies()]
        return Panel(Group(*parts), title=Text(self.title), expand=False)

    def _rows(self) -> dict[str, str]:
        p50, p99 = self.latency_ms(50), self.latency_ms(99)
        latency = "-" if p50 is None or p99 is None else f"{p50:,.0f} / {p99:,.0f} ms"
        rows = {
            "judged": f"{self.judged:,}",
            "anomalies": f"{self.anomalies:,}",
            "unreadable": f"{self.unreadable:,}",
            "verdicts a second": f"{self.rate:,.0f}",
            "latency p50 / p99": latency,
            "model": self._model or "-",
        }
        if self.expired:
            rows["expired"] = f"{self.expired:,}"
        if self.strange:
            rows["no verdicts"] = f"{self.strange:,}"
        return rows

    def _histogram(self) -> Text:
        """Bars of scores, smallest first, with a line at the threshold."""
        threshold = self._threshold
        if threshold is None:
            return Text("no verdict yet")
        most = max(*self.bars, 1)
        text = Text("score\n")
        for index, number in enumerate(self.bars):
            label = f"from {EDGES[index - 1] * threshold:.4g}" if index else f"below {EDGES[0] * threshold:.4g}"
            if index == THRESHOLD_EDGE + 1:
                text.append(f"{'threshold':>16} ┝{'━' * BAR_WIDTH} {threshold:.4g}\n", style="bold yellow")
                label = "above it"
            # What there is must show, however little it is.
            length = max(round(BAR_WIDTH * number / most), 1 if number else 0)
            style = "red" if index > THRESHOLD_EDGE else "green"
            text.append(f"{label:>16} │").append("█" * length, style=style)
            text.append(f" {number:,}\n" if number else "\n")
        text.right_crop(1)
        return text

    def _anomalies(self) -> Table:
        table = Table(title="last anomalies", title_justify="left", box=None)
        for name in ("id", "stream", "score", "threshold"):
            table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=40)
        for verdict in reversed(self._last):
            # Text, not markup: ids come from outside.
            cells = (verdict.id, verdict.stream, f"{verdict.score:.5g}", f"{verdict.threshold:.5g}")
            table.add_row(*(Text(cell) for cell in cells))
        return table


def _bar(score: float, threshold: float) -> int:
    """Index of a score's bar. A score at the threshold is no anomaly: it belongs below the line."""
    if threshold <= 0:
        return THRESHOLD_EDGE + 1 if score > threshold else THRESHOLD_EDGE
    # Both are float32: the quotient of two that differ, in double precision, is never 1.
    return bisect.bisect_left(EDGES, score / threshold)
