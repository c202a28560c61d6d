import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.core.image_statistics import MAX_VALUES, MIN_ROWS, brightness_and_sharpness


def as_defined(image: NDArray[np.uint8], row_step: int) -> tuple[float, float]:
    rows = image[::row_step].astype(float) / 255
    sharpness = np.abs(np.diff(rows, axis=1)).mean() if image.shape[1] > 1 else 0.0
    return float(rows.mean()), float(sharpness)


@given(
    st.integers(0, 4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.integers(0, 1 << 30),
)
def test_small_images_are_read_whole(count: int, height: int, width: int, channels: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)
    brightness, sharpness = brightness_and_sharpness(images)
    expected = [as_defined(image, 1) for image in images]
    assert brightness.tolist() == pytest.approx([each for each, _ in expected], abs=1e-6)
    assert sharpness.tolist() == pytest.approx([each for _, each in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "row_step"),
    [((45, 45, 1), 1), ((224, 224, 3), 28), ((64, 64, 1), 2), ((30, 4096, 3), 4), ((7, 5000, 1), 1)],
)
def test_of_large_images_every_r_th_row_is_read(shape: tuple[int, int, int], row_step: int) -> None:
    height, width, channels = shape
    assert row_step == -(-height // max(MIN_ROWS, MAX_VALUES // (width * channels)))
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    brightness, sharpness = brightness_and_sharpness(image[None])
    assert (brightness[0], sharpness[0]) == pytest.approx(as_defined(image, row_step), rel=1e-6)


def test_white_black_and_stripes() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    stripes = white.copy()
    stripes[:, ::2] = 0
    images = np.stack([white, np.zeros_like(white), stripes])
    brightness, sharpness = brightness_and_sharpness(images)
    assert brightness.tolist() == [1, 0, 0.5]
    assert sharpness.tolist() == [0, 0, 1]


def test_defocus_makes_an_image_less_sharp_and_no_darker() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1)).astype(float)
    blurred = (image + np.roll(image, 1, axis=2) + np.roll(image, 2, axis=2)) / 3
    (bright, dull), (sharp, soft) = brightness_and_sharpness(np.concatenate([image, blurred]).astype(np.uint8))
    assert soft < sharp / 2
    assert dull == pytest.approx(bright, abs=0.01)


def test_slices_of_larger_arrays_are_read_as_they_are() -> None:
    """The worker hands over the first images of its buffer; training, what an index selects."""
    buffer = np.random.default_rng(2).integers(0, 256, (9, 10, 11, 3), np.uint8)
    for part in (buffer[:4], buffer[::2], buffer[:, 1:8, 2:9], buffer.transpose(0, 2, 1, 3), buffer[..., ::-1]):
        ours, own = brightness_and_sharpness(part), brightness_and_sharpness(part.copy())
        assert [each.tolist() for each in ours] == [each.tolist() for each in own]
