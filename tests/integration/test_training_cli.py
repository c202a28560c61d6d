"""Real fits of a few small images: settings in, bundle out."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training import commands, words
from training.__main__ import INTERRUPTED, main
from training.saved_fit import FOLDER
from worker.core.bundle import CURRENT, FILES, MANIFEST, Bundle, read_bundle
from worker.core.errors import BundleError, ConfigurationError, ExitCode
from worker.core.images import encode_png

pytestmark = pytest.mark.models

SIZE = 8
NORMALS = 260
ANOMALIES = 30


def stripes(count: int, axis: int, seed: int) -> NDArray[np.uint8]:
    """Stripes along an axis with a little noise, uint8 (count, SIZE, SIZE)."""
    rng = np.random.default_rng(seed)
    pattern = np.where(np.arange(SIZE) % 2 == 0, 200, 20)
    image = np.broadcast_to(pattern[:, None] if axis == 0 else pattern[None, :], (SIZE, SIZE))
    return (image + rng.integers(0, 40, (count, SIZE, SIZE))).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "lines.npz"
    images = np.concatenate([stripes(NORMALS, 0, 1), stripes(ANOMALIES, 1, 2)])
    np.savez(path, images=images, labels=np.array([0] * NORMALS + [1] * ANOMALIES))
    return path


def fit_arguments(data: Path, output: Path, *more: str) -> list[str]:
    arguments = ["fit", "--data", str(data), "--normal", "0", "--output", str(output)]
    return [*arguments, "--calibration-size", "100", "--epochs", "2", "--batch-size", "32", *more]


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fit") / "bundles"
    assert main(fit_arguments(data, output, "--name", "lines", "--quiet")) == ExitCode.STOPPED
    return output


@pytest.fixture
def bundle(output: Path) -> Bundle:
    return read_bundle(output)


def test_a_fit_leaves_one_bundle_and_the_link_to_it(output: Path, bundle: Bundle) -> None:
    assert sorted(path.name for path in output.iterdir()) == [CURRENT, bundle.manifest.folder_name]
    assert (output / CURRENT).readlink() == Path(bundle.manifest.folder_name)
    assert sorted(path.name for path in bundle.folder.iterdir()) == sorted([*FILES, MANIFEST])
    assert bundle.folder.stat().st_mode & 0o777 == 0o755


def test_the_manifest_says_what_was_done(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.name, manifest.input_shape, manifest.resize) == ("lines", (SIZE, SIZE, 1), False)
    assert (manifest.data.fit, manifest.data.calibration, manifest.data.evaluation) == (108, 100, 82)
    assert manifest.threshold.method == "percentile"
    assert manifest.threshold.value == np.float32(np.percentile(bundle.calibration.scores.astype(np.float64), 99))
    assert manifest.training["machine"].endswith(f"{platform.system()} {platform.machine()}")
    assert manifest.training["epochs"] == len(manifest.training["loss_history"]) == 2
    assert set(manifest.versions) >= {"reconstream", "keras", "tensorflow", "numpy", "opencv", "python"}
    assert manifest.calibration_quantiles["score"]["0.5"] == pytest.approx(np.median(bundle.calibration.scores))
    assert set(manifest.calibration_quantiles) == {"score", "error", "brightness", "sharpness"}
    assert 0 < manifest.calibration_quantiles["brightness"]["0.5"] < 1


def test_the_manifest_names_what_serves_and_why(output: Path, bundle: Bundle) -> None:
    serving, training = bundle.manifest.serving, bundle.manifest.training
    assert serving.backend == "tensorflow"
    assert training["serving"] == f"{serving.precision} on tensorflow"
    assert "bfloat16" in training["serving_because"]
    assert f"<td>{training['serving_because']}</td>" in (bundle.folder / "report.html").read_text().replace(
        "&#39;", "'"
    )


def test_a_fit_for_openvino(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--scorer", "openvino", "--precision", "float32", "--epochs", "1", "--quiet"]
    assert main(fit_arguments(data, tmp_path, *more)) == ExitCode.STOPPED
    assert "serves in float32 on openvino: asked for" in capsys.readouterr().out
    manifest = read_bundle(tmp_path).manifest
    assert (manifest.serving.backend, manifest.serving.precision) == ("openvino", "float32")
    assert {"tensorflow", "openvino"} <= set(manifest.versions)
    assert main(["evaluate", str(tmp_path)]) == ExitCode.STOPPED


def test_what_this_machine_cannot_serve_is_exit_2_before_the_fit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from worker.adapters import engines

    monkeypatch.setattr(engines, "native_bfloat16", lambda backend: False)
    assert main(fit_arguments(data, tmp_path / "a", "--precision", "bfloat16")) == ExitCode.BAD_CONFIGURATION
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(fit_arguments(data, tmp_path / "b", "--scorer", "openvino")) == ExitCode.BAD_CONFIGURATION
    captured = capsys.readouterr()
    assert "precision (--precision): bfloat16 on tensorflow was given" in captured.err
    assert "fit with --precision float32" in captured.err
    assert "install the extra 'openvino'" in captured.err
    assert captured.out == ""


def test_the_golden_images_are_of_both_kinds(bundle: Bundle) -> None:
    assert len(bundle.golden.images) == 8
    assert all(image.startswith(b"\x89PNG") for image in bundle.golden.images)
    # Stripes along the other axis are further from what was fitted on.
    assert np.min(bundle.golden.errors[4:]) > np.max(bundle.golden.errors[:4])


def test_the_report_is_one_file_that_needs_no_other(bundle: Bundle) -> None:
    page = (bundle.folder / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert len(addresses) > 20
    assert all(address.startswith("data:image/") for address in addresses)
    assert "<script" not in page
    assert "url(" not in page
    for text in ("lines", "percentile 99", "mean + 3 std", "ROC curve", "Normal images that passed", "fingerprint"):
        assert text in page
    assert bundle.manifest.weights_sha256 in page
    assert bundle.manifest.training["machine"] in page
    assert "Recall by kind of anomaly" in page


def test_evaluate_repeats_the_numbers_from_the_bundle_alone(
    output: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(output / CURRENT), "--json", str(tmp_path / "new" / "n.json")]) == ExitCode.STOPPED
    numbers = json.loads((tmp_path / "new" / "n.json").read_text())
    assert numbers["version"] == bundle.manifest.version
    (chosen,) = (item for item in numbers["thresholds"] if item["chosen"])
    found = chosen["evaluation"]
    labels = bundle.calibration.evaluation_labels
    called = bundle.calibration.evaluation_scores > bundle.threshold
    assert (found["tp"], found["fp"]) == (int((called & labels).sum()), int((called & ~labels).sum()))
    assert found["tp"] + found["fn"] == ANOMALIES
    methods = ["percentile", "mean_plus_k_std", "conformal", "best_f1", "cost_weighted"]  # peaks need 200 images
    assert [item["fit"]["method"] for item in numbers["thresholds"]] == methods
    page = (bundle.folder / "report.html").read_text()
    values = re.findall(
        r"<small>([^<]*)</small></th><td>[^<]*</td>\s*<td>(\d+) of \d+<small>[^<]*</small></td>", page
    )
    assert values == [
        (f"{item['fit']['value']:.6g}", str(item["evaluation"]["tp"])) for item in numbers["thresholds"]
    ]
    for key in ("tp", "fn", "fp", "tn"):
        assert re.search(rf">{found[key]}<small>[^<]*\({key.upper()}\)", page)
    low, high = found["recall_interval"]
    assert low < found["recall"] <= high
    assert numbers["at_prevalence"]["prevalence"] == bundle.manifest.training["prevalence"] == 0.01
    shown = capsys.readouterr().out
    assert words.ratio(found["auroc"]) in shown
    assert f"{found['tp']} of {ANOMALIES} anomalies found, {words.percent(found['recall'])}" in shown


def test_precision_is_stated_for_the_prevalence_that_is_asked_for(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(output), "--json", str(tmp_path / "n.json"), "--prevalence", "0.2"]
    assert main(arguments) == ExitCode.STOPPED
    assert json.loads((tmp_path / "n.json").read_text())["at_prevalence"]["prevalence"] == 0.2
    assert "where 20 % of the images are anomalies" in capsys.readouterr().out
    assert main([*arguments[:-1], "1"]) == ExitCode.BAD_CONFIGURATION
    assert "prevalence (--prevalence" in capsys.readouterr().err


def test_a_damaged_bundle_is_exit_3(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / bundle.folder.name
    copy.mkdir()
    for path in bundle.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert main(["inspect", str(copy)]) == ExitCode.STOPPED
    (copy / "report.html").write_bytes(b"something else")
    for command in ("inspect", "evaluate"):
        assert main([command, str(copy)]) == ExitCode.BAD_BUNDLE
        assert "report.html" in capsys.readouterr().err


def test_what_needs_no_model_imports_no_model(output: Path) -> None:
    script = """
