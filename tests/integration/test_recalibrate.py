"""`reconstream-train calibrate`: an untrained bundle gets another threshold; its network is not touched."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.bundles import tiny_images, write_tiny_bundle
from training.__main__ import main
from training.show import facts_of
from worker.core.bundle import CURRENT, GOLDEN, MANIFEST, SCORER, Bundle, digest_of, read_bundle
from worker.core.errors import ExitCode
from worker.core.images import encode_png

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("original"))


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Bundle:
    folder = tmp_path / "bundles" / original.folder.name
    folder.mkdir(parents=True)
    for path in original.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder.parent / CURRENT).symlink_to(folder.name)
    return read_bundle(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    good = tmp_path / "new" / "good"
    good.mkdir(parents=True)
    for index, image in enumerate(tiny_images(300, seed=9) // 2):
        (good / f"part{index // 5:02}_{index % 5}.png").write_bytes(encode_png(image))
    (good.parent / "fault").mkdir()
    (good.parent / "fault" / "a.png").write_bytes(encode_png(tiny_images(1, seed=7)[0]))
    return good.parent


def test_a_threshold_is_fitted_anew_and_the_old_one_stays_in_the_history(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = bundle.folder.parent
    arguments = ["calibrate", str(output), "--data", str(data), "--threshold-method", "conformal"]
    more = ["--false-alarms-per-day", "40", "--parts-per-day", "1000", "--group-by", "pattern:^(part[0-9]+)"]
    assert main([*arguments, *more]) == ExitCode.STOPPED
    shown = capsys.readouterr().out
    assert "1 images that are not normal are not used" in shown
    assert "conformal 4 %, 300 images of 60 groups: with 95 % confidence" in shown
    assert "a day" in shown
    new = read_bundle(output)
    assert (output / CURRENT).readlink() == Path(new.folder.name) != Path(bundle.folder.name)
    old, made = bundle.manifest, new.manifest
    assert [fit.value for fit in made.threshold.history] == [old.threshold.value]
    assert (made.threshold.method, made.threshold.n, made.threshold.groups) == ("conformal", 300, 60)
    assert made.threshold.parameters == {"false_positive_rate": 0.04}
    assert made.weights_sha256 == old.weights_sha256
    assert made.training["calibrated_on"] == str(data)
    for name in (SCORER, GOLDEN):
        assert made.files[name] == old.files[name]
    assert len(new.calibration.scores) == 300
    assert made.calibration_quantiles["score"]["0.5"] == pytest.approx(np.median(new.calibration.scores))
    assert made.calibration_quantiles["brightness"] != old.calibration_quantiles["brightness"]
    np.testing.assert_array_equal(new.calibration.evaluation_scores, bundle.calibration.evaluation_scores)
    assert new.calibration.groups is not None
    assert np.bincount(new.calibration.groups).tolist() == [5] * 60
    report = (new.folder / "report.html").read_text()
    assert old.folder_name in report
    assert "conformal 4 %" in report
    assert read_bundle(bundle.folder).manifest == old


def test_twice_keeps_both_and_evaluate_and_inspect_read_the_result(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = bundle.folder.parent
    by_part = ["--group-by", "pattern:^(part[0-9]+)"]
    for more in (["--percentile", "95", *by_part], ["--threshold-method", "mean-plus-k-std", "-k", "2"]):
        assert main(["calibrate", str(output), "--data", str(data), *more]) == ExitCode.STOPPED
    made = read_bundle(output).manifest
    assert [fit.parameters for fit in made.threshold.history] == [{"percentile": 99.0}, {"percentile": 95.0}]
    assert [fit.groups for fit in (*made.threshold.history, made.threshold)] == [None, 60, None]
    assert made.threshold.parameters == {"k": 2.0}
    capsys.readouterr()
    assert main(["inspect", str(output)]) == ExitCode.STOPPED
    assert "calibrated_on" in capsys.readouterr().out
    assert dict(facts_of(made))["threshold fitted"].endswith("on 300 images, 2 earlier ones")
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", str(output), "--json", str(numbers)]) == ExitCode.STOPPED
    thresholds = json.loads(numbers.read_text())["thresholds"]
    assert [item["fit"]["method"] for item in thresholds if item["chosen"]] == ["mean_plus_k_std"]
    assert len(thresholds) == 6


def test_what_fails_leaves_current_as_it_was(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = bundle.folder.parent
    before = sorted(path.name for path in output.iterdir())
    by_part = ["--threshold-method", "conformal", "--group-by", "pattern:^(part[0-9]+)"]
    for more in (["--percentile", "99.9"], ["--group-by", "pattern:(nothing)"], by_part):
        assert main(["calibrate", str(output), "--data", str(data), *more]) == ExitCode.BAD_CONFIGURATION
    errors = capsys.readouterr().err
    assert "At least 1000 images" in errors
    assert "says nothing about" in errors
    assert "60 groups of calibration images cannot guarantee it. At least 99 of them" in errors
    assert sorted(path.name for path in output.iterdir()) == before
    assert (output / CURRENT).readlink() == Path(bundle.folder.name)


def test_a_bundle_of_before_groups_is_calibrated_anew(bundle: Bundle, data: Path) -> None:
    fields = json.loads((bundle.folder / MANIFEST).read_text("utf-8"))
    for name in ("groups", "no_interval"):
        del fields["threshold"][name]
    fields["digest"] = digest_of(fields)
    (bundle.folder / MANIFEST).write_text(json.dumps(fields), "utf-8")
    older = bundle.folder.rename(bundle.folder.parent / f"{fields['name']}-{fields['digest'][:12]}")
    assert main(["calibrate", str(older), "--data", str(data), "--percentile", "95"]) == ExitCode.STOPPED
    (kept,) = read_bundle(older.parent).manifest.threshold.history
    assert (kept.value, kept.groups, kept.no_interval) == (bundle.manifest.threshold.value, None, None)
