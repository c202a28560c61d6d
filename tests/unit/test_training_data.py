import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training import images as memory
from training.data import Dataset, load
from training.images import Images, Stored
from training.roles import split
from training.sample import SAMPLE
from worker.core.errors import ConfigurationError
from worker.core.images import encode_png


def write_images(folder: Path, count: int, *, value: int = 10, size: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index:03}.png").write_bytes(encode_png(np.full((size, size, 1), value + index, np.uint8)))


def firsts(images: Images) -> list[int]:
    pixels: list[int] = images[:][:, 0, 0, 0].tolist()
    return pixels


@pytest.fixture(scope="module")
def sample() -> Dataset:
    return load("sample")


def test_the_sample_keeps_the_tutorials_protocol(sample: Dataset) -> None:
    with np.load(SAMPLE) as arrays:
        ones = np.flatnonzero(arrays["y_test"] == 1)
        fit = arrays["x_train"][arrays["y_train"] == 1]
        kept = np.setdiff1d(np.arange(10_000), ones[:500])
        np.testing.assert_array_equal(sample.fit[..., 0], fit)
        np.testing.assert_array_equal(sample.calibration[..., 0], arrays["x_test"][ones[:500]])
        np.testing.assert_array_equal(sample.evaluation[..., 0], arrays["x_test"][kept])
        np.testing.assert_array_equal(sample.labels, arrays["y_test"][kept] != 1)
        assert sample.evaluation_kinds == tuple(str(digit) for digit in arrays["y_test"][kept])
        assert sample.evaluation_names == tuple(f"x_test[{index}]" for index in kept)
        assert sample.calibration_names[0] == f"x_test[{ones[0]}]"
    assert (len(sample.fit), len(sample.calibration), int((~sample.labels).sum()), int(sample.labels.sum())) == (
        6742,
        500,
        635,
        8865,
    )
    assert sample.suggested_name == "mnist-1"


def test_the_fingerprint_is_of_pixels_and_their_order(sample: Dataset) -> None:
    images = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4, 1)
    none = np.empty((0, 4, 4, 1), np.uint8)

    def fingerprint(fit: NDArray[np.uint8], calibration: NDArray[np.uint8]) -> str:
        labels = np.empty(0, np.bool_)
        return Dataset("s", "n", "name", fit, calibration, none, labels).description().fingerprint

    first = fingerprint(images[:2], images[2:])
    assert fingerprint(images[:2].copy(), images[2:]) == first
    assert fingerprint(images[1::-1], images[2:]) != first
    assert sample.description().codecs == {"array": 7242}
    assert sample.description().sizes == {"28x28x1": 7242}


@given(st.lists(st.booleans(), max_size=200), st.integers(2, 100), st.integers(0, 2**32 - 1))
def test_a_split_uses_every_image_once_and_fits_and_calibrates_on_normal_ones(
    anomalous: list[bool], calibration_size: int, seed: int
) -> None:
    labels = np.array(anomalous, np.bool_)
    try:
        fit, calibration, evaluation = split(labels, calibration_size, seed)
    except ConfigurationError:
        assert int((~labels).sum()) < 4 * calibration_size
        return
    assert sorted([*fit, *calibration, *evaluation]) == list(range(len(labels)))
    assert len(calibration) == calibration_size <= len(fit)
    assert not labels[fit].any()
    assert not labels[calibration].any()
    assert (len(evaluation) > 0) == labels.any() == bool((~labels[evaluation]).any())
    for part, again in zip((fit, calibration, evaluation), split(labels, calibration_size, seed), strict=True):
        np.testing.assert_array_equal(part, again)


def test_the_seed_decides_the_split() -> None:
    labels = np.zeros(100, np.bool_)
    assert not np.array_equal(split(labels, 20, 0)[1], split(labels, 20, 1)[1])


