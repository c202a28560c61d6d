"""Dashboards, rules, runbook and the worker's metrics agree; `make dashboards-check` asks a real Prometheus."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.grafana.build import dashboards, panels, rendered
from worker.adapters.metrics import METRICS, PREFIX

GRAFANA = Path("deploy/grafana")
PROMETHEUS = Path("deploy/prometheus")
RUNBOOK = Path("deploy/runbook")
NAME = re.compile(rf"\b{PREFIX}\w+")
RECORDED = re.compile(r"\b(?:job\w*:\w+:\w+|reconstream:\w+)\b")


def read(path: Path) -> dict[str, Any]:
    return msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])


def rules(kind: str) -> list[dict[str, Any]]:
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [rule for file in files for group in read(file)["groups"] for rule in group["rules"] if kind in rule]


def expressions() -> Iterator[str]:
    for dashboard in dashboards().values():
        for panel in panels(dashboard):
            yield from (target["expr"] for target in panel.get("targets") or [])
        yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])
        yield from (variable["query"]["query"] for variable in dashboard["templating"]["list"])
    yield from (rule["expr"] for rule in rules("expr"))
    yield from (text for rule in rules("alert") for text in rule["annotations"].values())


@pytest.mark.parametrize("path", sorted(rendered()))
def test_what_is_committed_is_what_the_code_builds(path: str) -> None:
    assert (GRAFANA / path).read_text("utf-8") == rendered()[path], "run make dashboards"


def test_every_name_is_a_metric_of_the_worker_or_a_recorded_series() -> None:
    known = {PREFIX + metric.name for metric in METRICS if metric.kind != "histogram"}
    parts = ("_bucket", "_sum", "_count")
    known |= {PREFIX + metric.name + part for metric in METRICS if metric.kind == "histogram" for part in parts}
    recorded = {rule["record"] for rule in rules("record")}
    found = 0
    for expr in expressions():
        series = set(RECORDED.findall(expr))
        names = set(NAME.findall(RECORDED.sub("", expr)))
        assert names <= known, expr
        assert series <= recorded, expr
        found += len(names) + len(series)
    assert found > 100


def test_every_panel_says_how_to_read_it_and_fits_the_grid() -> None:
    source = read(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"][0]["uid"]
    for dashboard in dashboards().values():
        taken: set[tuple[int, int]] = set()
        for panel in panels(dashboard):
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells
            if panel["type"] == "row":
                continue
            assert panel["description"].endswith(".")
            assert panel["datasource"]["uid"] == source
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {source}
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules("alert")])
def test_every_alert_has_a_page_and_a_test_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    [rule] = [rule for rule in rules("alert") if rule["alert"] == alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page = Path(rule["annotations"]["runbook_url"])
    text = page.read_text("utf-8")
    assert page.parent == RUNBOOK
    assert text.startswith(f"# {alert}\n\nFires when ")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["What it means", "What to look at", "What to do"]
    assert f"({page.name})" in (RUNBOOK / "README.md").read_text("utf-8")
    outcomes = {
        bool(expected["exp_alerts"])
        for file in (PROMETHEUS / "tests").glob("*.yml")
        for test in read(file)["tests"]
        for expected in test["alert_rule_test"]
        if expected["alertname"] == alert
    }
    assert outcomes == {True, False}


def test_no_page_is_without_its_alert() -> None:
    pages = {page.stem for page in RUNBOOK.glob("*.md")} - {"README"}
    assert pages == {rule["alert"] for rule in rules("alert")}
