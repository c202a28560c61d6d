"""The dashboard *Overview*: is it keeping up, what comes in, how are the workers."""

from grafana_foundation_sdk.builders import dashboard as builders

from deploy.grafana.panels import (
    GREEN,
    GREY,
    ORANGE,
    RED,
    STREAM,
    WORKER,
    Column,
    Query,
    new_dashboard,
    stat_panel,
    table_panel,
    time_panel,
    variable,
)

UP = 'up{job=~"reconstream-worker.*"}'
CLEAR = "job:reconstream_time_to_clear_seconds:ratio"
LAST = 'job_stream:reconstream_last_message_timestamp_seconds:max{stream=~"$stream"}'
UNREADABLE = 'job_stream:reconstream_unreadable_ratio:increase10m{stream=~"$stream"}'


def overview() -> builders.Dashboard:
    """Build it."""
    made = new_dashboard(
        "reconstream-overview",
        "Reconstream: Overview",
        "Is it keeping up, is something wrong with what comes in, are the workers well? The first row answers it.",
    )
    made.variables([*variables()])
    _at_a_glance(made)
    _keeping_up(made)
    _input(made)
    _workers(made)
    return made


def variables() -> list[builders.QueryVariable]:
    """Topic, worker and stream, each narrowing the next."""
    return [
        variable(
            "topic",
            "Topic",
            "Input topics; choosing one leaves the workers that read it.",
            "label_values(reconstream_lag_records, topic)",
            everything=".*",
        ),
        variable(
            "worker",
            "Worker",
            "Workers that had partitions of the topic in this time range.",
            'label_values(reconstream_lag_records{topic=~"$topic"}, instance)',
            everything=None,
        ),
        variable(
            "stream",
            "Stream",
            "Cameras; 'other' holds all after the first 64.",
            f"label_values(reconstream_messages_total{{{WORKER}}}, stream)",
            everything=".*",
        ),
    ]


def _at_a_glance(made: builders.Dashboard) -> None:
    firing = 'sum by (alertname) (ALERTS{alertname=~"Reconstream.+", alertstate="firing"})'
    made.with_row(builders.Row("At a glance"))
    made.with_panel(
        stat_panel(
            "Alerts",
            "The alerts that fire now, by name; each has a page in deploy/runbook. Green: none.",
            Query(f'{firing} or on () label_replace(vector(0), "alertname", "none", "", "")', "{{alertname}}"),
            unit="short",
            steps=((None, GREEN), (1, RED)),
            width=6,
            names=True,
            trend=False,
        )
    )
    made.with_panel(
        stat_panel(
            "Workers that answer",
            "Workers whose /metrics Prometheus reaches, of all groups. Red: none; nothing is judged.",
            Query(f"count({UP} == 1) or vector(0)"),
            unit="short",
            steps=((None, RED), (1, GREEN)),
            width=3,
        )
    )
    made.with_panel(
        stat_panel(
            "Answered",
            "Messages that got their answer, per second. Zero while lag grows: see 'Workers'.",
            Query(f"sum(rate(reconstream_messages_total{{{STREAM}}}[$__rate_interval]))"),
            unit="suffix:/s",
            steps=((None, GREY),),
            width=3,
        )
    )
    made.with_panel(
        stat_panel(
            "Lag",
            "Records that wait in the topic. A number that stays is harmless; one that grows is not.",
            Query('sum(job_topic:reconstream_lag_records:sum{topic=~"$topic"})'),
            unit="short",
            steps=((None, GREY),),
            width=4,
        )
    )
    made.with_panel(
        stat_panel(
            "Lag is gone in",
            "If all goes on as in the last 10 minutes; the slowest group. Infinity: it grows, so add workers, up to "
            "one per partition. Zero: less than 10 s of work waits.",
            Query(f"max({CLEAR})"),
            unit="s",
            steps=((None, GREEN), (600, ORANGE), (3600, RED)),
            width=4,
        )
    )
    made.with_panel(
        stat_panel(
            "Latency, 99 %",
            "99 of 100 messages had their acknowledged answer within this time of their timestamp, last 5 minutes.",
            Query(
                f"histogram_quantile(0.99, sum by (le) (rate(reconstream_latency_seconds_bucket{{{WORKER}}}[5m])))"
            ),
            unit="s",
            steps=((None, GREY),),
            width=4,
        )
    )
    made.with_panel(
        stat_panel(
            "Anomalies, 1 h",
            "Share of the judged images of the last hour that were anomalies, in the worst stream. All: the camera, "
            "the light or the model; see the dashboard Model.",
            Query('max(job_stream:reconstream_anomaly_ratio:increase1h{stream=~"$stream"})'),
            unit="percentunit",
            steps=((None, GREEN), (0.1, ORANGE), (0.5, RED)),
            width=6,
        )
    )
    made.with_panel(
        stat_panel(
            "Unreadable, 10 min",
            "Share of the messages of the last 10 minutes that became dead letters, in the worst stream.",
            Query(f"max({UNREADABLE})"),
            unit="percentunit",
            steps=((None, GREEN), (0.05, ORANGE), (0.5, RED)),
            width=6,
        )
    )
    made.with_panel(
        stat_panel(
            "Drift",
            "The largest distance of live errors, brightness or sharpness from the calibration: 0 none, 1 all. From "
            "0.25 on the world is not that of the calibration.",
            Query(
                f"max(reconstream_drift_distance_ratio{{{WORKER}}} and on (job, instance) "
                "reconstream_drift_window_images >= 500)"
            ),
            unit="percentunit",
            steps=((None, GREEN), (0.25, ORANGE), (0.5, RED)),
            width=6,
        )
    )
    made.with_panel(
        stat_panel(
            "Last image",
            "Since the newest message of any chosen stream was answered. Long, in active hours: all is silent.",
            Query(f"time() - max({LAST})"),
            unit="s",
            steps=((None, GREEN), (600, ORANGE), (1800, RED)),
            width=6,
        )
    )


