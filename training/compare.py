"""The subcommand `benchmark`: presets and baselines, on digits or on surfaces.

Keras and scikit-learn are imported inside the function, as in training.commands.
"""
# ruff: noqa: PLC0415 - see above

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from training.settings import Benchmark
from training.show import in_markdown, in_words, show_summary, show_surfaces

if TYPE_CHECKING:
    from training.contenders import Contender
    from training.results import Result

QUICK_DIGITS = ("2", "8")
SURFACE_EPOCHS = 5
MIXED_IN = 0.01
"""The share of anomalies among the normal images that a robust fit is for."""


def benchmark(settings: Benchmark, console: Console) -> None:
    """Run what the file does not hold yet, show a line for each fit and the summary.

    Raises:
        ConfigurationError: the data has no such labels or splits, or the file is none of ours.
    """
    from training import quality, surface_quality
    from training.arrays import labelled_splits
    from training.contenders import BASELINES
    from training.results import Book, summarise, summarise_surfaces
    from training.surfaces import TEXTURES

    book = Book(settings.json_file, None if settings.surfaces else settings.data)
    from worker.adapters.keras_scorer import prepare_device, select_backend

    select_backend("tensorflow")
    prepare_device()
    from training.benchmark import PresetContender
    from training.presets import PRESETS, pooled

    chosen = [PRESETS[name] for name in settings.presets.split(",")]
    if settings.pooling is not None:
        chosen = [pooled(preset, settings.pooling) for preset in chosen]
    seeds = range(settings.seeds)
    columns = (
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(elapsed_when_finished=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("fits", total=None)

        def say(text: str) -> None:
            bar.console.print(text, highlight=False, soft_wrap=True)

        if settings.surfaces:
            contenders: list[Contender] = [
                PresetContender(preset, settings.epochs or SURFACE_EPOCHS) for preset in chosen
            ]
            fits = [
                (one.name, one.epochs, texture, seed) for one in contenders for texture in TEXTURES for seed in seeds
            ]
            bar.update(task, total=sum(not book.holds_surface(*fit) for fit in fits))

            def surface_done(name: str, texture: str, seed: int) -> None:
                bar.advance(task)
                say(f"{name} {texture} seed {seed}")

            surface_quality.run(contenders, seeds, book, surface_done)
        else:
            split = quality.Split(*labelled_splits(settings.data))
            all_digits = QUICK_DIGITS if settings.quick else np.unique(split.fit_labels).tolist()
            digits = settings.digits.split(",") if settings.digits else all_digits
            ways = [(0.0, False), (MIXED_IN, False), (MIXED_IN, True)] if settings.robust else [(0.0, False)]
            contenders = [
                PresetContender(preset, settings.epochs or (preset.epochs // 4 if settings.quick else None), *way)
                for preset in chosen
                for way in ways
            ]
            contenders += BASELINES
            todo = [(one.name, one.epochs, digit, seed) for one in contenders for digit in digits for seed in seeds]
            bar.update(task, total=sum(not book.holds(*fit) for fit in todo))

            def done(result: "Result") -> None:
                bar.advance(task)
                say(
                    f"{result.name:9} digit {result.digit} seed {result.seed}: AUROC {result.auroc:.4f}, average "
                    f"precision {result.average_precision:.4f}, fitted in {in_words(result.seconds)}"
                )

            quality.run(contenders, split, digits, seeds, book, done)
    written = [settings.json_file]
    if settings.surfaces:
        show_surfaces(console, summarise_surfaces(book.surface))
    else:
        from training.charts import auroc_by_digit

        show_summary(console, summarise(book.results))
        written += [settings.json_file.with_suffix(suffix) for suffix in (".svg", ".md")]
        written[1].write_bytes(auroc_by_digit(book.results))
        written[2].write_text(in_markdown(summarise(book.results)), encoding="utf-8")
    for what, path in zip(("results", "plot", "table"), written, strict=False):
        console.print(f"{what}  {escape(str(path))}", highlight=False, soft_wrap=True)
