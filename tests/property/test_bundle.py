"""Rules that hold for every bundle; and a writer of fake ones, without Keras and independent of training's."""

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from worker.adapters.prometheus import PrometheusTelemetry
from worker.adapters.system_clock import SystemClock
from worker.app import announce
from worker.core.bundle import FILES, Bundle, canonical_json, digest_of, read_bundle
from worker.core.errors import BundleError

IMAGES = (b"first image", b"2nd", b"the third")
SCORES = np.array([0.5, 0.25, 2], np.float32)
CALIBRATION: Mapping[str, NDArray[Any]] = {
    "scores": np.linspace(0.1, 0.9, 9, dtype=np.float32),
    "errors": np.linspace(0.2, 1.0, 9, dtype=np.float32),
    "evaluation_scores": np.array([0.3, 3], np.float32),
    "evaluation_errors": np.array([0.4, 4], np.float32),
    "evaluation_labels": np.array([False, True]),
}
GOLDEN: Mapping[str, NDArray[Any]] = {
    "data": np.frombuffer(b"".join(IMAGES), np.uint8),
    "lengths": np.array([len(image) for image in IMAGES], np.int64),
    "scores": SCORES,
    "errors": SCORES / 2,
}
KERAS_FILES = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b"the weights"}
THRESHOLD = {
    "value": 0.75,
    "method": "percentile",
    "parameters": {"percentile": 99.0},
    "n": 9,
    "interval": [0.0, 0.05],
    "fitted": "2026-01-02T03:04:05+00:00",
    "history": [],
}
QUANTILES = {"score": {"0.5": 0.5, "1.0": 0.9}, "error": {"0.5": 0.6}}

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    return file.getvalue()


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in members.items():
            written.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def npy_archive(**members: bytes) -> bytes:
    """golden.npz with some of its members replaced by bytes."""
    content = {}
    for name, array in GOLDEN.items():
        file = io.BytesIO()
        np.save(file, array)
        content[f"{name}.npy"] = members.get(name, file.getvalue())
    return archive(content, zipfile.ZIP_DEFLATED)


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + content


def manifest_fields(files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "name": "fake",
        "created": "2026-01-02T03:04:05+00:00",
        "input_shape": [8, 6, 1],
        "resize": True,
        "score": {"name": "mse", "pooling": "mean"},
        "serving": {"precision": "float32", "backend": "tensorflow"},
        "threshold": THRESHOLD,
        "calibration_quantiles": QUANTILES,
        "training": {"epochs": 3, "note": "größer"},
        "data": {
            "source": "made up",
            "normal": "all",
            "fit": 10,
            "calibration": 9,
            "evaluation": 2,
            "fingerprint": "00",
            "codecs": {"png": 19},
            "sizes": {"8x6x1": 19},
        },
        "versions": {"keras": "3"},
        "weights_sha256": "00",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }


def write_fake_bundle(
    parent: Path, files: Mapping[str, bytes] | None = None, manifest: Mapping[str, Any] | None = None
) -> Path:
    """Write a bundle whose digests are right; `files` and `manifest` replace parts of it."""
    content = {
        "scorer.keras": archive(KERAS_FILES),
        "calibration.npz": npz(CALIBRATION),
        "golden.npz": npz(GOLDEN),
        "report.html": b"<!doctype html>",
        **(files or {}),
    }
    fields = manifest_fields(content) | dict(manifest or {})
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    folder = parent / f"{fields['name']}-{fields['digest'][:12]}"
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(fields, indent=2), "utf-8")
    return folder


float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
edits = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=4)


