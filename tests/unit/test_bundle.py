"""What a bundle must be; the fake ones are written by tests.property.test_bundle."""

import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.property.test_bundle import (
    CALIBRATION,
    GOLDEN,
    HEADER,
    IMAGES,
    KERAS_FILES,
    QUANTILES,
    SCORES,
    THRESHOLD,
    archive,
    npy,
    npy_archive,
    npz,
    write_fake_bundle,
)
from worker.core.bundle import FILES, Bundle, read_bundle, resolve, scores_agree
from worker.core.errors import BundleError
from worker.core.images import ImageSpec
from worker.core.verdicts import ModelName


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundles")


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    return str(caught.value)


def test_what_was_written_is_read(folder: Path) -> None:
    bundle = read_bundle(folder)
    digest = json.loads((folder / "manifest.json").read_text("utf-8"))["digest"]
    assert bundle.folder == folder
    assert bundle.scorer_path == folder / "scorer.keras"
    assert bundle.model == ModelName("fake", digest[:12])
    assert bundle.threshold == np.float32(0.75)
    assert bundle.threshold.dtype == np.float32
    assert bundle.tolerance == 1e-4
    assert bundle.image_spec(max_pixels=100) == ImageSpec(8, 6, 1, resize=True, max_pixels=100)
    assert bundle.golden.images == IMAGES
    assert bundle.golden.scores.tolist() == SCORES.tolist()
    assert bundle.golden.errors.tolist() == (SCORES / 2).tolist()
    for name, array in CALIBRATION.items():
        read = getattr(bundle.calibration, name)
        assert read.tolist() == array.tolist()
        assert read.dtype == array.dtype


def test_a_bundle_needs_no_evaluation_set(tmp_path: Path) -> None:
    empty = {name: array[:0] if name.startswith("evaluation") else array for name, array in CALIBRATION.items()}
    assert len(read_bundle(write_fake_bundle(tmp_path, {"calibration.npz": npz(empty)})).calibration.errors) == 9


def test_compressed_arrays_are_read(tmp_path: Path) -> None:
    assert read_bundle(write_fake_bundle(tmp_path, {"golden.npz": npy_archive()})).golden.images == IMAGES


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_every_flipped_byte_is_refused(folder: Path, name: str) -> None:
    """One bit in every byte. What the manifest says is digested, not how: 1e-05 may become 1E-05."""
    path = folder / name
    whole = path.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    accepted = []
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read_bundle(folder)
        except BundleError:
            continue
        accepted.append(position)
        assert name == "manifest.json"
        assert json.loads(damaged) == manifest
    assert len(accepted) <= 2
    path.write_bytes(whole)
    read_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


