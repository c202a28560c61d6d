"""Backends and precisions on a tiny model: OpenVINO beside TensorFlow, bfloat16 beside float32, and the choice."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.bundles import FATAL_PIXEL, SHAPE, tiny_images, write_tiny_bundle
from worker.adapters import engines
from worker.adapters.engines import NATIVE_FLAGS, cpu_flags, openvino_core
from worker.adapters.keras_scorer import KerasScorer, weights_sha256
from worker.core.bundle import TOLERANCE, Bundle, Serving, read_bundle
from worker.core.errors import BundleError, ConfigurationError

pytestmark = pytest.mark.models

CAPACITY = 20
EXACT, LOW = Serving("float32", "tensorflow"), Serving("bfloat16", "tensorflow")
OPENVINO, OPENVINO_LOW = Serving("float32", "openvino"), Serving("bfloat16", "openvino")
SAME = 1e-5


@pytest.fixture(scope="module")
def exact(tiny_bundle: Bundle) -> KerasScorer:
    return KerasScorer.load(tiny_bundle, CAPACITY)


@pytest.fixture(scope="module")
def model(exact: KerasScorer, tiny_bundle: Bundle) -> Any:
    import keras

    return keras.models.load_model(tiny_bundle.scorer_path, compile=False)


@pytest.fixture(scope="module")
def on_openvino(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("openvino"), serving=OPENVINO)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with instructions for bfloat16; one without emulates it."""
    from training import serving

    monkeypatch.setattr(engines, "native_bfloat16", lambda backend: True)
    monkeypatch.setattr(serving, "native_bfloat16", lambda backend: True)


@pytest.fixture
def not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    from training import serving

    monkeypatch.setattr(engines, "native_bfloat16", lambda backend: False)
    monkeypatch.setattr(serving, "native_bfloat16", lambda backend: False)


def pixels_error(images: NDArray[np.uint8], scorer: KerasScorer) -> NDArray[np.floating[Any]]:
    """The mean squared error by numpy, of the scorer's own reconstructions."""
    return np.asarray(np.mean(np.square(images / 255 - scorer.reconstruct(images)), axis=(1, 2, 3)))


