import numpy as np
import pytest
from numpy.typing import NDArray

from training import corruptions
from training.corruptions import CORRUPTIONS, affine, erased, quarter_turns, unchanged


def blobs(count: int, channels: int = 1) -> NDArray[np.float32]:
    """A bright spot right of the middle, and another below it."""
    images = np.zeros((count, 28, 28, channels), np.float32)
    images[:, 12:16, 18:22] = 1
    images[:, 18:22, 12:16] = 0.5
    return images


def test_nothing_is_done_where_nothing_is_asked() -> None:
    images = blobs(3)
    assert unchanged(images, np.random.default_rng(0)) is images


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"none"}))
def test_what_is_given_stays_and_the_generator_decides(name: str) -> None:
    corrupt = CORRUPTIONS[name]
    images = blobs(5, channels=3)
    found = corrupt(images, np.random.default_rng(1))
    np.testing.assert_array_equal(images, blobs(5, channels=3))
    assert found.shape == images.shape
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    np.testing.assert_array_equal(found, corrupt(images, np.random.default_rng(1)))
    assert np.any(found != corrupt(images, np.random.default_rng(2)))
    assert any(np.any(found[0] != other) for other in found[1:])


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


def test_quarter_turns_are_all_four_and_of_what_is_not_square_two() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1) / 12
    two = quarter_turns(np.stack([image] * 40), np.random.default_rng(5))
    assert {turned.tobytes() for turned in two} == {image.tobytes(), image[::-1, ::-1].tobytes()}
    square = image[:, :3]
    four = quarter_turns(np.stack([square] * 40), np.random.default_rng(6))
    assert {turned.tobytes() for turned in four} == {np.rot90(square, turns).tobytes() for turns in range(4)}


def test_one_rectangle_of_the_stated_size_is_erased() -> None:
    images = np.full((200, 28, 56, 1), 2.0, np.float32)  # a value that no erased pixel has
    found = erased(images, np.random.default_rng(7))[..., 0]
    talls, wides = set(), set()
    for image in found:
        rows, columns = np.nonzero(image != 2)
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == tall * wide
        assert len(np.unique(image[rows, columns])) == 1
        talls.add(int(tall))
        wides.add(int(wide))
    assert talls == set(range(4, 13))
    assert (min(wides), max(wides)) == (8, 24)
    corners = [np.argwhere(image != 2) for image in found]
    assert {0, 27} <= {int(rows[edge, 0]) for rows in corners for edge in (0, -1)}
