"""How a fit ends early, goes on, and keeps out what does not belong to it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training import images as memory
from training.__main__ import INTERRUPTED, main
from training.progress import History, Silence
from training.saved_fit import FOLDER, Saved, SavedFit
from worker.adapters.keras_scorer import select_backend
from worker.core.bundle import read_bundle
from worker.core.errors import ExitCode

pytestmark = pytest.mark.models

EPOCHS = 4


@pytest.fixture(scope="module", autouse=True)
def _backend() -> None:
    select_backend("tensorflow")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Left halves that are bright, with noise; anomalies are dark."""
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    images = np.random.default_rng(1).integers(0, 90, (330, 8, 8), dtype=np.uint8)
    images[:310, :, :4] += 120
    np.savez(path, images=images, labels=np.repeat([0, 1], [310, 20]))
    return path


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    given = ["fit", "--data", str(data), "--output", str(output), "--preset", "default", "--epochs", str(EPOCHS)]
    given += ["--normal", "0"]
    given += ["--calibration-size", "40", "--batch-size", "64", "--precision", "float32", "--threshold-method"]
    return [*given, "mean-plus-k-std", *more]


def interrupted_after(epoch: int, monkeypatch: pytest.MonkeyPatch, given: Sequence[str]) -> None:
    """A fit that Ctrl-C ends right after so many epochs of this run were saved."""
    save, left = SavedFit.save, [epoch]

    def save_and_interrupt(self: SavedFit, saved: Saved) -> None:
        save(self, saved)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(SavedFit, "save", save_and_interrupt)
        assert main(given) == INTERRUPTED


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weight arrays of a fit that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    assert main(arguments(data, output, "--quiet")) == ExitCode.STOPPED
    manifest = read_bundle(output).manifest
    assert manifest.training["epoch_kept"] <= len(manifest.training["loss_history"]) <= EPOCHS
    assert manifest.training["validation_images"] == 20
    assert not (output / FOLDER).exists()
    return manifest.weights_sha256


def test_an_interrupted_fit_goes_on_to_the_same_weights_also_from_images_on_the_disk(
    data: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, tmp_path)
    interrupted_after(1, monkeypatch, given)
    assert "The same command goes on" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    interrupted_after(2, monkeypatch, given)
    assert f"Going on after epoch 1 of {EPOCHS}" in capsys.readouterr().out
    monkeypatch.setattr(memory, "IN_MEMORY", 330 * 64 - 1)
    assert main(given) == ExitCode.STOPPED
    shown = capsys.readouterr().out
    assert f"Going on after epoch 3 of {EPOCHS}" in shown
    assert f"epoch {EPOCHS}/{EPOCHS}" in shown
    assert f"epoch 3/{EPOCHS}" not in shown
    assert weights in shown
    bundle = read_bundle(tmp_path)
    assert bundle.manifest.weights_sha256 == weights
    assert len(bundle.manifest.training["loss_history"]) == EPOCHS
    assert not (tmp_path / FOLDER).exists()


def test_a_damaged_file_begins_the_fit_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, tmp_path)
    interrupted_after(2, monkeypatch, given)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    capsys.readouterr()
    interrupted_after(2, monkeypatch, given)
    shown = capsys.readouterr().out
    assert f"{file}' holds no fit that could go on" in shown
    assert "begins anew" in shown
    assert f"epoch 1/{EPOCHS}" in shown


def test_another_fit_does_not_go_on_from_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--seed", "1"], ["--fresh"]):
        interrupted_after(1, monkeypatch, arguments(data, tmp_path, *more))
    assert "Going on" not in capsys.readouterr().out
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


@pytest.mark.parametrize(
    "changed",
    [
        ["--preset", "fast"],
        ["--epochs", "9"],
        ["--patience", "3"],
        ["--time-budget", "60"],
        ["--robust"],
        ["--batch-size", "64"],
        ["--seed", "1"],
        ["--latent-size", "16"],
        ["--learning-rate", "0.0001"],
    ],
)
def test_every_setting_of_the_fit_makes_it_another(data: Path, changed: list[str]) -> None:
    from training.data import Dataset, load
    from training.fitting import what_decides
    from training.presets import PRESETS
    from training.settings import Fit, parse

    dataset = load(str(data), normal="0", calibration_size=50)

    def decides(*more: str, dataset: Dataset = dataset, **preset: Any) -> dict[str, Any]:
        settings = parse(["fit", "--preset", "default", *more])
        assert isinstance(settings, Fit)
        return what_decides(settings, replace(PRESETS[settings.preset], **preset), dataset)

    assert decides() != decides(dataset=replace(dataset, fit=dataset.fit[::-1]))
    assert decides() != decides(learning_rate=0.5)
    assert decides() != decides(epochs=77)
    assert decides() != decides(dataset=replace(dataset, fit_groups=np.arange(len(dataset.fit))))
    assert decides() == decides("--name", "line", "--quiet", "--fresh", "--output", "elsewhere") != decides(*changed)


def test_a_time_budget_too_small_for_one_epoch_is_exit_2(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path, "--time-budget", "0.00001", "--quiet")) == ExitCode.BAD_CONFIGURATION
    assert "time_budget (--time-budget)" in capsys.readouterr().err


def test_patience_without_images_to_validate_is_exit_2(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(arguments(data, tmp_path, "--calibration-size", "124", "--patience", "3")) == ExitCode.BAD_CONFIGURATION
    )
    assert "of 124 images to fit none can be held out to validate" in capsys.readouterr().err


