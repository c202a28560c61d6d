"""A worker as users run it: a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

READY_S = 90


class WorkerProcess:
    """`reconstream-worker run` with settings as environment variables; its log is kept in a file.

    Args:
        log: the file.
        settings: by name, `__` between the parts of one.
        program: in place of `-m worker`, with arguments of its own; `run` follows.
    """

    def __init__(
        self, log: Path, settings: Mapping[str, object], program: Sequence[object] = ("-m", "worker")
    ) -> None:
        self.log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RECONSTREAM_")}
        environment |= {f"RECONSTREAM_{name.upper()}": str(value) for name, value in settings.items()}
        environment.setdefault("RECONSTREAM_HTTP_PORT", "0")
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, program), "run"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    @property
    def url(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:\d+", self.text)
        return found[0] if found else None

    def get(self, path: str) -> tuple[int, str]:
        assert self.url is not None
        try:
            with urllib.request.urlopen(self.url + path, timeout=READY_S) as answer:  # noqa: S310 - an http address of our own
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples on the worker's page; 0.0 where it has none yet."""
        samples = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return sum(map(float, samples))

    def wait_ready(self) -> None:
        pause = threading.Event()
        for _ in range(READY_S * 10):
            assert self.process.poll() is None, f"the worker exited with {self.process.returncode}:\n{self.text}"
            if self.url is not None and self.get("/readyz")[0] == 200:
                return
            pause.wait(0.1)
        raise AssertionError(f"not ready within {READY_S} s:\n{self.text}")

    def terminate(self, timeout: float = 40) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the worker did not exit within {timeout} s:\n{self.text}") from error
