"""The scorer on an accelerator, TensorFlow and JAX, each in a process of its own. Skipped where there is none."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.gpu.accelerator import NONE_HERE, present
from tests.gpu.probe import CAPACITY, Seen
from tests.support.bundles import SHAPE, write_tiny_bundle
from worker.core.bundle import TOLERANCE

MODEL_BYTES = 1 << 30  # far more than the tiny model needs, far less than a device has
ON_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}

pytestmark = pytest.mark.skipif(not present(), reason=NONE_HERE)


def probe(backend: str, bundle: Path, environment: Mapping[str, str]) -> Seen:
    inherited = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.probe", backend, str(bundle)],
        env={**inherited, **environment},
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Seen)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("gpu")).folder


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def seen(request: pytest.FixtureRequest, bundle: Path) -> Seen:
    found = probe(request.param, bundle, {})
    if found.kind == "CPU":
        pytest.skip(f"{request.param} as installed here cannot use the accelerator (the extra 'gpu' can)")
    return found


@pytest.fixture(scope="module")
def on_cpu(bundle: Path) -> Seen:
    return probe("tensorflow", bundle, ON_CPU)


def test_scores_are_the_cpus_within_the_tolerance(seen: Seen, on_cpu: Seen) -> None:
    """Which TF32 would exceed."""
    assert on_cpu.kind == "CPU"
    np.testing.assert_allclose(seen.scores, on_cpu.scores, rtol=TOLERANCE["float32"])


def test_two_batches_in_flight_score_as_one(seen: Seen) -> None:
    np.testing.assert_allclose(seen.in_flight, seen.scores, rtol=1e-5)


def test_bfloat16_is_within_its_tolerance(seen: Seen) -> None:
    if seen.low is None:
        pytest.skip(f"{seen.device} has no bfloat16")
    np.testing.assert_allclose(seen.low, seen.scores, rtol=TOLERANCE["bfloat16"])


def test_a_batch_is_transferred_once_as_uint8(seen: Seen) -> None:
    assert seen.sent in ([], [("uint8", CAPACITY * int(np.prod(SHAPE)))])


def test_memory_is_taken_as_it_is_needed(seen: Seen) -> None:
    assert seen.memory_growth
    assert seen.peak_bytes is None or seen.peak_bytes < MODEL_BYTES
