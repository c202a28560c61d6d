"""What people read of thresholds: the tables, the reports, and what is refused before a fit."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from tests.property.test_bundle import write_fake_bundle
from training.__main__ import main
from training.data import Dataset
from training.evaluate import Judged, judge_thresholds, labelled
from training.progress import History
from training.report import render_calibration_report, render_report
from training.show import show_thresholds
from training.thresholds import CostWeighted, Groups, Percentile, alarms_in_words, fit_threshold
from worker.core.bundle import Calibration, read_bundle
from worker.core.errors import ExitCode

RNG = np.random.default_rng(0)
NORMAL = RNG.gamma(2, size=500).astype(np.float32)
SCORED = np.concatenate([RNG.gamma(2, size=60), 6 + RNG.gamma(2, size=40)]).astype(np.float32)
LABELS = np.arange(100) >= 60
IMAGES = RNG.integers(0, 256, (500, 8, 8, 1), np.uint8)


def calibration(groups: Groups | None = None, *, evaluated: bool = True) -> Calibration:
    scored, labels = (SCORED, LABELS) if evaluated else (SCORED[:0], LABELS[:0])
    return Calibration(NORMAL, NORMAL, scored, scored, labels, groups, None)


def judged(found: Calibration) -> tuple[Judged, ...]:
    return judge_thresholds(found, fit_threshold(Percentile(99), found.scores, found.groups))


def shown(items: tuple[Judged, ...], parts_per_day: float | None = None) -> str:
    console = Console(width=79, force_terminal=False)
    with console.capture() as capture:
        show_thresholds(console, items, parts_per_day)
    return capture.get()


def test_all_methods_stand_side_by_side_on_a_small_terminal() -> None:
    text = shown(judged(calibration()), parts_per_day=2000)
    rows = [line for line in text.splitlines() if re.match(r" *(percentile|mean|peaks|conformal|best|a miss)", line)]
    assert len(rows) == 2 * 6 + 1
    assert "…" not in text
    assert "percentile 99 *" in text
    assert "0.3 to 2.3 %" in text
    assert "percentile 99, 500 images: with 95 % confidence 0.3 % to 2.3 %" in text
    assert "6.51 to 46.4 a day" in text
    assert "judged on folds that did not choose them" in text


def test_what_is_not_known_is_said_with_the_reason() -> None:
    text = shown(judged(calibration(np.arange(500) // 50, evaluated=False)))
    assert "not known" in text
    assert "500 images of 10 groups" in text
    assert "no promise from too few groups: 10; about 20 would do" in text
    assert "The data has no anomalies" in text


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.0033, 0.0232), "0.3 to 2.3 %"), ((0.0, 0.0074), "0 to 0.74 %"), ((0.16, 0.231), "16.0 to 23.1 %")],
)
def test_an_interval_in_words(interval: tuple[float, float], expected: str) -> None:
    fit = fit_threshold(Percentile(99), NORMAL)
    assert alarms_in_words(msgspec.structs.replace(fit, interval=interval)) == expected
    assert alarms_in_words(msgspec.structs.replace(fit, interval=None)) == "not known"


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_report_has_every_method_and_its_interval(evaluated: bool) -> None:
    found = calibration(np.arange(500) // 5, evaluated=evaluated)
    items = judged(found)
    page = render_report(
        name="line",
        created="2026-01-02",
        dataset=Dataset(
            "s", "all", "line", IMAGES[:10], IMAGES, IMAGES[: len(found.evaluation_scores)], found.evaluation_labels
        ),
        calibration=found,
        judged=items,
        history=History((0.2, 0.1), (0.2, 0.1), 1.0),
        training={"seed": 0},
        versions={"numpy": "2"},
        reconstruct=lambda images: images.astype(np.float32) / np.float32(256),
    )
    cells = re.sub(r' class="chosen"', "", page)
    assert "".join(f"<td>{alarms_in_words(item.fit)}</td>" for item in items) in cells
    assert "With 500 calibration images of 100 groups, percentile 99 means that, with 95 % confidence" in page
    assert "font: 16px" in page
    assert ("cross-fitted" in page) == evaluated


def test_the_calibration_report_says_what_changed(tmp_path: Path) -> None:
    old = read_bundle(write_fake_bundle(tmp_path))
    found = calibration(np.arange(500) // 50)
    chosen = fit_threshold(CostWeighted(labelled(found), 2.0), NORMAL, found.groups)
    manifest = old.manifest
    manifest.training["calibrated_on"] = "<week 7>"
    page = " ".join(render_calibration_report(manifest, old, found, judge_thresholds(found, chosen)).split())
    flagged = [int((threshold < NORMAL).sum()) for threshold in (old.threshold, np.float32(chosen.value))]
    assert f"would have flagged {flagged[0]}, the new one flags {flagged[1]}" in page
    assert "&lt;week 7&gt;" in page
    assert "a miss costs 2) instead of" in page
    assert "not known: no promise from too few groups: 10" in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--percentile", "99.9"], "At least 1000 images"),
        (["--false-positive-rate", "0.001", "--threshold-method", "conformal"], "10 groups of calibration images"),
        (["--threshold-method", "peaks-over-threshold"], "At least 200 images"),
        (["--threshold-method", "best-f1"], "best_f1 was given; it needs at least 10 normal images and 10 anomalies"),
    ],
)
def test_what_the_data_cannot_support_is_refused_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    path = tmp_path / "line.npz"
    np.savez(path, images=IMAGES[:300], groups=np.arange(300) // 5)
    more = ["--calibration-size", "50", "--output", str(tmp_path / "bundles")]
    assert main(["fit", "--data", str(path), *more, *arguments]) == ExitCode.BAD_CONFIGURATION
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
