import numpy as np
import pytest
from numpy.typing import NDArray

from training import corruptions
from training.corruptions import affine, unchanged


def blobs(count: int, channels: int = 1) -> NDArray[np.float32]:
    """A bright spot right of the middle, and another below it."""
    images = np.zeros((count, 28, 28, channels), np.float32)
    images[:, 12:16, 18:22] = 1
    images[:, 18:22, 12:16] = 0.5
    return images


def test_nothing_is_done_where_nothing_is_asked() -> None:
    images = blobs(3)
    assert unchanged(images, np.random.default_rng(0)) is images


def test_what_is_given_stays_and_the_generator_decides() -> None:
    images = blobs(5, channels=3)
    found = affine(images, np.random.default_rng(1))
    np.testing.assert_array_equal(images, blobs(5, channels=3))
    assert found.shape == images.shape
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, affine(images, np.random.default_rng(1)))
    assert np.any(found != affine(images, np.random.default_rng(2)))
    assert np.any(found[0] != found[1])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_shifts_go_as_far_as_they_are_said_to() -> None:
    """By how far the middle of all brightness moves; turning and shearing leave the image's middle where it is."""
    images = np.zeros((400, 29, 29, 1), np.float32)
    images[:, 13:16, 13:16] = 1
    found = affine(images, np.random.default_rng(3))[..., 0]
    axis = np.arange(29) - 14
    moved = np.stack([(found * axis[None, None, :]).sum((1, 2)), (found * axis[None, :, None]).sum((1, 2))])
    moved /= found.sum((1, 2))
    largest = 2 / 28 * 29
    for direction in moved:
        assert 0.95 * largest < np.abs(direction).max() <= 1.05 * largest
        assert np.abs(direction.mean()) < 0.2


def test_turns_go_as_far_as_they_are_said_to() -> None:
    """By the direction of a bar's longest axis; shearing and scaling, undone here, would turn it too."""
    images = np.zeros((400, 29, 29, 1), np.float32)
    images[:, 14, 4:25] = 1
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SHEAR", "SCALE", "SHIFT"):
            patch.setattr(corruptions, name, 0.0)
        found = affine(images, np.random.default_rng(4))[..., 0]
    y, x = np.mgrid[:29, :29] - 14.0
    angles = np.rad2deg(0.5 * np.arctan2(2 * (found * x * y).sum((1, 2)), (found * (x * x - y * y)).sum((1, 2))))
    assert 33 < np.abs(angles).max() < 36
    assert np.abs(np.mean(angles)) < 3
