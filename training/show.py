"""What the subcommands print: thresholds side by side, files, durations, a manifest's facts."""
# ruff: noqa: PLC0415 - SciPy takes a second, which `inspect` must not wait for

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training import words
from worker.core.bundle import CURRENT, REPORT, Manifest

if TYPE_CHECKING:
    from training.evaluate import AtPrevalence, Evaluation, Judged
    from training.results import Spread, Summary, SurfaceSummary

KINDS = 5
"""Of the kinds of anomaly, those worst found; the report has more."""
MEANS = (
    "AUROC %, mean",
    "average precision %, mean",
    "false alarms at 95 % recall, %",
    "MFLOP an image",
    "images a second",
    "fit, seconds",
    "digits x seeds",
)


def show_skipped(console: Console, skipped: Sequence[str]) -> None:
    """The files that could not be used."""
    for line in skipped:
        console.print(f"skipped {escape(line)}", style="yellow", highlight=False, soft_wrap=True)


def show_written(console: Console, folder: Path) -> None:
    """Where the bundle is."""
    for what, path in (("bundle", folder), ("report", folder / REPORT), ("link", folder.parent / CURRENT)):
        console.print(f"{what}  {escape(str(path))}", highlight=False, soft_wrap=True)


def show_thresholds(
    console: Console,
    judged: Sequence["Judged"],
    parts_per_day: float | None = None,
    rare: "AtPrevalence | None" = None,
) -> None:
    """Thresholds side by side: what is known of their false alarms and, where there are labels, their figures.

    Args:
        console: where to.
        judged: the thresholds; one is chosen.
        parts_per_day: to say false alarms by day as well.
        rare: what the chosen one is worth where anomalies are rare.
    """
    from training.thresholds import alarms_in_words
    from training.thresholds import in_words as method_in_words

    chosen = next(item for item in judged if item.chosen)
    names = [method_in_words(item.fit.method, item.fit.parameters) + (" *" if item.chosen else "") for item in judged]
    known = _table("threshold", "value", "false alarms, 95 %")
    for name, item in zip(names, judged, strict=True):
        row = (name, f"{item.fit.value:.6g}", alarms_in_words(item.fit))
        known.add_row(*row, style="bold" if item.chosen else None)
    console.print(known)
    if chosen.evaluation is not None:
        figures = _table("labelled", "TP", "TN", "FP", "FN", "precision", "recall", "F1")
        for name, item in zip(names, judged, strict=True):
            if item.evaluation is not None:
                found = item.evaluation
                counts = [*map(str, (found.tp, found.tn, found.fp, found.fn))]
                ratios = [words.ratio(ratio) for ratio in (found.precision, found.recall, found.f1)]
                figures.add_row(name, *counts, *ratios, style="bold" if item.chosen else None)
        console.print(figures)
        if any("labelled" in item.fit.parameters for item in judged):
            console.print("labelled thresholds are judged on folds that did not choose them", highlight=False)
    console.print("* in force", highlight=False)
    fit, name = chosen.fit, method_in_words(chosen.fit.method, chosen.fit.parameters)
    of = f"{fit.n} images" + (f" of {fit.groups} groups" if fit.groups else "")
    if fit.interval:
        low, high = fit.interval
        said = f"with 95 % confidence {100 * low:.1f} % to {100 * high:.1f} % of normal images raise a false alarm"
        if parts_per_day is not None:
            said += f", {low * parts_per_day:.3g} to {high * parts_per_day:.3g} a day"
    else:
        said = (
            f"how many normal images raise a false alarm is not known: {fit.no_interval or 'no interval is stored'}"
        )
    console.print(f"{name}, {of}: {said}.", highlight=False, soft_wrap=True)
    best = chosen.evaluation
    if best is None or best.tp + best.fn == 0:
        console.print("The data has no anomalies: nothing can be said about how many are found.", soft_wrap=True)
    else:
        for line in _in_sentences(best, rare):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _in_sentences(found: "Evaluation", rare: "AtPrevalence | None") -> Iterator[str]:
    """What an evaluation with anomalies says."""
    recall, known = words.percent(found.recall), words.interval(found.recall_interval)
    yield f"{found.tp:,} of {found.tp + found.fn:,} anomalies found, {recall} (95 %: {known})"
    if found.kinds:
        worst = [f"{kind.name} ({kind.found:,} of {kind.count:,})" for kind in found.kinds[:KINDS]]
        yield f"worst found: {', '.join(worst)}"
    if found.auroc is not None and found.average_precision is not None:
        yield f"AUROC {words.ratio(found.auroc)}, average precision {words.ratio(found.average_precision)}"
    if rare is not None:
        # Without a false alarm the share is 100 %, whatever the prevalence, and says nothing.
        shares = [words.percent(rare.precision)] if rare.precision is not None and found.fp else []
        shares += [f"at least {words.at_least(rare.at_least)} (95 %)"] if rare.at_least is not None else []
        said = ", ".join(shares) or "a share that is not known"
        yield f"where {100 * rare.prevalence:g} % of the images are anomalies: of the alarms {said}"


def show_tutorial(console: Console, found: "Summary", digit: str) -> None:
    """What the tutorial's preset is worth on a digit of MNIST, to compare with."""
    if digit in found.auroc:
        fits = "one fit" if len(found.seeds) == 1 else f"mean of {len(found.seeds)} fits"
        auroc = words.ratio(found.auroc[digit].mean)
        console.print(
            f"for comparison: --preset tutorial, AUROC {auroc} on digit {digit}, {fits} (training/mnist.json)",
            highlight=False,
            soft_wrap=True,
        )