class Scripted:
    """An autoencoder that learns one number, how many steps it made; its validation losses are laid down."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        import keras

        self.variables = [keras.Variable(0.0, name="steps")]
        self.optimizer = SimpleNamespace(variables=[])
        self.learned: list[NDArray[np.float32]] = []
        self.validated: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._losses = iter(losses)

    def reset_metrics(self) -> None: ...

    def train_on_batch(
        self, x: NDArray[np.float32], y: NDArray[np.float32], *, return_dict: bool = False
    ) -> dict[str, float]:
        self.variables[0].assign_add(1.0)
        self.learned.append(y)
        return {"loss": 1.0}

    def test_on_batch(self, x: NDArray[np.float32], y: NDArray[np.float32], *, return_dict: bool) -> dict[str, float]:
        self.validated.append((x, y))
        return {"loss": next(self._losses, 1.0)}

    @property
    def steps(self) -> float:
        return float(self.variables[0].numpy())


def fitted(autoencoder: Any, images: NDArray[np.uint8] | None = None, **more: Any) -> History:
    from training.fit import fit_autoencoder

    images = np.zeros((4, 4, 4, 1), np.uint8) if images is None else images
    settings: dict[str, Any] = {"epochs": 8, "batch_size": 4, "seed": 0, "progress": Silence()} | more
    return fit_autoencoder(autoencoder, images, images[:4], **settings)


@pytest.mark.parametrize(
    ("patience", "epochs", "kept", "ended"),
    [(2, 6, 4, "2 epochs without a lower validation loss"), (3, 8, 7, "all epochs"), (None, 8, 8, "all epochs")],
)
def test_a_fit_that_gets_no_better_ends_and_keeps_its_best_epoch(
    patience: int | None, epochs: int, kept: int, ended: str
) -> None:
    autoencoder = Scripted([5, 4, 4.5, 3, 3.5, 3, 2, 9])
    history = fitted(autoencoder, patience=patience)
    assert (len(history.loss), history.kept, history.ended) == (epochs, kept, ended)
    assert autoencoder.steps == kept


def test_a_fit_that_ended_early_does_not_go_on() -> None:
    saves: list[Saved] = []
    losses = [2.0, 1.0, 3.0, 3.0, 0.5]
    history = fitted(Scripted(losses), patience=2, save=saves.append)
    again = Scripted()
    assert fitted(again, patience=2, saved=saves[-1]).loss == history.loss
    assert again.learned == []
    assert again.steps == history.kept == 2


def test_no_epoch_is_begun_that_the_time_budget_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    history = fitted(Scripted(), budget_s=35.0)
    assert (len(history.loss), history.ended) == (3, "the time budget")


def test_what_validates_is_to_be_restored_and_distorted_alike_each_time() -> None:
    def darken(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        return pixels * rng.random((len(pixels), 1, 1, 1), dtype=np.float32)

    autoencoder = Scripted()
    images = np.full((4, 4, 4, 1), 200, np.uint8)
    fitted(autoencoder, images, epochs=3, corrupt=darken)
    given, wanted = autoencoder.validated[0]
    np.testing.assert_allclose(wanted, 200 / 255, rtol=1e-6)
    assert len(np.unique(given)) == 4
    for found, _ in autoencoder.validated[1:]:
        np.testing.assert_array_equal(found, given)


def test_the_time_of_a_step_is_with_its_distortion() -> None:
    from training.fit import TIMED_STEPS, seconds_per_step

    autoencoder = Scripted()
    calls: list[int] = []

    def corrupt(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        calls.append(len(pixels))
        return pixels

    images = np.zeros((9, 4, 4, 1), np.uint8)
    assert seconds_per_step(autoencoder, images, 4, corrupt) > 0
    assert calls == [4] * (TIMED_STEPS + 1)
    assert autoencoder.steps == 0


def test_a_robust_score_is_fitted_without_what_one_fitted_to_the_others_calls_strange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras

    from training import fitting
    from training.presets import PRESETS
    from training.scores import MEAN_SQUARED_ERROR, Score
    from training.settings import Fit, parse

    told: list[NDArray[np.uint8]] = []

    def score(autoencoder: Any, images: NDArray[np.uint8], seed: int) -> Score:
        told.append(images)
        return MEAN_SQUARED_ERROR

    images = np.zeros((200, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(200)
    images[9] = 255  # the network restores nothing but black
    pixels = keras.Input((4, 4, 1))
    latent = keras.layers.Dense(1, name="latent")(keras.layers.Flatten()(pixels))
    black = keras.layers.Reshape((4, 4, 1))(keras.layers.Dense(16, kernel_initializer="zeros")(latent))
    preset = replace(PRESETS["default"], score=score)
    monkeypatch.setattr(fitting, "FOLDS", 2)
    for given in (["fit"], ["fit", "--robust"]):
        settings = parse(given)
        assert isinstance(settings, Fit)
        fitting.fit_score(preset, keras.Model(pixels, black), images, settings)
    assert [len(found) for found in told] == [200, 100, 100, 196]
    firsts = [set(found[:, 0, 0, 0].tolist()) for found in told]
    assert firsts[1] | firsts[2] == firsts[0]
    assert not firsts[1] & firsts[2]
    assert 255 not in firsts[3]
