"""How often the stated 95 % intervals of false-positive rates hold: draws from distributions with known tails.

    python -m tests.bench.intervals [--draws 2000] [--seed 0] [--only grouped]

For every scenario and method: draw a calibration, fit the threshold, compare its interval with the true rate of new
images of new groups. `ignoring groups` is the interval that takes grouped images for independent ones; `bootstrap` is
one by resampling groups, drawn for the percentile, beside which the stated one was chosen. Writes
build/interval-coverage.json; exits with 1 where a stated interval holds in less than 93 % of the draws: of a drift
one way, which the groups' order tells, none may be stated in more than one of a hundred draws.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import special

from training.thresholds import (
    BestF1,
    Conformal,
    CostWeighted,
    Groups,
    Labelled,
    MeanPlusKStd,
    Method,
    PeaksOverThreshold,
    Percentile,
    fit_threshold,
    rate_interval,
)
from worker.core.errors import ConfigurationError

OUTPUT = Path("build/interval-coverage.json")
WANTED = 0.93
RATE = 0.01
BAD_SHIFT = 2.5
HEAVY = 0.4
NOTHING = (np.nan, np.nan)
RARELY = 0.01
"""Up to this share of the draws an interval may be stated where there should be none."""
RESAMPLES = 200
BOOTSTRAPPED = 200
"""Draws of a scenario, of which each is resampled RESAMPLES times."""


@dataclass(frozen=True)
class Family:
    """A distribution of scores: from a standard normal number, and back."""

    score: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    normal: Callable[[float], float]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "normal": Family(lambda z: z + 10, lambda t: t - 10),
        "lognormal": Family(np.exp, lambda t: float(np.log(max(t, 1e-300)))),
        "gamma": Family(
            lambda z: special.gammaincinv(2, special.ndtr(z)),
            lambda t: float(-special.ndtri(special.gammaincc(2, t))),
        ),
        # Generalised Pareto, gamma 0.4: no third moment.
        "heavy": Family(
            lambda z: (special.ndtr(-z) ** -HEAVY - 1) / HEAVY,
            lambda t: float(-special.ndtri((1 + HEAVY * t) ** (-1 / HEAVY))),
        ),
    }
)


@dataclass(frozen=True)
class Scenario:
    """How calibrations are drawn.

    Attributes:
        kind: `independent`, `grouped` or `drifting`.
        groups: how many.
        images: of a group; 0: uneven, 1 to 60, half of them below 7.
        correlation: of two images of one group, on the normal scale.
        family: one of FAMILIES.
        bad: share of groups whose images all score BAD_SHIFT standard deviations higher.
        one_way: by how many standard deviations the mean climbs over the calibration; the future is what comes next.
    """

    kind: str
    groups: int
    images: int = 1
    correlation: float = 0.0
    family: str = "normal"
    bad: float = 0.0
    one_way: float = 0.0

    def draw(self, rng: np.random.Generator, anomalies: float = 0.0) -> tuple[NDArray[np.float32], Groups | None]:
        """Scores float32 (n,) and groups (n,); `anomalies`: by how much all are shifted."""
        sizes = np.full(self.groups, self.images)
        if self.images == 0:
            uneven = np.random.default_rng(5).lognormal(1.8, 0.9, self.groups)
            sizes = np.clip(np.round(uneven), 1, 60).astype(np.int64)
        groups = np.repeat(np.arange(self.groups), sizes)
        shared = np.sqrt(self.correlation) * rng.standard_normal(self.groups)
        shared += BAD_SHIFT * (rng.random(self.groups) < self.bad) + anomalies
        if self.one_way:
            shared += np.linspace(-self.one_way, 0, self.groups)
        own = np.sqrt(1 - self.correlation) * rng.standard_normal(len(groups))
        scores = FAMILIES[self.family].score(shared[groups] + own).astype(np.float32)
        return scores, None if self.kind == "independent" else groups

    def rate(self, threshold: float) -> float:
        """The share of new images, of new groups, above a threshold."""
        z = FAMILIES[self.family].normal(threshold)
        return float((1 - self.bad) * special.ndtr(-z) + self.bad * special.ndtr(BAD_SHIFT - z))

    @property
    def title(self) -> str:
        size = "uneven" if self.images == 0 else str(self.images)
        parts = [f"{self.groups} x {size}", self.family]
        if self.correlation:
            parts.append(f"r {self.correlation:g}")
        if self.bad:
            parts.append(f"{100 * self.bad:g} % bad")
        if self.one_way:
            parts.append(f"up {self.one_way:g} one way")
        return ", ".join(parts)


def scenarios() -> tuple[Scenario, ...]:
    """All that is drawn."""
    independent = [Scenario("independent", n, family=family) for n in (100, 500) for family in FAMILIES]
    independent += [Scenario("independent", 5000, family=family) for family in ("normal", "heavy")]
    grouped = [
        Scenario("grouped", groups, images, correlation, family, bad)
        for groups in (20, 50, 100, 500)
        for images in (10, 0)
        for correlation, family, bad in (
            (0.2, "normal", 0),
            (0.8, "gamma", 0),
            (0.8, "heavy", 0),
            (0.3, "lognormal", 0.03),
        )
    ]
    singles = [Scenario("grouped", groups, 1, family="lognormal") for groups in (100, 500)]
    days = [Scenario("drifting", days, 50, correlation) for days in (20, 50, 100) for correlation in (0.1, 0.5)]
    away = [Scenario("drifting", 100, 50, 0.1, one_way=climb) for climb in (1.0, 2.0)]
    return *independent, *grouped, *singles, *days, *away


METHODS: Mapping[str, Callable[[Scenario, np.random.Generator], Method]] = MappingProxyType(
    {
        "percentile": lambda _, __: Percentile(100 * (1 - RATE)),
        "mean_plus_k_std": lambda _, __: MeanPlusKStd(3.0),
        "peaks_over_threshold": lambda _, __: PeaksOverThreshold(RATE),
        "peaks_over_threshold 0.1 %": lambda _, __: PeaksOverThreshold(RATE / 10),
        "conformal": lambda _, __: Conformal(RATE),
        "best_f1": lambda scenario, rng: BestF1(_labelled(scenario, rng)),
        "cost_weighted": lambda scenario, rng: CostWeighted(_labelled(scenario, rng)),
    }
)


@dataclass(frozen=True)
class Coverage:
    """What the draws of one scenario gave for one method.

    Attributes:
        stated: share of draws that stated an interval; None: the method refused the data, `why` says so.
        holds: share of the stated intervals that held; ignoring_groups: of those that take images for independent;
            bootstrap: of those that group_bootstrap() has, over its BOOTSTRAPPED draws.
        below, above: share of draws whose true rate lay below the lower limit, above the upper one.
        rate: the mean of the true rates. low, high: medians of the limits.
    """

    kind: str
    scenario: str
    one_way: bool
    method: str
    draws: int
    stated: float | None
    why: str | None = None
    holds: float | None = None
    ignoring_groups: float | None = None
    bootstrap: float | None = None
    below: float | None = None
    above: float | None = None
    rate: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def fails(self) -> bool:
        rightly_none = self.one_way and (self.stated or 0.0) <= RARELY
        return self.holds is not None and self.holds < WANTED and not rightly_none


class _Tally:
    """What the draws of one scenario give for one method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.why: str | None = None
        self.refused: str | None = None
        # A row for each draw: the true rate, the stated limits, those that ignore groups, those of the bootstrap.
        self.rows: list[tuple[float, float, float, float, float, float, float]] = []

    def draw(self, scenario: Scenario, scores: NDArray[np.float32], groups: Groups | None, method: Method) -> None:
        """Fit a threshold and compare."""
        try:
            fit = fit_threshold(method, scores, groups, in_time=scenario.kind == "drifting")
        except ConfigurationError as error:
            self.refused = str(error)
            return
        self.why = fit.no_interval or self.why
        naive = rate_interval(scores, np.float32(fit.value), None).limits or NOTHING
        drawn = groups is not None and self.method == "percentile" and len(self.rows) < BOOTSTRAPPED
        resampled = group_bootstrap(scores, groups, len(self.rows)) if drawn and groups is not None else NOTHING
        self.rows.append((scenario.rate(fit.value), *(fit.interval or NOTHING), *naive, *resampled))

    def coverage(self, scenario: Scenario, draws: int) -> Coverage:
        head = (scenario.kind, scenario.title, scenario.one_way > 0, self.method, draws)
        if self.refused:
            return Coverage(*head, None, self.refused)
        rate, low, high, naive_low, naive_high, bootstrap_low, bootstrap_high = np.array(self.rows).T
        stated = ~np.isnan(low)
        if not stated.any():
            return Coverage(*head, 0.0, self.why, rate=float(rate.mean()))
        held = (low <= rate) & (rate <= high)
        resampled = ~np.isnan(bootstrap_low)
        bootstrap = ((bootstrap_low <= rate) & (rate <= bootstrap_high))[resampled]
        return Coverage(
            *head,
            float(stated.mean()),
            self.why,
            holds=float(held[stated].mean()),
            ignoring_groups=float(((naive_low <= rate) & (rate <= naive_high)).mean()),
            bootstrap=float(bootstrap.mean()) if resampled.any() else None,
            below=float((rate < low).mean()),
            above=float((rate > high).mean()),
            rate=float(rate.mean()),
            low=float(np.nanmedian(low)),
            high=float(np.nanmedian(high)),
        )


