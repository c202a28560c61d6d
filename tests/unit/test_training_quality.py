import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from rich.console import Console

from training.charts import auroc_by_digit
from training.contenders import BASELINES, Fitted, Images
from training.quality import Split, figures, given_as_normal, run
from training.results import COMMITTED, Book, Result, Spread, committed, summarise
from training.show import in_markdown, show_tutorial
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
    epochs = None
    anomalies = 0.0

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


def test_a_share_of_the_images_that_are_given_as_normal_is_not() -> None:
    found = split()
    mixed = given_as_normal(found, "a", 0.1, 0)
    normal = found.fit[found.fit_labels == "a"]
    strange = mixed[:, :, :3].mean(axis=(1, 2, 3)) < 100
    assert strange.sum() == round(len(normal) / 9)
    assert np.array_equal(mixed[~strange], normal)
    assert np.flatnonzero(strange).tolist() != list(range(int(strange.sum())))
    assert np.array_equal(given_as_normal(found, "a", 0.0, 0), normal)


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
    assert [found["x"].auroc[digit].mean for digit in "12"] == pytest.approx([0.85, 0.75])
    assert [found["x"].auroc[digit].std for digit in "12"] == pytest.approx([np.std([0, 0.1], ddof=1), 0.15 * 2**0.5])
    assert found["x"].average_precision["1"] == Spread(0.5, 0.0)
    assert (found["x"].mean_average_precision, found["x"].mean_fpr_at_95_recall) == (0.5, 0.5)
    assert (found["x"].seconds, found["x"].images_per_second) == (1.0, 100.0)


def test_a_name_that_was_run_with_several_numbers_of_epochs_is_told_apart() -> None:
    few = replace(result("x", "1", 0, 0.8), epochs=5)
    assert list(summarise([few, result("y", "1", 0, 0.9)])) == ["x", "y"]
    found = summarise([few, result("x", "1", 0, 0.9)])
    assert {name: one.mean_auroc for name, one in found.items()} == {"x, 5 epochs": 0.8, "x": 0.9}


def test_results_of_another_summary_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    run([Constant()], split(), ["a"], [0], Book(path, "halves"))
    content = json.loads(path.read_bytes())
    content["summary"] = {"constant": {"mean_auroc": 0.5}}
    path.write_text(json.dumps(content))
    again = Constant()
    run([again], split(), ["a"], [0], Book(path, "halves"))
    assert again.fits == []


def test_a_fit_is_compared_with_what_the_tutorial_gave_on_its_digit(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarise([result("tutorial", "2", seed, auroc) for seed, auroc in enumerate([0.8, 0.9])])["tutorial"]
    show_tutorial(Console(), found, "3")
    assert capsys.readouterr().out == ""
    show_tutorial(Console(), found, "2")
    assert "--preset tutorial, AUROC 0.8500 on digit 2, mean of 2 fits" in capsys.readouterr().out


def test_a_table_has_a_column_for_each_name_best_first() -> None:
    found = summarise([result("x", "1", 0, 0.8), result("x", "1", 1, 0.9), result("y", "1", 0, 0.95)])
    lines = in_markdown(found).splitlines()
    assert lines[:4] == [
        "|  | y | x |",
        "| --- | ---: | ---: |",
        "| AUROC %, normal 1 | 95.0 | 85.0 ± 7.1 |",
        "| AUROC %, mean | **95.00** | **85.00 ± 7.07** |",
    ]
    assert lines[-1] == "| digits x seeds | 1 x 1 | 1 x 2 |"


def test_the_committed_table_is_of_the_committed_results() -> None:
    found = committed()
    assert COMMITTED.with_suffix(".md").read_text(encoding="utf-8") == in_markdown(found)
    assert found["default"].mean_auroc > found["pca"].mean_auroc > found["tutorial"].mean_auroc


def test_the_plot_has_every_name_and_digit() -> None:
    """Text is drawn as paths; each is announced in a comment."""
    page = auroc_by_digit(
        [result(name, digit, seed, 0.9) for name in ("one", "two") for digit in "138" for seed in (0, 1)]
        + [result("three", "8", 0, 0.5)]
    ).decode()
    for text in ("one", "two", "three", "1", "3", "8", "AUROC, %"):
        assert f"<!-- {text} -->" in page
