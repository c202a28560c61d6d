"""report.html: what was trained on what, and how well it works, for people.

Rules: one file of less than 3 MB that opens offline, every picture inside it; whatever comes from data or settings is
escaped, and of what may be long only the beginning is shown; readable on a desk and on a phone.
"""

from collections.abc import Mapping, Sequence

import jinja2
import numpy as np

from training import charts, words
from training.data import Dataset
from training.evaluate import AtPrevalence, Judged, rare_in
from training.examples import Reconstruct, data_address, gallery
from training.progress import History
from training.quantiles import quantiles
from training.show import in_words as duration_in_words
from training.thresholds import alarms_in_words, in_words
from worker.core.bundle import Bundle, Calibration, Manifest, ScoreDefinition

LINES = 40
"""Of a list or table whose length the data decides."""


def render_report(
    *,
    name: str,
    created: str,
    dataset: Dataset,
    calibration: Calibration,
    judged: Sequence[Judged],
    prevalence: float,
    history: History,
    score: ScoreDefinition,
    training: Mapping[str, object],
    versions: Mapping[str, str],
    weights_sha256: str,
    reconstruct: Reconstruct,
) -> str:
    """The report as HTML.

    Args:
        name: of the bundle.
        created: ISO 8601, UTC.
        dataset: what was fitted, calibrated and evaluated.
        calibration: its scores.
        judged: the thresholds; one is chosen.
        prevalence: the share of anomalies for which precision is stated.
        history: of the fit.
        score: what the score is.
        training: how and where it was fitted, by setting.
        versions: of the libraries.
        weights_sha256: hash of the weight arrays.
        reconstruct: images uint8 (n, H, W, C) to their reconstructions, float32 (n, H, W, C) in [0, 1].
    """
    chosen = next(item for item in judged if item.chosen)
    validated_on = training.get("validation_images")
    held_out = validated_on if isinstance(validated_on, int) else 0
    validated = "held-out images" if held_out else "calibration images"
    scores, labels = calibration.evaluation_scores, calibration.evaluation_labels
    normal = scores[~labels] if len(scores) else calibration.scores
    pictures = {
        "histogram": charts.histogram(normal, scores[labels], chosen.fit.value),
        "loss": charts.loss_curve(history.loss, history.validation_loss, validated),
    }
    rare = rare_in(calibration, judged, prevalence)
    pictures |= _curves(calibration, judged, rare)
    levels = {"score": quantiles(calibration.scores), "error": quantiles(calibration.errors)}
    return _template("report.html.j2").render(
        name=name,
        created=created,
        dataset=dataset,
        data=dataset.description(),
        anomalies=int(labels.sum()),
        chosen=chosen,
        judged=judged,
        rare=rare,
        history=history,
        score=score,
        quantiles=levels if levels["score"] != levels["error"] else {"score and error": levels["score"]},
        training=training,
        held_out=held_out,
        validated=validated,
        versions=versions,
        weights_sha256=weights_sha256,
        charts=_addresses(pictures),
        gallery=gallery(dataset, calibration, chosen.fit.value, reconstruct),
        lines=LINES,
    )


def render_calibration_report(
    manifest: Manifest, old: Bundle, calibration: Calibration, judged: Sequence[Judged], prevalence: float
) -> str:
    """What a new calibration changed, as HTML.

    Args:
        manifest: the new one.
        old: the bundle whose network it keeps.
        calibration: the new scores.
        judged: the thresholds; one is chosen.
        prevalence: the share of anomalies for which precision is stated.
    """
    chosen = next(item for item in judged if item.chosen)
    anomalous = calibration.evaluation_scores[calibration.evaluation_labels]
    rare = rare_in(calibration, judged, prevalence)
    pictures = {
        "histogram": charts.histogram(calibration.scores, anomalous, chosen.fit.value),
        **_curves(calibration, judged, rare),
    }
    before, now = old.manifest.calibration_quantiles["score"], manifest.calibration_quantiles["score"]
    return _template("calibration_report.html.j2").render(
        manifest=manifest,
        old=old.manifest,
        chosen=chosen,
        judged=judged,
        rare=rare,
        flagged=[
            int((calibration.scores > threshold).sum()) for threshold in (old.threshold, np.float32(chosen.fit.value))
        ],
        charts=_addresses(pictures),
        quantiles={"now": now, "before": {level: before.get(level, float("nan")) for level in now}},
        lines=LINES,
    )


def _curves(calibration: Calibration, judged: Sequence[Judged], rare: AtPrevalence | None) -> dict[str, bytes]:
    """ROC and precision over recall, where the evaluation set has both kinds of images."""
    chosen = next(item for item in judged if item.chosen)
    if rare is None or chosen.evaluation is None:
        return {}
    scores, labels = calibration.evaluation_scores, calibration.evaluation_labels
    return {
        "roc": charts.roc(scores, labels, judged),
        "precision_recall": charts.precision_recall(scores, labels, chosen.evaluation, rare),
    }


def _addresses(pictures: Mapping[str, bytes]) -> dict[str, str]:
    return {name: data_address(picture, "image/svg+xml") for name, picture in pictures.items()}


def _unbroken(text: str) -> str:
    """With each % on the line of its number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _listed(counts: Mapping[str, int]) -> str:
    """Counts by name in a line, the largest first."""
    named = [f"{name}: {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    return ", ".join(named[:LINES]) + (f" and {len(named) - LINES:,} more" if len(named) > LINES else "")


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        in_words=lambda fit: in_words(fit.method, fit.parameters),
        alarms_in_words=lambda fit: _unbroken(alarms_in_words(fit)),
        duration=duration_in_words,
        when=lambda text: text.replace("T", " ").replace("+00:00", " UTC"),
        thousands="{:,}".format,
        listed=_listed,
        exactly=lambda share: f"{100 * share:g} %",
        ratio=words.ratio,
        percent=lambda share: _unbroken(words.percent(share)),
        interval=lambda limits: _unbroken(words.interval(limits)),
        at_least=lambda limit: _unbroken(words.at_least(limit)),
    )
    return environment.get_template(name)