def group_bootstrap(scores: NDArray[np.float32], groups: Groups, seed: int) -> tuple[float, float]:
    """The 95 % interval of the false-positive rate of the (1 - RATE) quantile, by resampling groups.

    What the threshold of a resample would flag of the sample stands for what the sample's flags of all (Efron,
    "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7, 1979; whole groups: Davison & Hinkley,
    "Bootstrap Methods and their Application", 1997, section 3.8).
    """
    order = np.argsort(-scores, kind="stable")
    count = int(groups.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    above = np.cumsum(times[:, groups[order]], axis=1)
    flagged = np.argmax(above >= RATE * above[:, -1:], axis=1) / len(scores)
    low, high = np.quantile(flagged, [0.025, 0.975])
    return float(low), float(high)


def measure(scenario: Scenario, methods: Sequence[str], draws: int, seed: int) -> tuple[Coverage, ...]:
    """Draw calibrations, the same for all methods, and count how often the stated intervals hold."""
    rng = np.random.default_rng(seed)
    tallies = [_Tally(method) for method in methods]
    for _ in range(draws):
        scores, groups = scenario.draw(rng)
        for tally in tallies:
            if tally.refused is None:
                tally.draw(scenario, scores, groups, METHODS[tally.method](scenario, rng))
    return tuple(tally.coverage(scenario, draws) for tally in tallies)


def table_of(found: Sequence[Coverage]) -> Table:
    """The coverages for people."""
    table = Table(title="how often 95 % intervals of the false-positive rate hold", title_justify="left")
    for heading in ("", "groups x images", "method"):
        table.add_column(heading)
    for heading in ("holds", "ignoring groups", "bootstrap", "mean rate", "interval, median"):
        table.add_column(heading, justify="right")
    for item in found:
        if item.holds is None or item.ignoring_groups is None:
            said = "refused" if item.stated is None else "no interval"
            table.add_row(item.kind, item.scenario, item.method, said, style="dim")
            continue
        table.add_row(
            item.kind,
            item.scenario,
            item.method,
            f"{item.holds:.1%}",
            f"{item.ignoring_groups:.1%}",
            "" if item.bootstrap is None else f"{item.bootstrap:.1%}",
            f"{item.rate:.2%}",
            f"{item.low:.2%} to {item.high:.2%}",
            style="bold red" if item.fails else "",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--draws", type=int, default=2000, help="calibrations per scenario and method")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--only", choices=["independent", "grouped", "drifting"], help="one kind of scenario")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the JSON file")
    arguments = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 150)
    work = [scenario for scenario in scenarios() if arguments.only in {None, scenario.kind}]
    found = [
        item
        for scenario in track(work, "drawing", console=Console(stderr=True))
        for item in measure(scenario, tuple(METHODS), arguments.draws, arguments.seed)
    ]
    console.print(table_of(found))
    failed = [item for item in found if item.fails]
    stated = [item for item in found if item.holds is not None and not item.one_way]
    summary: dict[str, Any] = {"draws": arguments.draws, "seed": arguments.seed, "wanted": WANTED}
    for kind in dict.fromkeys(item.kind for item in stated):
        worst = min((item for item in stated if item.kind == kind), key=lambda item: item.holds or 0)
        summary[kind] = {"lowest": worst.holds, "where": f"{worst.scenario}, {worst.method}"}
        console.print(f"{kind}: holds in at least {worst.holds:.1%} of the draws ({worst.scenario}, {worst.method})")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = {**summary, "coverage": [asdict(item) for item in found]}
    arguments.output.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
    console.print(f"written to {arguments.output}")
    for item in failed:
        console.print(f"below {WANTED:.0%}: {item.scenario}, {item.method}: {item.holds:.1%}", style="bold red")
    return 1 if failed else 0


def _labelled(scenario: Scenario, rng: np.random.Generator) -> Labelled:
    """Other images of the same kind, and as many anomalies, which score 3 standard deviations higher."""
    normal, groups = scenario.draw(rng)
    anomalous, _ = scenario.draw(rng, anomalies=3.0)
    truth = np.arange(2 * len(normal)) >= len(normal)
    both = None if groups is None else np.concatenate([groups, groups + scenario.groups])
    return Labelled(np.concatenate([normal, anomalous]), truth, both)


if __name__ == "__main__":
    sys.exit(main())
