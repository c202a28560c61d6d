"""Folders as MVTec AD and VisA have them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_training_data import firsts, write_images
from training.data import load
from worker.core.errors import ConfigurationError


def write_table(path: Path, columns: str, rows: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")


@pytest.fixture
def bottle(tmp_path: Path) -> Path:
    """MVTec AD's layout: first pixels from 0 train, from 100 test/good, from 150 and 200 defects; masks are 255."""
    root = tmp_path / "bottle"
    write_images(root / "train" / "good", 20, value=0)
    write_images(root / "test" / "good", 4, value=100)
    write_images(root / "test" / "broken_large", 3, value=150)
    write_images(root / "test" / "contamination", 2, value=200)
    for defect in ("broken_large", "contamination"):
        write_images(root / "ground_truth" / defect, 1, value=255)
    return root


def test_mvtec_fits_and_calibrates_on_train_and_evaluates_on_test(bottle: Path) -> None:
    data = load(str(bottle), calibration_size=5)
    assert data.normal == "folder good"
    assert sorted(firsts(data.fit) + firsts(data.calibration)) == list(range(20))
    assert len(data.calibration) == 5
    evaluated = dict(zip(firsts(data.evaluation), zip(data.labels, data.evaluation_kinds, strict=True), strict=True))
    assert evaluated == {
        **{100 + index: (False, "test/good") for index in range(4)},
        **{150 + index: (True, "test/broken_large") for index in range(3)},
        **{200 + index: (True, "test/contamination") for index in range(2)},
    }


def test_parts_that_are_in_test_do_not_fit(bottle: Path) -> None:
    data = load(str(bottle), calibration_size=4, group_by="pattern:([0-9]+)[.]png")
    # 000 to 003 are in test/good.
    assert sorted(firsts(data.fit) + firsts(data.calibration)) == list(range(4, 20))
    assert firsts(data.evaluation)[:4] == list(range(4))


def visa(tmp_path: Path) -> Path:
    root = tmp_path / "candle"
    write_images(root / "Data" / "Images" / "Normal", 30, value=0)
    write_images(root / "Data" / "Images" / "Anomaly", 4, value=200)
    write_images(root / "Data" / "Masks" / "Anomaly", 4, value=250)
    kinds = ["normal"] * 30 + ["wax melted out of the candle"] * 3 + ['"other,weird candle wick"']
    images = [f"candle/Data/Images/Normal/{index:03}.png" for index in range(30)]
    images += [f"candle/Data/Images/Anomaly/{index:03}.png" for index in range(4)]
    write_table(
        root / "image_anno.csv", "image,label,mask", [f"{a},{b}," for a, b in zip(images, kinds, strict=True)]
    )
    return root


def test_visa_is_split_by_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = visa(tmp_path)
    rows = [f"candle,train,normal,candle/Data/Images/Normal/{index:03}.png," for index in range(20)]
    rows += [f"candle,test,normal,candle/Data/Images/Normal/{index:03}.png," for index in range(20, 28)]
    rows += [f"candle,test,anomaly,candle/Data/Images/Anomaly/{index:03}.png,m.png" for index in range(4)]
    rows += [f"pcb1,train,normal,pcb1/Data/Images/Normal/{index:03}.JPG," for index in range(4)]
    write_table(tmp_path / "split_csv" / "1cls.csv", "object,split,label,image,mask", rows)
    monkeypatch.chdir(root)
    data = load(".", calibration_size=5)
    assert sorted(firsts(data.fit) + firsts(data.calibration)) == list(range(20))
    assert firsts(data.evaluation) == [*range(20, 28), *range(200, 204)]  # 28 and 29 are in no row
    assert data.labels.tolist() == [False] * 8 + [True] * 4
    assert data.evaluation_kinds[8:] == ("wax melted out of the candle",) * 3 + ("other,weird candle wick",)


def test_visa_without_rows_in_its_table_is_split_by_the_seed(tmp_path: Path) -> None:
    root = visa(tmp_path)
    (root / "image_anno.csv").unlink()
    row = "pcb1,train,normal,pcb1/Data/Images/Normal/000.JPG,"
    write_table(tmp_path / "split_csv" / "1cls.csv", "object,split,label,image,mask", [row])
    data = load(str(root), calibration_size=5)
    assert (len(data.fit), len(data.calibration), int((~data.labels).sum()), int(data.labels.sum())) == (19, 5, 6, 4)
    assert set(data.evaluation_kinds) == {"Data/Images/Normal", "Data/Images/Anomaly"}
    everything = np.concatenate([data.fit[:], data.calibration, data.evaluation[:]])
    assert sorted(firsts(everything)) == [*range(30), *range(200, 204)]


@pytest.mark.parametrize(
    ("table", "expected"), [("candle/image_anno.csv", "image, label"), ("split_csv/1cls.csv", "object, split, image")]
)
def test_a_table_with_other_columns_is_named(tmp_path: Path, table: str, expected: str) -> None:
    root = visa(tmp_path)
    write_table(tmp_path / table, "picture,kind", ["a,b"])
    with pytest.raises(ConfigurationError, match=f"{table}' has the columns picture, kind; expected {expected}"):
        load(str(root), calibration_size=5)


def test_a_data_set_of_many_products_is_given_one_by_one(bottle: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Sub-folders found: bottle\. Of a data set of many products"):
        load(str(bottle.parent))


def test_training_images_that_are_all_in_test_are_missed(bottle: Path) -> None:
    for file in (bottle / "train" / "good").iterdir():
        file.unlink()
    with pytest.raises(ConfigurationError, match=r"no normal images .* in '.*train/good'"):
        load(str(bottle))
