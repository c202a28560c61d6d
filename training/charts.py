"""The report's pictures, each as the bytes of one SVG or PNG; the same numbers give the same bytes.

Rules: no display, and matplotlib's global settings are left as they were; colours that colour-blind people
tell apart (Okabe & Ito 2008), each doubled by a label.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn import metrics

from training.evaluate import Evaluation, Judged

NORMAL = "#0072B2"
ANOMALY = "#D55E00"
MARK = "#222222"
BINS = 60
FLOOR = 1e-12
"""Errors below it, such as that of a black image, cannot be drawn on a logarithmic axis."""
# 5 inches are 480 CSS pixels: on a phone the text shrinks to three quarters and stays readable.
SIZE = (5.0, 3.4)
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "reconstream",
}


def histogram(normal: NDArray[np.float32], anomalous: NDArray[np.float32], threshold: float, kind: str) -> bytes:
    """Overlaid histograms of reconstruction errors with the threshold.

    Args:
        normal: errors of normal images, float32 (n,), at least one.
        anomalous: errors of anomalies, float32 (m,); m may be 0.
        threshold: drawn as a line.
        kind: `svg` or `png`.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        # Normal errors lie close together and anomalous ones far apart: only a logarithmic axis shows both.
        everything = np.maximum(np.concatenate([normal, anomalous, [threshold]]).astype(np.float64), FLOOR)
        edges = np.geomspace(everything.min() * 0.99, everything.max() * 1.01, BINS + 1)
        for errors, colour, name in ((normal, NORMAL, "normal"), (anomalous, ANOMALY, "anomalous")):
            if len(errors):
                shares = np.full(len(errors), 100 / len(errors))
                label = f"{name} ({len(errors):,})"
                values = np.maximum(errors, FLOOR)
                axes.hist(values, edges.tolist(), weights=shares, color=colour, alpha=0.6, label=label)
        axes.axvline(threshold, color=MARK, linestyle="--", linewidth=1.4, label=f"threshold {threshold:.5f}")
        axes.set(xlabel="reconstruction error, logarithmic", ylabel="share of images of its kind, %", xscale="log")
        # Outside the axes: inside, it would lie on the threshold or on bars.
        figure.legend(loc="outside upper left", ncols=3, fontsize=8.5, columnspacing=1.0, handlelength=1.6)
        return _render(figure, kind)


def roc(scores: NDArray[np.float32], labels: NDArray[np.bool_], judged: Sequence[Judged]) -> bytes:
    """The ROC curve as SVG, with the point at which each threshold works; both classes must be there."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        rates, found, _ = metrics.roc_curve(labels, scores)
        # A good curve hugs the corner; a logarithmic axis shows the false-positive rates that matter.
        floor = 0.5 / max(1, int((~labels).sum()))
        axes.plot(np.maximum(rates, floor), found, color=NORMAL, linewidth=1.8, drawstyle="steps-post")
        for item in judged:
            if item.evaluation is not None:
                _operating_point(axes, item, item.evaluation, floor)
        # From what is found without any false alarm: the rest of the axis would be empty.
        lowest = max(0.0, float(found[rates == 0].max()) - 0.05)
        axes.set(xscale="log", xlim=(floor, 1), ylim=(lowest, 1 + (1 - lowest) / 20))
        axes.set(xlabel="false-positive rate (leftmost: none)", ylabel="recall")
        axes.legend(loc="lower right", fontsize=8)
        return _render(figure, "svg")


def loss_curve(loss: Sequence[float], validation_loss: Sequence[float]) -> bytes:
    """Loss over epochs as SVG."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        epochs = np.arange(1, len(loss) + 1)
        axes.plot(epochs, loss, color=NORMAL, marker="o", markersize=3, label="fit")
        axes.plot(epochs, validation_loss, color=ANOMALY, marker="s", markersize=3, label="calibration images")
        axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return _render(figure, "svg")


def error_map(error: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """Squared errors (H, W) as colours uint8 (H, W, 3), from black at 0 to bright at `top` and above."""
    colours = mpl.colormaps["inferno"](np.clip(error / max(top, 1e-12), 0, 1), bytes=True)
    return np.ascontiguousarray(np.asarray(colours)[..., :3])


def _operating_point(axes: Axes, item: Judged, evaluation: Evaluation, floor: float) -> None:
    rate = evaluation.fp / max(1, evaluation.fp + evaluation.tn)
    chosen = item.chosen
    name = "in force" if chosen else item.fit.method.replace("_", " ")
    axes.plot(
        [max(rate, floor)],
        [evaluation.recall],
        linestyle="none",
        marker="o" if chosen else "s",
        markersize=8,
        color=ANOMALY if chosen else "#888888",
        label=f"{name}: {evaluation.fp} false alarms, recall {evaluation.recall:.3f}",
    )


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _render(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()
