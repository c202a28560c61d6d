"""Where an image is strange: its error map, and the rectangle around the map's peak.

Rules: everything is in pixels of the image that the model saw; a map is published as it was searched, so that a
reader of the map finds the rectangle of the verdict in it.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.core.images import encode_png
from worker.core.records import PREFIX, OutRecord, SourceRecord, source_headers
from worker.core.verdicts import Region

SIDE = 5
"""Of the square, in pixels, that an error map is smoothed over: one pixel alone is noise."""
CONTENT_TYPE = "content-type"


class ErrorMap(NamedTuple):
    """An error map to publish.

    Attributes:
        topic: where to.
        png: grey, 8 bits: 0 is no error, 255 is the peak.
        peak: the largest error.
    """

    topic: str
    png: bytes
    peak: float


class Located(NamedTuple):
    """Where an image is strange; `map` where maps are wanted."""

    region: Region
    map: ErrorMap | None


def error_maps(images: NDArray[np.uint8], reconstructions: NDArray[np.float32]) -> NDArray[np.float32]:
    """The error by pixel: the mean over the channels of the squared differences, averaged over SIDE x SIDE pixels.

    The maximum of such a local mean is what tells a small defect (Bergmann et al., "The MVTec Anomaly Detection
    Dataset", IJCV 129, 2021). Beyond its border the unsmoothed map goes on as its mirror image.

    Args:
        images: uint8 (N, H, W, C).
        reconstructions: float32 (N, H, W, C) in [0, 1].

    Returns:
        float32 (N, H, W), in [0, 1].
    """
    squared = np.square(images / np.float32(255) - reconstructions).mean(axis=3)
    smoothed = [cv2.blur(by_pixel, (SIDE, SIDE), borderType=cv2.BORDER_REFLECT_101) for by_pixel in squared]
    return np.stack(smoothed).reshape(squared.shape)


def region_of(error_map: NDArray[np.float32]) -> Region:
    """The bounding box of the pixels with at least half the peak's error that touch the peak or each other up to it.

    Diagonal neighbours touch.

    Args:
        error_map: (H, W), finite, not below 0.
    """
    row, column = np.unravel_index(np.argmax(error_map), error_map.shape)
    peak = error_map[row, column]
    high = (error_map >= peak / 2).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(high, connectivity=8)
    x, y, width, height, _ = boxes[labels[row, column]].tolist()
    return Region(x, y, width, height, float(peak))


def map_png(error_map: NDArray[np.float32]) -> bytes:
    """An error map, (H, W), finite, not below 0, as grey PNG of 8 bits: 255 is its peak, 0 is no error."""
    peak = error_map.max()
    share = error_map / peak if peak > 0 else error_map
    return encode_png(np.rint(share * 255).astype(np.uint8)[..., np.newaxis])


def map_record(record: SourceRecord, verdict: OutRecord, found: ErrorMap, model_version: str) -> OutRecord:
    """The record of an error map: partition, key and headers of its verdict, and headers that say what it is.

    `reconstream-map-peak` is the error that 255 stands for: error = value / 255 * peak. The position of the image's
    record stands in the same headers as in dead letters.

    Args:
        record: the image's.
        verdict: its verdict, as published.
        found: its map.
        model_version: of the bundle that judged.
    """
    added = [
        *source_headers(record),
        ("model-version", model_version.encode()),
        ("map-peak", repr(found.peak).encode()),
    ]
    headers = [(name, content) for name, content in verdict.headers if name != CONTENT_TYPE]
    headers += [(CONTENT_TYPE, b"image/png"), *((PREFIX + name, content) for name, content in added)]
    return OutRecord(found.topic, verdict.partition, verdict.key, found.png, headers)


def without_value(map_: OutRecord) -> OutRecord:
    """What stands for a map that its topic does not take: the same record, empty, with headers that say so."""
    headers = [
        *map_.headers,
        (PREFIX + "value", b"omitted"),
        (PREFIX + "value-bytes", b"%d" % len(map_.value or b"")),
    ]
    # Empty and not null: Kafka's clients refuse a record with neither key nor value.
    return map_._replace(value=b"", headers=headers)