def test_files_that_are_not_the_bundles_do_no_harm(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    read_bundle(folder)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_link_for_a_file_is_refused(folder: Path, name: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    assert f"{name} is a link" in refusal(folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_unopened(folder: Path, make: Callable[[Path], None]) -> None:
    (folder / "report.html").unlink()
    make(folder / "report.html")
    assert "plain file" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": {"scorer.keras": "00"}}, "lists ['scorer.keras'], expected"),
        ({"files": dict.fromkeys([*FILES, "more.txt"], "00")}, "'more.txt'"),
        ({"files": dict.fromkeys(FILES, "00")}, "scorer.keras is damaged or was exchanged"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"threshold": {**THRESHOLD, "extra": 1}}, "unknown field `extra`"),
        ({"format_version": 2}, "format version 1"),
        ({"format_version": "1"}, "format version 1"),
        ({"threshold": {**THRESHOLD, "value": 3.5e38}}, "not a finite float32"),
        ({"threshold": {**THRESHOLD, "value": -1e300}}, "not a finite float32"),
        ({"threshold": {**THRESHOLD, "value": 10**400}}, "out of range"),
        ({"threshold": {**THRESHOLD, "value": None}}, "threshold.value"),
        ({"threshold": {**THRESHOLD, "n": 8}}, "9 scores, the threshold was fitted on 8"),
        ({"input_shape": [0, 8, 1]}, "(0, 8, 1) is not (H, W, 1 or 3)"),
        ({"input_shape": [8, -8, 1]}, "(8, -8, 1)"),
        ({"input_shape": [8, 16385, 3]}, "(8, 16385, 3)"),
        ({"input_shape": [8, 8, 2]}, "(8, 8, 2)"),
        ({"input_shape": [8, 8]}, "length 3"),
        ({"input_shape": [8, 8.5, 1]}, "int"),
        ({"calibration_quantiles": {}}, "calibration_quantiles of score and error"),
        ({"calibration_quantiles": {"score": {"0.5": 1.0}}}, "calibration_quantiles of score and error"),
        ({"calibration_quantiles": {**QUANTILES, "other": {"0.5": 1.0}}}, "calibration_quantiles of score and error"),
        ({"calibration_quantiles": {**QUANTILES, "error": {}}}, "calibration_quantiles of score and error"),
        ({"calibration_quantiles": {**QUANTILES, "error": {"1.0": 1e39}}}, "finite float32"),
        ({"calibration_quantiles": {**QUANTILES, "brightness": {"high": 1.0}}}, "finite float32 by level 0 to 1"),
        ({"calibration_quantiles": {**QUANTILES, "sharpness": {"1.1": 1.0}}}, "finite float32 by level 0 to 1"),
        ({"serving": {"precision": "float16", "backend": "tensorflow"}}, "float16"),
        ({"name": "Fake"}, "'Fake' is no bundle name"),
        ({"name": "x" * 64}, "is no bundle name"),
        ({"name": ""}, "is no bundle name"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    tmp_path: Path, changes: Mapping[str, Any], words: str
) -> None:
    assert words in refusal(write_fake_bundle(tmp_path, manifest=changes))


def test_a_threshold_set_anew_needs_no_calibration_of_its_own_size(tmp_path: Path) -> None:
    before = {name: value for name, value in THRESHOLD.items() if name != "history"}
    read_bundle(write_fake_bundle(tmp_path, manifest={"threshold": {**THRESHOLD, "n": 8, "history": [before]}}))


def test_a_name_cannot_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    folder = write_fake_bundle(tmp_path / "bundles", manifest={"name": "../fake"})
    assert "'../fake' is no bundle name" in refusal(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(folder: Path, number: str) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"value": 0.75', f'"value": {number}'), "utf-8")
    assert "manifest" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not JSON",
        b"\xff\xfe{}",
        b"[]",
        b"null",
        b"{}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"training": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001,
        b"9" * 10_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_manifest_is_refused(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    assert "is not a manifest of format version 1" in refusal(folder)


def test_a_manifest_that_is_too_large_is_not_read(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" " * (1 << 20))
    assert "at most 1048576 are allowed" in refusal(folder)


def test_a_wrong_digest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"epochs": 3', '"epochs": 4'), "utf-8")
    assert "its digest is not that of its content" in refusal(folder)


def test_a_renamed_folder_is_refused(folder: Path) -> None:
    renamed = folder.rename(folder.parent / "another-0123456789ab")
    assert f"'another-0123456789ab', its manifest says '{folder.name}'" in refusal(renamed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not the archive"),
        (b"\x89HDF\r\n\x1a\n", "not the archive"),
        (archive({**KERAS_FILES, "more.py": b""}), "'more.py'"),
        (archive({**KERAS_FILES, "assets/more": b""}), "'assets/more'"),
        (archive({"../config.json": b"", "metadata.json": b"", "model.weights.h5": b""}), "'../config.json'"),
        (archive({"/config.json": b"", "metadata.json": b"", "model.weights.h5": b""}), "'/config.json'"),
        (archive({"config.json": b"{}"}), "['config.json'], expected"),
        (archive({**KERAS_FILES, "config.json": bytes(30 << 20)}, zipfile.ZIP_DEFLATED), "unpacks to 314572"),
        (archive(KERAS_FILES, zipfile.ZIP_BZIP2), "stored or deflated"),
        (archive(KERAS_FILES, zipfile.ZIP_LZMA), "stored or deflated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_that_keras_must_not_see_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal(write_fake_bundle(tmp_path, {"scorer.keras": content}))


def test_a_name_that_stands_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO(archive(KERAS_FILES))
    with zipfile.ZipFile(file, "a") as written, pytest.warns(UserWarning, match="Duplicate name"):
        written.writestr("config.json", b"[]")
    assert "config.json" in refusal(write_fake_bundle(tmp_path, {"scorer.keras": file.getvalue()}))


@pytest.mark.parametrize(
    ("file", "arrays", "words"),
    [
        ("golden.npz", {"scores": np.array([b"pickled", 1, None], object)}, "scores"),
        ("golden.npz", {"scores": SCORES.astype(np.float64)}, "scores is float64 (3,), expected float32 (n,)"),
        ("golden.npz", {"scores": SCORES.astype(">f4")}, "scores is >f4 (3,)"),
        ("golden.npz", {"scores": SCORES[:, None]}, "scores is float32 (3, 1)"),
        ("golden.npz", {"scores": SCORES[:2]}, "as many images as scores"),
        ("golden.npz", {"errors": np.array([1, np.inf, 1], np.float32)}, "errors holds values that are not finite"),
        ("golden.npz", {name: array[:0] for name, array in GOLDEN.items()}, "at least one"),
        ("golden.npz", {"lengths": np.array([11, 3, 8], np.int64)}, "do not add up"),
        ("golden.npz", {"lengths": np.array([24, 3, -4], np.int64)}, "do not add up"),
        ("golden.npz", {"more": SCORES}, "'more.npy'"),
        ("calibration.npz", {"scores": SCORES}, "as many errors as scores"),
        ("calibration.npz", {"scores": SCORES[:0], "errors": SCORES[:0]}, "at least one"),
        ("calibration.npz", {"scores": np.full(9, np.nan, np.float32)}, "scores holds values that are not finite"),
        ("calibration.npz", {"evaluation_labels": np.array([True])}, "differ in length"),
        ("calibration.npz", {"evaluation_labels": np.array([0, 1])}, "evaluation_labels is int64"),
    ],
)
def test_arrays_that_are_not_as_agreed_are_refused(
    tmp_path: Path, file: str, arrays: Mapping[str, NDArray[Any]], words: str
) -> None:
    whole = {"golden.npz": GOLDEN, "calibration.npz": CALIBRATION}[file]
    assert words in refusal(write_fake_bundle(tmp_path, {file: npz({**whole, **arrays})}))


def test_lengths_that_add_up_only_in_64_bits_are_refused(tmp_path: Path) -> None:
    size = len(b"".join(IMAGES))
    lengths = np.array([2**62, 2**62, 2**62, 2**62 + size], np.int64)
    four = np.ones(4, np.float32)
    golden = npz({**GOLDEN, "lengths": lengths, "scores": four, "errors": four})
    assert "do not add up" in refusal(write_fake_bundle(tmp_path, {"golden.npz": golden}))


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npy(HEADER % "3,", SCORES.tobytes(), b"\x02\x00"), "version 1.0"),
        (npy(HEADER % "3,", SCORES.tobytes()[:-1]), "11 bytes, its header says float32 (3,)"),
        (npy(HEADER % "3,", SCORES.tobytes() + b"\0"), "13 bytes, its header says float32 (3,)"),
        (npy(HEADER % "-3,", SCORES.tobytes()), "12 bytes, its header says float32 (-3,)"),
        (npy("{1: 2, 'descr': 3}"), "cannot be read"),
        (npy("-" * 9000 + "1"), "cannot be read"),
        (npy("(" * 9000), "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_an_array_file_that_is_none_is_refused(tmp_path: Path, member: bytes, words: str) -> None:
    assert words in refusal(write_fake_bundle(tmp_path, {"golden.npz": npy_archive(scores=member)}))


@pytest.mark.parametrize("size", [2**26, 2**33, 2**40, 2**62, 2**70])
def test_a_header_that_claims_a_huge_array_allocates_nothing(tmp_path: Path, size: int) -> None:
    folder = write_fake_bundle(tmp_path, {"golden.npz": npy_archive(scores=npy(HEADER % f"{size},", b"1234"))})
    tracemalloc.start()
    try:
        assert "4 bytes, its header says" in refusal(folder)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_a_link_and_the_current_link_mean_the_same(folder: Path) -> None:
    (folder.parent / "current").symlink_to(folder.name)
    (folder.parent.parent / "link").symlink_to(folder)
    for path in (folder, folder.parent, folder.parent / "current", folder.parent.parent / "link"):
        assert resolve(path) == folder
        assert isinstance(read_bundle(path), Bundle)


def test_where_there_is_no_bundle_the_message_says_what_is_expected(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, target in (("a", "gone-0123456789ab"), ("b", "current")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "current").symlink_to(target)
    (tmp_path / "c" / "current").mkdir(parents=True)
    for path, words in (
        ("dangling", "nowhere"),
        ("loop", "loop"),
        ("a", "gone-0123456789ab"),
        ("b", "current"),
        ("c", "it has no manifest.json"),
        ("not-there", "not-there"),
        ("null\0byte", "null"),
        (f"bundles/{folder.name}/manifest.json", "it has no manifest.json"),
        (".", "it has no manifest.json"),
    ):
        with pytest.raises(
            BundleError, match=r"no bundle at '.*'.*Expected a folder that reconstream-train wrote"
        ) as no:
            resolve(tmp_path / path)
        assert words in str(no.value).split("Expected")[0]


def test_scores_agree_within_a_relative_tolerance() -> None:
    stored = np.array([0.001, 1, 1000], np.float32)
    assert scores_agree(stored * np.float32(1 + 0.9e-4), stored, 1e-4)
    for index in range(3):
        ours = stored.copy()
        ours[index] *= np.float32(1 + 1.2e-4)
        assert not scores_agree(ours, stored, 1e-4)
        ours[index] = np.nan
        assert not scores_agree(ours, stored, 1e-4)


def test_a_manifest_of_before_groups_is_read_and_one_with_them_too(tmp_path: Path) -> None:
    assert "groups" not in THRESHOLD
    older = read_bundle(write_fake_bundle(tmp_path / "older"))
    assert (older.manifest.threshold.groups, older.manifest.threshold.no_interval) == (None, None)
    assert (older.calibration.groups, older.calibration.evaluation_groups) == (None, None)
    said = {"method": "conformal", "interval": None, "groups": 3, "no_interval": "too few groups: 3"}
    numbers = {"groups": np.arange(9, dtype=np.int64) // 3, "evaluation_groups": np.arange(2, dtype=np.int64)}
    files = {"calibration.npz": npz({**CALIBRATION, **numbers})}
    newer = read_bundle(write_fake_bundle(tmp_path / "newer", files, {"threshold": {**THRESHOLD, **said}}))
    assert newer.manifest.threshold.groups == 3
    assert newer.manifest.threshold.no_interval == "too few groups: 3"
    assert newer.calibration.groups is not None
    assert newer.calibration.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert newer.calibration.evaluation_groups is not None
    assert newer.calibration.evaluation_groups.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"groups": np.arange(9, dtype=np.int64)}, "holds"),
        ({"groups": np.arange(8), "evaluation_groups": np.arange(2)}, "as many groups as scores"),
        ({"groups": np.arange(9), "evaluation_groups": np.arange(3)}, "as many evaluation_groups"),
        ({"groups": np.arange(9.0), "evaluation_groups": np.arange(2)}, "groups is float64"),
    ],
)
def test_groups_that_do_not_fit_the_scores(
    tmp_path: Path, numbers: Mapping[str, NDArray[Any]], expected: str
) -> None:
    files = {"calibration.npz": npz({**CALIBRATION, **numbers})}
    assert expected in refusal(write_fake_bundle(tmp_path / "bundles", files))
