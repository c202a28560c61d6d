from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from training import images as memory
from training.images import Stored, parts, room_for, sample, subset
from worker.core.errors import ConfigurationError

IMAGES = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3, 1)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    monkeypatch.setattr(memory, "IN_MEMORY", 12)
    room = room_for(len(IMAGES), IMAGES.shape[1:], tmp_path)
    for index in (3, 0, 5, 1, 4, 2):
        room[index] = IMAGES[index]
    assert isinstance(room, Stored)
    assert list(tmp_path.iterdir()) == []  # nothing to tidy up, however the process ends
    return room


def test_images_in_a_file_are_those_of_the_array(stored: Stored) -> None:
    assert stored.shape == IMAGES.shape
    assert len(stored) == 6
    for index in (slice(None), slice(1, 4), np.array([5, 0, 5])):
        np.testing.assert_array_equal(stored[index], IMAGES[index])
    mask = np.array([False, True, True, False, True, False])
    chosen = subset(subset(stored, mask), np.array([2, 0]))
    assert isinstance(chosen, Stored)
    np.testing.assert_array_equal(chosen[:], IMAGES[[4, 1]])
    assert [len(part) for part in parts(stored, 4)] == [4, 2]
    np.testing.assert_array_equal(np.concatenate(list(parts(stored, 4))), IMAGES)


def test_a_sample_is_what_the_memory_should_hold(stored: Stored) -> None:
    np.testing.assert_array_equal(sample(stored), IMAGES[[0, 5]])
    np.testing.assert_array_equal(sample(IMAGES), IMAGES)


def test_few_images_stay_in_memory(tmp_path: Path) -> None:
    assert isinstance(room_for(6, (2, 3, 1), tmp_path / "missing"), np.ndarray)


def test_images_for_which_the_disk_has_no_room_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "IN_MEMORY", 12)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10_000))
    with pytest.raises(ConfigurationError, match=r"3\.6 GB, and the disk of .* has 0\.0 GB left"):
        room_for(1_000_000, (60, 60, 1), tmp_path)
    with pytest.raises(ConfigurationError, match="no file for them can be made"):
        room_for(6, (2, 3, 1), tmp_path / "missing")
