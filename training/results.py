"""Results of the benchmarks, their summaries, and the file that keeps them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from worker.core.errors import ConfigurationError


class Result(msgspec.Struct, frozen=True):
    """One fit, scored on the whole test split.

    Attributes:
        name: of the preset or baseline.
        digit: the normal label.
        seed: of everything random.
        auroc, average_precision: anomalies are the positive class.
        fpr_at_95_recall: the share of normal images called anomalous by the threshold that finds 95 % of anomalies.
        seconds: of the fit.
        images_per_second: scored in batches as the worker does, on this machine.
        mflop_per_image: of scoring one, multiplications and additions; None where it is no network.
        epochs: of the fit, where they are not the preset's own.
    """

    name: str
    digit: str
    seed: int
    auroc: float
    average_precision: float
    fpr_at_95_recall: float
    seconds: float
    images_per_second: float
    mflop_per_image: float | None
    epochs: int | None = None


class Spread(msgspec.Struct, frozen=True):
    """Mean and standard deviation over seeds; the latter 0 where there is one seed."""

    mean: float
    std: float


class Summary(msgspec.Struct, frozen=True):
    """Results of one name.

    Attributes:
        mean_auroc, mean_average_precision, mean_fpr_at_95_recall: over digits and seeds.
        std: standard deviation over seeds of the mean AUROC over digits; 0 where there is one seed.
        mflop_per_image, images_per_second, seconds: see Result; medians of the last two.
        auroc, average_precision: by digit.
        digits, seeds: what was run.
    """

    mean_auroc: float
    std: float
    mean_average_precision: float
    mean_fpr_at_95_recall: float
    mflop_per_image: float | None
    images_per_second: float
    seconds: float
    auroc: dict[str, Spread]
    average_precision: dict[str, Spread]
    digits: list[str]
    seeds: list[int]


class SurfaceResult(msgspec.Struct, frozen=True):
    """One kind and size of defect on one texture.

    Attributes:
        name: of the preset or baseline.
        texture, seed: of the surfaces.
        defect: its kind and size in pixels.
        auroc: of images, with a defect or without.
        recall: the share of defects found where a thousandth of the images without one are called anomalous.
        localisation_auroc: of pixels, in the defect or not, by their local error; None where there is no such map.
        seconds, images_per_second, mflop_per_image, epochs: see Result.
    """

    name: str
    texture: str
    seed: int
    defect: str
    auroc: float
    recall: float
    localisation_auroc: float | None
    seconds: float
    images_per_second: float
    mflop_per_image: float | None
    epochs: int | None = None


class SurfaceSummary(msgspec.Struct, frozen=True):
    """Of one name's results for one defect.

    Attributes:
        auroc, recall, localisation_auroc: means over textures and seeds; see SurfaceResult.
        std: standard deviation over seeds of the mean AUROC over textures; 0 where there is one seed.
        mflop_per_image, images_per_second: see Result; the latter's median.
        textures, seeds: what was run.
    """

    auroc: float
    std: float
    recall: float
    localisation_auroc: float | None
    mflop_per_image: float | None
    images_per_second: float
    textures: list[str]
    seeds: list[int]


R = TypeVar("R", Result, SurfaceResult)

COMMITTED = Path(__file__).with_name("mnist.json")
"""What the presets and baselines gave on MNIST; training/README.md has the command."""


def committed() -> dict[str, Summary]:
    """Summaries of COMMITTED, by name."""
    return summarise(msgspec.json.decode(COMMITTED.read_bytes(), type=_File).results)


class Book:
    """The results so far of a source, in a file that is whole at any time.

    Args:
        path: the file; made where it is missing.
        data: the source, as the user named it; None: whatever the file's is, for surfaces, which have none.

    Raises:
        ConfigurationError: the file is there and is none of ours, or of another source.
    """

    def __init__(self, path: Path, data: str | None) -> None:
        self._path = path
        self._data = data
        self.results: list[Result] = []
        self.surface: list[SurfaceResult] = []
        if path.exists():
            try:
                found = msgspec.json.decode(path.read_bytes(), type=_File)
            except (OSError, msgspec.MsgspecError) as error:
                raise ConfigurationError(
                    f"'{path}' holds no results of this program: {error}. Move it away, or name another file."
                ) from error
            self._data = data or found.data
            if found.data != self._data and found.results:
                raise ConfigurationError(
                    f"'{path}' holds results of '{found.data}', and '{data}' was given. Move it away, or name "
                    "another file."
                )
            self.results, self.surface = found.results, found.surface.results

    def holds(self, name: str, epochs: int | None, digit: str, seed: int) -> bool:
        """Whether this was run."""
        wanted = (name, epochs, digit, seed)
        return any((found.name, found.epochs, found.digit, found.seed) == wanted for found in self.results)

    def add(self, result: Result) -> None:
        """Keep one more."""
        self.results.append(result)
        self._write()

    def holds_surface(self, name: str, epochs: int | None, texture: str, seed: int) -> bool:
        """Whether this was run."""
        wanted = (name, epochs, texture, seed)
        return any((found.name, found.epochs, found.texture, found.seed) == wanted for found in self.surface)

    def add_surfaces(self, results: Iterable[SurfaceResult]) -> None:
        """Keep those of one fit."""
        self.surface += results
        self._write()

    def _write(self) -> None:
        surface = _Surface(self.surface, summarise_surfaces(self.surface))
        content = msgspec.json.encode(_File(self._data, self.results, summarise(self.results), surface))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        beside.write_bytes(msgspec.json.format(content, indent=2) + b"\n")
        beside.replace(self._path)


class _Surface(msgspec.Struct):
    results: list[SurfaceResult] = []
    summary: dict[str, dict[str, SurfaceSummary]] = {}


class _File(msgspec.Struct):
    data: str | None
    results: list[Result]
    summary: object  # made of the results; what another release summarised does not matter
    surface: _Surface = msgspec.field(default_factory=_Surface)


def summarise(results: Iterable[Result]) -> dict[str, Summary]:
    """A summary for each name, in the order in which they appear."""
    return {name: _summary(found) for name, found in by_name(list(results)).items()}


def by_name(results: Sequence[R]) -> dict[str, list[R]]:
    """Results by name; where a name was run with several numbers of epochs, with those beside it."""
    epochs: dict[str, set[int | None]] = {}
    for result in results:
        epochs.setdefault(result.name, set()).add(result.epochs)
    found: dict[str, list[R]] = {}
    for result in results:
        told = result.epochs is not None and len(epochs[result.name]) > 1
        found.setdefault(f"{result.name}, {result.epochs} epochs" if told else result.name, []).append(result)
    return found


def _summary(results: Sequence[Result]) -> Summary:
    digits = sorted({result.digit for result in results})

    def spread(figure: str) -> dict[str, Spread]:
        by_digit = {digit: [getattr(one, figure) for one in results if one.digit == digit] for digit in digits}
        return {digit: Spread(float(np.mean(found)), _std(found)) for digit, found in by_digit.items()}

    return Summary(
        mean_auroc=float(np.mean([result.auroc for result in results])),
        std=_std_over_seeds(results),
        mean_average_precision=float(np.mean([result.average_precision for result in results])),
        mean_fpr_at_95_recall=float(np.mean([result.fpr_at_95_recall for result in results])),
        mflop_per_image=results[0].mflop_per_image,
        images_per_second=float(np.median([result.images_per_second for result in results])),
        seconds=float(np.median([result.seconds for result in results])),
        auroc=spread("auroc"),
        average_precision=spread("average_precision"),
        digits=digits,
        seeds=sorted({result.seed for result in results}),
    )


def summarise_surfaces(results: Sequence[SurfaceResult]) -> dict[str, dict[str, SurfaceSummary]]:
    """By name and defect."""
    return {
        name: {
            defect: _surface_summary([result for result in found if result.defect == defect])
            for defect in dict.fromkeys(result.defect for result in found)
        }
        for name, found in by_name(results).items()
    }


def _surface_summary(results: Sequence[SurfaceResult]) -> SurfaceSummary:
    placed = [result.localisation_auroc for result in results if result.localisation_auroc is not None]
    return SurfaceSummary(
        auroc=float(np.mean([result.auroc for result in results])),
        std=_std_over_seeds(results),
        recall=float(np.mean([result.recall for result in results])),
        localisation_auroc=float(np.mean(placed)) if placed else None,
        mflop_per_image=results[0].mflop_per_image,
        images_per_second=float(np.median([result.images_per_second for result in results])),
        textures=sorted({result.texture for result in results}),
        seeds=sorted({result.seed for result in results}),
    )


def _std_over_seeds(results: Sequence[Result] | Sequence[SurfaceResult]) -> float:
    """Of the mean AUROC."""
    seeds = sorted({result.seed for result in results})
    return _std([float(np.mean([one.auroc for one in results if one.seed == seed])) for seed in seeds])


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
