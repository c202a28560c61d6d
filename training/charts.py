"""The report's pictures, each as the bytes of one SVG; the same numbers give the same bytes.

Rules: no display, and matplotlib's global settings are left as they were; colours that colour-blind people
tell apart (Okabe & Ito 2008), each doubled by a label.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from sklearn import metrics

from training.evaluate import AtPrevalence, Evaluation, Judged, weights
from training.results import Result
from training.words import percent

NORMAL = "#0072B2"
ANOMALY = "#D55E00"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = "osD^v"
MARK = "#222222"
BINS = 60
FLOOR = 1e-12
"""Scores below it, such as the error of a black image, cannot be drawn on a logarithmic axis."""
MARKED = 60
"""Points of a curve up to which each has a mark. Of longer ones matplotlib leaves out what makes no difference."""
# 4.4 inches are 422 CSS pixels: on a phone the text shrinks to four fifths and stays readable.
SIZE = (4.4, 3.2)
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


def histogram(normal: NDArray[np.float32], anomalous: NDArray[np.float32], threshold: float) -> bytes:
    """Overlaid histograms of scores with the threshold, as SVG.

    Args:
        normal: scores of normal images, float32 (n,), at least one.
        anomalous: scores of anomalies, float32 (m,); m may be 0.
        threshold: drawn as a line.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        # Normal scores lie close together and anomalous ones far apart: only a logarithmic axis shows both.
        everything = np.maximum(np.concatenate([normal, anomalous, [threshold]]).astype(np.float64), FLOOR)
        # A single score near 0 would take most of that axis: it is drawn at its end.
        lowest = max(everything.min(), np.quantile(everything, 0.01) / 10)
        edges = np.geomspace(lowest * 0.99, everything.max() * 1.01, BINS + 1)
        for scores, colour, name in ((normal, NORMAL, "normal"), (anomalous, ANOMALY, "anomalous")):
            if len(scores):
                shares = np.full(len(scores), 100 / len(scores))
                label = f"{name} ({len(scores):,})"
                values = np.maximum(scores, lowest)
                axes.hist(values, edges.tolist(), weights=shares, color=colour, alpha=0.6, label=label)
        axes.axvline(threshold, color=MARK, linestyle="--", linewidth=1.4, label=f"threshold {threshold:.4g}")
        axes.set(xlabel="score, logarithmic", ylabel="% of the images of a kind", xscale="log")
        _plain_numbers(axes.xaxis)
        _legend_above(figure, 3)
        return _render(figure)


