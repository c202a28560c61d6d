"""Results of the benchmarks, their summaries, and the file that keeps them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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


class Summary(msgspec.Struct, frozen=True):
    """Results of one name.

    Attributes:
        mean_auroc: over digits and seeds.
        std: standard deviation over seeds of the mean over digits; 0 where there is one seed.
        mflop_per_image, images_per_second: see Result; the latter's median.
        digits, seeds: what was run.
    """

    mean_auroc: float
    std: float
    mflop_per_image: float | None
    images_per_second: float
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
        seconds: of the fit.
    """

    name: str
    texture: str
    seed: int
    defect: str
    auroc: float
    recall: float
    localisation_auroc: float | None
    seconds: float


class SurfaceSummary(msgspec.Struct, frozen=True):
    """Means over textures and seeds of one name's results for one defect; see SurfaceResult."""

    auroc: float
    recall: float
    localisation_auroc: float | None
    textures: list[str]
    seeds: list[int]


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

    def holds(self, name: str, digit: str, seed: int) -> bool:
        """Whether this was run."""
        return any((result.name, result.digit, result.seed) == (name, digit, seed) for result in self.results)

    def add(self, result: Result) -> None:
        """Keep one more."""
        self.results.append(result)
        self._write()

    def holds_surface(self, name: str, texture: str, seed: int) -> bool:
        """Whether this was run."""
        return any((found.name, found.texture, found.seed) == (name, texture, seed) for found in self.surface)

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
    summary: dict[str, Summary]
    surface: _Surface = msgspec.field(default_factory=_Surface)


def summarise(results: Iterable[Result]) -> dict[str, Summary]:
    """A summary for each name, in the order in which they appear."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    return {name: _summary(found) for name, found in by_name.items()}


def _summary(results: Sequence[Result]) -> Summary:
    by_seed: Mapping[int, list[float]] = {
        seed: [result.auroc for result in results if result.seed == seed]
        for seed in sorted({result.seed for result in results})
    }
    means = [float(np.mean(found)) for found in by_seed.values()]
    return Summary(
        mean_auroc=float(np.mean([result.auroc for result in results])),
        std=float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
        mflop_per_image=results[0].mflop_per_image,
        images_per_second=float(np.median([result.images_per_second for result in results])),
        digits=sorted({result.digit for result in results}),
        seeds=list(by_seed),
    )


def summarise_surfaces(results: Sequence[SurfaceResult]) -> dict[str, dict[str, SurfaceSummary]]:
    """By name and defect."""
    summaries: dict[str, dict[str, SurfaceSummary]] = {}
    for name, defect in dict.fromkeys((result.name, result.defect) for result in results):
        found = [result for result in results if (result.name, result.defect) == (name, defect)]
        placed = [result.localisation_auroc for result in found if result.localisation_auroc is not None]
        summaries.setdefault(name, {})[defect] = SurfaceSummary(
            auroc=float(np.mean([result.auroc for result in found])),
            recall=float(np.mean([result.recall for result in found])),
            localisation_auroc=float(np.mean(placed)) if placed else None,
            textures=sorted({result.texture for result in found}),
            seeds=sorted({result.seed for result in found}),
        )
    return summaries
