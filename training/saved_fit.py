"""How far a fit is, on the disk, so that one that was interrupted goes on after its last complete epoch.

Rules: a file is whole, or it was never there: it is written beside its place and renamed. It is for one fit alone:
its key is made of all that decides the weights. Arrays and JSON, no pickle: a file that somebody else put there runs
nothing. It is removed when the bundle that came of it is complete.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = ".fit"
"""Beside the bundles."""
FORMAT = 1

Arrays = Sequence[NDArray[Any]]


@dataclass
class Standing:
    """How far a fit is, after its last complete epoch.

    Attributes:
        epochs: how many it is to have; its learning rate falls within them.
        loss, validation_loss: of each epoch so far.
        seconds: what they took.
        best: the epoch with the lowest validation loss, from 1; 0: before the first.
        ended: why there are no more epochs, in words; empty: there are.
        generator: the state of the random generator.
    """

    epochs: int
    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best: int = 0
    ended: str = ""
    generator: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A standing with its arrays.

    Attributes:
        standing: how far it is.
        variables: of the network and its optimiser.
        best: of the network, after the best epoch.
    """

    standing: Standing
    variables: Arrays
    best: Arrays


class SavedFit:
    """The file of one fit.

    Args:
        output: the folder for bundles.
        decides: all that decides the weights, as JSON values.
    """

    def __init__(self, output: Path, decides: Mapping[str, Any]) -> None:
        canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"))
        self._key = hashlib.sha256(canonical.encode()).hexdigest()
        self.path = output / FOLDER / f"{self._key[:16]}.npz"

    def load(self) -> Saved | None:
        """What was saved; None: nothing was.

        Raises:
            ValueError: the file is damaged, or of another fit.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            about = json.loads(arrays.pop("about").tobytes())
            if (about["format"], about["key"]) != (FORMAT, self._key):
                raise ValueError("it is of another fit")
            variables, best = (
                [arrays[f"{kind}_{index}"] for index in range(about[kind])] for kind in ("variables", "best")
            )
            return Saved(Standing(**about["standing"]), variables, best)
        except FileNotFoundError:
            return None
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f"'{self.path}' holds no fit that could go on: {error}") from error

    def save(self, saved: Saved) -> None:
        """Replace what was saved.

        Raises:
            OSError: the disk refuses.
        """
        about = {
            "format": FORMAT,
            "key": self._key,
            "standing": asdict(saved.standing),
            "variables": len(saved.variables),
            "best": len(saved.best),
        }
        arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for kind, found in (("variables", saved.variables), ("best", saved.best)):
            arrays.update({f"{kind}_{index}": array for index, array in enumerate(found)})
        self.path.parent.mkdir(exist_ok=True)
        beside = self.path.with_suffix(".new")
        # Not flushed to the disk: of a machine that fails a damaged file may be left, which load() refuses.
        with beside.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
        beside.replace(self.path)

    def remove(self) -> None:
        """Remove the file, and the folder where no other fit's is in it."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".new").unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
