"""The dashboard *Model*: is it judging well, has the world changed, which bundle judges."""

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana.overview import variables
from deploy.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STREAM,
    VERSION,
    WORKER,
    Query,
    heat_panel,
    new_dashboard,
    stat_panel,
    time_panel,
    variable,
)

QUANTILES = ((0.01, GREEN), (0.5, BLUE), (0.99, ORANGE))


def model() -> builders.Dashboard:
    """Build it."""
    made = new_dashboard(
        "reconstream-model",
        "Reconstream: Model",
        "Is it judging well, has the world changed since the calibration, and which bundle judges?",
    )
    version = variable(
        "version",
        "Model version",
        "Bundles that judged in this time range: the first 12 digits of their digest.",
        f"label_values(reconstream_score_threshold{{{WORKER}}}, version)",
        everything=None,
    )
    made.variables([*variables(), version])
    _at_a_glance(made)
    _errors(made)
    _rates(made)
    _drift(made)
    _bundles(made)
    return made


def _at_a_glance(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("At a glance"))
    made.with_panel(
        stat_panel(
            "Bundle",
            "The version that judges. More than one outside a roll-out: workers judge differently.",
            Query(f"count by (version) (reconstream_model_info{{{VERSION}}})", "{{version}}"),
            unit="short",
            steps=((None, GREY),),
            width=4,
            names=True,
            trend=False,
        )
    )
    made.with_panel(
        stat_panel(
            "Its age",
            "Since the oldest bundle in use was made. The world changes: evaluate it on new images now and then.",
            Query(f"time() - min(reconstream_model_trained_timestamp_seconds{{{VERSION}}})"),
            unit="s",
            steps=((None, GREEN), (180 * 86400, ORANGE)),
            width=4,
            trend=False,
        )
    )
    made.with_panel(
        stat_panel(
            "Anomalies, 1 h",
            "Share of the last hour's judged images that were anomalies, all streams together. Hold it against "
            "'Anomaly rate against expected'.",
            Query("max(job:reconstream_anomaly_ratio:increase1h)"),
            unit="percentunit",
            steps=((None, GREEN), (0.1, ORANGE), (0.5, RED)),
            width=4,
        )
    )
    made.with_panel(
        stat_panel(
            "Drift",
            "The largest distance from the calibration, of errors, brightness and sharpness: 0 none, 1 all.",
            Query(f"max(reconstream_drift_distance_ratio{{{VERSION}}})"),
            unit="percentunit",
            steps=((None, GREEN), (0.25, ORANGE), (0.5, RED)),
            width=4,
        )
    )
    made.with_panel(
        stat_panel(
            "Images drift is measured on",
            "The smallest window of any worker, at most 1000; it starts anew with each bundle. Below 500 (grey) "
            "drift says nothing yet.",
            Query(f"min(reconstream_drift_window_images{{{WORKER}}})"),
            unit="short",
            steps=((None, GREY), (500, GREEN)),
            width=4,
        )
    )
    made.with_panel(
        stat_panel(
            "Too small, 30 min",
            "Share of errors below the calibration's 1 % quantile, in the worst stream. About 1 % is normal; far "
            "more: out of focus, a covered lens, no light. Faults then pass unseen.",
            Query('max(job_stream:reconstream_small_error_ratio:increase30m{stream=~"$stream"})'),
            unit="percentunit",
            steps=((None, GREEN), (0.1, RED)),
            width=4,
        )
    )


def _errors(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("Errors and the threshold"))
    made.with_panel(
        heat_panel(
            "Scores as a share of the threshold",
            "How many images had which score, relative to the threshold: the edge labelled 100 % is the threshold, "
            "what lies above it is an anomaly. Comparable across versions. A band that climbs towards 100 % wants a "
            "new calibration; a second band above it is a kind of fault.",
            Query(
                f"sum by (le) (increase(reconstream_score_threshold_ratio_bucket{{{WORKER}}}[$__rate_interval]))",
                "{{le}}",
            ),
            unit="percentunit",
        )
    )
    score = f"sum by (version, le) (rate(reconstream_score_bucket{{{VERSION}}}[$__rate_interval]))"
    made.with_panel(
        time_panel(
            "Scores, with the threshold",
            "Quantiles of the scores over time; red is the threshold of the version. The 99 % line near the "
            "threshold is what a 99th percentile promises; well above it there are anomalies.",
            [
                Query(f"reconstream_score_threshold{{{VERSION}}}", "threshold {{version}}", "dashed", RED),
                *(
                    Query(f"histogram_quantile({q}, {score})", f"{q * 100:g} % {{{{version}}}}")
                    for q in (0.01, 0.1, 0.5, 0.9, 0.99)
                ),
            ],
            unit="sci",
            width=12,
            log=True,
        )
    )
    made.with_panel(
        heat_panel(
            "Errors, bundle $version",
            "How many images had which reconstruction error, in buckets from the calibration; one panel per version, "
            "since each has buckets of its own. All rows higher: new kind of image, or light. All lower: defocus. "
            "One single row: a camera that repeats one picture.",
            Query(
                f"sum by (le) (increase(reconstream_reconstruction_error_bucket{{{VERSION}}}[$__rate_interval]))",
                "{{le}}",
            ),
            unit="sci",
            repeat="version",
        )
    )


