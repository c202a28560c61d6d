"""A fit as the settings want it: which images learn, for how many epochs, and from where it goes on.

Rules: the time is measured on this machine and said before it is spent; the learning rate falls within the epochs
that are planned; an interrupted fit goes on as planned. Import after select_backend().
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from training import model
from training.data import Dataset
from training.export import versions
from training.fit import (
    OUT_OF_TIME,
    compile_autoencoder,
    fit_autoencoder,
    make_repeatable,
    seconds_per_step,
    steps_per_epoch,
    variables_of,
)
from training.images import Images, sample, subset
from training.plan import affordable_epochs, enough_epochs, patience_for
from training.presets import Preset
from training.progress import History, show_progress
from training.roles import hold_out
from training.saved_fit import Saved, SavedFit
from training.scores import Score
from training.settings import Fit
from training.show import in_words
from training.threshold_settings import ThresholdSettings
from worker.adapters.keras_scorer import KerasScorer
from worker.core.errors import ConfigurationError

FOLDS = 5
SUSPICIOUS = 0.02
"""The share of images that a robust fit's score leaves out, twice that of the anomalies that it is for: each is a
normal image lost, and a rare one, where it is no anomaly. The network learns from all, which costs it nothing that
could be measured: it learns last what few images show."""
NOT_OF_THE_FIT = frozenset(
    {
        *ThresholdSettings.model_fields,
        "data",
        "normal",
        "calibration_size",
        "height",
        "width",
        "channels",
        "pooling",
        "max_unreadable",
        "scorer",
        "precision",
        "name",
        "output",
        "quiet",
        "fresh",
    }
)
"""Settings that leave the weights as they are, or decide the data, which has its fingerprint."""


@dataclass(frozen=True)
class Fitted:
    """A fitted network.

    Attributes:
        autoencoder: the network.
        history: of its fit.
        score: what it is judged by.
        settings: how it was fitted, for the manifest.
        saved: what is to be removed when the bundle is complete.
    """

    autoencoder: Any
    history: History
    score: Score
    settings: dict[str, Any]
    saved: SavedFit


def fit_network(settings: Fit, preset: Preset, dataset: Dataset, console: Console) -> Fitted:
    """Fit the preset's network to the data, going on where the same fit was interrupted.

    Args:
        settings: of the fit.
        preset: that they name.
        dataset: its normal images.
        console: is told what is planned and how it goes.

    Raises:
        ConfigurationError: the time budget is too small, too few images for the wanted patience, or the loss is no
            longer finite.
    """
    learning, validation, early = _roles(settings, preset, dataset)
    make_repeatable(settings.seed)
    autoencoder = model.build_autoencoder(dataset.shape, settings.latent_size, preset.filters(dataset.shape))
    steps = steps_per_epoch(len(learning), settings.batch_size)
    wanted = settings.epochs or enough_epochs(preset.epochs, steps)
    kept = SavedFit(settings.output, what_decides(settings, preset, dataset))
    learning_rate = settings.learning_rate or preset.learning_rate
    compile_autoencoder(autoencoder, learning_rate, wanted * steps if preset.decay else None)
    saved = None if settings.fresh else _saved(kept, autoencoder, console)
    epochs = wanted
    if saved is not None:
        epochs = saved.standing.epochs
    elif not settings.quiet or settings.time_budget is not None:
        # Validation has no backward pass: a third of a step's work.
        rounds = steps + steps_per_epoch(len(validation), settings.batch_size) / 3
        each = rounds * seconds_per_step(autoencoder, learning, settings.batch_size, preset.corrupt)
        if settings.time_budget is not None:
            epochs = affordable_epochs(wanted, each, settings.time_budget)
        _tell(console, settings, dataset, len(learning), epochs, steps, each)
    if preset.decay and epochs != wanted:
        compile_autoencoder(autoencoder, learning_rate, epochs * steps)
    patience = (settings.patience or patience_for(epochs)) if early else None
    done = 0 if saved is None else len(saved.standing.loss)
    try:
        with show_progress(console, epochs=epochs, steps=steps, quiet=settings.quiet, done=done) as progress:
            history = fit_autoencoder(
                autoencoder,
                learning,
                validation,
                epochs=epochs,
                batch_size=settings.batch_size,
                seed=settings.seed,
                progress=progress,
                corrupt=preset.corrupt,
                patience=patience,
                budget_s=None if settings.time_budget is None else 60 * settings.time_budget,
                saved=saved,
                save=lambda found: _save(kept, found, console),
            )
    except KeyboardInterrupt:
        if kept.path.exists():
            console.print("The same command goes on after the last complete epoch.", soft_wrap=True)
        raise
    if history.kept < len(history.loss) or len(history.loss) < epochs:
        console.print(
            f"{len(history.loss)} of {epochs} epochs: {history.ended}. The network is that of epoch {history.kept}.",
            highlight=False,
            soft_wrap=True,
        )
    facts = {
        "epochs": epochs,
        "ended_by": history.ended,
        "epoch_kept": history.kept,
        "patience": patience or "all epochs",
        "validation_images": len(validation) if early else "those that calibrate",
        "repeatable": "no: how fast the machine was decided when it ended"
        if history.ended == OUT_OF_TIME
        else "with the same seed, data, versions and machine",
        "robust": settings.robust,
        "time_budget_minutes": settings.time_budget or "none",
    }
    return Fitted(autoencoder, history, fit_score(preset, autoencoder, dataset.fit, settings), facts, kept)


def what_decides(settings: Fit, preset: Preset, dataset: Dataset) -> dict[str, Any]:
    """All that decides the weights, as JSON values."""
    groups = dataset.fit_groups
    return {
        "data": dataset.fingerprint,
        # They decide which of the images validate.
        "groups": None if groups is None else hashlib.sha256(groups.tobytes()).hexdigest(),
        "filters": preset.filters(dataset.shape),
        "preset_epochs": preset.epochs,
        "preset_learning_rate": preset.learning_rate,
        "versions": versions(),
        **settings.model_dump(mode="json", exclude=set(NOT_OF_THE_FIT)),
    }


def _roles(settings: Fit, preset: Preset, dataset: Dataset) -> tuple[Images, Images, bool]:
    """The images that learn, those that validate, and whether these may choose the epoch."""
    if preset.early_stopping or settings.patience is not None:
        learning, validating = hold_out(len(dataset.fit), settings.seed, dataset.fit_groups)
        if len(validating):
            return subset(dataset.fit, learning), dataset.fit[validating], True
        if settings.patience is not None:
            raise ConfigurationError(
                f"patience (--patience): {settings.patience} was given; of {len(dataset.fit)} images to fit none can "
                "be held out to validate; expected at least 200 and, where they have groups, groups smaller than a "
                "tenth of them. Without it all epochs are run."
            )
    return dataset.fit, dataset.calibration, False


def _saved(kept: SavedFit, autoencoder: Any, console: Console) -> Saved | None:
    """From where this fit can go on."""
    try:
        saved = kept.load()
        if saved is None:
            return None
        shapes = [array.shape for array in saved.variables]
        if shapes != [tuple(variable.shape) for variable in variables_of(autoencoder)]:
            raise ValueError(f"'{kept.path}' holds another network")
    except ValueError as error:
        console.print(f"{escape(str(error))}. The fit begins anew.", style="yellow", highlight=False, soft_wrap=True)
        return None
    console.print(
        f"Going on after epoch {len(saved.standing.loss)} of {saved.standing.epochs} of the same fit, which was "
        "interrupted; --fresh begins anew.",
        highlight=False,
        soft_wrap=True,
    )
    return saved


def _save(kept: SavedFit, saved: Saved, console: Console) -> None:
    try:
        kept.save(saved)
    except OSError as error:
        console.print(f"This epoch is not saved: {escape(str(error))}.", style="yellow", soft_wrap=True)


def fit_score(preset: Preset, autoencoder: Any, images: Images, settings: Fit) -> Score:
    """What the network is judged by, fitted to as many images as the memory should hold; see unsuspicious()."""
    held = sample(images)
    if settings.robust:
        held = held[unsuspicious(preset, autoencoder, held, settings.seed)]
    return preset.score(autoencoder, held, settings.seed)


def unsuspicious(preset: Preset, autoencoder: Any, images: NDArray[np.uint8], seed: int) -> NDArray[np.intp]:
    """Which images, uint8 (n, H, W, C), to fit a score to where some are anomalies, in their order.

    Each of FOLDS parts is scored by what was fitted to the others, and loses the SUSPICIOUS share that scores
    highest: a score that was fitted to an anomaly calls it normal (filtering by cross-validation: Brodley & Friedl,
    "Identifying Mislabeled Training Data", JAIR 11, 1999, section 3).
    """
    fold = np.random.default_rng(seed).permutation(len(images)) % FOLDS
    kept = []
    for part in range(FOLDS):
        score = preset.score(autoencoder, images[fold != part], seed)
        own = np.flatnonzero(fold == part)
        scores, _ = KerasScorer(model.build_scorer(autoencoder, score)).score_all(images[own])
        kept.append(own[np.argsort(scores, kind="stable")[: len(own) - int(len(own) * SUSPICIOUS)]])
    return np.sort(np.concatenate(kept))


def _tell(
    console: Console, settings: Fit, dataset: Dataset, learning: int, epochs: int, steps: int, each_s: float
) -> None:
    """What is going to be done, and how long it will take."""
    if settings.quiet:
        return
    console.print(
        f"Fitting {learning:,} normal images ({escape(dataset.normal)} of {escape(dataset.source)}) for "
        f"{epochs} epochs of {steps} steps: about {in_words(epochs * each_s)} on this machine.",
        highlight=False,
        soft_wrap=True,
    )
    if settings.time_budget is not None:
        console.print(
            f"The time budget of {settings.time_budget:g} minutes decides how many epochs; --epochs {epochs} without "
            "it gives the same network, unless the machine turns out slower.",
            highlight=False,
            soft_wrap=True,
        )
