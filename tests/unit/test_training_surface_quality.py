import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.contenders import Fitted, Images
from training.results import Book, SurfaceResult, summarise_surfaces
from training.surface_quality import Sizes, image_figures, run
from training.surfaces import DEFECTS, TEXTURES

SIZES = Sizes(side=64, fit=3, normal=60, defective=12)


class Brightest:
    """Judges by how far from the image's mean a place of 15 pixels is, and counts its fits."""

    name = "brightest"
    epochs = None
    anomalies = 0.0

    def __init__(self) -> None:
        self.fits = 0

    def fit(self, images: Images, seed: int) -> Fitted:
        assert images.shape == (3, 64, 64, 1)
        self.fits += 1

        def error_map(images: Images) -> NDArray[np.floating]:
            pixels = [cv2.blur(image.astype(float), (15, 15)) for image in images[..., 0]]
            return np.asarray(np.abs(np.stack(pixels) - np.mean(pixels, axis=(1, 2), keepdims=True)))

        return Fitted(lambda images: error_map(images).max(axis=(1, 2)), error_map=error_map)


def test_each_defect_on_each_texture_is_scored_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    contender = Brightest()
    told: list[tuple[str, str, int]] = []
    run([contender], [0], Book(path, None), lambda *fit: told.append(fit), SIZES)
    assert contender.fits == len(TEXTURES)
    assert told == [("brightest", texture, 0) for texture in TEXTURES]
    again = Book(path, None)
    run([contender], [0], again, lambda *fit: told.append(fit), SIZES)
    assert contender.fits == len(told) == len(TEXTURES), "what is there is neither run nor told of again"
    assert [(found.texture, found.defect) for found in again.surface] == [
        (texture, str(defect)) for texture in TEXTURES for defect in DEFECTS
    ]
    # Such a large hole is as far from the mean as nothing else in an image, and its pixels are.
    large = [found for found in again.surface if found.defect == "missing 24"]
    assert all(found.auroc > 0.9 for found in large)
    assert all(found.localisation_auroc is not None and found.localisation_auroc > 0.9 for found in large)
    summary = json.loads(path.read_bytes())["surface"]["summary"]["brightest"]
    assert list(summary) == [str(defect) for defect in DEFECTS]
    assert summary["missing 24"]["textures"] == sorted(TEXTURES)


def test_recall_is_at_one_false_positive_in_a_thousand() -> None:
    usual = np.arange(2000.0)
    auroc, recall = image_figures(usual, np.array([1997.5, 1996.5, 10_000.0, -1.0]))
    assert auroc == pytest.approx((1998 + 1997 + 2000 + 0) / 8000)
    assert recall == 0.5


def test_a_summary_is_the_mean_over_textures_and_seeds() -> None:
    def result(texture: str, seed: int, auroc: float, placed: float | None) -> SurfaceResult:
        return SurfaceResult("default", texture, seed, "scratch 2x20", auroc, 1 - auroc, placed, 1.0, 50.0, None)

    found = summarise_surfaces(
        [result("cast", 0, 0.5, 0.9), result("woven", 0, 0.9, None), result("cast", 3, 1.0, 0.7)]
    )
    summary = found["default"]["scratch 2x20"]
    assert summary.auroc == pytest.approx(0.8)
    assert summary.recall == pytest.approx(0.2)
    assert summary.localisation_auroc == pytest.approx(0.8)
    assert summary.std == pytest.approx(np.std([0.7, 1.0], ddof=1))
    assert (summary.mflop_per_image, summary.images_per_second) == (None, 50.0)
    assert (summary.textures, summary.seeds) == (["cast", "woven"], [0, 3])
