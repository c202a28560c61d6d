"""What the dashboards are made of: queries, panels, variables and annotations, in one style.

Rules: every panel has a title, a description that says how to read it, a unit, and the one data source; colours
mean the same everywhere (green: well, orange: look at it, red: act); queries name their step by $__rate_interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# The uid in provisioning/datasources/prometheus.yml.
SOURCE = models.DataSourceRef(type_val="prometheus", uid="reconstream-prometheus")
TAG = "reconstream"
GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"

# The workers that are chosen; a stream's and a version's metrics have these labels beside it.
WORKER = 'instance=~"$worker"'
STREAM = f'{WORKER}, stream=~"$stream"'
VERSION = f'{WORKER}, version=~"$version"'

Steps = Sequence[tuple[float | None, str]]


@dataclass(frozen=True)
class Query:
    """A query and the name of its series; {{label}} stands for a label's value.

    `style`: how its lines look; `colour`: one of the names above, or Grafana chooses.
    """

    expr: str
    legend: str = ""
    style: str = "solid"
    colour: str = ""


def time_panel(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    width: int = 8,
    stacked: bool = False,
    limits: Steps = (),
    log: bool = False,
    maximum: float | None = None,
) -> timeseries.Panel:
    """Values over time. `limits`: colours from values on, drawn as dashed lines; `log`: logarithmic axis."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(8)
        .span(width)
        .line_width(1)
        .fill_opacity(25 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(show_legend=True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if log:
        scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel.scale_distribution(scale)
    else:
        panel.axis_soft_min(0)
    if maximum is not None:
        panel.max(maximum)
    if limits:
        panel.thresholds(thresholds(((None, GREEN), *limits)))
        panel.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    for ref, query in zip(_refs(queries), queries, strict=True):
        panel.with_target(target(query, ref).range())
        properties = []
        if query.style != "solid":
            style = common.LineStyle(fill="dash", dash=[8, 8]) if query.style == "dashed" else common.LineStyle("dot")
            properties += [models.DynamicConfigValue("custom.lineStyle", style)]
            properties += [models.DynamicConfigValue("custom.fillOpacity", 0)]
        if query.colour:
            color = {"mode": "fixed", "fixedColor": query.colour}
            properties.append(models.DynamicConfigValue("color", color))
        if properties:
            panel.override_by_query(ref, properties)
    return panel


def stat_panel(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str,
    steps: Steps = ((None, GREEN),),
    width: int = 3,
    names: bool = False,
    trend: bool = True,
) -> stat.Panel:
    """One value, coloured by `steps`; `names`: the series' names are shown instead of their values."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(width)
        .thresholds(thresholds(steps))
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.AREA if trend else common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.NAME if names else common.BigValueTextMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(values=False))
        .no_value("no data")
        .with_target(target(query, "A").range() if trend else target(query, "A").instant())
    )


def heat_panel(title: str, description: str, query: Query, *, unit: str, repeat: str = "") -> heatmap.Panel:
    """How many values lay in each bucket over time. `repeat`: a panel for each value of that variable."""
    panel = (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(8)
        .span(12)
        .calculate(calculate=False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .cell_values(heatmap.CellValues().unit("short"))
        .cell_gap(1)
        .mode(common.TooltipDisplayMode.SINGLE)
        .show_y_histogram()
        .with_target(target(query, "A").range().format(PromQueryFormat.HEATMAP))
    )
    return panel.repeat(repeat).repeat_direction("h") if repeat else panel


@dataclass(frozen=True)
class Column:
    """A column of a table: `bad` colours its cells by these steps, `mapping` replaces values by words."""

    query: Query
    unit: str = "short"
    bad: Steps = ()
    mapping: tuple[tuple[str, str, str], ...] = ()


def table_panel(title: str, description: str, columns: Sequence[Column], hidden: Sequence[str] = ()) -> table.Panel:
    """A row per worker; columns are named by their queries' legends, `hidden` ones give only their labels."""
    panel = table.Panel().title(title).description(description).datasource(SOURCE).height(7).span(24)
    renamed = {"instance": "worker", "version": "bundle"}
    for ref, column in zip(_refs(columns), columns, strict=True):
        panel.with_target(target(Query(column.query.expr), ref).instant().format(PromQueryFormat.TABLE))
        renamed[f"Value #{ref}"] = column.query.legend
        properties = [models.DynamicConfigValue("unit", column.unit)]
        if column.mapping:
            options = {value: {"text": text, "color": colour} for value, text, colour in column.mapping}
            properties.append(models.DynamicConfigValue("mappings", [{"type": "value", "options": options}]))
        if column.bad:
            properties.append(
                models.DynamicConfigValue("thresholds", thresholds(((None, GREEN), *column.bad)).build())
            )
        if column.bad or column.mapping:
            properties.append(models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
        panel.override_by_name(column.query.legend, properties)
    excluded = dict.fromkeys(["Time", *hidden], True)
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    organize = {"excludeByName": {**excluded}, "renameByName": renamed, "indexByName": {}}
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))


def target(query: Query, ref: str) -> prometheus.Dataquery:
    """A query as panels take it; `ref` tells it from the panel's others."""
    return prometheus.Dataquery().datasource(SOURCE).expr(query.expr).legend_format(query.legend).ref_id(ref)


def thresholds(steps: Steps) -> builders.ThresholdsConfig:
    """Colours from these values on; the first one's value is None: from minus infinity."""
    return (
        builders.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value, colour) for value, colour in steps])
    )