def _keeping_up(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("Is it keeping up?"))
    made.with_panel(
        time_panel(
            "Answers by outcome",
            "Messages answered per second: judged, unreadable (dead letters), expired (too old to be judged). "
            "Everything that comes gets an answer, so this is also the input once lag is flat.",
            [
                Query(
                    f"sum by (status) (rate(reconstream_messages_total{{{STREAM}}}[$__rate_interval]))", "{{status}}"
                )
            ],
            unit="suffix:/s",
            stacked=True,
        )
    )
    made.with_panel(
        time_panel(
            "Lag by topic",
            "Records not fetched yet. Saw teeth are bursts; a slope for minutes means too little capacity. A line "
            "that ends means that no worker has the partition: see 'Workers'.",
            [Query('job_topic:reconstream_lag_records:sum{topic=~"$topic"}', "{{job}} {{topic}}")],
            unit="short",
        )
    )
    made.with_panel(
        time_panel(
            "Time to clear",
            "Solid: when the lag will be gone as things go (nothing is drawn while it grows). Dashed: how much work "
            "waits, at the present rate and without new input. Both by group of workers.",
            [
                Query(f"{CLEAR} < Inf", "{{job}} clears in"),
                Query("job:reconstream_backlog_seconds:ratio", "{{job}} work waiting", "dashed"),
            ],
            unit="s",
        )
    )
    latency = f"sum by (le) (rate(reconstream_latency_seconds_bucket{{{WORKER}}}[$__rate_interval]))"
    made.with_panel(
        time_panel(
            "Latency",
            "From a message's timestamp to its acknowledged answer. It grows with lag; without lag, see which step "
            "of the next panel grew.",
            [Query(f"histogram_quantile({q}, {latency})", f"{q * 100:g} %") for q in (0.5, 0.95, 0.99)],
            unit="s",
            log=True,
        )
    )
    steps = ("wait", "decode", "inference", "publish", "commit")
    mean = (
        "sum(rate(reconstream_{0}_duration_seconds_sum{{{1}}}[$__rate_interval])) / "
        "sum(rate(reconstream_{0}_duration_seconds_count{{{1}}}[$__rate_interval]))"
    )
    made.with_panel(
        time_panel(
            "Where a batch spends its time",
            "Means per batch: waiting for its turn, decoding, the model, until its answers are acknowledged; and "
            "per commit. High wait with high inference: the model is the bottleneck. High publish or commit: the "
            "brokers.",
            [Query(mean.format(step, WORKER), step) for step in steps],
            unit="s",
            log=True,
        )
    )
    made.with_panel(
        time_panel(
            "Batches",
            "Mean records per batch. At the largest allowed size with growing lag: add workers. Near 1 with a busy "
            "processor: allow batches to wait longer.",
            [
                Query(
                    f"sum by (instance) (rate(reconstream_batch_records_sum{{{WORKER}}}[$__rate_interval])) / "
                    f"sum by (instance) (rate(reconstream_batch_records_count{{{WORKER}}}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            unit="short",
        )
    )


def _input(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("What comes in"))
    made.with_panel(
        time_panel(
            "Messages by stream",
            "Messages per second of each camera. A line at zero beside others: that camera, its cable or its line.",
            [
                Query(
                    f"sum by (stream) (rate(reconstream_messages_total{{{STREAM}}}[$__rate_interval]))", "{{stream}}"
                )
            ],
            unit="suffix:/s",
        )
    )
    made.with_panel(
        time_panel(
            "Since the last message",
            "Time since each stream's last message. A ramp is a silent stream; from 10 minutes on it is an alert in "
            "active hours, if others go on.",
            [Query(f"time() - {LAST}", "{{stream}}")],
            unit="s",
            limits=((600, ORANGE),),
        )
    )
    made.with_panel(
        time_panel(
            "Unreadable share by stream",
            "Share of the last 10 minutes' messages that became dead letters. One stream: its camera or its encoder. "
            "All: somebody changed the format. The reasons stand in the dashboard Model.",
            [Query(UNREADABLE, "{{stream}}")],
            unit="percentunit",
            limits=((0.05, ORANGE),),
        )
    )


def _workers(made: builders.Dashboard) -> None:
    made.with_row(builders.Row("Workers"))
    yes, no = ("1", "yes", GREEN), ("0", "no", RED)
    made.with_panel(
        table_panel(
            "Workers",
            "All workers that Prometheus knows, chosen or not. Answers: /metrics is reached. Ready: /readyz says "
            "yes. Kafka: it answers, and the group has this worker. Partitions 0: more workers than partitions. "
            "Progress: since a thread last did something; minutes mean that it hangs.",
            [
                Column(Query(f"max by (instance) ({UP})", "answers"), mapping=(yes, no)),
                Column(Query("max by (instance) (reconstream_ready)", "ready"), mapping=(yes, no)),
                Column(Query("max by (instance) (reconstream_kafka_connected)", "Kafka"), mapping=(yes, no)),
                Column(Query("sum by (instance) (reconstream_assigned_partitions)", "partitions")),
                Column(Query("sum by (instance) (reconstream_lag_records)", "lag")),
                Column(
                    Query("sum by (instance) (rate(reconstream_messages_total[5m]))", "answers a second"),
                    unit="suffix:/s",
                ),
                Column(Query("sum by (instance) (reconstream_in_flight_records)", "in flight")),
                Column(
                    Query("time() - max by (instance) (reconstream_last_progress_timestamp_seconds)", "progress"),
                    unit="s",
                    bad=((60, RED),),
                ),
                Column(Query("max by (instance, version) (reconstream_model_info)", "has a bundle")),
                Column(Query("time() - max by (instance) (process_start_time_seconds)", "running for"), unit="s"),
            ],
            hidden=["Value #I"],
        )
    )
    made.with_panel(
        time_panel(
            "Memory",
            "Resident memory by worker, and the container's limit where there is one (dashed). Near the limit: lower "
            "the in-flight limits, or raise it; at the limit the kernel kills the worker.",
            [
                Query(f"process_resident_memory_bytes{{{WORKER}}}", "{{instance}}"),
                Query(f"min(reconstream_memory_limit_bytes{{{WORKER}}})", "limit", "dashed", RED),
            ],
            unit="bytes",
        )
    )
    made.with_panel(
        time_panel(
            "Processor",
            "Processor seconds per second, by worker: 1 is one core. At what it may use, with growing lag: add "
            "workers.",
            [
                Query(
                    f"sum by (instance) (rate(process_cpu_seconds_total{{{WORKER}}}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            unit="short",
        )
    )
    made.with_panel(
        time_panel(
            "Rebalances and rebuilds",
            "Partitions taken from a worker, and deliveries that were in doubt and read again. Some at a roll-out or "
            "a broker's restart are normal; steadily, workers die or brokers are ill: read the log.",
            [
                Query(
                    f"sum by (instance) (increase(reconstream_rebalances_total{{{WORKER}}}[$__rate_interval]))",
                    "{{instance}} rebalances",
                ),
                Query(
                    f"sum(increase(reconstream_rebuilds_total{{{WORKER}}}[$__rate_interval])) or vector(0)",
                    "rebuilds",
                ),
            ],
            unit="short",
        )
    )