@contextmanager
def written(files: Mapping[str, bytes] | None = None, manifest: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A fake bundle for as long as the block lasts: hypothesis runs many in one test."""
    with tempfile.TemporaryDirectory() as parent:
        yield write_fake_bundle(Path(parent), files, manifest)


def read_or_refused(folder: Path) -> Bundle | None:
    """The bundle, or None where it is refused; any other error fails the test."""
    try:
        return read_bundle(folder)
    except BundleError:
        return None


def edited(content: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Replace, insert and remove bytes: at a position (modulo the size) so many bytes by others."""
    for position, new, removed in changes:
        at = position % (len(content) + 1)
        content = content[:at] + new + content[at + removed :]
    return content


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle; who changes it restores it."""
    return write_fake_bundle(tmp_path_factory.mktemp("sound"))


@given(name=st.sampled_from(["manifest.json", *FILES]), changes=edits)
def test_damage_is_refused(sound: Path, name: str, changes: list[tuple[int, bytes, int]]) -> None:
    path = sound / name
    whole = path.read_bytes()
    damaged = edited(whole, changes)
    try:
        path.write_bytes(damaged)
        if read_or_refused(sound) is not None and damaged != whole:
            assert name == "manifest.json"  # white space may change: what it says is digested, not how
            assert json.loads(damaged) == json.loads(whole)
    finally:
        path.write_bytes(whole)


@given(name=st.sampled_from(["scorer.keras", "calibration.npz", "golden.npz"]), changes=edits, plain=st.booleans())
def test_a_malformed_file_with_the_right_digest_is_refused_as_such(
    name: str, changes: list[tuple[int, bytes, int]], plain: bool
) -> None:
    content = {
        "scorer.keras": archive(KERAS_FILES),
        "calibration.npz": npz(CALIBRATION),
        "golden.npz": npz(GOLDEN) if plain else npy_archive(),
    }[name]
    with written({name: edited(content, changes)}) as folder:
        bundle = read_or_refused(folder)
        if bundle is not None:
            golden, calibration = bundle.golden, bundle.calibration
            assert len(golden.images) == len(golden.scores) == len(golden.errors) > 0
            assert len(calibration.scores) == len(calibration.errors) > 0
            for numbers in (golden.scores, golden.errors, calibration.scores, calibration.evaluation_errors):
                assert np.all(np.isfinite(numbers))


@given(header=st.text("{}()[]'descr:shapefotn_<4|Ob1, 0-TrueFalse#\\\n", max_size=60), rest=st.binary())
def test_any_array_header_is_read_or_refused(header: str, rest: bytes) -> None:
    with written({"golden.npz": npy_archive(scores=npy(header, rest))}) as folder:
        read_or_refused(folder)


# Not `name`, which names the folder: tests.unit.test_bundle has those.
@given(
    field=st.sampled_from(sorted(set(manifest_fields({})) - {"name"})),
    value=json_values,
    inner=st.booleans(),
    data=st.data(),
)
def test_any_manifest_with_the_right_digest_is_read_or_refused(
    field: str, value: Any, inner: bool, data: st.DataObject
) -> None:
    if inner and isinstance(whole := manifest_fields({})[field], dict) and whole:
        value = {**whole, data.draw(st.sampled_from(sorted(whole))): value}
    with written(manifest={field: value}) as folder:
        bundle = read_or_refused(folder)
        if bundle is not None:
            assert np.isfinite(bundle.threshold)
            assert set(bundle.manifest.calibration_quantiles) >= {"score", "error"}
            # Called by the scoring thread, which nothing may end.
            announce(bundle, PrometheusTelemetry(CollectorRegistry(), SystemClock()))
            bundle.image_spec()


@given(
    images=st.lists(st.tuples(st.binary(max_size=20), float32s, float32s), min_size=1, max_size=10),
    calibration=st.lists(st.tuples(float32s, float32s), min_size=1, max_size=10),
    evaluation=st.lists(st.tuples(float32s, float32s, st.booleans()), max_size=10),
    threshold=float32s,
)
def test_what_was_written_is_read(
    images: list[tuple[bytes, float, float]],
    calibration: list[tuple[float, float]],
    evaluation: list[tuple[float, float, bool]],
    threshold: float,
) -> None:
    golden: dict[str, NDArray[Any]] = {
        "data": np.frombuffer(b"".join(image for image, _, _ in images), np.uint8),
        "lengths": np.array([len(image) for image, _, _ in images], np.int64),
        "scores": np.array([score for _, score, _ in images], np.float32),
        "errors": np.array([error for _, _, error in images], np.float32),
    }
    arrays: dict[str, NDArray[Any]] = {
        "scores": np.array([score for score, _ in calibration], np.float32),
        "errors": np.array([error for _, error in calibration], np.float32),
        "evaluation_scores": np.array([score for score, _, _ in evaluation], np.float32),
        "evaluation_errors": np.array([error for _, error, _ in evaluation], np.float32),
        "evaluation_labels": np.array([label for _, _, label in evaluation], np.bool_),
    }
    fit = {**THRESHOLD, "value": threshold, "n": len(calibration)}
    with written({"golden.npz": npz(golden), "calibration.npz": npz(arrays)}, {"threshold": fit}) as folder:
        bundle = read_bundle(folder)
    assert bundle.golden.images == tuple(image for image, _, _ in images)
    assert bundle.golden.errors.tolist() == golden["errors"].tolist()
    for name, array in arrays.items():
        assert getattr(bundle.calibration, name).tolist() == array.tolist()
    assert float(bundle.threshold) == threshold


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_the_digest_is_of_what_the_manifest_says_not_of_how(content: dict[str, Any]) -> None:
    reordered = json.loads(json.dumps(dict(reversed(content.items())), indent=3, ensure_ascii=False))
    assert digest_of(reordered) == digest_of(content) == digest_of({**content, "digest": "any"} | content)
    without = {name: value for name, value in content.items() if name != "digest"}
    assert json.loads(canonical_json(content)) == without
    assert digest_of({**without, "one more": 1}) != digest_of({**without, "one more": 2})
