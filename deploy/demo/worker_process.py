"""The worker as a process of its own, started as its users start it."""

import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

POLL_S = 0.2
TAIL_LINES = 15


class DemoError(Exception):
    """Something did not start, or ended by itself."""


class WorkerProcess:
    """`reconstream-worker run`; settings go in as environment variables, its log goes to a file."""

    def __init__(self, log: Path, settings: Mapping[str, object]) -> None:
        self.log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RECONSTREAM_")}
        environment |= {f"RECONSTREAM_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                # Ctrl-C is for the demo, which then stops the worker in its own order.
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float) -> str:
        """Wait until /readyz says so; returns the address of its pages."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            url = re.search(r"http://127\.0\.0\.1:\d+", self._text())
            if url is not None and _ready(url[0]):
                return url[0]
            time.sleep(POLL_S)
        raise DemoError(f"the worker was not ready within {timeout_s:.0f} s:\n{self._tail()}")

    def check(self) -> None:
        """Raise DemoError if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"the worker ended by itself with exit status {code}:\n{self._tail()}")

    def stop(self, timeout_s: float) -> int:
        """Ask it to stop; its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DemoError(f"the worker did not stop within {timeout_s:.0f} s:\n{self._tail()}") from None

    def kill(self) -> None:
        """End it whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _text(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def _tail(self) -> str:
        return "\n".join(self._text().splitlines()[-TAIL_LINES:])


def _ready(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
