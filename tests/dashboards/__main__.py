"""The check as a program: exit status 0 if all holds, else 1 with what does not."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.local_kafka.jars import JarError
from deploy.local_kafka.node import ClusterError
from tests.dashboards import checks
from tests.dashboards.server import CheckError, Prometheus, find
from tests.dashboards.stage import open_stage

# Prometheus has what the last act of the stage brought, and no scrape was late of late.
SEEN = (
    'increase(reconstream_reloads_total{outcome="refused"}[300s]) > 0 '
    "and on (instance) min_over_time(reconstream_drift_window_images[3s]) >= 500 "
    "and on (instance) min_over_time(up[5s]) == 1"
)


def main() -> int:
    """Say what is checked, and what is wrong."""
    began = time.monotonic()
    try:
        version = subprocess.run([find("prometheus"), "--version"], capture_output=True, text=True, check=True)
        print((version.stdout + version.stderr).splitlines()[0], flush=True)
        find("promtool")
        problems = checks.static()
        print(f"configuration, rules and their tests: {'ok' if not problems else 'not ok'}", flush=True)
        problems += _live()
    except (CheckError, ClusterError, JarError) as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{'not ' if problems else ''}ok, {time.monotonic() - began:.0f} s")
    return 1 if problems else 0


def _live() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="reconstream-dashboards-") as name:
        folder = Path(name)
        print("starting Kafka and a worker ...", flush=True)
        with open_stage(folder) as stage, Prometheus(folder / "prometheus", stage.address) as server:
            start = time.time()
            print("images, dead letters, a new bundle, a damaged one ...", flush=True)
            stage.perform()
            seen = server.wait_for(SEEN)
            page = stage.exposition()
            limited = f"\n{checks.CONDITIONAL} " in page
            problems = checks.exposition(page)
            print(f"metrics page, {len(page.splitlines())} lines: {'ok' if not problems else 'not ok'}", flush=True)
            rules, wrong = checks.rules_are_well(server, seen, limited=limited)
            problems += wrong
            print(f"{rules} rules on a healthy worker: {'ok' if not wrong else 'not ok'}", flush=True)
            queries, wrong = checks.panels_have_data(server, start, seen, limited=limited)
            problems += wrong
            print(f"{queries} queries of panels and annotations: {'ok' if not wrong else 'not ok'}", flush=True)
            return problems


if __name__ == "__main__":
    sys.exit(main())
