"""What an interrupted fit leaves on the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.saved_fit import FOLDER, Saved, SavedFit, Standing

DECIDES: dict[str, Any] = {"seed": 1, "learning_rate": 1e-3, "data": "ab"}
WEIGHTS = np.array([[1, 2]], np.float32)


def saved(epoch: int = 1) -> Saved:
    generator = np.random.default_rng(epoch)
    generator.random(5)
    losses = [1 / (index + 1) for index in range(epoch)]
    standing = Standing(9, losses, losses, 12.5, epoch, "", dict(generator.bit_generator.state))
    return Saved(standing, [WEIGHTS, np.array(7)], [WEIGHTS * epoch])


def test_what_is_loaded_is_what_was_saved_last(tmp_path: Path) -> None:
    kept = SavedFit(tmp_path, DECIDES)
    assert kept.load() is None
    for epoch in (1, 2):
        kept.save(saved(epoch))
    found = SavedFit(tmp_path, dict(reversed(DECIDES.items()))).load()
    assert found is not None
    assert found.standing == saved(2).standing
    for ours, theirs in ((found.variables, saved(2).variables), (found.best, saved(2).best)):
        for array, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype
    again = np.random.default_rng()
    again.bit_generator.state = found.standing.generator
    expected_generator = np.random.default_rng(2)
    expected_generator.random(5)
    assert again.random() == expected_generator.random()


@pytest.mark.parametrize("changed", [{"seed": 2}, {"learning_rate": 1e-4}, {"data": "ac"}, {"more": 0}])
def test_another_fits_is_never_taken(tmp_path: Path, changed: dict[str, Any]) -> None:
    first, other = SavedFit(tmp_path, DECIDES), SavedFit(tmp_path, DECIDES | changed)
    first.save(saved())
    assert other.load() is None
    first.path.rename(other.path)
    with pytest.raises(ValueError, match="of another fit"):
        other.load()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS.tobytes()) + 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, about=np.array([{"format": 1}], object))


def without_about(path: Path) -> None:
    np.savez(path, variables_0=np.zeros(2))


def lone_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, flip, empty, pickled, without_about, lone_array, folder])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    kept = SavedFit(tmp_path, DECIDES)
    kept.save(saved())
    damage(kept.path)
    with pytest.raises(ValueError, match=f"'{kept.path}' holds no fit that could go on"):
        kept.load()


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SavedFit(tmp_path, DECIDES)
    kept.save(saved(1))

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        kept.save(saved(2))
    found = kept.load()
    assert found is not None
    assert len(found.standing.loss) == 1
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_removing_leaves_other_fits(tmp_path: Path) -> None:
    first, other = SavedFit(tmp_path, DECIDES), SavedFit(tmp_path, {"seed": 3})
    for kept in (first, other):
        kept.save(saved())
    first.remove()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [other.path.name]
    other.remove()
    other.remove()
    assert list(tmp_path.iterdir()) == []