def test_openvino_scores_as_tensorflow_does(on_openvino: Bundle, exact: KerasScorer) -> None:
    scorer = KerasScorer.load(on_openvino, CAPACITY)
    scorer.warm_up()
    images = tiny_images(47, seed=3)
    for found, expected in zip(scorer.score_all(images), exact.score_all(images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=SAME)
        assert found.dtype == np.float32
    np.testing.assert_allclose(scorer.reconstruct(images), exact.reconstruct(images), atol=1e-5)
    assert on_openvino.manifest.serving == OPENVINO
    assert {"tensorflow", "openvino"} <= set(on_openvino.manifest.versions)
    assert (scorer.serving, scorer.device[0]) == (OPENVINO, "CPU")


def test_what_goes_to_the_device_is_the_padded_batch_as_uint8(
    exact: KerasScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transfer a batch, one byte a value: scaling and casting are the graph's."""
    import tensorflow as tf

    sent: list[tuple[Any, ...]] = []
    constant = tf.constant

    def counted(values: Any, *arguments: Any, **named: Any) -> Any:
        sent.append((values.dtype, values.shape))
        return constant(values, *arguments, **named)

    monkeypatch.setattr(tf, "constant", counted)
    exact.score(tiny_images(CAPACITY), 12)
    assert sent == [(np.dtype(np.uint8), (CAPACITY, *SHAPE))]


@pytest.mark.parametrize("serving", [EXACT, OPENVINO])
def test_two_batches_in_flight_score_as_one(model: Any, exact: KerasScorer, serving: Serving) -> None:
    scorer = KerasScorer(model, CAPACITY, serving)
    images = tiny_images(2 * CAPACITY, seed=12)
    buffer = images[:CAPACITY].copy()
    first = scorer.start(buffer, CAPACITY)
    buffer[:] = images[CAPACITY:]
    second = scorer.start(buffer, CAPACITY - 3)
    buffer[:] = 255
    found = np.concatenate([first()[0], second()[0]])
    np.testing.assert_allclose(found, exact.score_all(images)[0][: len(found)], rtol=SAME)


def test_results_of_openvino_stay_when_the_next_batch_is_scored(on_openvino: Bundle) -> None:
    scorer = KerasScorer.load(on_openvino, CAPACITY)
    batch = tiny_images(CAPACITY, seed=8)
    scores, errors = scorer.score(batch, CAPACITY)
    kept = scores.copy(), errors.copy()
    batch[:] = 17
    scorer.score(batch, CAPACITY)
    np.testing.assert_array_equal((scores, errors), kept)


def test_openvino_tells_score_from_error_and_lets_no_image_harm_another(
    model: Any, exact: KerasScorer, fragile_bundle: Bundle
) -> None:
    import keras

    image = keras.Input(SHAPE, dtype="uint8")
    out = model(image)
    doubled = keras.Model(image, {**out, "score": out["score"] * 2})
    images = tiny_images(11, seed=6)
    scores, errors = KerasScorer(doubled, 16, OPENVINO).score_all(images)
    np.testing.assert_allclose(scores, 2 * errors, rtol=SAME)

    images[4, 0, 0, 0] = FATAL_PIXEL
    fragile = keras.models.load_model(fragile_bundle.scorer_path, compile=False)
    found = KerasScorer(fragile, 16, OPENVINO).score_all(images)[0]
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [4]


def test_a_bundle_for_openvino_is_refused_where_it_is_not_installed(
    on_openvino: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match=r"not installed .*install the extra 'openvino' .*reconstream\[openvino\]"):
        KerasScorer.load(on_openvino, 8)


ON_OPENVINO = """
import sys
from pathlib import Path
from worker.adapters.keras_scorer import KerasScorer
from worker.core.bundle import read_bundle
KerasScorer.load(read_bundle(Path(sys.argv[1])), 8)
print([name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module])
"""


def test_openvino_reports_to_nobody(on_openvino: Bundle, tmp_path: Path) -> None:
    """Its own statistics leave a folder in the home and would send each import over the network."""
    command = [sys.executable, "-c", ON_OPENVINO, str(on_openvino.folder)]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.rglob("*openvino*")) == []


RELOADED = """
import gc, os, signal, sys
from pathlib import Path
from threading import Thread
from worker.adapters.keras_scorer import KerasScorer
from worker.core.bundle import read_bundle

def load():
    scorers.append(KerasScorer.load(read_bundle(Path(sys.argv[1])), 8))

def drop():
    del scorers[0]
    gc.collect()

scorers, seen = [], []
signal.signal(signal.SIGTERM, lambda *_: seen.append(len(scorers)))
load()
for work in (load, drop):  # as a reload does: not on the main thread, which takes the signals
    thread = Thread(target=work)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
print(seen)
"""


def test_a_signal_after_a_reload_of_openvino_is_handled(on_openvino: Bundle) -> None:
    command = [sys.executable, "-c", RELOADED, str(on_openvino.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[2, 1]"


def test_openvino_never_serves_another_precision_than_the_manifests(model: Any, exact: KerasScorer) -> None:
    """Where the processor lacks bfloat16, OpenVINO itself would take float32 without a word."""
    if engines.native_bfloat16("openvino"):
        images = tiny_images(9, seed=5)
        expected = exact.score_all(images)[0]
        np.testing.assert_allclose(KerasScorer(model, 8, OPENVINO_LOW).score_all(images)[0], expected, rtol=3e-2)
    else:
        with pytest.raises(BundleError, match="on this processor, the bundle wants bfloat16"):
            KerasScorer(model, 8, OPENVINO_LOW)


def test_bfloat16_is_of_the_layers_alone(model: Any, exact: KerasScorer) -> None:
    scorer = KerasScorer(model, CAPACITY, LOW)
    images = tiny_images(30, seed=4)
    scores, errors = scorer.score_all(images)
    expected = exact.score_all(images)[0]
    np.testing.assert_allclose(scores, expected, rtol=TOLERANCE["bfloat16"])
    assert np.max(np.abs(scores / expected - 1)) > 1e-6  # it is another precision, after all
    assert scores.dtype == errors.dtype == scorer.reconstruct(images).dtype == np.float32
    # A mean in bfloat16 would be off by up to 4e-3.
    np.testing.assert_allclose(errors, pixels_error(images, scorer), rtol=2e-5)
    # The model that was given still computes in float32.
    np.testing.assert_allclose(KerasScorer(model, CAPACITY).score_all(images)[0], expected, rtol=SAME)


def test_which_layers_are_of_bfloat16(model: Any) -> None:
    low = engines.in_bfloat16(model)
    layers = {layer.name: layer.compute_dtype for layer in engines._layers(low)}
    in_bfloat16 = {name for name, kind in layers.items() if kind == "bfloat16"}
    assert in_bfloat16 == {
        "encode_0", "encode_1", "flatten", "latent", "expand", "reshape", "decode_0", "decode_1", "reconstruction"
    }  # fmt: skip
    assert weights_sha256(low) == weights_sha256(model)


def test_a_bundle_in_bfloat16_is_served_where_it_is_native_and_refused_elsewhere(
    native: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path, serving=LOW)
    assert (bundle.manifest.serving, bundle.tolerance) == (LOW, 3e-2)
    scorer = KerasScorer.load(bundle, CAPACITY)
    assert scorer.serving == LOW
    # Emulated or native, batches of other sizes: the same scores.
    np.testing.assert_allclose(scorer.score_all(tiny_images(260)[100:200])[0], bundle.calibration.scores, rtol=3e-2)
    monkeypatch.setattr(engines, "native_bfloat16", lambda backend: False)
    with pytest.raises(BundleError, match=r"no instructions for it .*fit with --precision float32"):
        KerasScorer.load(read_bundle(bundle.folder), CAPACITY)


def test_the_machine_is_asked_what_it_has(exact: KerasScorer, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\nbugs\t\t: x\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512f", "avx512_bf16"}
    assert cpu_flags(cpuinfo) & NATIVE_FLAGS
    assert cpu_flags(tmp_path / "missing") == frozenset()
    if exact.device[0] == "CPU":
        assert engines.native_bfloat16("tensorflow") == bool(cpu_flags() & NATIVE_FLAGS)
    if engines.native_bfloat16("openvino"):
        assert cpu_flags() & NATIVE_FLAGS
    assert "CPU" in openvino_core().available_devices


def choice(model: Any, asked: Any, backend: str = "tensorflow") -> tuple[str, str]:
    from training.serving import choose

    found = choose(model, tiny_images(40, seed=9), backend, asked)
    assert found.scorer.serving.backend == backend
    return found.scorer.serving.precision, found.why


@pytest.mark.parametrize(("ratio", "precision"), [(1.25, "bfloat16"), (1.15, "float32")])
def test_auto_takes_bfloat16_where_it_is_worth_it(
    model: Any, native: None, monkeypatch: pytest.MonkeyPatch, ratio: float, precision: str
) -> None:
    from training import serving

    def measured(*turns: Callable[[], object]) -> float:
        for turn in turns:
            turn()
        return ratio

    monkeypatch.setattr(serving, "times_as_fast", measured)
    found, why = choice(model, "auto")
    assert found == precision
    assert f"bfloat16 is {ratio:.2f} times as fast here" in why


def test_auto_takes_float32_where_bfloat16_is_emulated(model: Any, not_native: None) -> None:
    assert choice(model, "auto") == ("float32", "this machine has no instructions for bfloat16")
    assert choice(model, "float32")[0] == "float32"
    assert choice(model, "auto", "openvino")[0] == "float32"


def test_auto_takes_float32_where_the_scores_do_not_agree(
    model: Any, native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import serving

    monkeypatch.setattr(serving, "TOLERANCE", {"bfloat16": 1e-9})
    monkeypatch.setattr(serving, "times_as_fast", lambda *_: pytest.fail("there is nothing to measure"))
    found, why = choice(model, "auto")
    assert found == "float32"
    assert "calibration scores differ" in why


def test_what_is_asked_for_is_obeyed_or_refused_before_the_fit(
    model: Any, native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.serving import prepare

    prepare("tensorflow", "bfloat16")
    assert choice(model, "bfloat16")[0] == "bfloat16"
    monkeypatch.setattr(engines, "native_bfloat16", lambda backend: False)
    prepare("openvino", "auto")
    with pytest.raises(ConfigurationError, match="bfloat16 on tensorflow was given"):
        prepare("tensorflow", "bfloat16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigurationError, match="install the extra 'openvino'"):
        prepare("openvino", "float32")


def test_speed_is_measured_in_turns() -> None:
    from training.serving import times_as_fast

    turns: list[str] = []

    def work(name: str, loops: int) -> None:
        turns.append(name)
        sum(range(loops))

    ratio = times_as_fast(lambda: work("quick", 100_000), lambda: work("slow", 400_000))
    assert ratio > 1.5
    assert turns.index("quick") < 3
    assert turns[-1] == "quick"
