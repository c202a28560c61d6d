import os
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_training_data import write_images
from training.data import load
from training.groups import group_files, number_groups
from training.normals import load_normals
from worker.core.errors import ConfigurationError
from worker.core.images import ImageSpec, encode_png

SPEC = ImageSpec(8, 8, 1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a/part1_x.png", "a/part2_x.png", "b/part1_y.png")]
    for minute, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, 6_000 + 60 * minute))
    return paths


def test_groups_by_folder_pattern_and_time(tmp_path: Path, files: list[Path]) -> None:
    assert group_files("folder", tmp_path, files) == ["a", "a", "b"]
    assert group_files("pattern:^(part[0-9]+)_", tmp_path, files) == ["part1", "part2", "part1"]
    assert number_groups(group_files("time:2", tmp_path, files)).tolist() == [0, 0, 1]
    assert number_groups(group_files("time:1440", tmp_path, files)).tolist() == [0, 0, 0]


def test_groups_by_a_table(tmp_path: Path, files: list[Path]) -> None:
    table = tmp_path / "parts.csv"
    table.write_text("file,part,day\na/part1_x.png,7,mon\na/part2_x.png,8,mon\nb/part1_y.png,7,tue\n", "utf-8-sig")
    assert group_files(f"csv:{table}:part", tmp_path, files) == ["7", "8", "7"]
    assert group_files(f"csv:{table}:day", tmp_path, files) == ["mon", "mon", "tue"]


@pytest.mark.parametrize(
    ("rule", "content", "expected"),
    [
        ("pattern:(part1)", "", "'pattern:.part1.' says nothing about 1 of 3 files, such as 'a/part2_x.png'"),
        ("csv:{table}:part", "file,part\na/part1_x.png,7\n", "says nothing about 2 of 3 files"),
        ("csv:{table}:part", "file,part\na/part1_x.png\n", "says nothing about 3 of 3 files"),
        ("csv:{table}:part", "name,part\n", "has the columns name, part; expected file and part"),
        ("csv:{table}:part", "", "has the columns none"),
        ("csv:nowhere.csv:part", "", "'nowhere.csv' cannot be read"),
    ],
)
def test_a_rule_that_leaves_files_without_a_group(
    tmp_path: Path, files: list[Path], rule: str, content: str, expected: str
) -> None:
    table = tmp_path / "parts.csv"
    table.write_text(content)
    with pytest.raises(ConfigurationError, match=expected):
        group_files(rule.format(table=table), tmp_path, files)


def frames(folder: Path, parts: int, each: int) -> None:
    """Files partN_M.png whose pixels all are N."""
    folder.mkdir(parents=True)
    for part in range(parts):
        for frame in range(each):
            (folder / f"part{part:02}_{frame}.png").write_bytes(encode_png(np.full((8, 8, 1), part, np.uint8)))


def test_a_folder_is_split_by_whole_groups(tmp_path: Path) -> None:
    frames(tmp_path / "good", 40, 5)
    data = load(str(tmp_path), calibration_size=50, group_by="pattern:^(part[0-9]+)_")
    fitted, calibrated = (set(part[:, 0, 0, 0].tolist()) for part in (data.fit, data.calibration))
    assert (len(data.fit), len(data.calibration)) == (150, 50)
    assert fitted.isdisjoint(calibrated)
    assert data.calibration_groups is not None
    assert number_groups(data.calibration[:, 0, 0, 0].astype(np.str_)).tolist() == (
        number_groups(data.calibration_groups.astype(np.str_)).tolist()
    )


def test_an_npz_has_its_groups_beside_its_images(tmp_path: Path) -> None:
    images = (np.arange(200) // 5).astype(np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    labels = np.where(np.arange(200) < 180, "ok", "dent")
    path = tmp_path / "line.npz"
    np.savez(path, images=images, labels=labels, groups=np.arange(200) // 5)
    data = load(str(path), normal="ok", calibration_size=50)
    parts = [set(part[:, 0, 0, 0].tolist()) for part in (data.fit, data.calibration, data.evaluation)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert data.calibration_groups is not None
    assert data.evaluation_groups is not None
    pairs = set(zip(data.evaluation_groups.tolist(), data.evaluation[:, 0, 0, 0].tolist(), strict=True))
    assert len(pairs) == len(np.unique(data.evaluation_groups)) == len(parts[2])
    with pytest.raises(ConfigurationError, match="an array called groups"):
        load(str(path), normal="ok", group_by="folder")
    np.savez(path, images=images, groups=np.arange(3))
    with pytest.raises(ConfigurationError, match="groups is int64"):
        load(str(path))


def test_new_normal_images_are_decoded_as_the_bundle_wants_them(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "good", 6)
    write_images(tmp_path / "photos" / "dent", 3, value=100)
    found = load_normals(str(tmp_path / "photos"), SPEC, group_by="pattern:([0-9])[.]")
    assert (found.images.shape, found.anomalies, found.skipped) == ((6, 8, 8, 1), 3, ())
    assert found.groups is not None
    assert found.groups.tolist() == [0, 1, 2, 3, 4, 5]
    coloured = load_normals(str(tmp_path / "photos"), ImageSpec(4, 4, 3, resize=True))
    assert (coloured.images.shape, coloured.groups) == ((6, 4, 4, 3), None)
    with pytest.raises(ConfigurationError, match="9 of 9 files"):
        load_normals(str(tmp_path / "photos"), ImageSpec(4, 4, 1), max_unreadable=2)


def test_new_normal_images_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "new.npz"
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    np.savez(path, images=images, labels=np.arange(10) % 2, groups=np.arange(10) // 4)
    found = load_normals(str(path), SPEC, normal="1")
    assert (found.images[:, 0, 0, 0].tolist(), found.anomalies) == ([1, 3, 5, 7, 9], 5)
    assert found.groups is not None
    assert found.groups.tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(ConfigurationError, match="the bundle's are"):
        load_normals(str(path), ImageSpec(4, 4, 1), normal="1")
    np.savez(path, x_train=images, y_train=np.arange(10))
    with pytest.raises(ConfigurationError, match="that the model was not fitted on"):
        load_normals(str(path), SPEC)
