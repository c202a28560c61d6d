"""Runs compose commands: Docker's, or a program that knows the same ones.

Rule: a program that is not called `... compose` takes its options before the command, `up` waits by itself until all
is healthy, `ps` prints a table of service, state, (exit code), health, and `down` says of each container `stopped
SERVICE ..., exit code N`.
"""

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

START_S = 1800  # with a build
STOP_S = 300
QUICK_S = 120
LAST_CHARACTERS = 2000
STOPPED = re.compile(r"stopped (\S+) .*exit code (-?\d+)")
TABLE_ROW = re.compile(r"^(\S+)\s+(\w+)(?: \((-?\d+)\))?[ ]*(\w*)")

ExitCodes = Mapping[str, Sequence[int]]
"""By service, the exit code of each of its containers."""


class ComposeError(Exception):
    """A command failed; with the end of what it said."""


class Container(NamedTuple):
    """One container: `state` such as running or exited, `health` empty where it has no check."""

    service: str
    state: str
    health: str
    exit_code: int | None


class Engine(Protocol):
    """A project of one compose file."""

    def config(self, *files: str) -> None:
        """Read the files; raises ComposeError where they are wrong."""

    def up(self, workers: int) -> None:
        """Build and start, and wait until all is healthy."""

    def containers(self) -> list[Container]:
        """What there is, ended ones included."""

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a container of the service; its standard output."""

    def start_execution(self, service: str, *command: str) -> "subprocess.Popen[str]":
        """The same, without waiting for its end."""

    def down(self, *, volumes: bool) -> ExitCodes:
        """Stop, and remove the containers; the exit codes of those that still ran."""

    def logs(self) -> str:
        """What all containers wrote."""


class _Program:
    def __init__(self, command: Sequence[str], project: str, environment: Mapping[str, str]) -> None:
        self._command = [*command, "-p", project]
        self._plain = list(command)
        self._environment = {**os.environ, **environment}

    def _run(self, *arguments: str, timeout_s: float, command: Sequence[str] | None = None) -> str:
        words = [*(command or self._command), *arguments]
        shown = " ".join(words)
        try:
            done = subprocess.run(
                words, env=self._environment, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ComposeError(f"{shown}: no end after {timeout_s:g} s") from error
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise ComposeError(f"{shown}: exit status {done.returncode}\n{said[-LAST_CHARACTERS:]}")
        return done.stdout if "down" not in arguments else done.stdout + done.stderr

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


class DockerCompose(_Program):
    """`docker compose`, or what calls itself so."""

    def config(self, *files: str) -> None:
        names = [word for name in files for word in ("-f", name)]
        self._run(*names, "config", "--quiet", timeout_s=QUICK_S, command=self._plain)

    def up(self, workers: int) -> None:
        scale = f"worker={workers}"
        self._run("up", "--build", "--detach", "--wait", "--scale", scale, timeout_s=START_S)

    def containers(self) -> list[Container]:
        text = self._run("ps", "--all", "--format", "json", timeout_s=QUICK_S).strip()
        # Before 2.21 it was one list, since then it is a line for each.
        rows: list[dict[str, Any]] = (
            json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        )
        return [Container(row["Service"], row["State"], row["Health"], row["ExitCode"]) for row in rows]

    def execute(self, service: str, *command: str) -> str:
        return self._run("exec", "-T", service, *command, timeout_s=QUICK_S)

    def start_execution(self, service: str, *command: str) -> "subprocess.Popen[str]":
        return self._start("exec", "-T", service, *command)

    def down(self, *, volumes: bool) -> ExitCodes:
        running = [one.service for one in self.containers() if one.state == "running"]
        codes: defaultdict[str, list[int]] = defaultdict(list)
        if running:
            self._run("stop", timeout_s=STOP_S)
            for one in self.containers():
                if one.service in running and one.exit_code is not None:
                    codes[one.service].append(one.exit_code)
        self._run("down", *(["--volumes"] if volumes else []), timeout_s=STOP_S)
        return codes

    def logs(self) -> str:
        return self._run("logs", "--no-color", timeout_s=QUICK_S)


class OtherProgram(_Program):
    """A program of its own, as this module's docstring describes it."""

    def config(self, *files: str) -> None:
        names = [word for name in files for word in ("-f", name)]
        self._run(*names, "check", timeout_s=START_S, command=self._plain)

    def up(self, workers: int) -> None:
        self._run("--scale", f"worker={workers}", "up", timeout_s=START_S)

    def containers(self) -> list[Container]:
        text = self._run("ps", timeout_s=QUICK_S)
        rows = [found for line in text.splitlines() if (found := TABLE_ROW.match(line))]
        return [Container(row[1], row[2], row[4], int(row[3]) if row[3] else None) for row in rows]

    def execute(self, service: str, *command: str) -> str:
        return self._run("exec", service, *command, timeout_s=QUICK_S)

    def start_execution(self, service: str, *command: str) -> "subprocess.Popen[str]":
        return self._start("exec", service, *command)

    def down(self, *, volumes: bool) -> ExitCodes:
        codes: defaultdict[str, list[int]] = defaultdict(list)
        for found in STOPPED.finditer(self._run(*(["-v"] if volumes else []), "down", timeout_s=STOP_S)):
            codes[found[1]].append(int(found[2]))
        return codes

    def logs(self) -> str:
        return self._run("logs", timeout_s=QUICK_S)


def engine(command: Sequence[str], project: str, environment: Mapping[str, str]) -> Engine:
    """The engine for a command, such as ["docker", "compose"]."""
    is_docker = Path(command[-1]).name in {"compose", "docker-compose"}
    kind = DockerCompose if is_docker else OtherProgram
    return kind(command, project, environment)