def test_an_npz_of_ones_own(tmp_path: Path) -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    labels = np.array(["ok"] * 30 + ["dent"] * 10)
    np.savez(tmp_path / "Line 3.npz", images=images, labels=labels)
    data = load(str(tmp_path / "Line 3.npz"), normal="ok", calibration_size=5)
    assert data.suggested_name == "line-3-ok"
    assert data.shape == (8, 8, 1)
    assert max(firsts(data.fit) + firsts(data.calibration)) < 30
    assert [value for value, label in zip(firsts(data.evaluation), data.labels, strict=True) if label] == [
        *range(30, 40)
    ]
    assert data.evaluation_names == tuple(f"images[{value}]" for value in firsts(data.evaluation))
    assert data.evaluation_kinds == tuple("ok" if value < 30 else "dent" for value in firsts(data.evaluation))
    np.savez(tmp_path / "plain.npz", images=images)
    plain = load(str(tmp_path / "plain.npz"), calibration_size=5)
    assert (len(plain.fit), len(plain.calibration), len(plain.evaluation)) == (35, 5, 0)
    assert plain.calibration_names == tuple(f"images[{value}]" for value in firsts(plain.calibration))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_larger_than_the_memory_is_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., None]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8), dtype=np.uint8)
    save(tmp_path / "own.npz", images=images, labels=np.arange(90) % 9 == 0)
    save(tmp_path / "split.npz", x_train=images, y_train=np.zeros(90, int), x_test=images, y_test=np.arange(90) % 2)

    def loaded(name: str) -> Dataset:
        normal = "False" if name == "own" else "0"
        return load(str(tmp_path / f"{name}.npz"), normal=normal, calibration_size=9, scratch=tmp_path)

    for name in ("own", "split"):
        expected = loaded(name)
        with monkeypatch.context() as context:
            context.setattr(memory, "IN_MEMORY", 2000)
            found = loaded(name)
        assert isinstance(found.fit, Stored)
        assert isinstance(found.evaluation, Stored)
        assert found.description() == expected.description()
        np.testing.assert_array_equal(found.fit[:], expected.fit)
        np.testing.assert_array_equal(found.evaluation[:], expected.evaluation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.npz", "split.npz"]


@pytest.mark.parametrize(
    "images", [np.zeros((9, 8, 8), np.float32), np.asfortranarray(np.zeros((9, 8, 8), np.uint8))]
)
def test_large_arrays_that_are_no_images_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: NDArray[Any]
) -> None:
    np.savez(tmp_path / "own.npz", images=images)
    monkeypatch.setattr(memory, "IN_MEMORY", 100)
    with pytest.raises(ConfigurationError, match=rf"images is {images.dtype} .*expected uint8 .*, row by row"):
        load(str(tmp_path / "own.npz"))


def test_a_folder_larger_than_the_memory_is_the_same_data_in_little_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "photos" / "good", 60, value=0, size=128)
    write_images(tmp_path / "photos" / "dent", 30, value=100, size=128)
    (tmp_path / "photos" / "good" / "010.png").write_bytes(b"no picture")
    expected = load(str(tmp_path / "photos"), calibration_size=5)
    monkeypatch.setattr(memory, "IN_MEMORY", 2**17)
    tracemalloc.start()
    try:
        found = load(str(tmp_path / "photos"), calibration_size=5, scratch=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 90 * 128 * 128 / 4
    assert found.description() == expected.description()
    np.testing.assert_array_equal(found.fit[:], expected.fit)
    np.testing.assert_array_equal(found.evaluation[:], expected.evaluation)
    assert found.skipped == expected.skipped


def small(**changes: Any) -> dict[str, NDArray[Any]]:
    images = np.zeros((8, 4, 4), np.uint8)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    return {"images": images, "labels": labels, **changes}


@pytest.mark.parametrize(
    ("arrays", "normal", "expected"),
    [
        (small(), None, "labels 0, 1"),
        (small(), "2", "'2' was given"),
        (small(images=np.zeros((8, 4, 4))), "0", "expected uint8"),
        (small(images=np.zeros((8, 4, 4, 2), np.uint8)), "0", "expected uint8"),
        (small(labels=np.zeros(7, np.int64)), "0", "for each of the 8 images"),
        (small(labels=np.zeros(8)), "0", "an integer or a text"),
        ({"pictures": np.zeros(3)}, None, "pictures"),
        (small(), "0", "at most 2 may calibrate"),
        (
            {
                "x_train": np.zeros((2, 4, 4), np.uint8),
                "y_train": np.zeros(2, np.int64),
                "x_test": np.zeros((2, 8, 8), np.uint8),
                "y_test": np.zeros(2, np.int64),
            },
            "0",
            "two sizes",
        ),
    ],
)
def test_an_npz_that_does_not_fit_is_explained(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], normal: str | None, expected: str
) -> None:
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    with pytest.raises(ConfigurationError, match=expected):
        load(str(tmp_path / "own.npz"), normal=normal, calibration_size=3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"plain text"])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"no readable \.npz"):
        load(str(tmp_path / "own.npz"))