import sys
from training.__main__ import main
codes = [main(arguments) for arguments in (["--help"], ["fit", "--epochs", "0"], ["inspect", sys.argv[1]])]
assert codes == [0, 2, 0], codes
loaded = {"keras", "tensorflow", "sklearn", "matplotlib", "scipy"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script, str(output)], check=True, capture_output=True, timeout=60)


def test_ctrl_c_leaves_no_bundle_but_from_where_to_go_on(data: Path, tmp_path: Path) -> None:
    arguments = fit_arguments(data, tmp_path / "bundles", "--epochs", "10000")
    with subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "", "PYTHONUNBUFFERED": "1"},
        # As from a terminal: a shell starts what it puts into the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it only sets a handler
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [FOLDER]


def test_a_folder_is_fitted_and_its_bad_files_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "photos" / "good"
    good.mkdir(parents=True)
    for index, image in enumerate(stripes(30, 0, 3)):
        (good / f"{index:02}.png").write_bytes(encode_png(image[..., None]))
    (good / "bad.png").write_bytes(b"no picture")
    output = tmp_path / "bundles"
    for name, seconds_ago in ((".old-1.tmp", 4000), (".another-2.tmp", 3000)):
        (output / name).mkdir(parents=True)
        os.utime(output / name, (time.time() - seconds_ago,) * 2)
    arguments = ["fit", "--data", str(good.parent), "--output", str(output), "--calibration-size", "10"]
    arguments += ["--epochs", "1", "--threshold-method", "mean-plus-k-std", "--height", "12", "--width", "12"]
    assert main(arguments) == ExitCode.STOPPED
    shown = capsys.readouterr().out
    assert "skipped good/bad.png" in shown
    assert "about" in shown
    assert "epoch 1/1" in shown
    bundle = read_bundle(output)
    assert (bundle.manifest.name, bundle.manifest.input_shape, bundle.manifest.resize) == (
        "photos",
        (12, 12, 1),
        True,
    )
    assert bundle.manifest.threshold.method == "mean_plus_k_std"
    assert sorted(path.name for path in output.glob(".*.tmp")) == [".another-2.tmp"], "it may be another fit's"
    assert len(bundle.calibration.evaluation_scores) == 0
    assert "no anomalies" in (bundle.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--percentile", "99.9"], "At least 1000 images"),
        (["--calibration-size", "105"], "at most 104"),
        (["--normal", "2"], "labels 0, 1"),
    ],
)
def test_data_that_cannot_do_it_is_exit_2_before_the_fit(
    data: Path, tmp_path: Path, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments(data, tmp_path / "bundles", *more)) == ExitCode.BAD_CONFIGURATION
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def test_an_output_that_cannot_be_is_exit_2(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(fit_arguments(data, tmp_path / "file")) == ExitCode.BAD_CONFIGURATION
    (tmp_path / "folder" / CURRENT).mkdir(parents=True)
    assert main(fit_arguments(data, tmp_path / "folder")) == ExitCode.BAD_CONFIGURATION


@pytest.fixture
def build() -> Iterator[Callable[[int], Any]]:
    from worker.adapters.keras_scorer import select_backend

    select_backend(commands.BACKENDS["keras"])
    import keras

    from training.fit import compile_autoencoder
    from training.model import build_autoencoder

    def build(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        autoencoder = build_autoencoder((SIZE, SIZE, 1))
        compile_autoencoder(autoencoder)
        return autoencoder

    yield build
    keras.utils.clear_session()


def test_the_autoencoder_is_the_tutorials(build: Callable[[int], Any]) -> None:
    from training.model import build_autoencoder

    autoencoder = build_autoencoder((28, 28, 1))
    kinds = [type(layer).__name__ for layer in autoencoder.layers]
    encoder = ["InputLayer", "Conv2D", "Conv2D", "Flatten", "Dense"]
    assert kinds == [*encoder, "Dense", "Reshape", "Conv2DTranspose", "Conv2DTranspose", "Conv2D"]
    shapes = [tuple(layer.output.shape[1:]) for layer in autoencoder.layers[1:]]
    assert shapes[:4] == [(14, 14, 32), (7, 7, 64), (3136,), (32,)]
    assert shapes[4:] == [(3136,), (7, 7, 64), (14, 14, 64), (28, 28, 32), (28, 28, 1)]
    for shape in ((30, 28, 1), (28, 26, 1), (28, 28, 2)):
        with pytest.raises(ConfigurationError, match="divisible by 4"):
            build_autoencoder(shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_scorers_error_is_the_mean_squared_difference(build: Callable[[int], Any], channels: int) -> None:
    from training.model import build_autoencoder, build_scorer
    from worker.adapters.keras_scorer import KerasScorer

    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, 12, channels)).astype(np.uint8)
    model = build_scorer(build_autoencoder((SIZE, 12, channels)))
    scorer = KerasScorer(model, 8)
    scores, errors = scorer.score_all(images)
    rebuilt = scorer.reconstruct(images)
    assert rebuilt.shape == images.shape
    np.testing.assert_allclose(errors, np.mean((images / 255 - rebuilt) ** 2, axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(scores, errors)


def test_timing_the_machine_changes_nothing(build: Callable[[int], Any]) -> None:
    from training.fit import seconds_per_step

    autoencoder = build(0)
    variables = [*autoencoder.variables, *autoencoder.optimizer.variables]
    before = [np.array(variable) for variable in variables]
    assert seconds_per_step(autoencoder, stripes(16, 0, 0)[..., None], 8) > 0
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


def test_the_seed_decides_the_fit(build: Callable[[int], Any]) -> None:
    from training.fit import fit_autoencoder
    from training.progress import Silence
    from worker.adapters.keras_scorer import weights_sha256

    images = stripes(50, 0, 0)[..., None]

    def fitted(seed: int) -> str:
        autoencoder = build(seed)
        history = fit_autoencoder(
            autoencoder, images, images[:10], epochs=3, batch_size=16, seed=seed, progress=Silence()
        )
        assert history.loss[-1] < history.loss[0]
        assert len(history.validation_loss) == 3
        return weights_sha256(autoencoder)

    assert fitted(1) == fitted(1) != fitted(2)


def test_the_loss_is_the_mean_over_images_not_over_batches(build: Callable[[int], Any]) -> None:
    from training.fit import fit_autoencoder
    from training.progress import Silence

    class Recorded:
        """An autoencoder whose loss is the batch's mean pixel."""

        def reset_metrics(self) -> None: ...

        def train_on_batch(self, x: NDArray[np.float32], y: object, *, return_dict: bool) -> dict[str, float]:
            return {"loss": float(x.mean())}

        test_on_batch = train_on_batch

    images = np.repeat(np.array([0, 0, 255], np.uint8), SIZE * SIZE).reshape(3, SIZE, SIZE, 1)
    history = fit_autoencoder(Recorded(), images, images, epochs=1, batch_size=2, seed=0, progress=Silence())
    assert history.loss == history.validation_loss == pytest.approx((1 / 3,))


def test_a_loss_that_is_not_finite_stops_the_fit(build: Callable[[int], Any]) -> None:
    from training.fit import fit_autoencoder
    from training.progress import Silence

    class Diverged:
        def reset_metrics(self) -> None: ...

        def train_on_batch(self, x: object, y: object, *, return_dict: bool) -> dict[str, float]:
            return {"loss": float("nan")}

    images = stripes(4, 0, 0)[..., None]
    with pytest.raises(ConfigurationError, match="learning_rate"):
        fit_autoencoder(Diverged(), images, images, epochs=1, batch_size=4, seed=0, progress=Silence())


@pytest.mark.parametrize("failure", [BundleError("does not verify"), KeyboardInterrupt()])
def test_what_does_not_verify_is_removed_and_current_stays(
    data: Path, output: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.adapters.keras_scorer import KerasScorer

    def fail(bundle: Bundle) -> None:
        raise failure

    def bundles() -> tuple[list[Path], Path]:
        # From where the fit could go on is no bundle.
        return sorted(path for path in output.iterdir() if path.name != FOLDER), (output / CURRENT).readlink()

    before = bundles()
    monkeypatch.setattr(KerasScorer, "load", fail)
    code = main(fit_arguments(data, output, "--name", "again", "--epochs", "1", "--quiet"))
    assert code == (ExitCode.BAD_BUNDLE if isinstance(failure, BundleError) else INTERRUPTED)
    assert bundles() == before


def test_current_is_switched_and_never_replaces_a_folder(build: Callable[[int], Any], tmp_path: Path) -> None:
    from training.export import switch_current

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        switch_current(tmp_path, name)
        assert (tmp_path / CURRENT).resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURRENT, "one", "two"]
    (tmp_path / CURRENT).unlink()
    (tmp_path / CURRENT).mkdir()
    with pytest.raises(BundleError, match="no link"):
        switch_current(tmp_path, "one")