def roc(scores: NDArray[np.float32], labels: NDArray[np.bool_], judged: Sequence[Judged]) -> bytes:
    """The ROC curve as SVG, with the point at which each threshold works; both classes must be there."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        rates, found, _ = metrics.roc_curve(labels, scores)
        # A good curve hugs the corner; a logarithmic axis shows the false-positive rates that matter.
        floor = 0.5 / max(1, int((~labels).sum()))
        axes.plot(np.maximum(rates, floor), found, color=NORMAL, linewidth=1.8, drawstyle="steps-post")
        marks = {True: ("o", ANOMALY, "the threshold in force"), False: ("s", "#888888", "other thresholds")}
        for chosen, (marker, colour, label) in marks.items():
            works = [item.evaluation for item in judged if item.chosen is chosen and item.evaluation is not None]
            alarms = [max(found.fp / (found.fp + found.tn), floor) for found in works]
            recalls = [found.recall for found in works]
            order = 5 if chosen else 4
            axes.plot(alarms, recalls, marker, markersize=7, color=colour, label=label, zorder=order, clip_on=False)
        # From what is found without any false alarm, or by a threshold: the rest of the axis would be empty.
        points = [item.evaluation.recall for item in judged if item.evaluation is not None]
        lowest = max(0.0, min(float(found[rates == 0].max()), *points) - 0.05)
        axes.set(xscale="log", xlim=(floor, 1), ylim=(lowest, 1 + (1 - lowest) / 20))
        axes.set(xlabel="false-positive rate, logarithmic (leftmost: none)", ylabel="recall")
        _plain_numbers(axes.xaxis)
        _legend_above(figure, 2)
        return _render(figure)


def precision_recall(
    scores: NDArray[np.float32], labels: NDArray[np.bool_], evaluation: Evaluation, rare: AtPrevalence
) -> bytes:
    """Precision over recall as SVG, as the evaluation set is mixed and where anomalies are rare.

    Args:
        scores: float32 (m,).
        labels: bool (m,), True = anomaly; both classes must be there.
        evaluation: of the threshold in force: its points are marked.
        rare: its precision where anomalies are rare; a line leads down to what it is at least.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        mixed = float(labels.mean())
        for share, colour, precision, line in (
            (mixed, NORMAL, evaluation.precision, "--"),
            (rare.prevalence, ANOMALY, rare.precision, "-"),
        ):
            precisions, recalls, _ = metrics.precision_recall_curve(
                labels, scores, sample_weight=weights(labels, share), drop_intermediate=True
            )
            label = f"{percent(share)} anomalies, as evaluated" if share == mixed else f"{100 * share:g} % anomalies"
            axes.plot(recalls, precisions, color=colour, linestyle=line, linewidth=1.8, label=label)
            if precision is not None:
                axes.plot([evaluation.recall], [precision], "o", markersize=7, color=colour)
        if rare.precision is not None and rare.at_least is not None:
            axes.vlines([evaluation.recall], [rare.at_least], [rare.precision], color=ANOMALY, linewidth=1.4)
            axes.plot([evaluation.recall], [rare.at_least], "_", markersize=10, color=ANOMALY)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.03), ylim=(0, 1.05))
        _legend_above(figure, 2)
        return _render(figure)


def loss_curve(loss: Sequence[float], validation_loss: Sequence[float], validated: str) -> bytes:
    """Loss over epochs as SVG; `validated` says on which images the second is."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        epochs = np.arange(1, len(loss) + 1)
        size = 3 if len(loss) <= MARKED else 0
        for values, colour, marker, name in (
            (loss, NORMAL, "o", "fit"),
            (validation_loss, ANOMALY, "s", validated),
        ):
            axes.plot(epochs, values, color=colour, marker=marker, markersize=size, label=name)
        axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain_numbers(axes.yaxis)
        _legend_above(figure, 2)
        return _render(figure)


def auroc_by_digit(results: Sequence[Result]) -> bytes:
    """How well presets and baselines tell digits apart, as SVG: a dot for each fit, a line through the means."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        digits = sorted({result.digit for result in results})
        for index, name in enumerate(dict.fromkeys(result.name for result in results)):
            marker, colour = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
            found = [(digits.index(one.digit), 100 * one.auroc) for one in results if one.name == name]
            places, aurocs = np.array(sorted(found)).T
            there = np.unique(places)
            axes.plot(places, aurocs, marker, color=colour, markersize=4, alpha=0.5)
            means = [aurocs[places == place].mean() for place in there]
            axes.plot(there, means, color=colour, marker=marker, markersize=6, linewidth=1.2, label=name)
        axes.set(xlabel="digit that is normal", ylabel="AUROC, %")
        axes.set_xticks(range(len(digits)), digits)
        _legend_above(figure, 3)
        return _render(figure)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _legend_above(figure: Figure, columns: int) -> None:
    """Outside the axes: inside, it would lie on what is drawn."""
    figure.legend(loc="outside upper left", ncols=columns, fontsize=9, columnspacing=1.0, handlelength=1.6)


def _plain_numbers(axis: Axis) -> None:
    """A logarithmic axis with 0.05 instead of powers of ten."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high / low < 50 else (1,)
    axis.set_major_locator(LogLocator(subs=steps) if high / low > 5 else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
