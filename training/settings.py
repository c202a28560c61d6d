"""The command line of reconstream-train: one settings class per subcommand.

Rules: every field is described and bounded; nothing here imports Keras, so that `--help` and a wrong value answer
at once.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from training.command import ENV_PREFIX, PROGRAM, Command
from training.threshold_settings import ThresholdSettings
from worker.core.bundle import valid_name
from worker.core.errors import ConfigurationError

PRESET_NAMES = ("tutorial", "default", "fast")
"""Those of training.presets, which imports Keras."""


Pooling = Literal["mean", "largest-share", "largest-spot"]


class Fit(ThresholdSettings):
    """Fit an autoencoder to normal images, calibrate its threshold, write the bundle.

    Examples:
      reconstream-train fit
          the shipped MNIST: 1 is normal, every other digit an anomaly
      reconstream-train fit --normal 8 --threshold-method mean-plus-k-std
      reconstream-train fit --data photos/ --height 128 --width 128 --name line-3
          photos/good/*.png are normal; other sub-folders are anomalies, used for evaluation only
      reconstream-train fit --data photos/ --group-by 'pattern:^(part[0-9]+)_'
          part17_cam2.png and part17_cam3.png show one part: they fit, calibrate or evaluate together
      reconstream-train fit --data photos/ --threshold-method conformal --false-alarms-per-day 5 --parts-per-day 2000
      RECONSTREAM_TRAIN_EPOCHS=40 reconstream-train fit --config fit.toml

    Ctrl-C stops it and leaves no half bundle; the same command goes on after the last complete epoch.
    """

    data: str = Field(
        "sample",
        min_length=1,
        description="`sample` (the shipped MNIST), an .npz with x_train y_train x_test y_test, an .npz with images "
        "(uint8, N x H x W or N x H x W x C) and optional labels, or a folder of PNG and JPEG files, "
        "also as MVTec AD and VisA have them",
    )
    normal: str | None = Field(
        None,
        description="what is normal: a label of an .npz, or a sub-folder; none: 1 for digits, `good` for folders",
    )
    preset: Literal["tutorial", "default", "fast"] = Field(
        "default",
        description="`default`: fitted to undo distortions, judged by how rare an image's latent and errors are "
        "among normal ones (above 32 pixels by the largest local error); `fast`: the same with a third of its "
        "multiplications; `tutorial`: four times as many, fitted to copy, judged by the mean squared error",
    )
    name: str | None = Field(
        None, description="of the bundle: a-z 0-9 . _ -, at most 63; none: after the data, such as mnist-1"
    )
    output: Path = Field(Path("build/bundles"), description="folder for bundles and the `current` link")
    epochs: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="passes over the normal images, 1 to 10000; none: the preset's, or as many as make 1000 steps",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="the fit ends after so many epochs without a lower validation loss, on a tenth of the fit images "
        "that is held out for it, and keeps the epoch with the lowest; 1 to 10000; none: a quarter of the epochs; "
        "`tutorial`, and fewer than 200 images: all epochs, the last is kept",
    )
    time_budget: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="minutes that the fit may take, above 0, at most 100000: epochs are planned that fit into it on "
        "this machine; none: no limit",
    )
    robust: bool = Field(
        default=False,
        description="some images that are called normal may be anomalies: the score is fitted without the 2 percent "
        "that look strangest to one fitted to the others; nothing changes where no score is fitted: in `tutorial`, "
        "and above 32 pixels",
    )
    fresh: bool = Field(
        default=False, description="begin anew, even where the same fit was interrupted and could go on"
    )
    batch_size: int = Field(128, ge=1, le=65_536, description="images per step; 1 to 65536")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, shuffling and split; 0 to 4294967295")
    latent_size: int = Field(32, ge=1, le=65_536, description="numbers that an image is squeezed into; 1 to 65536")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Adam's; above 0, at most 1; none: the preset's"
    )
    corruption: Literal["none", "affine", "quarter-turns", "erased"] | None = Field(
        None,
        description="what the network learns to undo: `affine` a turn, shear, scale and shift, `quarter-turns` for "
        "what has an up and a down, `erased` rectangles for what must be whole; none given: the preset's",
    )
    pooling: Pooling | None = Field(
        None,
        description="an image's score is its reconstruction error, as `mean` over the pixels, mean of the "
        "`largest-share` of them (0.2 percent), or mean of the `largest-spot` of 5 x 5 pixels; none given: the "
        "preset's score",
    )
    calibration_size: int | None = Field(
        None,
        ge=2,
        le=10_000_000,
        description="normal images held out from the fit that set the threshold, at least 2; none: 500, and with "
        "group_by 100 groups, or as many as a smaller source can spare",
    )
    height: int | None = Field(
        None,
        ge=4,
        le=4096,
        multiple_of=4,
        description="pixels, 4 to 4096, divisible by 4; files are resized to it; none: as most files",
    )
    width: int | None = Field(
        None,
        ge=4,
        le=4096,
        multiple_of=4,
        description="pixels, 4 to 4096, divisible by 4; files are resized to it; none: as most files",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); files are converted to it; none: as most files"
    )
    scorer: Literal["keras", "openvino"] = Field(
        "keras",
        description="what will serve: `keras` (on TensorFlow), or `openvino` (CPUs only, the extra `openvino`); the "
        "bundle names it, and a worker without it refuses the bundle",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="in which it will serve; `auto`: bfloat16 where this machine has instructions for it, its scores "
        "agree with float32's within 3 % and it is at least 1.2 times as fast, else float32; machines without such "
        "instructions refuse a bundle in bfloat16",
    )
    max_unreadable: int = Field(
        10, ge=0, le=1_000_000, description="files of a folder that may be unreadable: they are listed and skipped"
    )
    quiet: bool = Field(default=False, description="no progress, results only")

    @field_validator("name")
    @classmethod
    def _is_bundle_name(cls, value: str | None) -> str | None:
        if value is not None and not valid_name(value):
            raise ValueError("a-z, 0-9, '.', '_' and '-', at most 63 of them, a letter or digit first")
        return value

    @model_validator(mode="after")
    def _size_is_whole(self) -> "Fit":
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height {self.height} and width {self.width} were given; allowed: both, or neither")
        return self


class Evaluate(Command):
    """Repeat the numbers of a bundle's report from the bundle alone, and score its golden images again.

    Example:
      reconstream-train evaluate build/bundles/current --json numbers.json
    """

    bundle: CliPositionalArg[Path] = Field(description="a bundle, a link to one, or the folder with `current`")
    # Aliased: pydantic models have a method of that name.
    json_file: Path | None = Field(
        None, alias="json", description="file to write the numbers to as well; none: no file"
    )
    prevalence: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the share of images that are anomalies on the line, for which the precision is stated; above 0, "
        "below 1; none: the fit's",
    )


class Calibrate(ThresholdSettings):
    """Fit a bundle's threshold anew, on normal images that its model was not fitted on; the network stays.

    Writes a new bundle beside the old one and switches `current` to it. The old threshold goes into its history.

    Examples:
      reconstream-train calibrate build/bundles/current --data this-week/
      reconstream-train calibrate build/bundles/current --data this-week/ --group-by time:1440
          images of one day are alike: the interval is for other days
    """

    bundle: CliPositionalArg[Path] = Field(description="a bundle, a link to one, or the folder with `current`")
    data: str = Field(
        min_length=1,
        description="a folder of PNG and JPEG files, or an .npz with images and optional labels and groups; only "
        "normal images are used, decoded as the bundle's fit did",
    )
    normal: str | None = Field(
        None, description="what is normal: a label of an .npz, or a sub-folder; none: as fitted"
    )
    output: Path | None = Field(None, description="folder for the new bundle; none: beside the old one")
    max_unreadable: int = Field(
        10, ge=0, le=1_000_000, description="files of a folder that may be unreadable: they are listed and skipped"
    )


class Inspect(Command):
    """Show what a bundle's manifest says, after its files were verified.

    Example:
      reconstream-train inspect build/bundles/current
    """

    bundle: CliPositionalArg[Path] = Field(description="a bundle, a link to one, or the folder with `current`")


class Benchmark(Command):
    """Compare presets and baselines: each digit in turn is normal, fit on its training images, score all test images.

    Examples:
      reconstream-train benchmark --quick
          digits 2 and 8 of the shipped sample, one seed, few epochs: minutes
      reconstream-train benchmark --data mnist.npz --seeds 5
          hours; it goes on where it was interrupted
      reconstream-train benchmark --surfaces --presets default
          textures of 256 x 256 with scratches, stains and missing parts of stated sizes

    The baselines are PCA (32 components, reconstruction error) and the distance to the nearest normal image.
    """

    data: str = Field("sample", min_length=1, description="`sample`, or an .npz with x_train y_train x_test y_test")
    presets: str = Field("tutorial,default,fast", description="names, separated by commas")
    digits: str | None = Field(
        None, min_length=1, description="labels that are normal in turn, separated by commas; none: all"
    )
    seeds: int = Field(1, ge=1, le=100, description="fits of each, with the seeds 0, 1, ...; 1 to 100")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="passes over the images; none: the preset's, 5 on surfaces"
    )
    quick: bool = Field(default=False, description="a quarter of the epochs; digits 2 and 8, unless others are named")
    pooling: Pooling | None = Field(None, description="judge by it, see fit --pooling; none: the preset's score")
    robust: bool = Field(
        default=False,
        description="fit each preset twice more, to normal images with 1 percent of anomalies among them: as it is, "
        "and as fit --robust does",
    )
    surfaces: bool = Field(
        default=False,
        description="made surfaces with small defects instead of digits; data, digits, quick and robust do not count",
    )
    # Aliased: pydantic models have a method of that name.
    json_file: Path = Field(
        Path("build/quality.json"), alias="json", description="file with the results; what it holds is not run again"
    )

    @field_validator("presets")
    @classmethod
    def _are_presets(cls, value: str) -> str:
        unknown = sorted(set(value.split(",")) - set(PRESET_NAMES))
        if unknown:
            raise ValueError(f"{', '.join(PRESET_NAMES)}, separated by commas")
        return value


class Training(BaseSettings):
    """Fit an autoencoder to normal images and write the bundle that reconstream-worker serves.

    Each setting is a flag, a variable RECONSTREAM_TRAIN_... or a line of the file named by --config; the flag
    wins, then the variable.
    """

    model_config = SettingsConfigDict(
        cli_prog_name=PROGRAM,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_parse_none_str="none",
    )

    fit: CliSubCommand[Fit] = Field(description="fit, calibrate, evaluate, write the bundle")
    evaluate: CliSubCommand[Evaluate] = Field(description="repeat the numbers of a bundle's report")
    calibrate: CliSubCommand[Calibrate] = Field(description="fit a bundle's threshold anew, without its network")
    inspect: CliSubCommand[Inspect] = Field(description="show what a bundle is")
    benchmark: CliSubCommand[Benchmark] = Field(description="compare presets and baselines, digit by digit")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line only: a variable called FIT is none of ours."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


Training.__doc__ = inspect.cleandoc(Training.__doc__ or "")


def parse(argv: Sequence[str]) -> Fit | Evaluate | Calibrate | Inspect | Benchmark:
    """The chosen subcommand with its settings.

    Raises:
        ConfigurationError: a value is wrong; the message names field, what was given and what is allowed.
        SystemExit: argparse printed the help (0) or what it did not understand (2).
    """
    try:
        settings = CliApp.run(Training, cli_args=list(argv))
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(problem) for problem in error.errors())) from error
    command = settings.fit or settings.evaluate or settings.calibrate or settings.inspect or settings.benchmark
    if command is None:
        raise ConfigurationError(
            "no command was given; expected one of fit, evaluate, calibrate, inspect, benchmark: "
            f"try {PROGRAM} --help"
        )
    return command


def _explain(problem: Any) -> str:
    """One line for one of pydantic's error records."""
    path = [str(part) for part in problem["loc"][1:]]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not path:
        return f"wrong settings: {message}."
    field = path[0]
    flag = f"--{field.replace('_', '-')}" if len(field) > 1 else f"-{field}"
    names = f"{field} ({flag}, {ENV_PREFIX}{field.upper()})"
    if problem["type"] == "extra_forbidden":
        return f"{field}: there is no such setting; see {PROGRAM} {problem['loc'][0]} --help."
    return f"{names}: {problem['input']!r} was given; allowed: {message.replace('Input should be ', '')}."
