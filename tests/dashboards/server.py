"""A Prometheus of the check's own: the repository's rules, one target, a scrape a second."""

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from deploy.local_kafka.node import free_ports

CONFIGURATION = Path("deploy/prometheus")
RULES = CONFIGURATION / "rules"
SCRAPE_S = 1
READY_S = 60.0
HOW_TO_GET_ONE = (
    "The check needs prometheus and promtool, 2.42 or later, on the PATH. Debian and Ubuntu: "
    "apt-get install prometheus. Elsewhere: https://prometheus.io/download"
)


class CheckError(Exception):
    """The check cannot be made, or what it checks is not as it must be."""


def find(program: str) -> str:
    """The path of prometheus or promtool.  Raises CheckError where there is none."""
    path = shutil.which(program)
    if path is None:
        raise CheckError(f"{program} was not found. {HOW_TO_GET_ONE}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of the repository."""
    return msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])


class Prometheus:
    """A server on loopback; as a context manager it is started on entry and ended on exit.

    Args:
        folder: for its data, configuration and log.
        target: host:port of the worker.
    """

    def __init__(self, folder: Path, target: str) -> None:
        folder.mkdir()
        self.log = folder / "prometheus.log"
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        original = read_yaml(CONFIGURATION / "prometheus.yml")
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [str((CONFIGURATION / name).absolute()) for name in original["rule_files"]],
            "scrape_configs": [
                {
                    "job_name": original["scrape_configs"][0]["job_name"],
                    "static_configs": [{"targets": [target]}],
                }
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
        self._command = [
            find("prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + READY_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise CheckError(f"Prometheus did not start:\n{self.log.read_text('utf-8', 'replace')}")
            threading.Event().wait(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def get(self, path: str, **parameters: object) -> Any:
        """The data of an answer of its API.  Raises CheckError with what it complains about."""
        request = f"{self.url}/api/v1/{path}"
        if parameters:
            request += "?" + urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - an http address of our own
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise CheckError(f"{path} {parameters}: {error.read().decode('utf-8', 'replace')}") from error

    def instant(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """Series of an expression as of Unix time `at`, or now."""
        result = self.get("query", query=expr, **({} if at is None else {"time": at}))
        if result["resultType"] == "scalar":
            return [{"metric": {}, "value": result["result"]}]
        series: list[dict[str, Any]] = result["result"]
        return series

    def range(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Series of an expression from Unix time `start` to `end`."""
        series: list[dict[str, Any]] = self.get("query_range", query=expr, start=start, end=end, step=f"{SCRAPE_S}s")[
            "result"
        ]
        return series

    def wait_for(self, expr: str) -> float:
        """Wait until the expression has a series; returns as of when it has, in Unix time.

        Raises CheckError where it does not come.
        """
        deadline = time.monotonic() + READY_S
        while not (series := self.instant(expr)):
            if time.monotonic() > deadline:
                raise CheckError(f"Prometheus has not seen within {READY_S:.0f} s: {expr}")
            threading.Event().wait(0.2)
        return float(series[0]["value"][0])

    def label_values(self, label: str, selector: str, start: float) -> list[str]:
        """Values of a label among the series that match."""
        values: list[str] = self.get(f"label/{label}/values", **{"match[]": selector}, start=start, end=time.time())
        return values

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:  # noqa: S310 - see above
                return bool(answer.status == 200)
        except OSError:
            return False
