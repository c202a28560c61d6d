"""One process, one backend: scores a bundle's model on whatever device there is, and says what it saw as JSON.

python -m tests.gpu.probe tensorflow|jax BUNDLE
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

CAPACITY = 64
COUNT = 150


class Seen(msgspec.Struct, frozen=True):
    """What the process saw.

    Attributes:
        kind, device: of the device that scored; `CPU` where the backend cannot use another.
        scores: of the same COUNT random images, in float32.
        in_flight: the same, two batches in flight, each buffer overwritten as soon as its batch was started.
        low: the same in bfloat16; None where it is not native.
        sent: type and number of bytes of each transfer to the device for one batch.
        memory_growth: whether memory is taken as it is needed.
        peak_bytes: of the device's memory; None where the backend does not tell.
    """

    kind: str
    device: str
    scores: list[float]
    in_flight: list[float]
    low: list[float] | None
    sent: list[tuple[str, int]]
    memory_growth: bool
    peak_bytes: int | None


def look(backend: str, bundle: Path) -> Seen:
    """Score, and look."""
    from worker.adapters.engines import native_bfloat16
    from worker.adapters.keras_scorer import KerasScorer, prepare_device, select_backend, verify_golden
    from worker.core.bundle import Serving, read_bundle

    select_backend(backend)
    prepare_device()
    import keras

    read = read_bundle(bundle)
    model = keras.models.load_model(read.scorer_path, compile=False, safe_mode=True)
    scorer = KerasScorer(model, CAPACITY)
    scorer.warm_up()
    verify_golden(scorer, read)
    images = np.random.default_rng(2).integers(0, 251, (COUNT, *scorer.input_shape), dtype=np.uint8)
    low = None
    if native_bfloat16(backend):
        low = KerasScorer(model, CAPACITY, Serving("bfloat16", backend)).score_all(images)[0].tolist()
    kind, device = scorer.device
    return Seen(
        kind=kind,
        device=device,
        scores=scorer.score_all(images)[0].tolist(),
        in_flight=_in_flight(scorer, images),
        low=low,
        sent=_sent(scorer, backend),
        memory_growth=_memory_growth(backend),
        peak_bytes=_peak_bytes(backend),
    )


def _in_flight(scorer: Any, images: Any) -> list[float]:
    scores: list[float] = []
    waiting: list[Any] = []
    buffer = np.zeros((CAPACITY, *scorer.input_shape), np.uint8)
    for start in range(0, len(images), CAPACITY):
        part = images[start : start + CAPACITY]
        buffer[: len(part)] = part
        waiting.append(scorer.start(buffer, len(part)))
        buffer[:] = 255  # as the next batch's decoding would
        if len(waiting) == 2:
            scores += waiting.pop(0)()[0].tolist()
    for finish in waiting:
        scores += finish()[0].tolist()
    return scores


def _sent(scorer: Any, backend: str) -> list[tuple[str, int]]:
    if backend != "tensorflow":
        return []
    import tensorflow as tf

    sent: list[tuple[str, int]] = []
    constant = tf.constant

    def counted(values: Any, *arguments: Any, **named: Any) -> Any:
        sent.append((str(values.dtype), int(values.nbytes)))
        return constant(values, *arguments, **named)

    tf.constant = counted
    try:
        scorer.score(np.zeros((CAPACITY, *scorer.input_shape), np.uint8), CAPACITY)
    finally:
        tf.constant = constant
    return sent


def _memory_growth(backend: str) -> bool:
    if backend == "jax":
        import os

        return os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") == "false"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return all(tf.config.experimental.get_memory_growth(gpu) for gpu in gpus)


def _peak_bytes(backend: str) -> int | None:
    if backend == "jax":
        import jax

        found = jax.devices()[0].memory_stats() or {}
        return found.get("peak_bytes_in_use")
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(look(sys.argv[1], Path(sys.argv[2]))) + b"\n")
