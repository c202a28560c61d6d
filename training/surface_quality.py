"""How well small defects on surfaces are found and placed, by kind and size (training.surfaces has the surfaces).

For each texture and seed: fit on surfaces without a defect, score others with and without one. Nothing is chosen by
looking at defects.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from training.contenders import Contender
from training.results import Book, SurfaceResult
from training.surfaces import DEFECTS, TEXTURES, defective, surfaces

FALSE_POSITIVE_RATE = 0.001
# Images whose every pixel is sorted for one area under the curve.
PLACED = 40


@dataclass(frozen=True)
class Sizes:
    """How many images, of `side` x `side` pixels: to fit, to score without a defect, and with each."""

    side: int = 256
    fit: int = 1500
    normal: int = 2000
    defective: int = 150


def run(
    contenders: Iterable[Contender],
    seeds: Sequence[int],
    book: Book,
    told: Callable[[str, str, int], None] = lambda *_: None,
    sizes: Sizes = Sizes(),
) -> None:
    """Fit and score what the book does not hold yet; tell of each fit, by name, texture and seed."""
    contenders = list(contenders)
    for seed in seeds:
        for texture in TEXTURES:
            for contender in contenders:
                if not book.holds_surface(contender.name, contender.epochs, texture, seed):
                    book.add_surfaces(measure(contender, texture, seed, sizes))
                    told(contender.name, texture, seed)


def measure(contender: Contender, texture: str, seed: int, sizes: Sizes) -> list[SurfaceResult]:
    """One fit, and its figures for every defect."""
    seeds = iter(range(1_000 * seed, 1_000 * (seed + 1)))
    normal = surfaces(texture, sizes.fit, side=sizes.side, seed=next(seeds))
    began = time.monotonic()
    fitted = contender.fit(normal, seed)
    seconds = round(time.monotonic() - began, 2)
    unseen = surfaces(texture, sizes.normal, side=sizes.side, seed=next(seeds))
    began = time.monotonic()
    usual = fitted.score(unseen)
    speed = round(len(unseen) / max(time.monotonic() - began, 1e-9), 1)
    results = []
    for defect in DEFECTS:
        images, masks = defective(texture, defect, sizes.defective, side=sizes.side, seed=next(seeds))
        auroc, recall = image_figures(usual, fitted.score(images))
        placed = (
            None
            if fitted.error_map is None
            else float(metrics.roc_auc_score(masks[:PLACED].ravel(), fitted.error_map(images[:PLACED]).ravel()))
        )
        results.append(
            SurfaceResult(
                contender.name,
                texture,
                seed,
                str(defect),
                auroc,
                recall,
                placed,
                seconds,
                speed,
                fitted.mflop_per_image,
                contender.epochs,
            )
        )
    return results


def image_figures(usual: NDArray[np.floating], strange: NDArray[np.floating]) -> tuple[float, float]:
    """Area under the ROC curve, and recall at FALSE_POSITIVE_RATE, of scores without and with a defect."""
    truth = np.repeat([False, True], [len(usual), len(strange)])
    scores = np.append(usual, strange)
    rates, recalls, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    return float(metrics.roc_auc_score(truth, scores)), float(recalls[rates <= FALSE_POSITIVE_RATE].max())
