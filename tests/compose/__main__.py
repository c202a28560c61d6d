"""Checks docker-compose.yml: builds, starts, scales, breaks, stops it and starts it again, from nothing.

Runs `docker compose`, or the command that the variable COMPOSE names, on ports and in a project of its own. Writes
build/compose.json: a list of {name, ok, detail, seconds}; after a failure also build/compose.log.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from kafka.errors import KafkaError

from deploy.local_kafka.node import free_ports
from tests.compose.checks import CHECKS, CheckFailedError, Stack
from tests.compose.engine import ComposeError, engine

OUTPUT = Path("build/compose.json")
LOG = Path("build/compose.log")
PROJECT = "reconstream-check"
PORTS = ("kafka", "prometheus", "grafana")


class Result(msgspec.Struct):
    """One check: its name, whether it passed, what it found, and how long it took."""

    name: str
    ok: bool
    detail: str
    seconds: float


def main() -> int:
    """Run all checks; 0 when every one passed."""
    command = shlex.split(os.environ.get("COMPOSE") or "docker compose")
    if shutil.which(command[0]) is None:
        print(f"There is no '{command[0]}' here: install Docker with Compose, or set COMPOSE.")
        return 1
    # So that an ended check takes its containers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    stack = Stack(
        engine(command, PROJECT, {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}), ports
    )
    results: list[Result] = []
    try:
        stack.engine.down(volumes=True)  # of an earlier check that was cut off
    except ComposeError as error:
        print(f"{error}\n'{shlex.join(command)}' does not work here: install Docker with Compose, or set COMPOSE.")
        return 1
    try:
        for check in CHECKS:
            result = _run(check, stack)
            results.append(result)
            _write(results)
            print(f"{'ok    ' if result.ok else 'FAILED'} {result.seconds:6.1f} s  {result.name}: {result.detail}")
            if not result.ok:
                # The next ones build on it.
                LOG.write_text(stack.engine.logs(), encoding="utf-8")
                print(f"{LOG} has what the containers wrote")
                break
    finally:
        stack.engine.down(volumes=True)
    print(f"{OUTPUT} written: {sum(result.ok for result in results)} of {len(CHECKS)} checks passed")
    return 0 if len(results) == len(CHECKS) and all(result.ok for result in results) else 1


def _run(check: Callable[[Stack], str], stack: Stack) -> Result:
    began = time.monotonic()
    try:
        ok, detail = True, check(stack)
    except (CheckFailedError, ComposeError, KafkaError, OSError, ValueError, subprocess.SubprocessError) as error:
        ok, detail = False, f"{error}" if isinstance(error, CheckFailedError) else f"{type(error).__name__}: {error}"
    return Result(check.__name__.replace("_", " "), ok, detail, round(time.monotonic() - began, 1))


def _write(results: list[Result]) -> None:
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
