"""report.html: what was trained on what, and how well it works, for people.

Rules: one file that opens offline, every picture inside it; whatever comes from data or settings is escaped;
readable on a desk and on a phone.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
from numpy.typing import NDArray

from training import charts
from training.data import Dataset
from training.evaluate import Judged
from training.progress import History
from training.thresholds import alarms_in_words, in_words
from worker.core.bundle import Bundle, Calibration, Manifest
from worker.core.images import encode_png

EXAMPLES = 6

Reconstruct = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Example:
    """One image, its reconstruction and its error map as data addresses, and what it scored."""

    original: str
    reconstruction: str
    error_map: str
    score: float


@dataclass(frozen=True)
class Group:
    """Examples of one kind."""

    title: str
    examples: tuple[Example, ...]


def render_report(
    *,
    name: str,
    created: str,
    dataset: Dataset,
    calibration: Calibration,
    judged: Sequence[Judged],
    history: History,
    training: Mapping[str, object],
    versions: Mapping[str, str],
    reconstruct: Reconstruct,
) -> str:
    """The report as HTML.

    Args:
        name: of the bundle.
        created: ISO 8601, UTC.
        dataset: what was fitted, calibrated and evaluated.
        calibration: its scores.
        judged: the thresholds; one is chosen.
        history: of the fit.
        training: how it was fitted, by setting.
        versions: of the libraries.
        reconstruct: images uint8 (n, H, W, C) to their reconstructions, float32 (n, H, W, C) in [0, 1].
    """
    chosen = next(item for item in judged if item.chosen)
    labels = calibration.evaluation_labels
    evaluated = chosen.evaluation is not None
    normal = calibration.evaluation_errors[~labels] if evaluated else calibration.errors
    pictures = {
        "histogram": charts.histogram(normal, calibration.evaluation_errors[labels], chosen.fit.value, "svg"),
        "loss": charts.loss_curve(history.loss, history.validation_loss),
    }
    if evaluated and labels.any() and not labels.all():
        pictures["roc"] = charts.roc(calibration.evaluation_scores, labels, judged)
    return _template("report.html.j2").render(
        name=name,
        created=created,
        data=dataset.description(),
        shape=dataset.shape,
        skipped=dataset.skipped,
        chosen=chosen,
        judged=judged,
        history=history,
        training=training,
        versions=versions,
        charts={key: _address(value, "image/svg+xml") for key, value in pictures.items()},
        groups=_groups(dataset, calibration, chosen.fit.value, reconstruct),
    )


def render_calibration_report(
    manifest: Manifest, old: Bundle, calibration: Calibration, judged: Sequence[Judged]
) -> str:
    """What a new calibration changed, as HTML.

    Args:
        manifest: the new one.
        old: the bundle whose network it keeps.
        calibration: the new scores.
        judged: the thresholds; one is chosen.
    """
    chosen = next(item for item in judged if item.chosen)
    anomalous = calibration.evaluation_errors[calibration.evaluation_labels]
    picture = charts.histogram(calibration.errors, anomalous, chosen.fit.value, "svg")
    return _template("calibration_report.html.j2").render(
        manifest=manifest,
        old=old.manifest,
        chosen=chosen,
        judged=judged,
        flagged=[
            int((calibration.scores > threshold).sum()) for threshold in (old.threshold, np.float32(chosen.fit.value))
        ],
        histogram=_address(picture, "image/svg+xml"),
    )


def histogram_png(calibration: Calibration, threshold: float) -> bytes:
    """The report's histogram as PNG, for a README."""
    labels = calibration.evaluation_labels
    normal = calibration.evaluation_errors[~labels] if len(labels) else calibration.errors
    return charts.histogram(normal, calibration.evaluation_errors[labels], threshold, "png")


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_words"] = lambda fit: in_words(fit.method, fit.parameters)
    environment.filters["alarms_in_words"] = alarms_in_words
    return environment.get_template(name)


def _groups(
    dataset: Dataset, calibration: Calibration, threshold: float, reconstruct: Reconstruct
) -> tuple[Group, ...]:
    """What to show: typical images of both kinds, and the worst mistakes."""
    scores, labels = calibration.evaluation_scores, calibration.evaluation_labels
    called = scores > np.float32(threshold)
    if len(scores):
        chosen = [
            ("Normal images that passed", dataset.evaluation, _spread(~labels & ~called), scores),
            ("Anomalies that were found", dataset.evaluation, _spread(labels & called), scores),
            ("False alarms, the worst first", dataset.evaluation, _worst(~labels & called, -scores), scores),
            ("Missed anomalies, the worst first", dataset.evaluation, _worst(labels & ~called, scores), scores),
        ]
    else:
        held_out = np.ones(len(calibration.scores), np.bool_)
        chosen = [("Calibration images", dataset.calibration, _spread(held_out), calibration.scores)]
    shown = [(title, images[index], of[index]) for title, images, index, of in chosen if len(index)]
    everything = np.concatenate([images for _, images, _ in shown])
    rebuilt = reconstruct(everything)
    squared = np.mean(np.square(everything / np.float32(255) - rebuilt), axis=3)
    # One scale for all maps, or a faithful reconstruction would look as bad as a failed one.
    top = float(np.quantile(squared, 0.995))
    groups, start = [], 0
    for title, images, group_scores in shown:
        rows = range(start, start + len(images))
        start += len(images)
        examples = tuple(
            Example(
                _picture(everything[row]),
                _picture(np.round(rebuilt[row] * 255).astype(np.uint8)),
                _picture(charts.error_map(squared[row], top)),
                float(score),
            )
            for row, score in zip(rows, group_scores, strict=True)
        )
        groups.append(Group(title, examples))
    return tuple(groups)


def _spread(chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """At most EXAMPLES of the chosen ones, evenly from the first to the last."""
    found = np.flatnonzero(chosen)
    if len(found) == 0:
        return found
    return found[np.unique(np.linspace(0, len(found) - 1, EXAMPLES).astype(np.intp))]


def _worst(chosen: NDArray[np.bool_], badness: NDArray[np.float32]) -> NDArray[np.intp]:
    """At most EXAMPLES of the chosen ones, those with the lowest number first."""
    found = np.flatnonzero(chosen)
    return found[np.argsort(badness[found], kind="stable")[:EXAMPLES]]


def _picture(image: NDArray[np.uint8]) -> str:
    return _address(encode_png(image), "image/png")


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
