"""The model that every contender gets, and the plainest way from a message to its error."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from worker.adapters.keras_scorer import KerasScorer, select_backend
from worker.core.bundle import read_bundle


class BatchScorer:
    """Decodes and scores batches of messages' values; the worker's own scorer, warmed up.

    Args:
        bundle: folder.
        batch: the most images in a batch.
        encoding: `raw`, or what cv2.imdecode knows.

    Attributes:
        threshold: of the bundle.
        tolerance: within which two ways to the same error agree.
    """

    def __init__(self, bundle: str, batch: int, encoding: str) -> None:
        read = read_bundle(Path(bundle))
        select_backend(read.manifest.serving.backend)
        self.scorer = KerasScorer.load(read, batch)
        self.scorer.warm_up()
        self.threshold = float(read.threshold)
        self.tolerance = read.tolerance
        self._raw = encoding == "raw"
        self._images = np.zeros((batch, *self.scorer.input_shape), np.uint8)

    def errors(self, values: Sequence[bytes]) -> list[float]:
        """The reconstruction error of every value, at most a batch of them."""
        shape = self.scorer.input_shape
        for slot, value in zip(self._images, values, strict=False):
            image = np.frombuffer(value, np.uint8)
            if not self._raw:
                image = np.asarray(cv2.imdecode(image, cv2.IMREAD_GRAYSCALE))
            slot[:] = image.reshape(shape)
        errors: list[float] = self.scorer.score(self._images, len(values))[1].tolist()
        return errors