def variable(
    name: str, label: str, description: str, query: str, *, everything: str | None
) -> builders.QueryVariable:
    """A choice of several values. `everything`: what "All" stands for; None: the values that the query gives."""
    made = (
        builders.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query({"query": query, "qryType": 1, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
    return made if everything is None else made.all_value(everything)


class _PrometheusAnnotation(models.AnnotationQuery):
    """The fields that Prometheus' annotations have beside those that the library knows."""

    title_format = ""
    text_format = ""

    def to_json(self) -> dict[str, object]:
        query = {"expr": self.expr, "refId": "Anno", "editorMode": "code", "range": True, "instant": False}
        own = {"target": query, "titleFormat": self.title_format, "textFormat": self.text_format, "tagKeys": ""}
        return {**super().to_json(), **own}


class Annotation(builders.AnnotationQuery):
    """Vertical marks where `expr` has a value above zero; {{label}} in `title` and `text` as in legends."""

    def __init__(self, name: str, expr: str, title: str, text: str, colour: str) -> None:
        super().__init__()
        made = _PrometheusAnnotation(name=name, datasource=SOURCE, enable=True, icon_color=colour, expr=expr)
        made.title_format, made.text_format = title, text
        self._internal = made


def annotations() -> list[builders.AnnotationQuery]:
    """What both dashboards mark: new versions and refused bundles."""
    now = f"count by (job, version) (reconstream_model_info{{{WORKER}}})"
    before = f"count by (job, version) (reconstream_model_info{{{WORKER}}} offset $__rate_interval)"
    refused = (
        f'sum by (instance) (increase(reconstream_reloads_total{{{WORKER}, outcome="refused"}}[$__rate_interval]))'
    )
    return [
        Annotation("New versions", f"{now} unless {before}", "bundle {{version}}", "{{job}} judges with it", BLUE),
        Annotation("Refused bundles", f"{refused} > 0", "bundle refused", "by {{instance}}: see its log", RED),
    ]


def new_dashboard(uid: str, title: str, description: str) -> builders.Dashboard:
    """An empty dashboard with what both have: time range, links to the other, annotations."""
    link = (
        builders.DashboardLink("Reconstream")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("15s")
        .readonly()
        .link(link)
        .annotations([*annotations()])
    )


def _refs(queries: Sequence[object]) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(queries))]