def _rates(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("Is it judging well?"))
    made.with_panel(
        time_panel(
            "Anomaly rate against expected",
            "Anomalies among the judged, last hour, by group. Green dashed: what the threshold stands for; orange "
            "dashed: its own 95 % interval; red dashed: the most that chance allows, where the alert begins. Above: "
            "real faults, or a changed world. For long below the interval: the model no longer sees what it should.",
            [
                Query("job:reconstream_anomaly_ratio:increase1h", "{{job}} measured"),
                Query(
                    f'max(reconstream_expected_anomaly_ratio{{bound="expected", {VERSION}}})',
                    "expected",
                    "dashed",
                    GREEN,
                ),
                Query(
                    f'min(reconstream_expected_anomaly_ratio{{bound="lower", {VERSION}}})',
                    "interval, lower",
                    "dashed",
                    ORANGE,
                ),
                Query(
                    f'max(reconstream_expected_anomaly_ratio{{bound="upper", {VERSION}}})',
                    "interval, upper",
                    "dashed",
                    ORANGE,
                ),
                Query("job:reconstream_anomaly_ratio:upper_limit", "{{job}} limit", "dashed", RED),
            ],
            unit="percentunit",
            width=12,
        )
    )
    made.with_panel(
        time_panel(
            "Anomaly rate by stream",
            "Anomalies among the judged now. One stream alone points to its camera or line, all at once to the "
            "model or the light.",
            [
                Query(
                    f"sum by (stream) (rate(reconstream_anomalies_total{{{STREAM}}}[$__rate_interval])) / sum by "
                    "(stream) "
                    f'(rate(reconstream_messages_total{{status="judged", {STREAM}}}[$__rate_interval]))',
                    "{{stream}}",
                )
            ],
            unit="percentunit",
            width=12,
        )
    )
    made.with_panel(
        time_panel(
            "Errors too small, by stream",
            "Share of the last 30 minutes' errors below the calibration's 1 % quantile. A ramp to 100 %: that "
            "camera is out of focus, or its picture is empty.",
            [Query('job_stream:reconstream_small_error_ratio:increase30m{stream=~"$stream"}', "{{stream}}")],
            unit="percentunit",
            limits=((0.1, RED),),
        )
    )
    made.with_panel(
        time_panel(
            "Errors that repeat, by stream",
            "Share of the last 10 minutes' images whose error equals that of the image before, to the last bit. "
            "More than a few: the camera repeats one picture.",
            [Query('job_stream:reconstream_repeated_error_ratio:increase10m{stream=~"$stream"}', "{{stream}}")],
            unit="percentunit",
            limits=((0.5, RED),),
        )
    )
    made.with_panel(
        time_panel(
            "Dead letters by reason",
            "Messages that could not be judged, per second. Read the newest records of the dead-letter topic: their "
            "headers name the reason, the source position and what was wrong.",
            [
                Query(
                    f"sum by (reason) (rate(reconstream_dead_letters_total{{{WORKER}}}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            unit="suffix:/s",
            stacked=True,
        )
    )


def _drift(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("Has the world changed?"))
    made.with_panel(
        time_panel(
            "Drift",
            "Kolmogorov-Smirnov distance of the newest images from the calibration, the worst worker. Up to 0.1 is "
            "chance. Brightness or sharpness: the camera or the light. Error alone: the parts, or the model has "
            "aged.",
            [
                Query(
                    f"max by (quantity, version) (reconstream_drift_distance_ratio{{{VERSION}}})",
                    "{{quantity}} {{version}}",
                )
            ],
            unit="short",
            width=6,
            limits=((0.25, ORANGE),),
            maximum=1,
        )
    )
    for title, quantity, metric, says in (
        ("Errors", "error", "reconstream_reconstruction_error", "Live below calibrated: defocus. Above: new images."),
        ("Brightness", "brightness", "reconstream_image_brightness", "A step: light, exposure or a covered lens."),
        (
            "Sharpness",
            "sharpness",
            "reconstream_image_sharpness",
            "Falling: focus and clean the lens. Rising: noise.",
        ),
    ):
        live = f"sum by (le, version) (rate({metric}_bucket{{{VERSION}}}[$__rate_interval]))"
        queries = []
        for level, colour in QUANTILES:
            name = f"{level * 100:g} %"
            labels = f'quantity="{quantity}", level="{level:g}", {VERSION}'
            queries.append(
                Query(f"histogram_quantile({level:g}, {live})", f"{name} live {{{{version}}}}", colour=colour)
            )
            queries.append(
                Query(
                    f"max by (version) (reconstream_calibration_quantile{{{labels}}})",
                    f"{name} calibrated {{{{version}}}}",
                    "dashed",
                    colour,
                )
            )
        made.with_panel(
            time_panel(
                f"{title}: live against calibrated",
                "Quantiles of the live images (solid) and of the calibration's (dashed), in one colour each: where "
                f"they part, the input has drifted. {says}",
                queries,
                unit="sci" if quantity == "error" else "percentunit",
                width=6,
                log=quantity == "error",
            )
        )


def _bundles(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("Bundles"))
    made.with_panel(
        time_panel(
            "Workers by bundle",
            "How many workers judge with which version. A clean step is a roll-out; two bands that stay are workers "
            "that fell behind: restart them, or look why they refused the bundle. Swaps and refusals are also "
            "marked as annotations in every panel.",
            [Query(f"count by (version) (reconstream_model_info{{{VERSION}}})", "{{version}}")],
            unit="short",
            width=12,
            stacked=True,
        )
    )
    made.with_panel(
        time_panel(
            "Bundles found",
            "New bundles behind 'current', by what became of them. Refused: the log says why, and the one before "
            "goes on judging.",
            [
                Query(
                    f"sum by (outcome) (increase(reconstream_reloads_total{{{WORKER}}}[$__rate_interval]))",
                    "{{outcome}}",
                )
            ],
            unit="short",
            width=12,
        )
    )
