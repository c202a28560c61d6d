"""How well a way of fitting tells anomalies from normal images: one label is normal, every other one an anomaly.

The protocol (Ruff et al., "Deep One-Class Classification", ICML 2018, section 4.2): for each label fit on that
label's images of the training split alone, score the whole test split, take the area under the ROC curve; the same
for each seed. Nothing is chosen by looking at test images. Results are kept as they come, so that an interrupted run
goes on where it was.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from training.contenders import Contender, Images
from training.results import Book, Result
from worker.core.errors import ConfigurationError

RECALL = 0.95


@dataclass(frozen=True)
class Split:
    """A labelled source: images uint8 (n, H, W, C), labels as text (n,)."""

    fit: Images
    fit_labels: NDArray[np.str_]
    test: Images
    test_labels: NDArray[np.str_]


def run(
    contenders: Iterable[Contender],
    split: Split,
    digits: Sequence[str],
    seeds: Sequence[int],
    book: Book,
    told: Callable[[Result], None] = lambda _: None,
) -> None:
    """Fit and score what the book does not hold yet, and tell of each.

    Seeds come first, then digits, then contenders: what is interrupted has compared all of them on what it has.

    Raises:
        ConfigurationError: a digit is no label of the source.
    """
    contenders = list(contenders)
    for digit in digits:
        if not np.any(split.fit_labels == digit) or not np.any(split.test_labels == digit):
            raise ConfigurationError(
                f"digits: '{digit}' was given; the source has the labels {', '.join(np.unique(split.fit_labels))}."
            )
    for seed in seeds:
        for digit in digits:
            for contender in contenders:
                if not book.holds(contender.name, contender.epochs, digit, seed):
                    book.add(measure(contender, split, digit, seed))
                    told(book.results[-1])


def measure(contender: Contender, split: Split, digit: str, seed: int) -> Result:
    """One fit, and its figures on the whole test split."""
    images = given_as_normal(split, digit, contender.anomalies, seed)
    began = time.monotonic()
    fitted = contender.fit(images, seed)
    seconds = time.monotonic() - began
    began = time.monotonic()
    scores = fitted.score(split.test)
    speed = len(split.test) / max(time.monotonic() - began, 1e-9)
    anomalous = split.test_labels != digit
    return Result(
        name=contender.name,
        digit=digit,
        seed=seed,
        **figures(scores, anomalous),
        seconds=round(seconds, 2),
        images_per_second=round(speed, 1),
        mflop_per_image=fitted.mflop_per_image,
        epochs=contender.epochs,
    )


def given_as_normal(split: Split, digit: str, anomalies: float, seed: int) -> Images:
    """The digit's images of the training split, in their order, with a share of others anywhere among them."""
    normal = np.flatnonzero(split.fit_labels == digit)
    others = np.flatnonzero(split.fit_labels != digit)
    rng = np.random.default_rng(seed)
    count = round(len(normal) * anomalies / (1 - anomalies))
    strange = rng.choice(others, count, replace=False) if count else others[:0]
    return split.fit[np.insert(normal, rng.integers(0, len(normal) + 1, len(strange)), strange)]


def figures(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> dict[str, float]:
    """auroc, average_precision and fpr_at_95_recall of scores (m,), with labels (m,), True = anomaly."""
    false_positives, recalls, _ = metrics.roc_curve(anomalous, scores, drop_intermediate=False)
    return {
        "auroc": float(metrics.roc_auc_score(anomalous, scores)),
        "average_precision": float(metrics.average_precision_score(anomalous, scores)),
        "fpr_at_95_recall": float(false_positives[np.argmax(recalls >= RECALL)]),
    }
