from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.contenders import BASELINES, Fitted, Images
from training.quality import Split, figures, run
from training.results import Book, Result, summarise
from worker.core.errors import ConfigurationError


def split(seed: int = 0) -> Split:
    """Label a: bright left halves. Label b: bright right halves."""
    rng = np.random.default_rng(seed)

    def images(count: int) -> tuple[Images, NDArray[np.str_]]:
        labels = np.array(["a", "b"])[rng.integers(0, 2, count)]
        found = rng.integers(0, 60, (count, 6, 6, 1), dtype=np.uint8)
        found[labels == "a", :, :3] += 150
        found[labels == "b", :, 3:] += 150
        return found, labels

    return Split(*images(120), *images(80))


class Constant:
    """Gives every image the same score, and counts its fits."""

    name = "constant"

    def __init__(self) -> None:
        self.fits: list[int] = []

    def fit(self, images: Images, seed: int) -> Fitted:
        assert len(images)
        self.fits.append(seed)
        return Fitted(lambda images: np.zeros(len(images)), 2.5)


def result(name: str, digit: str, seed: int, auroc: float) -> Result:
    return Result(name, digit, seed, auroc, 0.5, 0.5, 1.0, 100.0, None)


@pytest.mark.parametrize("contender", BASELINES, ids=lambda contender: contender.name)
def test_baselines_tell_what_is_easy(contender: object, tmp_path: Path) -> None:
    book = Book(tmp_path / "quality.json", "halves")
    run([contender], split(), ["a", "b"], [0], book)  # type: ignore[list-item]
    assert [found.auroc for found in book.results] == [1.0, 1.0]
    assert [found.fpr_at_95_recall for found in book.results] == [0.0, 0.0]


def test_figures_are_those_of_the_definition() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    anomalous = np.array([False, True, False, True, True])
    found = figures(scores, anomalous)
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["fpr_at_95_recall"] == pytest.approx(1 / 2)


def test_what_the_book_holds_is_not_run_again(tmp_path: Path) -> None:
    contender, path, told = Constant(), tmp_path / "deep" / "quality.json", list[Result]()
    run([contender], split(), ["a"], [0, 1], Book(path, "halves"), told.append)
    run([contender], split(), ["a", "b"], [0, 1], Book(path, "halves"), told.append)
    assert contender.fits == [0, 1, 0, 1]
    assert [(found.digit, found.seed) for found in told] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert Book(path, "halves").results == told
    assert [found.auroc for found in told] == [0.5] * 4


def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    path.write_text('{"other": 1}')
    with pytest.raises(ConfigurationError, match="holds no results of this program"):
        Book(path, "halves")
    assert path.read_text() == '{"other": 1}'


def test_results_of_another_source_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    run([Constant()], split(), ["a"], [0], Book(path, "halves"))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="holds results of 'halves', and 'digits' was given"):
        Book(path, "digits")
    assert path.read_bytes() == before


def test_an_unknown_label_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    contender = Constant()
    with pytest.raises(ConfigurationError, match="'c' was given; the source has the labels a, b"):
        run([contender], split(), ["a", "c"], [0], Book(tmp_path / "quality.json", "halves"))
    assert contender.fits == []


def test_the_summary_is_over_digits_and_its_spread_over_seeds() -> None:
    found = summarise(
        [result("x", "1", 0, 0.8), result("x", "2", 0, 0.6), result("y", "1", 0, 0.9), result("x", "1", 1, 0.9),
         result("x", "2", 1, 0.9)]
    )  # fmt: skip
    assert list(found) == ["x", "y"]
    assert found["x"].mean_auroc == pytest.approx(0.8)
    assert found["x"].std == pytest.approx(np.std([0.7, 0.9], ddof=1))
    assert (found["x"].digits, found["x"].seeds, found["y"].std) == (["1", "2"], [0, 1], 0.0)
