"""The scorer on real TensorFlow with a tiny model; once on JAX, in a process of its own."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.bundles import FATAL_PIXEL, SHAPE, tiny_images, write_tiny_bundle
from worker.adapters.keras_scorer import KerasScorer, batch_sizes, golden_check, select_backend, weights_sha256
from worker.core.bundle import Bundle, read_bundle
from worker.core.errors import BundleError, ScorerBroken

pytestmark = pytest.mark.models

CAPACITY = 40
COUNTS = (1, 2, 7, 8, 9, 10, 11, 19, 20, 21, 33, 39, 40)
SAME = 1e-5


@pytest.fixture(scope="module")
def model(tiny_bundle: Bundle) -> Any:
    select_backend("tensorflow")
    import keras

    return keras.models.load_model(tiny_bundle.scorer_path, compile=False)


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> KerasScorer:
    scorer = KerasScorer.load(tiny_bundle, CAPACITY)
    scorer.warm_up()
    return scorer


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("other"), seed=1)


def padded(images: NDArray[np.uint8], filling: NDArray[np.uint8] | int = 0) -> NDArray[np.uint8]:
    batch = np.zeros((CAPACITY, *SHAPE), np.uint8)
    batch[:] = filling
    batch[: len(images)] = images
    return batch


def changed_copy(
    bundle: Bundle, parent: Path, files: Mapping[str, bytes] | None = None, **manifest: object
) -> Bundle:
    """The bundle with other files and manifest fields, and with digests that are right for them."""
    folder = parent / "copy"
    shutil.copytree(bundle.folder, folder)
    fields = json.loads((folder / "manifest.json").read_text("utf-8")) | manifest
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
        fields["files"][name] = hashlib.sha256(content).hexdigest()
    del fields["digest"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(fields), "utf-8")
    return read_bundle(folder.rename(parent / f"{fields['name']}-{fields['digest'][:12]}"))


def golden_file(bundle: Bundle, **arrays: NDArray[Any]) -> bytes:
    with np.load(bundle.folder / "golden.npz") as stored:
        content = {**stored, **arrays}
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def refusal(bundle: Bundle) -> str:
    with pytest.raises(BundleError) as caught:
        KerasScorer.load(bundle, 8)
    return str(caught.value)


def test_padded_sizes_double_a_batch_at_most() -> None:
    for capacity in range(1, 300):
        sizes = batch_sizes(capacity)
        assert sizes == tuple(sorted(set(sizes)))
        assert sizes[-1] == capacity
        for count in range(1, capacity + 1):
            assert next(size for size in sizes if size >= count) <= max(2 * count, 15)
    assert batch_sizes(256) == (8, 16, 32, 64, 128, 256)


def test_the_score_is_the_mean_squared_error_of_the_pixels(scorer: KerasScorer) -> None:
    images = tiny_images(20, seed=5)
    scores, errors = scorer.score_all(images)
    reconstruction = scorer.reconstruct(images)
    expected = np.mean(np.square(images / 255 - reconstruction), axis=(1, 2, 3))
    np.testing.assert_allclose(errors, expected, rtol=SAME)
    np.testing.assert_array_equal(scores, errors)
    assert scores.dtype == errors.dtype == np.float32
    assert len(set(scores.tolist())) == 20


def test_padding_changes_no_result(scorer: KerasScorer) -> None:
    images = tiny_images(CAPACITY, seed=2)
    alone = np.array([scorer.score(padded(image[None]), 1)[1][0] for image in images])
    for count in COUNTS:
        scores, errors = scorer.score(padded(images[:count]), count)
        assert scores.shape == errors.shape == (count,)
        np.testing.assert_allclose(errors, alone[:count], rtol=SAME)
        np.testing.assert_allclose(scores, alone[:count], rtol=SAME)


def test_what_stands_in_the_padding_does_not_leak(scorer: KerasScorer) -> None:
    images = tiny_images(CAPACITY, seed=3)
    for count in COUNTS:
        expected = scorer.score(padded(images[:count]), count)
        for filling in (255, tiny_images(CAPACITY, seed=4)):
            found = scorer.score(padded(images[:count], filling), count)
            np.testing.assert_allclose(found, expected, rtol=SAME)


def test_an_image_without_a_finite_score_harms_no_other(fragile_bundle: Bundle) -> None:
    scorer = KerasScorer.load(fragile_bundle, CAPACITY)
    images = tiny_images(10, seed=6)
    expected = scorer.score(padded(images), 10)[0]
    images[4, 0, 0, 0] = FATAL_PIXEL
    for filling in (0, images[4]):
        found = scorer.score(padded(images, filling), 10)[0]
        assert np.flatnonzero(~np.isfinite(found)).tolist() == [4]
        np.testing.assert_allclose(np.delete(found, 4), np.delete(expected, 4), rtol=SAME)


def test_any_number_of_images_is_scored_in_order(scorer: KerasScorer) -> None:
    images = tiny_images(100, seed=7)
    whole = scorer.score_all(images)[0]
    np.testing.assert_allclose(whole[::-1], scorer.score_all(images[::-1])[0], rtol=SAME)
    assert scorer.score_all(images[:0])[0].shape == (0,)


def test_results_stay_when_the_next_batch_is_scored(scorer: KerasScorer) -> None:
    batch = padded(tiny_images(CAPACITY, seed=8))
    scores, errors = scorer.score(batch, CAPACITY)
    kept = scores.copy(), errors.copy()
    batch[:] = 17
    scorer.score(batch, CAPACITY)
    np.testing.assert_array_equal((scores, errors), kept)


def test_reconstructions_have_the_images_shape(scorer: KerasScorer) -> None:
    for count in (0, 1, 8, 9):
        found = scorer.reconstruct(tiny_images(count, seed=9))
        assert found.shape == (count, *SHAPE)
        assert found.dtype == np.float32
        assert np.all((found >= 0) & (found <= 1))
    images = tiny_images(9, seed=9)
    np.testing.assert_allclose(scorer.reconstruct(images)[8], scorer.reconstruct(images[8:])[0], rtol=SAME)


def test_nothing_is_traced_after_the_warm_up(model: Any) -> None:
    import keras

    calls: list[int] = []

    class Counting(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
        def call(self, inputs: Any) -> Any:
            calls.append(inputs.shape[0])
            return inputs

    image = keras.Input(SHAPE, dtype="uint8")
    out = model(image)
    counted = keras.Model(image, {**out, **{name: Counting()(out[name]) for name in ("score", "reconstruction")}})
    calls.clear()
    scorer = KerasScorer(counted, CAPACITY)
    scorer.warm_up(reconstructions=True)
    assert sorted(calls) == [8, 10, 20, 40]
    for count in COUNTS:
        scorer.score(padded(tiny_images(count)), count)
    scorer.score_all(tiny_images(77))
    scorer.reconstruct(tiny_images(9))
    assert len(calls) == 4


def test_what_is_not_wanted_is_not_warmed_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = KerasScorer(model, 8)
    monkeypatch.setattr(scorer, "reconstruct", lambda _: pytest.fail("a reconstruction was computed"))
    scorer.warm_up()


def test_the_reconstruction_is_not_computed_for_a_score(model: Any) -> None:
    """Where the score does not need it; it stays on the device in any case."""
    import keras

    calls: list[str] = []

    class Named(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
        def call(self, inputs: Any) -> Any:
            calls.append(self.name)
            return inputs

    image = keras.Input(SHAPE, dtype="uint8")
    out = model(image)
    named = {name: Named(name=name)(tensor) for name, tensor in out.items()}
    calls.clear()
    scorer = KerasScorer(keras.Model(image, named), 8)
    scorer.score_all(tiny_images(8))
    assert set(calls) == {"score", "error"}
    calls.clear()
    scorer.reconstruct(tiny_images(8))
    assert set(calls) == {"reconstruction"}


def test_the_weights_hash_is_of_the_weights_alone(model: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    import keras

    assert weights_sha256(model) == tiny_bundle.manifest.weights_sha256
    model.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras", compile=False)
    assert (tmp_path / "again.keras").read_bytes() != tiny_bundle.scorer_path.read_bytes()
    assert weights_sha256(again) == weights_sha256(model)
    weights = again.get_weights()
    weights[-1].flat[0] = np.nextafter(weights[-1].flat[0], np.float32(np.inf))
    again.set_weights(weights)
    assert weights_sha256(again) != weights_sha256(model)


def test_the_hash_covers_type_shape_and_order() -> None:
    class Weights:
        def __init__(self, *arrays: NDArray[Any]) -> None:
            self.arrays = arrays

        def get_weights(self) -> tuple[NDArray[Any], ...]:
            return self.arrays

    a, b = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    models = [(a, b), (b, a), (a.T, b), (a.view(np.int32), b), (a.reshape(6), b), (a,), (a, b, a[:0])]
    assert len({weights_sha256(Weights(*arrays)) for arrays in models}) == len(models)
    assert weights_sha256(Weights(np.asfortranarray(b))) == weights_sha256(Weights(b))


def test_a_bundle_loads_and_says_what_it_takes(scorer: KerasScorer) -> None:
    assert scorer.input_shape == SHAPE
    assert scorer.batch_capacity == CAPACITY
    assert scorer.device[0] in {"CPU", "GPU"}


@pytest.mark.parametrize("name", ["scores", "errors"])
def test_golden_images_that_score_differently_are_refused(tiny_bundle: Bundle, tmp_path: Path, name: str) -> None:
    wrong = getattr(tiny_bundle.golden, name).copy()
    wrong[3] *= np.float32(1.001)
    bundle = changed_copy(tiny_bundle, tmp_path, {"golden.npz": golden_file(tiny_bundle, **{name: wrong})})
    message = refusal(bundle)
    assert "the golden images of" in message
    assert "relative tolerance 0.0001" in message


def test_golden_images_within_the_tolerance_are_accepted(tiny_bundle: Bundle, tmp_path: Path) -> None:
    near = tiny_bundle.golden.scores * np.float32(1 + 0.5e-4)
    bundle = changed_copy(tiny_bundle, tmp_path, {"golden.npz": golden_file(tiny_bundle, scores=near)})
    assert KerasScorer.load(bundle, 8).input_shape == SHAPE


def test_a_golden_image_that_is_none_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with np.load(tiny_bundle.folder / "golden.npz") as stored:
        data = stored["data"].copy()
    data[:8] = 0
    bundle = changed_copy(tiny_bundle, tmp_path, {"golden.npz": golden_file(tiny_bundle, data=data)})
    assert "a golden image of" in refusal(bundle)


def test_exchanged_weights_are_refused_though_the_files_are_consistent(
    tiny_bundle: Bundle, other_bundle: Bundle, tmp_path: Path
) -> None:
    theirs = {"scorer.keras": other_bundle.scorer_path.read_bytes()}
    bundle = changed_copy(tiny_bundle, tmp_path, theirs)
    assert "its weights are not those that the manifest names" in refusal(bundle)


def test_another_model_with_its_own_hash_fails_the_golden_images(
    tiny_bundle: Bundle, other_bundle: Bundle, tmp_path: Path
) -> None:
    theirs = {"scorer.keras": other_bundle.scorer_path.read_bytes()}
    bundle = changed_copy(tiny_bundle, tmp_path, theirs, weights_sha256=other_bundle.manifest.weights_sha256)
    assert "the golden images of" in refusal(bundle)


@pytest.mark.parametrize("fault", ["shape", "output", "score", "type"])
def test_a_model_of_another_interface_is_refused(tiny_bundle: Bundle, model: Any, tmp_path: Path, fault: str) -> None:
    import keras

    image = keras.Input((4, 16, 1) if fault == "shape" else SHAPE, dtype="int32" if fault == "type" else "uint8")
    out = dict(model(keras.ops.cast(keras.ops.reshape(image, (-1, *SHAPE)), "uint8")))
    if fault == "output":
        del out["error"]
    if fault == "score":
        out["score"] = out["score"][:, None]
    keras.Model(image, out).save(tmp_path / "scorer.keras")
    bundle = changed_copy(tiny_bundle, tmp_path, {"scorer.keras": (tmp_path / "scorer.keras").read_bytes()})
    assert "maps" in refusal(bundle)


def test_an_archive_that_keras_cannot_load_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    damaged = tiny_bundle.scorer_path.read_bytes().replace(b"Conv2D", b"Kanv2D")
    bundle = changed_copy(tiny_bundle, tmp_path, {"scorer.keras": damaged})
    assert "cannot be loaded by Keras" in refusal(bundle)


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"precision": "float32", "backend": "jax"}, "Keras runs on 'tensorflow' in this process"),
        (
            {"precision": "float32", "backend": "torch"},
            "wants the backend 'torch'; known are tensorflow, jax, openvino",
        ),
    ],
)
def test_another_backend_is_refused(tiny_bundle: Bundle, tmp_path: Path, serving: dict[str, str], words: str) -> None:
    assert words in refusal(changed_copy(tiny_bundle, tmp_path, serving=serving))


def test_a_scorer_that_breaks_is_told_from_a_bad_image(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = KerasScorer.load(tiny_bundle, 8)
    check = golden_check(scorer, tiny_bundle)
    check()

    def fails(*_: object) -> None:
        raise MemoryError("the device has none left")

    monkeypatch.setattr(scorer, "score", fails)
    with pytest.raises(ScorerBroken, match="the device has none left"):
        check()


ON_JAX = """
import json, sys
from pathlib import Path
import keras
import numpy as np
from worker.adapters.keras_scorer import KerasScorer, verify_golden, weights_sha256
from worker.core.bundle import read_bundle
from worker.core.errors import BundleError
bundle = read_bundle(Path(sys.argv[1]))
try:
    KerasScorer.load(bundle, 8)
