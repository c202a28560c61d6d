"""Surfaces with defects of known kind, size and contrast: a benchmark for faults that few pixels show.

Rules: everything follows from the seed; a defect is added to a surface like any other, so that nothing but the defect
tells an anomaly from a normal image; its mask says which pixels it changed. Values are in [0, 1] until the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Kind = Literal["scratch", "stain", "missing"]

CONTRAST = 0.3
SCRATCH_WIDTH = 2
# Of the texture about its mean, and of the light from image to image.
ROUGHNESS = 0.06
LIGHT = 0.04


@dataclass(frozen=True)
class Defect:
    """What is wrong with a surface.

    Attributes:
        kind: `scratch`: a straight line, SCRATCH_WIDTH pixels wide, `size` long, any direction. `stain`: a soft spot
            that falls to half at a diameter of `size`. `missing`: a square of `size` without texture.
        size: in pixels.
        contrast: what it adds to or takes from the surface, of a range of 1.
    """

    kind: Kind
    size: int
    contrast: float = CONTRAST

    def __str__(self) -> str:
        width = f"{SCRATCH_WIDTH}x" if self.kind == "scratch" else ""
        return f"{self.kind} {width}{self.size}"


DEFECTS = (
    *(Defect("scratch", size) for size in (10, 20, 40)),
    *(Defect("stain", size, CONTRAST / 2) for size in (6, 12, 24)),
    *(Defect("missing", size) for size in (6, 12, 24)),
)


def brushed(side: int, rng: np.random.Generator) -> Image:
    """Brushed metal: noise drawn out along the rows."""
    return _standardised(_blurred(_noise(side, rng), side / 16, 0.8))


def cast(side: int, rng: np.random.Generator) -> Image:
    """Cast iron: noise of all scales, each twice as coarse and as strong as the one before."""
    scales = [0.8 * 2.0**octave for octave in range(5)]
    octaves = [scale * _blurred(_noise(side, rng), scale) for scale in scales]
    return _standardised(np.sum(octaves, axis=0))


def woven(side: int, rng: np.random.Generator) -> Image:
    """Cloth: threads across threads, their distance a little different from image to image, with noise."""
    axis = np.arange(side, dtype=np.float32)
    threads = [
        np.sin(2 * np.pi * axis / rng.uniform(7.5, 8.5) + rng.uniform(0, 2 * np.pi)).astype(np.float32)
        for _ in range(2)
    ]
    weave = threads[0][None, :] * (threads[1][:, None] > 0) + threads[1][:, None] * (threads[0][None, :] > 0)
    return _standardised(weave + 0.5 * _blurred(_noise(side, rng), 0.8))


TEXTURES: Mapping[str, Callable[[int, np.random.Generator], Image]] = MappingProxyType(
    {"brushed": brushed, "cast": cast, "woven": woven}
)


def surfaces(texture: str, count: int, *, side: int = 256, seed: int) -> NDArray[np.uint8]:
    """Normal images.

    Args:
        texture: of TEXTURES.
        count: how many.
        side: height and width in pixels.
        seed: of all of them.

    Returns:
        uint8 (count, side, side, 1).
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, side, side, 1), np.uint8)
    for image in images:
        image[..., 0] = _to_uint8(_surface(texture, side, rng))
    return images


def defective(
    texture: str, defect: Defect, count: int, *, side: int = 256, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images with one defect each, and its mask.

    Returns:
        uint8 (count, side, side, 1), bool (count, side, side): True where the defect changed the surface.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, side, side, 1), np.uint8)
    masks = np.empty((count, side, side), np.bool_)
    for image, mask in zip(images, masks, strict=True):
        surface = _surface(texture, side, rng)
        strength = _strength(defect, side, rng)
        if defect.kind == "missing":
            found = surface + strength * (float(surface.mean()) - defect.contrast - surface)
        else:
            found = surface + strength * defect.contrast * rng.choice([-1.0, 1.0])
        image[..., 0] = _to_uint8(found)
        mask[:] = strength >= 0.5
    return images, masks


def _surface(texture: str, side: int, rng: np.random.Generator) -> Image:
    """One surface in uneven light."""
    slope = np.linspace(-1, 1, side, dtype=np.float32)
    across, down, level = rng.normal(0, LIGHT, 3)
    light = 0.5 + level + across * slope[None, :] + down * slope[:, None]
    return np.asarray(light + ROUGHNESS * TEXTURES[texture](side, rng), np.float32)


def _strength(defect: Defect, side: int, rng: np.random.Generator) -> Image:
    """How much of the defect each pixel has, 0 to 1; the defect is wholly inside."""
    margin = defect.size / 2 + SCRATCH_WIDTH
    x, y = rng.uniform(margin, side - 1 - margin, 2)
    if defect.kind == "stain":
        axis = np.arange(side, dtype=np.float32)
        squared = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2
        return np.asarray(np.exp2(-4 * squared / defect.size**2), np.float32)
    strength = np.zeros((side, side), np.float32)
    if defect.kind == "missing":
        left, top = (round(centre - defect.size / 2) for centre in (x, y))
        strength[top : top + defect.size, left : left + defect.size] = 1
        return strength
    # Twice the size and halved, so that a line of any direction has soft edges and its width.
    angle = rng.uniform(0, np.pi)
    reach = (defect.size - SCRATCH_WIDTH) / 2
    large = np.zeros((4 * side, 4 * side), np.uint8)
    ends = [
        (round(4 * (x + turn * reach * np.cos(angle))), round(4 * (y + turn * reach * np.sin(angle))))
        for turn in (-1, 1)
    ]
    cv2.line(large, ends[0], ends[1], 255, 4 * SCRATCH_WIDTH)
    return np.asarray(cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA) / 255, np.float32)


def _noise(side: int, rng: np.random.Generator) -> Image:
    return rng.standard_normal((side, side), dtype=np.float32)


def _blurred(image: Image, across: float, down: float | None = None) -> Image:
    """With a Gaussian of these standard deviations in pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigmaX=across, sigmaY=down or across), np.float32)


def _standardised(texture: NDArray[np.floating]) -> Image:
    """With mean 0 and standard deviation 1."""
    return np.asarray((texture - texture.mean()) / texture.std(), np.float32)


def _to_uint8(values: Image) -> NDArray[np.uint8]:
    return np.clip(np.round(values * 255), 0, 255).astype(np.uint8)
