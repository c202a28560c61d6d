"""A bundle's threshold, fitted anew on other normal images; network, golden images and evaluation set stay.

Import after select_backend().
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from training import export
from training.evaluate import Judged, judge_thresholds, labelled, without_history
from training.groups import follows_time
from training.normals import Normals
from training.report import render_calibration_report
from training.threshold_settings import ThresholdSettings
from training.thresholds import choose_method, fit_threshold
from worker.adapters.keras_scorer import KerasScorer
from worker.core.bundle import GOLDEN, REPORT, SCORER, Bundle, Calibration, Threshold


def calibrate_bundle(
    bundle: Bundle, scorer: KerasScorer, normals: Normals, settings: ThresholdSettings, output: Path
) -> tuple[Bundle, tuple[Judged, ...]]:
    """Score the images, fit the threshold, write the new bundle and switch to it.

    Args:
        bundle: the old one; it stays as it is.
        scorer: its scorer.
        normals: images that its model was not fitted on.
        settings: of the threshold.
        output: the folder for bundles.

    Returns:
        the new bundle, and its thresholds side by side.

    Raises:
        ConfigurationError: the images do not support the threshold.
        BundleError: what was written does not verify.
    """
    old = bundle.manifest
    scores, errors = export.score_images(scorer, normals.images)
    kept = bundle.calibration
    calibration = Calibration(
        scores,
        errors,
        kept.evaluation_scores,
        kept.evaluation_errors,
        kept.evaluation_labels,
        normals.groups,
        kept.evaluation_groups,
    )
    wanted = (settings.rate, settings.k, settings.cost_ratio)
    in_time = follows_time(settings.group_by)
    method = choose_method(settings.method, *wanted, labelled(calibration))
    threshold = fit_threshold(method, scores, normals.groups, in_time=in_time)
    judged = judge_thresholds(calibration, threshold, *wanted, in_time=in_time)
    manifest = msgspec.structs.replace(
        old,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        threshold=Threshold(
            **msgspec.structs.asdict(threshold), history=[*old.threshold.history, without_history(old.threshold)]
        ),
        calibration_quantiles=export.calibration_quantiles(calibration, normals.images),
        training={
            **{key: value for key, value in old.training.items() if key != "percentile"},
            "false_positive_rate": settings.rate,
            "k": settings.k,
            "cost_ratio": settings.cost_ratio,
            "prevalence": settings.prevalence,
            "group_by": settings.group_by or ("array groups" if normals.groups is not None else "none"),
            "calibrated_on": normals.source,
        },
        versions=export.versions(old.serving.backend),
    )
    page = render_calibration_report(manifest, bundle, calibration, judged, settings.prevalence)

    def write_files(folder: Path) -> None:
        for name in (SCORER, GOLDEN):
            shutil.copyfile(bundle.folder / name, folder / name)
        export.write_calibration(folder, calibration)
        (folder / REPORT).write_text(page, encoding="utf-8")

    return export.publish(output, manifest, write_files), judged
