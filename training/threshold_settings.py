"""The settings of a threshold, which `fit` and `calibrate` share."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from training.command import Command
from training.groups import check_group_by

DEFAULT_RATE = 0.01
DEFAULT_PREVALENCE = 0.01
RATED = ("percentile", "peaks-over-threshold", "conformal")


class ThresholdSettings(Command):
    """How the threshold follows from the scores of normal images."""

    threshold_method: Literal[
        "percentile", "mean-plus-k-std", "peaks-over-threshold", "conformal", "best-f1", "cost-weighted"
    ] = Field(
        "percentile",
        description="how the threshold follows from the calibration scores. `percentile`: aims at a false-positive "
        "rate; `conformal`: guarantees it on average over calibrations, so a little higher; `peaks-over-threshold`: "
        "models the tail, for rates that few images cannot show; `mean-plus-k-std`: aims at none; `best-f1` and "
        "`cost-weighted`: from labelled anomalies, judged on folds that did not choose. All that the data supports "
        "are shown side by side",
    )
    false_positive_rate: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="share of normal images that may be flagged, for `percentile`, `peaks-over-threshold` and "
        "`conformal`; above 0, at most 0.5; none: 0.01",
    )
    percentile: float | None = Field(
        None,
        ge=50,
        lt=100,
        description="another way to say it: 99.9 is a false_positive_rate of 0.001; 50 to below 100",
    )
    false_alarms_per_day: float | None = Field(
        None, gt=0, description="another way to say it, with parts_per_day: 5 of 2000 are a rate of 0.0025; above 0"
    )
    parts_per_day: float | None = Field(
        None,
        gt=0,
        description="normal images a day, for false_alarms_per_day; several images a part count as several",
    )
    k: float = Field(3.0, gt=0, le=100, description="for `mean-plus-k-std`; above 0, at most 100")
    cost_ratio: float = Field(
        10.0,
        gt=0,
        le=1e6,
        description="for `cost-weighted`: what a missed anomaly costs, in false alarms, as the labelled images are "
        "mixed; above 0, at most 1000000",
    )
    prevalence: float = Field(
        DEFAULT_PREVALENCE,
        gt=0,
        lt=1,
        description="the share of images that are anomalies on the line, for which the precision is stated; the "
        "evaluation set has more of them than the line; above 0, below 1",
    )
    group_by: str | None = Field(
        None,
        description="which files belong together, such as frames of one part or images of one day; the split and the "
        "interval are then by whole groups: `folder`, `pattern:REGEX` (its one capture group, in the file's name), "
        "`csv:FILE:COLUMN` (column `file` has the path below the data's folder) or `time:MINUTES` (windows of the "
        "modification time, UTC); an .npz has an array groups instead; none: images are independent",
    )

    @property
    def rate(self) -> float:
        """The wanted false-positive rate."""
        if self.percentile is not None:
            return (100 - self.percentile) / 100
        if self.false_alarms_per_day is not None and self.parts_per_day is not None:
            return self.false_alarms_per_day / self.parts_per_day
        return self.false_positive_rate or DEFAULT_RATE

    @property
    def method(self) -> str:
        """The method as manifests name it."""
        return self.threshold_method.replace("-", "_")

    @field_validator("group_by")
    @classmethod
    def _is_rule(cls, value: str | None) -> str | None:
        return value if value is None else check_group_by(value)

    @model_validator(mode="after")
    def _rate_is_said_once(self) -> "ThresholdSettings":
        named = ("false_positive_rate", "percentile", "false_alarms_per_day")
        given = [name for name in named if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; they say the same, allowed: one of them")
        if (self.false_alarms_per_day is None) != (self.parts_per_day is None):
            raise ValueError(
                f"false_alarms_per_day {self.false_alarms_per_day} and parts_per_day {self.parts_per_day} were "
                "given; allowed: both, or neither"
            )
        if self.rate > 0.5:
            raise ValueError(
                f"false_alarms_per_day {self.false_alarms_per_day} of parts_per_day {self.parts_per_day} were given; "
                "allowed: at most half of them"
            )
        if self.threshold_method not in RATED and given and given != ["percentile"]:
            raise ValueError(
                f"{given[0]} was given, and threshold_method {self.threshold_method}, which aims at no rate; allowed "
                f"with it: {', '.join(RATED)}"
            )
        return self
