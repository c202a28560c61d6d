"""What the subcommands do.

Keras, matplotlib, scikit-learn and SciPy are imported inside the functions that need them: they take seconds,
which `--help`, `inspect` and a wrong setting must not wait for, and Keras only after its backend is chosen.
"""
# ruff: noqa: PLC0415 - see above

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.settings import Calibrate, Evaluate, Fit, Inspect
from training.show import facts_of, in_words, show_skipped, show_thresholds, show_tutorial, show_written
from training.threshold_settings import DEFAULT_PREVALENCE
from worker.core.bundle import CURRENT, Bundle, read_bundle
from worker.core.errors import ConfigurationError

if TYPE_CHECKING:
    from training.data import Dataset
    from training.evaluate import AtPrevalence, Judged

BACKENDS = {"keras": "tensorflow", "openvino": "openvino"}
"""What the manifest names, by --scorer."""
FEW_PIXELS = " The score is of the whole image: a fault of few pixels hardly moves it."
# Below it the report is worth a look before the bundle is.
DOUBTFUL_AUROC = 0.8


def fit(settings: Fit, console: Console) -> Path:
    """Fit, calibrate, evaluate, write the bundle.

    Returns:
        the bundle's folder.

    Raises:
        ConfigurationError: settings or data are wrong.
        BundleError: what was written does not verify.
    """
    from training.data import load

    _check_output(settings.output)
    dataset = load(
        settings.data,
        normal=settings.normal,
        calibration_size=settings.calibration_size,
        seed=settings.seed,
        size=(settings.height, settings.width) if settings.height and settings.width else None,
        channels=settings.channels,
        max_unreadable=settings.max_unreadable,
        group_by=settings.group_by,
        scratch=settings.output,
    )
    show_skipped(console, dataset.skipped)
    check_threshold(settings, dataset)  # before the fit, not after it

    from training import serving

    backend = BACKENDS[settings.scorer]
    serving.prepare(backend, settings.precision)
    from training import export, model, report
    from training.corruptions import CORRUPTIONS
    from training.evaluate import judge_thresholds, labelled, rare_in
    from training.fitting import fit_network
    from training.groups import follows_time
    from training.presets import PRESETS, pooled
    from training.results import committed
    from training.thresholds import choose_method, fit_threshold
    from worker.adapters.keras_scorer import weights_sha256

    preset = PRESETS[settings.preset]
    if settings.corruption is not None:
        preset = replace(preset, corrupt=CORRUPTIONS[settings.corruption])
    if settings.pooling is not None:
        preset = pooled(preset, settings.pooling)
    fitted = fit_network(settings, preset, dataset, console)
    autoencoder, history, score = fitted.autoencoder, fitted.history, fitted.score
    scorer_model = model.build_scorer(autoencoder, score)
    choice = serving.choose(scorer_model, dataset.calibration, backend, settings.precision)
    scorer = choice.scorer
    calibration = export.calibrate_scores(scorer, dataset)
    wanted = (settings.rate, settings.k, settings.cost_ratio)
    method = choose_method(settings.method, *wanted, labelled(calibration))
    in_time = follows_time(settings.group_by)
    threshold = fit_threshold(method, calibration.scores, calibration.groups, in_time=in_time)
    judged = judge_thresholds(calibration, threshold, *wanted, dataset.evaluation_kinds, in_time=in_time)
    training: dict[str, Any] = {
        "preset": preset.name,
        "optimizer": "adam",
        "learning_rate": settings.learning_rate or preset.learning_rate,
        "corruption": settings.corruption or "the preset's",
        "loss": "mse",
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "latent_size": settings.latent_size,
        "false_positive_rate": settings.rate,
        "k": settings.k,
        "cost_ratio": settings.cost_ratio,
        "prevalence": settings.prevalence,
        **fitted.settings,
        "group_by": settings.group_by or ("array groups" if dataset.calibration_groups is not None else "none"),
        "parameters": autoencoder.count_params(),
        "device": " ".join(scorer.device),
        "machine": export.machine(),
        "fit_seconds": round(history.seconds, 1),
        "serving": f"{scorer.serving.precision} on {backend}",
        "serving_because": choice.why,
    }
    name = settings.name or dataset.suggested_name
    page = report.render_report(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dataset,
        calibration=calibration,
        judged=judged,
        prevalence=settings.prevalence,
        history=history,
        score=score.definition,
        training=training,
        versions=export.versions(backend),
        weights_sha256=weights_sha256(scorer_model),
        reconstruct=scorer.reconstruct,
    )
    bundle = export.write_bundle(
        settings.output,
        name=name,
        scorer_model=scorer_model,
        score=score.definition,
        serving=scorer.serving,
        dataset=dataset,
        threshold=threshold,
        calibration=calibration,
        golden=export.golden_images(scorer, dataset),
        training={**training, "loss_history": history.loss, "validation_loss_history": history.validation_loss},
        report=page,
    )
    fitted.saved.remove()
    folder = settings.output / bundle.folder.name
    show_thresholds(console, judged, settings.parts_per_day, rare_in(calibration, judged, settings.prevalence))
    found = next(item.evaluation for item in judged if item.chosen)
    if settings.data == "sample" and settings.preset != "tutorial":
        show_tutorial(console, committed()["tutorial"], settings.normal or "1")
    if found is not None and found.auroc is not None and found.auroc < DOUBTFUL_AUROC:
        console.print(
            f"This model hardly tells these anomalies from normal images (AUROC {found.auroc:.2f}; 0.5 is chance). "
            "More images, more --epochs, or a smaller --batch-size may help."
            + (FEW_PIXELS if score.definition.pooling == "mean" else ""),
            style="bold red",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"fitted in {in_words(history.seconds)}", highlight=False, soft_wrap=True)
    console.print(f"weights {bundle.manifest.weights_sha256}", highlight=False, soft_wrap=True)
    console.print(f"serves in {training['serving']}: {choice.why}", highlight=False, markup=False, soft_wrap=True)
    show_written(console, folder)
    return folder


