"""Presets on real Keras: what they cost, what their scores are, and that a bundle of each serves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.__main__ import main
from training.settings import PRESET_NAMES
from worker.adapters.keras_scorer import KerasScorer, select_backend
from worker.core.bundle import Serving, read_bundle
from worker.core.errors import ConfigurationError, ExitCode

pytestmark = pytest.mark.models

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    select_backend("tensorflow")
    import keras

    from training.model import build_autoencoder

    keras.utils.set_random_seed(3)
    return build_autoencoder(SHAPE, latent_size=3, filters=(4, 8))


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (900, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label 0: bright left halves, of 8x8 pixels. Label 1: bright right halves."""
    rng = np.random.default_rng(2)

    def split(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = np.arange(count) % 2
        images = rng.integers(0, 60, (count, 8, 8), dtype=np.uint8)
        images[labels == 0, :, :4] += 150
        images[labels == 1, :, 4:] += 150
        return images, labels

    path = tmp_path_factory.mktemp("data") / "halves.npz"
    (x_train, y_train), (x_test, y_test) = split(400), split(300)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def test_the_names_are_those_of_the_command_line(autoencoder: Any) -> None:
    from training.presets import PRESETS

    assert tuple(PRESETS) == PRESET_NAMES


def test_default_costs_no_more_than_the_tutorial_and_fast_a_quarter(autoencoder: Any) -> None:
    from training.model import build_autoencoder, mflop_per_image
    from training.presets import PRESETS

    def cost(name: str, *shape: int) -> float:
        height, width, channels = shape
        filters = PRESETS[name].filters((height, width, channels))
        return mflop_per_image(build_autoencoder((height, width, channels), filters=filters))

    # By hand: 2 (9 32 14^2 + 9 32 64 7^2 + 2 32 3136 + 9 64 64 7^2 + 9 64 32 14^2 + 9 32 28^2).
    assert cost("tutorial", 28, 28, 1) == pytest.approx(13.61024)
    assert cost("default", 28, 28, 1) <= cost("tutorial", 28, 28, 1)
    assert cost("fast", 28, 28, 1) <= cost("tutorial", 28, 28, 1) / 4
    # Compute follows the pixels.
    for side in (64, 128, 256):
        assert cost("default", 2 * side, 2 * side, 1) < 4.2 * cost("default", side, side, 1)
        assert cost("default", 2 * side, 2 * side, 3) < 4.2 * cost("default", side, side, 3)
    assert cost("default", 256, 256, 1) < 140
    assert cost("fast", 256, 256, 1) < 0.4 * cost("default", 256, 256, 1)
    # As often as both sides can be halved.
    assert cost("default", 96, 100, 1) < cost("default", 128, 128, 1)
    assert cost("default", 160, 200, 3) < cost("default", 256, 256, 3)


def test_the_largest_share_is_the_mean_of_the_largest_errors() -> None:
    import keras
    from keras import ops

    from training.scores import POOLINGS

    difference = np.random.default_rng(0).normal(size=(3, 40, 50, 3)).astype(np.float32)
    tensor = keras.Input(difference.shape[1:])
    score = POOLINGS["largest-share"]()
    model = keras.Model(tensor, score.of(tensor, None, None))
    found = ops.convert_to_numpy(model(difference))
    errors = np.sort(np.square(difference).mean(axis=3).reshape(3, -1), axis=1)
    np.testing.assert_allclose(found, np.sqrt(errors[:, -4:].mean(axis=1)), rtol=1e-5)
    assert score.definition.pooling == "mean_of_largest_0.2_percent"


@pytest.mark.parametrize("preset", ["default", "fast"])
def test_images_too_small_for_a_preset_are_refused_before_the_fit(preset: str, tmp_path: Path) -> None:
    from training.presets import PRESETS

    assert PRESETS[preset].filters(SHAPE)
    with pytest.raises(ConfigurationError, match=r"4 x 64 pixels; .* at least 8 x 8"):
        PRESETS[preset].filters((4, 64, 1))
    path = tmp_path / "tiny.npz"
    np.savez(path, images=np.zeros((400, 4, 4), np.uint8))
    arguments = ["fit", "--data", str(path), "--preset", preset, "--output", str(tmp_path)]
    assert main([*arguments, "--calibration-size", "100", "--quiet"]) == ExitCode.BAD_CONFIGURATION


@pytest.mark.parametrize("count", [300, 900])
def test_the_mixtures_score_is_its_formula(autoencoder: Any, images: NDArray[np.uint8], count: int) -> None:
    """Against the density as scikit-learn has it, up to the constant; of one component half the squared distance."""
    from scipy import special
    from sklearn.mixture import GaussianMixture

    from training.model import build_scorer
    from training.scores import features_of, mixture_density

    score = mixture_density(autoencoder, images[:count], seed=0)
    found = KerasScorer(build_scorer(autoencoder, score), 64).score_all(images)[0].astype(np.float64)
    features = features_of(autoencoder, images).astype(np.float64)
    fitted, size = features[:count], features.shape[1]
    covariance = np.cov(fitted, rowvar=False)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + 1e-4 * np.trace(covariance) / size * np.eye(size)))
    white = (features - fitted.mean(axis=0)) @ whitening
    components, fits = {300: (1, 1), 900: (3, 4)}[count]
    mixtures = [
        GaussianMixture(components, reg_covar=0.1, tol=1e-2, random_state=int(state)).fit(white[:count])
        for state in np.random.SeedSequence(0).generate_state(fits)
    ]
    expected = -special.logsumexp([mixture.score_samples(white) for mixture in mixtures], axis=0)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=2e-3)
    assert found.min() >= 0
    if components == 1:
        [mixture] = mixtures
        centred = white - mixture.means_[0]
        distances = np.einsum("ni,ij,nj->n", centred, mixture.precisions_[0], centred)
        np.testing.assert_allclose(found, distances / 2, rtol=2e-3, atol=1e-3)