def test_a_lone_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(ConfigurationError, match=r"no readable \.npz"):
        load(str(tmp_path / "own.npy"))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=np.array([{"a": 1}], object))
    with pytest.raises(ConfigurationError, match="allow_pickle"):
        load(str(tmp_path / "own.npz"))


def test_a_folder_with_good_and_faults(tmp_path: Path) -> None:
    write_images(tmp_path / "Line" / "good", 20, value=0)
    write_images(tmp_path / "Line" / "scratch" / "deep", 3, value=100)
    write_images(tmp_path / "Line" / ".hidden", 3, value=200)
    (tmp_path / "Line" / "notes.txt").write_text("no image")
    data = load(str(tmp_path / "Line"), calibration_size=4)
    assert (len(data.fit), len(data.calibration), len(data.evaluation)) == (12, 4, 7)
    assert [value for value, label in zip(firsts(data.evaluation), data.labels, strict=True) if label] == [
        100,
        101,
        102,
    ]
    assert data.evaluation_names[-3:] == tuple(f"scratch/deep/00{index}.png" for index in range(3))
    assert data.evaluation_kinds == ("good",) * 4 + ("scratch/deep",) * 3
    assert data.calibration_names == tuple(f"good/{value:03}.png" for value in firsts(data.calibration))
    assert data.suggested_name == "line"
    assert data.codecs == {"png": 16}
    assert data.sizes == {"8x8x1": 16}
    named = load(str(tmp_path / "Line"), normal="scratch", calibration_size=1, max_unreadable=0)
    assert named.normal == "folder scratch"
    assert int(named.labels.sum()) == 20


def test_a_flat_folder_is_all_normal(tmp_path: Path) -> None:
    write_images(tmp_path, 10)
    data = load(str(tmp_path), calibration_size=4)
    assert (len(data.fit), len(data.calibration), len(data.evaluation)) == (6, 4, 0)


def test_sizes_are_the_commonest_or_what_is_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path, 10)
    (tmp_path / "000.png").write_bytes(encode_png(np.zeros((16, 12, 3), np.uint8)))
    data = load(str(tmp_path), calibration_size=4, max_unreadable=1)
    assert data.shape == (8, 8, 1)
    assert not data.resize
    assert len(data.skipped) == 1
    assert "000.png" in data.skipped[0]
    resized = load(str(tmp_path), calibration_size=4, size=(16, 16), channels=3, max_unreadable=0)
    assert resized.shape == (16, 16, 3)
    assert resized.resize
    assert resized.sizes == {"16x12x3": 1, "8x8x1": 9}


def test_too_many_bad_files_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, 10)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "short.jpg").write_bytes(b"\xff\xd8\xff")
    assert len(load(str(tmp_path), calibration_size=4, max_unreadable=2).skipped) == 2
    with pytest.raises(ConfigurationError, match=r"2 of 12(.|\n)*bad\.png(.|\n)*short\.jpg"):
        load(str(tmp_path), calibration_size=4, max_unreadable=1)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([], "no normal images"),
        (["scratch"], "Sub-folders found: scratch"),
        ([".", "good"], "both in itself"),
    ],
)
def test_another_layout_is_explained(tmp_path: Path, folders: list[str], expected: str) -> None:
    for folder in folders:
        write_images(tmp_path / folder, 2)
    with pytest.raises(ConfigurationError, match=expected):
        load(str(tmp_path))


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected `sample`, an \.npz file or a folder"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(ConfigurationError, match="height"):
        load(str(SAMPLE), size=(32, 32))
