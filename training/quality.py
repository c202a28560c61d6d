"""How well a way of fitting tells anomalies from normal images: one label is normal, every other one an anomaly.

The protocol (Ruff et al., "Deep One-Class Classification", ICML 2018, section 4.2): for each label fit on that
label's images of the training split alone, score the whole test split, take the area under the ROC curve; the same
for each seed. Nothing is chosen by looking at test images. Results are kept as they come, so that an interrupted run
goes on where it was.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from worker.core.errors import ConfigurationError

Images = NDArray[np.uint8]
Score = Callable[[Images], NDArray[np.floating]]

PCA_COMPONENTS = 32
RECALL = 0.95


class Result(msgspec.Struct, frozen=True):
    """One fit, scored on the whole test split.

    Attributes:
        name: of the preset or baseline.
        digit: the normal label.
        seed: of everything random.
        auroc, average_precision: anomalies are the positive class.
        fpr_at_95_recall: the share of normal images called anomalous by the threshold that finds 95 % of anomalies.
        seconds: of the fit.
        images_per_second: scored in batches as the worker does, on this machine.
        mflop_per_image: of scoring one, multiplications and additions; None where it is no network.
    """

    name: str
    digit: str
    seed: int
    auroc: float
    average_precision: float
    fpr_at_95_recall: float
    seconds: float
    images_per_second: float
    mflop_per_image: float | None


class Summary(msgspec.Struct, frozen=True):
    """Results of one name.

    Attributes:
        mean_auroc: over digits and seeds.
        std: standard deviation over seeds of the mean over digits; 0 where there is one seed.
        mflop_per_image, images_per_second: see Result; the latter's median.
        digits, seeds: what was run.
    """

    mean_auroc: float
    std: float
    mflop_per_image: float | None
    images_per_second: float
    digits: list[str]
    seeds: list[int]


@dataclass(frozen=True)
class Fitted:
    """What a contender makes of normal images: higher scores are more anomalous."""

    score: Score
    mflop_per_image: float | None = None


class Contender(Protocol):
    """A way of fitting."""

    @property
    def name(self) -> str:
        """Of the preset or baseline."""
        ...

    def fit(self, images: Images, seed: int) -> Fitted:
        """Fit to normal images, uint8 (n, H, W, C)."""
        ...


class PcaReconstruction:
    """The squared distance to the plane of the first PCA_COMPONENTS principal components, of pixels in [0, 1].

    It is the Q statistic of Jackson & Mudholkar, "Control Procedures for Residuals Associated With Principal
    Component Analysis", Technometrics 21, 1979.
    """

    name = "pca"

    def fit(self, images: Images, seed: int) -> Fitted:
        """Fit to normal images, uint8 (n, H, W, C)."""
        pca = PCA(min(PCA_COMPONENTS, len(images)), random_state=seed).fit(_flat(images))

        def score(images: Images) -> NDArray[np.floating]:
            pixels = _flat(images)
            return np.asarray(np.mean(np.square(pixels - pca.inverse_transform(pca.transform(pixels))), axis=1))

        return Fitted(score)


class NearestNeighbour:
    """The distance to the nearest normal image, pixel by pixel."""

    name = "1-nn"

    def fit(self, images: Images, seed: int) -> Fitted:
        """Keep the normal images, uint8 (n, H, W, C); nothing is random."""
        del seed
        neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_flat(images))
        return Fitted(lambda images: np.asarray(neighbours.kneighbors(_flat(images))[0][:, 0]))


BASELINES: Sequence[Contender] = (PcaReconstruction(), NearestNeighbour())


@dataclass(frozen=True)
class Split:
    """A labelled source: images uint8 (n, H, W, C), labels as text (n,)."""

    fit: Images
    fit_labels: NDArray[np.str_]
    test: Images
    test_labels: NDArray[np.str_]


class Book:
    """The results so far of a source, in a file that is whole at any time.

    Args:
        path: the file; made where it is missing.
        data: the source, as the user named it.

    Raises:
        ConfigurationError: the file is there and is none of ours, or of another source.
    """

    def __init__(self, path: Path, data: str) -> None:
        self._path = path
        self._data = data
        self.results: list[Result] = []
        if path.exists():
            try:
                found = msgspec.json.decode(path.read_bytes(), type=_File)
            except (OSError, msgspec.MsgspecError) as error:
                raise ConfigurationError(
                    f"'{path}' holds no results of this program: {error}. Move it away, or name another file."
                ) from error
            if found.data != data:
                raise ConfigurationError(
                    f"'{path}' holds results of '{found.data}', and '{data}' was given. Move it away, or name "
                    "another file."
                )
            self.results = found.results

    def holds(self, name: str, digit: str, seed: int) -> bool:
        """Whether this was run."""
        return any((result.name, result.digit, result.seed) == (name, digit, seed) for result in self.results)

    def add(self, result: Result) -> None:
        """Keep one more."""
        self.results.append(result)
        content = msgspec.json.encode(_File(self._data, self.results, summarise(self.results)))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        beside.write_bytes(msgspec.json.format(content, indent=2) + b"\n")
        beside.replace(self._path)


class _File(msgspec.Struct):
    data: str
    results: list[Result]
    summary: dict[str, Summary]


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
                if not book.holds(contender.name, digit, seed):
                    book.add(measure(contender, split, digit, seed))
                    told(book.results[-1])


def measure(contender: Contender, split: Split, digit: str, seed: int) -> Result:
    """One fit, and its figures on the whole test split."""
    began = time.monotonic()
    fitted = contender.fit(split.fit[split.fit_labels == digit], seed)
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
    )


def figures(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> dict[str, float]:
    """auroc, average_precision and fpr_at_95_recall of scores (m,), with labels (m,), True = anomaly."""
    false_positives, recalls, _ = metrics.roc_curve(anomalous, scores, drop_intermediate=False)
    return {
        "auroc": float(metrics.roc_auc_score(anomalous, scores)),
        "average_precision": float(metrics.average_precision_score(anomalous, scores)),
        "fpr_at_95_recall": float(false_positives[np.argmax(recalls >= RECALL)]),
    }


def summarise(results: Iterable[Result]) -> dict[str, Summary]:
    """A summary for each name, in the order in which they appear."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    return {name: _summary(found) for name, found in by_name.items()}


def _summary(results: Sequence[Result]) -> Summary:
    by_seed: Mapping[int, list[float]] = {
        seed: [result.auroc for result in results if result.seed == seed]
        for seed in sorted({result.seed for result in results})
    }
    means = [float(np.mean(found)) for found in by_seed.values()]
    return Summary(
        mean_auroc=float(np.mean([result.auroc for result in results])),
        std=float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
        mflop_per_image=results[0].mflop_per_image,
        images_per_second=float(np.median([result.images_per_second for result in results])),
        digits=sorted({result.digit for result in results}),
        seeds=list(by_seed),
    )


def _flat(images: Images) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