def test_the_features_are_the_latent_and_the_logarithms_of_these_errors(
    autoencoder: Any, images: NDArray[np.uint8]
) -> None:
    from keras import ops

    from training.scores import features_of, restored

    found = features_of(autoencoder, images[:30])
    pixels = images[:30].astype(np.float32) / 255
    reconstruction = ops.convert_to_numpy(autoencoder(pixels))
    latent = ops.convert_to_numpy(restored(autoencoder, ops.convert_to_tensor(images[:30]))[3])
    difference = (pixels - reconstruction).astype(np.float64)[..., 0]

    def windows(values: NDArray[np.floating], side: int) -> NDArray[np.floating]:
        windows = np.lib.stride_tricks.sliding_window_view(values, (side, side), axis=(1, 2))
        return np.asarray(windows.mean(axis=(3, 4)))

    smooth = [difference]
    for _ in range(3):
        smooth.append(windows(smooth[-1], 3))
    errors = [np.square(values).mean(axis=(1, 2)) for values in smooth]
    errors.append(windows(np.square(difference), 5).max(axis=(1, 2)))
    errors.append(sum(np.square(np.diff(difference, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)))
    np.testing.assert_allclose(found, np.column_stack([latent, np.log(np.stack(errors, axis=1))]), atol=1e-3)


def test_the_scores_own_layers_stay_float32(autoencoder: Any, images: NDArray[np.uint8]) -> None:
    from training.model import build_scorer
    from training.scores import mixture_density
    from worker.adapters import engines

    model = build_scorer(autoencoder, mixture_density(autoencoder, images, seed=0))
    low = engines.in_bfloat16(model)
    kinds = {layer.name: layer.compute_dtype for layer in engines._layers(low)}
    assert {kinds["score_whiten"], kinds["score_weigh"]} == {"float32"}
    assert kinds["latent"] == kinds["encode_0"] == "bfloat16"


def test_the_largest_spot_sees_what_the_mean_does_not() -> None:
    select_backend("tensorflow")
    import keras
    from keras import ops

    from training.scores import largest_spot

    rng = np.random.default_rng(5)
    difference = rng.uniform(-0.15, 0.15, (40, 64, 64, 1)).astype(np.float32)
    difference[20:, 30:32, 20:40] += 0.45
    tensor = keras.Input((64, 64, 1))
    model = keras.Model(tensor, largest_spot().of(tensor, ops.mean(tensor, axis=(1, 2, 3)), None))
    scores = ops.convert_to_numpy(model(difference))
    assert scores[20:].min() > 1.5 * scores[:20].max()
    windows = np.lib.stride_tricks.sliding_window_view(difference[25, :, :, 0] ** 2, (5, 5))
    assert scores[25] == pytest.approx(np.sqrt(windows.mean(axis=(2, 3)).max()), rel=1e-3)


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_bundle_of_each_preset_serves(preset: str, data: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--data", str(data), "--normal", "0", "--preset", preset, "--output", str(tmp_path)]
    arguments += ["--epochs", "2", "--calibration-size", "100", "--precision", "float32", "--quiet"]
    assert main(arguments) == ExitCode.STOPPED
    bundle = read_bundle(tmp_path)
    definition = bundle.manifest.score
    assert (definition.name, bundle.manifest.training["preset"]) == (
        "mse" if preset == "tutorial" else "mixture_density",
        preset,
    )
    assert bundle.manifest.serving == Serving("float32", "tensorflow")
    assert bundle.calibration.scores.min() > 0


def test_the_benchmark_goes_on_where_it_was(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "quality.json"
    arguments = ["benchmark", "--data", str(data), "--presets", "tutorial,fast", "--epochs", "1", "--json", str(path)]
    assert main([*arguments, "--digits", "0"]) == ExitCode.STOPPED
    first = json.loads(path.read_bytes())["results"]
    assert [(found["name"], found["digit"]) for found in first] == [
        (name, "0") for name in ("tutorial", "fast", "pca", "1-nn")
    ]
    capsys.readouterr()
    assert main([*arguments, "--digits", "0,1"]) == ExitCode.STOPPED
    printed = capsys.readouterr().out
    assert "digit 1 seed 0" in printed
    assert "digit 0 seed 0" not in printed
    content = json.loads(path.read_bytes())
    assert content["results"][:4] == first
    assert list(content["summary"]) == ["tutorial", "fast", "pca", "1-nn"]
    assert all(found["digits"] == ["0", "1"] for found in content["summary"].values())


def test_the_pooling_is_the_users_choice(data: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--data", str(data), "--normal", "0", "--preset", "fast", "--pooling", "largest-share"]
    arguments += ["--epochs", "1", "--calibration-size", "100", "--precision", "float32", "--quiet"]
    assert main([*arguments, "--output", str(tmp_path)]) == ExitCode.STOPPED
    manifest = read_bundle(tmp_path).manifest
    assert (manifest.score.name, manifest.score.pooling) == ("root_mse", "mean_of_largest_0.2_percent")
    assert manifest.training["preset"] == "fast, largest-share"


def test_a_wrong_preset_is_named() -> None:
    assert main(["benchmark", "--presets", "tutorial,best"]) == ExitCode.BAD_CONFIGURATION
