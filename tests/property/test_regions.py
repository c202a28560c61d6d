"""Error maps and regions: whatever the map, the rectangle lies in the image, holds the peak, and can be read back."""

import cv2
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from worker.core.regions import error_maps, map_png, region_of

Map = NDArray[np.float32]
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=14)
MAPS = arrays.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32))
IMAGES = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, (2, *shape, 3)))


def connected_with_the_peak(error_map: Map) -> set[tuple[int, int]]:
    """Pixels of at least half the peak's error that a walk from the peak over such pixels reaches, by definition."""
    peak = tuple(int(place) for place in np.unravel_index(np.argmax(error_map), error_map.shape))
    reached, open_ = {peak}, [peak]
    while open_:
        row, column = open_.pop()
        for beside in ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
            inside = 0 <= beside[0] < error_map.shape[0] and 0 <= beside[1] < error_map.shape[1]
            if inside and beside not in reached and error_map[beside] >= error_map[peak] / 2:
                reached.add(beside)
                open_.append(beside)
    return reached  # type: ignore[return-value]


@given(MAPS)
@example(np.zeros((3, 4), np.float32))
@example(np.full((1, 1), 1e-45, np.float32))
def test_the_region_is_the_box_around_what_is_connected_with_the_peak(error_map: Map) -> None:
    region = region_of(error_map)
    height, width = error_map.shape
    assert 0 <= region.x < region.x + region.width <= width
    assert 0 <= region.y < region.y + region.height <= height
    within = error_map[region.y : region.y + region.height, region.x : region.x + region.width]
    assert region.peak == within.max() == error_map.max()
    rows, columns = zip(*connected_with_the_peak(error_map), strict=True)
    assert (region.x, region.y) == (min(columns), min(rows))
    assert (region.width, region.height) == (max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)


@given(MAPS)
@example(np.full((2, 2), 1e-45, np.float32))
def test_a_map_can_be_read_back_to_half_a_level_of_its_peak(error_map: Map) -> None:
    levels = cv2.imdecode(np.frombuffer(map_png(error_map), np.uint8), cv2.IMREAD_UNCHANGED)
    assert levels is not None
    assert levels.dtype == np.uint8
    assert levels.shape == error_map.shape
    peak = float(error_map.max())
    np.testing.assert_allclose(levels / 255 * peak, error_map, rtol=0, atol=peak / 500)
    assert peak == 0 or levels.max() == 255


@given(IMAGES)
def test_an_error_map_is_what_its_definition_says(images: NDArray[np.uint8]) -> None:
    """Written out: mirrored at the border, without repeating the border itself."""
    images, other = images[:1], images[1:]
    reconstructions = np.asarray(other / np.float32(255), np.float32)
    [found] = error_maps(images, reconstructions)
    squared = np.mean((images[0] / 255 - reconstructions[0]) ** 2, axis=2)
    height, width = squared.shape
    expected = np.empty_like(squared)
    for row in range(height):
        for column in range(width):
            rows = [mirrored(row + step, height) for step in range(-2, 3)]
            columns = [mirrored(column + step, width) for step in range(-2, 3)]
            expected[row, column] = squared[np.ix_(rows, columns)].mean()
    assert found.dtype == np.float32
    assert found.shape == (height, width)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def mirrored(place: int, size: int) -> int:
    if size == 1:
        return 0
    while not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place
