"""What people read of thresholds: the tables, the reports, and what is refused before a fit."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from tests.property.test_bundle import write_fake_bundle
from training import charts
from training.__main__ import main
from training.data import Dataset
from training.evaluate import AtPrevalence, Judged, judge_thresholds, labelled, rare_in
from training.examples import PICTURES_BYTES, gallery
from training.progress import History
from training.report import render_calibration_report, render_report
from training.show import show_thresholds
from training.thresholds import CostWeighted, Groups, Percentile, alarms_in_words, fit_threshold
from worker.core.bundle import Calibration, ScoreDefinition, read_bundle
from worker.core.errors import ExitCode

RNG = np.random.default_rng(0)
NORMAL = RNG.gamma(2, size=500).astype(np.float32)
SCORED = np.concatenate([RNG.gamma(2, size=60), 6 + RNG.gamma(2, size=40)]).astype(np.float32)
LABELS = np.arange(100) >= 60
IMAGES = RNG.integers(0, 256, (500, 8, 8, 1), np.uint8)


def calibration(groups: Groups | None = None, *, evaluated: bool = True) -> Calibration:
    scored, labels = (SCORED, LABELS) if evaluated else (SCORED[:0], LABELS[:0])
    return Calibration(NORMAL, NORMAL, scored, scored, labels, groups, None)


def judged(found: Calibration, kinds: tuple[str, ...] | None = None) -> tuple[Judged, ...]:
    return judge_thresholds(found, fit_threshold(Percentile(99), found.scores, found.groups), kinds=kinds)


def shown(items: tuple[Judged, ...], parts_per_day: float | None = None, rare: AtPrevalence | None = None) -> str:
    console = Console(width=79, force_terminal=False)
    with console.capture() as capture:
        show_thresholds(console, items, parts_per_day, rare)
    return capture.get()


def dataset(found: Calibration, **more: Any) -> Dataset:
    count = len(found.evaluation_scores)
    return replace(Dataset("s", "all", "line", IMAGES[:10], IMAGES, IMAGES[:count], found.evaluation_labels), **more)


def darkened(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(256)


def rendered(found: Calibration, data: Dataset | None = None, **more: Any) -> str:
    data = data or dataset(found)
    given: dict[str, Any] = {
        "name": "line",
        "created": "2026-01-02T03:04:05+00:00",
        "dataset": data,
        "calibration": found,
        "judged": judged(found, data.evaluation_kinds or None),
        "prevalence": 0.02,
        "history": History((0.2, 0.1), (0.2, 0.1), 80.0),
        "score": ScoreDefinition("mse", "mean"),
        "training": {"seed": 17, "machine": "a processor, 2 cores", "losses": [1, 2]},
        "versions": {"numpy": "2"},
        "weights_sha256": "a1b2c3",
        "reconstruct": darkened,
    }
    return render_report(**(given | more))


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, pictures by alternative text, and words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(page)
        self.words = " ".join(self.said.split())
        self.pictures = [dict(given) for tag, given in self.tags if tag == "img"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data + " "

    def picture(self, begins: str) -> bytes:
        """The bytes of the first picture whose alternative text begins so."""
        address = next(str(given["src"]) for given in self.pictures if str(given["alt"]).startswith(begins))
        return base64.b64decode(address.partition(",")[2])


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


def test_what_was_found_is_said_with_what_it_is_worth() -> None:
    found = calibration()
    items = judged(found, ("good",) * 60 + ("stain",) * 30 + ("[scratch]",) * 10)
    rare = rare_in(found, items, 0.02)
    text = shown(items, rare=rare)
    best = next(item.evaluation for item in items if item.chosen)
    assert best is not None
    assert f"{best.tp} of 40 anomalies found" in text
    assert "(95 %: " in text
    assert "worst found: " in text
    assert "[scratch] (" in text
    assert "where 2 % of the images are anomalies: of the alarms " in text
    faultless = msgspec.structs.replace(best, fp=0, average_precision=0.99996)
    items = tuple(msgspec.structs.replace(item, evaluation=faultless) if item.chosen else item for item in items)
    text = shown(items, rare=AtPrevalence(0.02, 1.0, 0.1239, 0.5))
    assert "average precision > 0.9999" in text
    assert "of the alarms at least 12.3 % (95 %)" in text


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_report_has_every_method_and_its_interval(evaluated: bool) -> None:
    found = calibration(np.arange(500) // 5, evaluated=evaluated)
    items = judged(found)
    page = rendered(found, judged=items)
    cells = re.findall(r"</small></th><td>([^<]*)</td>", page.replace("\N{NO-BREAK SPACE}", " "))
    assert cells == [alarms_in_words(item.fit) for item in items]
    assert "With 500 calibration images of 100 groups, percentile 99 means that, with 95 % confidence" in page
    assert "font: 16px" in page
    assert ("cross-fitted" in page) == evaluated


@pytest.fixture(scope="module")
def page() -> Reader:
    return Reader(rendered(calibration()))


def test_the_report_says_what_was_trained_on_what(page: Reader) -> None:
    words, found = page.words, calibration()
    for fact in (
        "2026-01-02 03:04:05 UTC",
        "fitted on 10 0 calibrated on 500 0 evaluated on 60 40",
        "8 x 8 x 1",
        "seed 17",
        "a processor, 2 cores",
        "SHA-256 of the weights a1b2c3",
        "2 epochs in 1 min 20 s",
        f"fingerprint {dataset(found).description().fingerprint}",
        "mse, pooled by mean",
        "numpy 2",
    ):
        assert fact in words
    assert "losses" not in words
    for level, value in zip((0, 0.5, 0.99, 1), np.quantile(NORMAL, (0, 0.5, 0.99, 1)), strict=True):
        assert f"{level:g} {value:.4g}" in words


def test_the_report_says_what_was_found_by_kind_and_where_anomalies_are_rare() -> None:
    found = calibration()
    kinds = ("good",) * 60 + ("stain",) * 30 + ("scratch",) * 10
    data = dataset(found, evaluation_kinds=kinds)
    words = Reader(rendered(found, data)).words
    best = next(item.evaluation for item in judged(found, kinds) if item.chosen)
    assert best is not None
    assert f"{best.tp} of 40 anomalies found; 95 %: " in words
    for kind in best.kinds:
        assert f"{kind.name} {kind.found} of {kind.count} " in words
    assert "Precision where 2 % are anomalies" in words
    assert "good" not in words.partition("Recall by kind")[2].partition("Intervals are")[0]


def test_scores_are_drawn_where_the_threshold_is_one_of_scores(page: Reader) -> None:
    found = calibration()
    other = replace(found, errors=NORMAL[::-1] + np.float32(9), evaluation_errors=SCORED[::-1] + np.float32(9))
    assert page.picture("Histograms") == Reader(rendered(other)).picture("Histograms")


def test_a_report_without_anomalies_has_no_curves_and_shows_the_strangest_normal_images() -> None:
    found = calibration(evaluated=False)
    page = Reader(rendered(found, dataset(found, calibration_names=tuple(f"{index}.png" for index in range(500)))))
    assert "The data has no anomalies" in page.words
    for absent in ("ROC", "Precision", "Confusion", "Recall", "AUROC"):
        assert absent not in page.words
    named = [given["alt"] for given in page.pictures if str(given["alt"]).startswith("calibration image")]
    assert named[0] == f"calibration image {int(np.argmax(NORMAL))}.png"
    assert len(named) == len(set(named)) == 9


def test_the_worst_mistakes_come_first_and_by_name() -> None:
    found = calibration()
    names = tuple(f"{'good' if index < 60 else 'scratch'}/{index}.png" for index in range(100))
    data = dataset(found, evaluation_names=names, evaluation_kinds=tuple(name.split("/")[0] for name in names))
    threshold = float(np.median(SCORED[60:]))
    missed, *_ = (
        group for group in gallery(data, found, threshold, darkened).groups if group.one == "missed anomaly"
    )
    assert [example.name for example in missed.examples] == [
        names[60 + index] for index in np.argsort(SCORED[60:], kind="stable")[:6]
    ]
    alarms = gallery(data, found, 0.5, darkened).groups[0]
    assert [example.score for example in alarms.examples] == sorted(SCORED[:60], reverse=True)[:6]


def test_what_data_is_called_is_text_and_no_markup() -> None:
    def called(text: str) -> Reader:
        found = calibration()
        data = dataset(
            found,
            source=text,
            normal=text,
            skipped=(text,),
            codecs={text: 3},
            sizes={text: 3},
            evaluation_kinds=(text,) * 100,
            evaluation_names=(text,) * 100,
        )
        return Reader(rendered(found, data, name=text, training={text: text}, versions={text: text}))

    evil = "<script>alert(1)</script><img src=x onerror='alert(1)'>\" onload=\"alert(1)"
    page, harmless = called(evil), called("x")
    assert [(tag, given.keys()) for tag, given in page.tags] == [(tag, given.keys()) for tag, given in harmless.tags]
    assert all(str(given["src"]).startswith("data:image/") and given["alt"] for given in page.pictures)
    assert page.words.count(evil) > 10


def test_a_report_stays_small_whatever_the_data() -> None:
    # Mistakes of both kinds, or fewer pictures would be shown.
    found = replace(calibration(), evaluation_labels=np.arange(100) % 2 == 0)
    noise = np.random.default_rng(0).integers(0, 256, (100, 256, 256, 3), np.uint8)
    data = dataset(
        found,
        calibration=noise[:1],
        evaluation=noise,
        fit=noise[:1],
        skipped=tuple(f"file{index}.png: {'bad ' * 20}" for index in range(20_000)),
        sizes={f"{index}x4x3": 1 for index in range(20_000)},
    )
    losses = tuple(np.linspace(1, 0.1, 10_000).tolist())
    page = rendered(found, data, history=History(losses, losses, 1.0))
    assert len(page) < 3_000_000
    pictures = [str(given["src"]) for given in Reader(page).pictures]
    assert len("".join(address for address in pictures if "svg" not in address)) <= PICTURES_BYTES
    assert page.count("and 19,960 more") == 2
    assert "file19999.png" not in page
    assert "19999x4x3" not in page


def test_charts_of_many_scores_are_no_larger_than_they_look() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40_000) % 2 == 0
    scores = (labels + rng.gamma(2, size=40_000)).astype(np.float32)
    found = Calibration(scores[~labels], scores[~labels], scores, scores, labels)
    items = (next(item for item in judged(found) if item.chosen),)
    rare, best = rare_in(found, items, 0.01), items[0].evaluation
    assert rare is not None
    assert best is not None
    for picture in (charts.roc(scores, labels, items), charts.precision_recall(scores, labels, best, rare)):
        assert len(picture) < 100_000


def test_an_error_map_that_is_shrunk_still_shows_two_pixels() -> None:
    found = calibration(evaluated=False)
    images = np.zeros((500, 512, 16, 1), np.uint8)
    images[:, 100:102, 3] = 255
    group = gallery(
        dataset(found, calibration=images, fit=images[:1]),
        found,
        1.0,
        lambda given: np.zeros(given.shape, np.float32),
    ).groups[0]
    picture = base64.b64decode(group.examples[0].error_map.partition(",")[2])
    shrunk = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert shrunk is not None
    assert shrunk.shape == (256, 8)
    assert shrunk.max() > 200


def test_the_calibration_report_says_what_changed(tmp_path: Path) -> None:
    old = read_bundle(write_fake_bundle(tmp_path))
    found = calibration(np.arange(500) // 50)
    chosen = fit_threshold(CostWeighted(labelled(found), 2.0), NORMAL, found.groups)
    manifest = old.manifest
    manifest.training["calibrated_on"] = "<week 7>"
    page = " ".join(render_calibration_report(manifest, old, found, judge_thresholds(found, chosen), 0.01).split())
    flagged = [int((threshold < NORMAL).sum()) for threshold in (old.threshold, np.float32(chosen.value))]
    assert f"would have flagged {flagged[0]}, the new one flags {flagged[1]}" in page
    assert "&lt;week 7&gt;" in page
    assert "a miss costs 2) instead of" in page
    assert "not known: no promise from too few groups: 10" in page
    for text in ("ROC curve, area", "Precision over recall", "Confusion matrix"):
        assert text in page


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
