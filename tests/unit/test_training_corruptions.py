import numpy as np
from numpy.typing import NDArray

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


def test_distortions_go_from_none_to_the_whole() -> None:
    """By how far the middle of all brightness moves; turning and shearing leave the image's middle where it is."""
    images = np.zeros((400, 29, 29, 1), np.float32)
    images[:, 13:16, 13:16] = 1
    found = affine(images, np.random.default_rng(3))[..., 0]
    axis = np.arange(29) - 14
    moved = np.stack([(found * axis[None, None, :]).sum((1, 2)), (found * axis[None, :, None]).sum((1, 2))])
    moved /= found.sum((1, 2))
    largest = 2 / 28 * 29
    assert 0.7 * largest < np.abs(moved).max() <= 1.05 * largest
    assert np.quantile(np.hypot(*moved), 0.1) < 0.4
    assert np.abs(moved.mean(axis=1)).max() < 0.2
