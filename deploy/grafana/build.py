"""The dashboards as the files that are committed: JSON for Grafana, and a reading guide for people."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.model import model
from deploy.grafana.overview import overview

GUIDE = "README.md"
DASHBOARDS = ("overview", "model")
_HEAD = """# grafana

Two dashboards, as code: `overview.py` and `model.py` build them with grafana-foundation-sdk out of the pieces in
`panels.py`; `make dashboards` writes `dashboards/*.json` and this file, and a unit test holds both equal to the code.
`make dashboards-check` runs every query against a real Prometheus that scrapes a real worker under load.

`provisioning/` gives Grafana the data source (`reconstream-prometheus`, at `http://prometheus:9090`) and the folder
`/var/lib/grafana/dashboards`: mount `provisioning` at `/etc/grafana/provisioning` and `dashboards` there. The panels
also read the recording rules of [../prometheus](../prometheus/rules/recording.yml).

Green is well, orange wants a look, red wants somebody to act. Each alert has a page in
[../runbook](../runbook/README.md). Blue marks across all panels are new versions of the bundle, red ones refused
bundles. Grafana's heatmap has no lines: in the heatmap of scores the edge labelled 100 % is the threshold.
"""


def dashboards() -> dict[str, dict[str, Any]]:
    """Both dashboards by the names of their files, as JSON's types."""
    encoder = JSONEncoder(sort_keys=True)
    built = {"overview": overview().build(), "model": model().build()}
    return {name: _numbered(json.loads(encoder.encode(dashboard))) for name, dashboard in built.items()}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels and rows of a dashboard in the order in which they stand; those inside a row after it."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels") or []


def rendered() -> dict[str, str]:
    """Every generated file's text by its path in this folder."""
    built = dashboards()
    files = {
        f"dashboards/{name}.json": json.dumps(dashboard, indent=2, sort_keys=True) + "\n"
        for name, dashboard in built.items()
    }
    return {**files, GUIDE: guide(built)}


def guide(built: Mapping[str, Mapping[str, Any]]) -> str:
    """The reading guide, in Markdown, from titles and descriptions."""
    lines = [_HEAD]
    for dashboard in built.values():
        lines += [f"## {dashboard['title']}", dashboard["description"], "", "| variable | what |", "|---|---|"]
        lines += [f"| {v['label']} | {v['description']} |" for v in dashboard["templating"]["list"]]
        for panel in panels(dashboard):
            if panel["type"] == "row":
                lines += ["", f"### {panel['title']}", "| panel | how to read it |", "|---|---|"]
            else:
                lines.append(
                    f"| {panel['title'].replace('$version', '(one per version)')} | {panel['description']} |"
                )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _numbered(dashboard: dict[str, Any]) -> dict[str, Any]:
    for number, panel in enumerate(panels(dashboard), start=1):
        panel["id"] = number
    return dashboard
