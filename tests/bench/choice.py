"""What the default preset was chosen by: normal images, and anomalies made from them.

    python -m tests.bench.choice [--data mnist.npz] [--digits 2,8] [--epochs 20] [--corruptions unchanged,affine]

For each digit nine tenths of its training images are fitted on; the others, and what is made from them, are scored
in every way. The test split is never looked at. Writes build/choice.json, with the areas under the ROC curve by
corruption, score and kind of made anomaly.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import special
from sklearn.metrics import roc_auc_score

from training.arrays import labelled_splits
from training.corruptions import CORRUPTIONS as OFFERED
from training.corruptions import Corruption, Pixels, affine, unchanged
from worker.adapters.keras_scorer import prepare_device, select_backend

if TYPE_CHECKING:
    from training.scores import Mixture

OUTPUT = Path("build/choice.json")
HELD_OUT = 0.1

Maker = Callable[[Pixels, np.random.Generator], Pixels]
Area = dict[str, float]
Scoring = Callable[[NDArray[np.floating[Any]]], NDArray[np.floating[Any]]]


def joined(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Two images, moved against each other, on either side of a line."""
    found, others = images.copy(), images[rng.permutation(len(images))]
    height, width = images.shape[1:3]
    y, x = np.mgrid[:height, :width]
    for image, other in zip(found, others, strict=True):
        angle, away = rng.uniform(0, np.pi), rng.uniform(-0.1, 0.1) * width
        beyond = np.cos(angle) * (x - width / 2) + np.sin(angle) * (y - height / 2) > away
        image[beyond] = np.roll(other, rng.integers(-height // 7, height // 7 + 1, 2), (0, 1))[beyond]
    return found


def struck(images: Pixels, rng: np.random.Generator) -> Pixels:
    """A line across, as bright as the brightest."""
    height, width = images.shape[1:3]
    found = images.copy()
    for image in found:
        large = np.zeros((4 * height, 4 * width), np.uint8)
        start = rng.uniform(0.2, 0.8, 2) * (4 * width, 4 * height)
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.45) * 4 * width
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(large, tuple(map(int, start)), tuple(map(int, end)), 255, max(1, width // 3))
        line = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        np.maximum(image, line[..., None] * image.max(), out=image)
    return found


def gapped(images: Pixels, rng: np.random.Generator) -> Pixels:
    """A square about a bright pixel is gone."""
    found = images.copy()
    for image in found:
        rows, columns = np.nonzero(image[..., 0] > image.max() / 2)
        chosen = rng.integers(len(rows))
        half = rng.integers(images.shape[1] // 9, images.shape[1] // 5 + 1)
        top, left = max(0, rows[chosen] - half), max(0, columns[chosen] - half)
        image[top : rows[chosen] + half, left : columns[chosen] + half] = 0
    return found


def bent(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Moved by a smooth field of displacements (Simard, Steinkraus & Platt, ICDAR 2003)."""
    height, width = images.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    found = np.empty_like(images)
    for image, out in zip(images, found, strict=True):
        noise = rng.uniform(-1, 1, (2, height, width)).astype(np.float32)
        right, down = (cv2.GaussianBlur(field, (0, 0), width / 7) * 2.9 * width for field in noise)
        out[...] = cv2.remap(image, x + right, y + down, cv2.INTER_LINEAR).reshape(image.shape)
    return found


MADE: Mapping[str, Maker] = MappingProxyType(
    {
        "joined": joined,
        "struck": struck,
        "gapped": gapped,
        "bent": bent,
        "mirrored": lambda images, _rng: np.ascontiguousarray(images[:, :, ::-1]),
        "upside down": lambda images, _rng: np.ascontiguousarray(images[:, ::-1]),
        "a quarter turned": lambda images, _rng: np.ascontiguousarray(np.rot90(images, axes=(1, 2))),
    }
)


def half_affine(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Every other image stays as it is, at random."""
    found, kept = affine(pixels, rng), rng.random(len(pixels)) < 0.5
    found[kept] = pixels[kept]
    return found


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {"unchanged": unchanged, "affine": affine, "half affine": half_affine}
    | {name: corrupt for name, corrupt in OFFERED.items() if corrupt not in {unchanged, affine}}
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, show the means over the digits, write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--digits")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--corruptions", default=",".join(CORRUPTIONS))
    parser.add_argument("--preset", default="default", help="whose network")
    asked = parser.parse_args(arguments)
    images, labels, _, _ = labelled_splits(asked.data)
    digits = asked.digits.split(",") if asked.digits else np.unique(labels).tolist()
    names = asked.corruptions.split(",")
    select_backend("tensorflow")
    prepare_device()
    console = Console()
    results = [
        {"digit": digit, "corruption": name, "score": score, "auroc": areas}
        for digit, name in track([(digit, name) for digit in digits for name in names], console=console)
        for score, areas in judged(images[labels == digit], name, asked.preset, asked.epochs).items()
    ]
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(vars(asked) | {"results": results}, indent=2) + "\n")
    show(console, results)


def judged(images: NDArray[np.uint8], corruption: str, preset: str, epochs: int) -> dict[str, Area]:
    """Fit with a corruption to normal images, and tell made anomalies from held-out ones in every way."""
    from training.benchmark import fit_preset
    from training.model import to_pixels
    from training.presets import PRESETS
    from training.scores import features_of, fit_mixture

    rng = np.random.default_rng(0)
    images = images[rng.permutation(len(images))]
    count = int(HELD_OUT * len(images))
    held, fitted = images[:count], images[count:]
    autoencoder = fit_preset(replace(PRESETS[preset], corrupt=CORRUPTIONS[corruption]), fitted, 0, epochs)
    latent = autoencoder.get_layer("latent").output.shape[1]
    pixels = to_pixels(held)
    made = {name: (make(pixels, rng) * 255).round().astype(np.uint8) for name, make in MADE.items()}
    known, normal = (features_of(autoencoder, given) for given in (fitted, held))
    strange = {name: features_of(autoencoder, given) for name, given in made.items()}

    def areas(score: Scoring) -> Area:
        usual = score(normal)
        truth = np.repeat([False, True], count)
        return {name: float(roc_auc_score(truth, np.append(usual, score(given)))) for name, given in strange.items()}

    def mixture(columns: slice, components: int) -> Scoring:
        found = fit_mixture(known[:, columns], seed=0, components=components)
        return lambda features: -log_density(found, features[:, columns])

    return {
        "error": areas(lambda features: features[:, latent]),
        "latent, 1 Gaussian": areas(mixture(slice(latent), 1)),
        "latent, 16 Gaussians": areas(mixture(slice(latent), 16)),
        "latent and error, 1 Gaussian": areas(mixture(slice(latent + 1), 1)),
        "latent and error, 16 Gaussians": areas(mixture(slice(latent + 1), 16)),
        "latent and errors, 1 Gaussian": areas(mixture(slice(None), 1)),
        "latent and errors, 8 Gaussians": areas(mixture(slice(None), 8)),
        "latent and errors, 16 Gaussians": areas(mixture(slice(None), 16)),
    }


def log_density(mixture: "Mixture", features: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Of features (n, F), up to a constant, as (n,): the formula of training.scores.mixture_density()."""
    squares = [
        np.square(features @ kernel + bias).sum(axis=1)
        for kernel, bias in zip(mixture.kernels, mixture.biases, strict=True)
    ]
    return np.asarray(special.logsumexp(mixture.log_weights - 0.5 * np.stack(squares, axis=1), axis=1))


def show(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """Means over digits and kinds, and over the digits of the kind that is told worst."""
    table = Table("fitted to undo", "judged by", "AUROC %", "worst kind", title="made anomalies")
    for corruption, score in dict.fromkeys((result["corruption"], result["score"]) for result in results):
        rows = [
            list(result["auroc"].values())
            for result in results
            if (result["corruption"], result["score"]) == (corruption, score)
        ]
        kinds = 100 * np.mean(rows, axis=0)
        worst = int(np.argmin(kinds))
        table.add_row(corruption, score, f"{kinds.mean():.2f}", f"{list(MADE)[worst]} {kinds[worst]:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
