"""What must hold between worker, rules and dashboards. Every function returns what does not, in words."""

import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.grafana.build import dashboards, panels
from tests.dashboards.server import CONFIGURATION, RULES, SCRAPE_S, Prometheus, find, read_yaml

# Grafana's is four scrapes at least, and more when zoomed out. Here a scrape is a second, and a busy machine leaves
# some out: longer than the whole check, so that what happened once is seen however the scrapes fell.
RATE_INTERVAL_S = 300

# A worker has this metric only where something limits its memory.
CONDITIONAL = "reconstream_memory_limit_bytes"
NAMES = re.compile(r"\b(?:job\w*:\w+:\w+|reconstream:\w+|reconstream_\w+|process_\w+|up)\b")


def promtool(*arguments: str, text: str | None = None) -> list[str]:
    """Run promtool; a failure is what it printed."""
    done = subprocess.run([find("promtool"), *arguments], input=text, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    return [f"promtool {' '.join(arguments)}:\n{said}"] if done.returncode else []


def static() -> list[str]:
    """Configuration, rules, and the rules' unit tests."""
    rules = [str(path) for path in sorted(RULES.glob("*.yml"))]
    tests = [str(path) for path in sorted((CONFIGURATION / "tests").glob("*.yml"))]
    configurations = [str(path) for path in sorted(CONFIGURATION.glob("*.yml"))]
    return [
        *promtool("check", "config", *configurations),
        *promtool("check", "rules", *rules),
        *promtool("test", "rules", *tests),
    ]


def exposition(text: str) -> list[str]:
    """The worker's page, as Prometheus' own linter sees it: its warnings are failures."""
    return promtool("check", "metrics", text=text)


def values_of_variables(server: Prometheus, start: float, dashboard: Mapping[str, Any]) -> dict[str, list[str]]:
    """What Grafana would offer for each variable, with "All" chosen for those before it."""
    found: dict[str, list[str]] = {}
    for variable in dashboard["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert asked is not None, variable["query"]
        found[variable["name"]] = server.label_values(asked[2], substitute(asked[1], found), start)
    return found


def substitute(expr: str, values: Mapping[str, list[str]]) -> str:
    """A query as Grafana sends it when all values of all variables are chosen."""
    for name, chosen in values.items():
        # A backslash of the expression is two inside PromQL's quotes.
        pattern = "|".join(re.escape(value).replace("\\", "\\\\") for value in chosen)
        expr = expr.replace(f"${name}", f"({pattern})")
    return expr.replace("$__rate_interval", f"{RATE_INTERVAL_S}s").replace("$__interval", f"{SCRAPE_S}s")


def panels_have_data(server: Prometheus, start: float, at: float, *, limited: bool) -> tuple[int, list[str]]:
    """Run every variable, panel and annotation query as Grafana would.

    Args:
        server: has scraped since `start`, in Unix time.
        start: see there.
        at: as of when it is asked, in Unix time.
        limited: the worker has a memory limit.

    Returns:
        how many queries were run, and those without a number in their answer.
    """
    count, problems = 0, []
    for name, dashboard in dashboards().items():
        values = values_of_variables(server, start, dashboard)
        problems += [f"{name}: variable {variable} has no values" for variable, some in values.items() if not some]
        for where, expr, instant in _queries(dashboard):
            count += 1
            sent = substitute(expr, values)
            series = server.instant(sent, at) if instant else server.range(sent, start, at)
            if not _has_number(series) and (limited or CONDITIONAL not in expr):
                problems.append(f"{name}: {where} has no data: {sent}")
    return count, problems


def rules_are_well(server: Prometheus, at: float, *, limited: bool) -> tuple[int, list[str]]:
    """Every rule evaluates, records where it is to, and is silent where it is to alarm, as of Unix time `at`.

    Returns:
        how many rules there are, and what is wrong.
    """
    count, problems = 0, []
    in_files = sum(len(group["rules"]) for path in RULES.glob("*.yml") for group in read_yaml(path)["groups"])
    for group in server.get("rules")["groups"]:
        for rule in group["rules"]:
            count += 1
            name, expr = rule["name"], rule["query"]
            if rule["health"] != "ok":
                problems.append(f"rule {name}: {rule['health']}, {rule.get('lastError')}")
            if rule["type"] == "recording" and not server.instant(name, at):
                problems.append(f"rule {name} records nothing: {expr}")
            if rule["type"] == "alerting":
                problems += [f"alert {name} on a healthy worker: {series}" for series in server.instant(expr, at)]
                # An alert on a metric that does not exist would be silent for ever.
                absent = {
                    metric for metric in NAMES.findall(_without_strings(expr)) if not server.instant(metric, at)
                }
                absent -= set() if limited else {CONDITIONAL}
                problems += [f"alert {name} asks for {metric}, which does not exist" for metric in sorted(absent)]
    if count != in_files:
        problems.append(f"{in_files} rules in the files, {count} loaded")
    return count, problems


def _queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    for panel in panels(dashboard):
        for target in panel.get("targets") or []:
            yield f"panel '{panel['title']}' query {target['refId']}", target["expr"], bool(target.get("instant"))
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation '{annotation['name']}'", annotation["expr"], False


def _has_number(series: list[dict[str, Any]]) -> bool:
    samples = [sample for one in series for sample in one.get("values") or [one["value"]]]
    return any(not math.isnan(float(value)) for _, value in samples)


def _without_strings(expr: str) -> str:
    return re.sub(r'"[^"]*"', '""', expr)