except BundleError as error:
    refusal = str(error)
model = keras.models.load_model(bundle.scorer_path, compile=False, safe_mode=True)
scorer = KerasScorer(model, 16)
scorer.warm_up()
verify_golden(scorer, bundle)
images = np.load(sys.argv[2])
print(json.dumps({
    "backend": keras.backend.backend(),
    "device": scorer.device[0],
    "refusal": refusal,
    "weights": weights_sha256(model),
    "errors": scorer.score_all(images)[1].tolist(),
    "reconstruction": scorer.reconstruct(images).tolist(),
}))
"""


def in_a_process(program: str, *arguments: Path) -> str:
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jax_scores_as_tensorflow_does(tiny_bundle: Bundle, scorer: KerasScorer, tmp_path: Path) -> None:
    """The golden images, within the tolerance, and others; through the manifest JAX is refused."""
    images = tiny_images(21, seed=11)
    np.save(tmp_path / "images.npy", images)
    found = json.loads(in_a_process(ON_JAX, tiny_bundle.folder, tmp_path / "images.npy"))
    assert (found["backend"], found["device"]) == ("jax", "CPU")
    assert "Keras runs on 'jax' in this process, the bundle wants 'tensorflow'" in found["refusal"]
    assert found["weights"] == tiny_bundle.manifest.weights_sha256
    np.testing.assert_allclose(found["errors"], scorer.score_all(images)[1], rtol=1e-4)
    np.testing.assert_allclose(found["reconstruction"], scorer.reconstruct(images), rtol=1e-4)


def test_a_backend_that_is_not_installed_is_a_bundle_error() -> None:
    program = """
import sys
sys.modules["jax"] = None
from worker.adapters.keras_scorer import select_backend
from worker.core.errors import BundleError
try:
    select_backend("jax")
except BundleError as error:
    print(error)
"""
    assert "the bundle wants the Keras backend 'jax'; it is not installed" in in_a_process(program)


IMPORTED = """
import sys
from worker.adapters.keras_scorer import IDLE, select_backend
select_backend("tensorflow")
print([name for name in IDLE if name in sys.modules])
import matplotlib, sklearn.metrics
"""


def test_what_scoring_does_not_need_is_not_imported_and_can_be_later() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