def calibrate(settings: Calibrate, console: Console) -> Path:
    """Fit the threshold of a bundle anew, write the new bundle.

    Returns:
        the new bundle's folder.

    Raises:
        ConfigurationError: settings or data are wrong, or the data does not support the threshold.
        BundleError: the bundle is damaged, or what was written does not verify.
    """
    from training.normals import load_normals

    bundle = read_bundle(settings.bundle)
    output = settings.output or bundle.folder.parent
    _check_output(output)
    normals = load_normals(
        settings.data,
        bundle.image_spec(),
        normal=settings.normal or _normal_as_fitted(bundle.manifest.data.normal, Path(settings.data)),
        max_unreadable=settings.max_unreadable,
        group_by=settings.group_by,
        scratch=output,
    )
    show_skipped(console, normals.skipped)
    if normals.anomalies:
        console.print(
            f"{normals.anomalies:,} images that are not normal are not used; the bundle keeps its evaluation set.",
            highlight=False,
            soft_wrap=True,
        )
    from worker.adapters.keras_scorer import KerasScorer, prepare_device, select_backend

    select_backend(bundle.manifest.serving.backend)
    prepare_device()
    scorer = KerasScorer.load(bundle)  # scores the golden images
    from training.recalibrate import calibrate_bundle

    made, judged = calibrate_bundle(bundle, scorer, normals, settings, output)
    folder = output / made.folder.name
    from training.evaluate import rare_in

    show_thresholds(console, judged, settings.parts_per_day, rare_in(made.calibration, judged, settings.prevalence))
    old = bundle.manifest.threshold.value
    console.print(
        f"threshold {made.manifest.threshold.value:.6g}, before {old:.6g}; of these {len(normals.images):,} images "
        f"the one before would flag {int((made.calibration.scores > bundle.threshold).sum()):,}",
        highlight=False,
        soft_wrap=True,
    )
    show_written(console, folder)
    return folder


def check_threshold(settings: Fit, dataset: "Dataset") -> None:
    """Whether the images support the wanted threshold; their scores are not needed for it.

    Raises:
        ConfigurationError: they do not.
    """
    from training.thresholds import Labelled, choose_method

    groups, labels = dataset.calibration_groups, dataset.labels
    labelled = Labelled(np.zeros(len(labels), np.float32), labels, dataset.evaluation_groups)
    method = choose_method(settings.method, settings.rate, settings.k, settings.cost_ratio, labelled)
    count = len(dataset.calibration)
    method.check(count, count if groups is None else len(np.unique(groups)))


def evaluate(settings: Evaluate, console: Console) -> None:
    """Show, and write, the numbers of a bundle's report, after its golden images scored as they did.

    Raises:
        BundleError: the bundle is damaged, or its golden images score differently.
        ConfigurationError: the JSON file cannot be written.
    """
    bundle = read_bundle(settings.bundle)
    from worker.adapters.keras_scorer import KerasScorer, prepare_device, select_backend

    select_backend(bundle.manifest.serving.backend)
    prepare_device()
    KerasScorer.load(bundle)  # scores the golden images
    from training.evaluate import judge_bundle, rare_in

    judged = judge_bundle(bundle.manifest, bundle.calibration)
    prevalence = settings.prevalence or float(bundle.manifest.training.get("prevalence", DEFAULT_PREVALENCE))
    rare = rare_in(bundle.calibration, judged, prevalence)
    console.print(
        f"{bundle.manifest.folder_name}: all files verified, golden images score as they did.", soft_wrap=True
    )
    show_thresholds(console, judged, rare=rare)
    if settings.json_file is not None:
        text = json.dumps(numbers(bundle, judged, rare), indent=2, allow_nan=False)
        try:
            settings.json_file.parent.mkdir(parents=True, exist_ok=True)
            settings.json_file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"json (--json): '{settings.json_file}' cannot be written: {error}.") from error


def inspect(settings: Inspect, console: Console) -> None:
    """Show a bundle's manifest.

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle = read_bundle(settings.bundle)
    table = Table(title=escape(str(bundle.folder)), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts_of(bundle.manifest):
        table.add_row(key, escape(value))
    console.print(table)


def numbers(bundle: Bundle, judged: Sequence["Judged"], rare: "AtPrevalence | None") -> dict[str, Any]:
    """The evaluation as JSON values: the bundle, for each threshold its fit, `chosen` and its figures, and what the
    one in force is worth `at_prevalence`.
    """
    return {
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.manifest.digest,
        "calibration": len(bundle.calibration.scores),
        "evaluation": len(bundle.calibration.evaluation_scores),
        "thresholds": [msgspec.to_builtins(item) for item in judged],
        "at_prevalence": msgspec.to_builtins(rare),
    }


def _check_output(output: Path) -> None:
    """Find out before the fit, not after it, that nothing can be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"output (--output): '{output}' cannot be made a folder: {error}.") from error
    current = output / CURRENT
    if not os.access(output, os.W_OK) or (current.exists() and not current.is_symlink()):
        raise ConfigurationError(
            f"output (--output): '{output}' was given; expected a folder that can be written to, in which "
            f"'{CURRENT}' is a link or missing."
        )


def _normal_as_fitted(described: str, data: Path) -> str | None:
    """What was normal in the fit, from the manifest's words, where the new data can have it."""
    kind, _, name = described.partition(" ")
    if kind == "label" and data.is_file():
        return name
    return name if kind == "folder" and (data / name).is_dir() else None