def in_words(seconds: float) -> str:
    """A duration for people: "45 s", "1 min 20 s", "2 h 5 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def facts_of(manifest: Manifest) -> list[tuple[str, str]]:
    """What `inspect` shows, by name."""
    data, threshold, training = manifest.data, manifest.threshold, manifest.training
    facts = [
        ("name", manifest.name),
        ("version", manifest.version),
        ("digest", manifest.digest),
        ("created", manifest.created),
        ("input", " x ".join(map(str, manifest.input_shape)) + (", files resized" if manifest.resize else "")),
        ("score", f"{manifest.score.name}, pooled by {manifest.score.pooling}"),
        ("serving", f"{manifest.serving.precision} on {manifest.serving.backend}"),
        ("threshold", f"{threshold.value:.9g}"),
        ("threshold method", ", ".join([threshold.method, *(f"{k} {v:g}" for k, v in threshold.parameters.items())])),
        (
            "threshold fitted",
            f"{threshold.fitted} on {threshold.n} images"
            + (f" of {threshold.groups} groups" if threshold.groups else "")
            + f", {len(threshold.history)} earlier ones",
        ),
    ]
    if threshold.interval:
        low, high = threshold.interval
        facts.append(("false-positive rate", f"{low:.4f} to {high:.4f} (95 %)"))
    elif threshold.no_interval:
        facts.append(("false-positive rate", threshold.no_interval))
    facts += [
        ("data", f"{data.source}, normal: {data.normal}"),
        ("images", f"{data.fit} fitted, {data.calibration} calibrated, {data.evaluation} evaluated"),
        ("encodings", ", ".join(f"{key}: {count}" for key, count in data.codecs.items())),
        ("sizes", ", ".join(f"{key}: {count}" for key, count in data.sizes.items())),
        ("fingerprint", data.fingerprint),
        ("training", ", ".join(f"{key} {value}" for key, value in training.items() if not isinstance(value, list))),
        ("versions", ", ".join(f"{key} {value}" for key, value in manifest.versions.items())),
        ("weights SHA-256", manifest.weights_sha256),
    ]
    return facts + [(f"{name} SHA-256", value) for name, value in manifest.files.items()]


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show_summary(console: Console, summaries: Mapping[str, "Summary"]) -> None:
    """Presets and baselines, best first: their means, then AUROC and average precision by digit."""
    best_first = sorted(summaries.items(), key=lambda item: -item[1].mean_auroc)
    means = _table("", "AUROC %", "AP %", "FPR 95 %", "MFLOP", "images/s", "fit s", "fits")
    for name, found in best_first:
        means.add_row(name, *_means(found))
    console.print(means)
    digits = sorted({digit for found in summaries.values() for digit in found.digits})
    for title, figures in (
        ("AUROC, %", [found.auroc for _, found in best_first]),
        ("AP, %", [found.average_precision for _, found in best_first]),
    ):
        table = _table(title, *(name for name, _ in best_first))
        for digit in digits:
            table.add_row(digit, *(_spread(by_digit.get(digit)) for by_digit in figures))
        console.print(table)


def in_markdown(summaries: Mapping[str, "Summary"]) -> str:
    """What show_summary() shows, as one Markdown table with a column for each preset and baseline, best first."""
    best_first = sorted(summaries.items(), key=lambda item: -item[1].mean_auroc)
    digits = sorted({digit for found in summaries.values() for digit in found.digits})
    rows: list[tuple[str, list[str]]] = [
        (f"AUROC %, normal {digit}", [_spread(found.auroc.get(digit)) for _, found in best_first]) for digit in digits
    ]
    means = zip(*(_means(found) for _, found in best_first), strict=True)
    for title, cells in zip(MEANS, means, strict=True):
        strong = "**" if title == MEANS[0] else ""
        rows.append((title, [f"{strong}{cell}{strong}" for cell in cells]))
    lines = [("", [name for name, _ in best_first]), ("---", ["---:"] * len(best_first)), *rows]
    return "".join(f"| {' | '.join([first, *cells])} |\n" for first, cells in lines)


def _means(found: "Summary") -> list[str]:
    """The cells that MEANS names."""
    return [
        _with_deviation(found.mean_auroc, found.std, 2),
        f"{100 * found.mean_average_precision:.2f}",
        f"{100 * found.mean_fpr_at_95_recall:.1f}",
        "-" if found.mflop_per_image is None else f"{found.mflop_per_image:.1f}",
        f"{found.images_per_second:,.0f}",
        f"{found.seconds:.1f}",
        f"{len(found.digits)} x {len(found.seeds)}",
    ]


def _spread(found: "Spread | None") -> str:
    return "-" if found is None else _with_deviation(found.mean, found.std, 1)


def _with_deviation(mean: float, std: float, digits: int) -> str:
    """In percent; of one seed there is no deviation."""
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * std:.{digits}f}" if std else "")


def show_surfaces(console: Console, summaries: Mapping[str, Mapping[str, "SurfaceSummary"]]) -> None:
    """A row for each kind and size of defect, and each name."""
    table = _table("defect", "", "AUROC", "std", "recall at 0.1 % FPR", "AUROC of pixels", "textures", "seeds")
    for defect in dict.fromkeys(defect for found in summaries.values() for defect in found):
        for name, by_defect in summaries.items():
            if (found := by_defect.get(defect)) is not None:
                placed = "-" if found.localisation_auroc is None else f"{found.localisation_auroc:.3f}"
                counts = (str(len(found.textures)), str(len(found.seeds)))
                figures = (f"{found.auroc:.4f}", f"{found.std:.4f}", f"{found.recall:.3f}")
                table.add_row(defect, name, *figures, placed, *counts)
    console.print(table)
