"""A cluster of one or three Apache Kafka nodes on loopback, to start, break and mend.

Rules: each node is broker and controller; ports, data, users and certificates belong to the root folder, so that
opening the same root again continues the same cluster; no broker outlives the process that started it; the root
folder and its logs are left to the caller.
"""

import base64
import json
import secrets
import signal
import subprocess
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from kafka.errors import KafkaError

from deploy.local_kafka import admin
from deploy.local_kafka.certificates import Certificates
from deploy.local_kafka.jars import ensure_jars
from deploy.local_kafka.node import HOST, ClusterError, Node, free_ports, render_properties
from deploy.local_kafka.settings import (
    MECHANISMS,
    PLAIN_LISTENERS,
    PROXIED_LISTENERS,
    SECURE_LISTENERS,
    node_settings,
    scram_credentials,
)

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
USER = "app"
SUPER_USER = "admin"
STATE_FILE = "cluster.json"
FORMAT_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 90.0


class KafkaCluster:
    """A local cluster; as a context manager it is started on entry and killed on exit.

    root: folder of all its files; nodes: 1 or 3; secure: also SSL, SASL_PLAINTEXT and SASL_SSL listeners, with the
    users `app` and `admin`; acls: access rules are enforced, `app` may do everything until deny_app(); proxied: a
    second plaintext listener, which clients reach only through a proxy of the caller's, see proxy_routes; config:
    broker settings that win over ours; cache: folder of Kafka's jars.

    Raises JarError, ClusterError, and ValueError for arguments that contradict each other or the root's cluster.
    """

    def __init__(
        self,
        root: Path,
        nodes: int = 1,
        *,
        secure: bool = False,
        acls: bool = False,
        proxied: bool = False,
        config: Mapping[str, object] | None = None,
        cache: Path | None = None,
    ) -> None:
        if nodes not in (1, 3):
            raise ValueError(f"nodes must be 1 or 3, got {nodes}: two cannot lose one and go on")
        if acls and not secure:
            raise ValueError("acls needs secure=True: without it every client is the super user ANONYMOUS")
        self.root = root.absolute()
        self.secure = secure
        self.acls = acls
        jars = ensure_jars(cache)
        state = self._state({"nodes": nodes, "secure": secure, "acls": acls, "proxied": proxied})
        self.app_password: str = state["passwords"][USER]
        self.admin_password: str = state["passwords"][SUPER_USER]
        self.nodes: tuple[Node, ...] = tuple(
            Node(number, self.root / f"node{number}", ports, jars)
            for number, ports in enumerate(state["ports"], start=1)
        )
        self._certificates = Certificates(self.root)
        for node in self.nodes:
            node.folder.mkdir(exist_ok=True)
            settings = node_settings(
                node,
                self.nodes,
                passwords=state["passwords"],
                certificates=self._certificates if secure else None,
                acls=acls,
            )
            node.properties_file.touch(mode=0o600)
            node.properties_file.write_text(render_properties(settings | dict(config or {})), encoding="ascii")
        self._format(state)

    # ---- where it is, and how to be let in

    @property
    def bootstrap(self) -> str:
        """host:port of every node's plaintext listener, separated by commas."""
        return self.bootstrap_for("PLAINTEXT")

    def bootstrap_for(self, protocol: Protocol) -> str:
        """host:port of every node for one security protocol.  Raises ValueError where it is not served."""
        if protocol not in self.nodes[0].ports:
            raise ValueError(f"no {protocol} listener here: SSL and SASL need KafkaCluster(..., secure=True)")
        return ",".join(node.address(protocol) for node in self.nodes)

    @property
    def proxy_routes(self) -> list[tuple[int, int]]:
        """Of every node the port where clients expect it and the port that it listens on (proxied only).

        A proxy that stands on the first and forwards to the second sees all that the clients of
        bootstrap_for_proxy() say: Kafka sends them to the addresses that its listener advertises.
        """
        return [(node.ports["PROXY"], node.ports["PROXIED"]) for node in self.nodes]

    @property
    def bootstrap_for_proxy(self) -> str:
        """host:port of every node as its proxy is to offer it (proxied only)."""
        return ",".join(node.address("PROXY") for node in self.nodes)

    @property
    def ca_file(self) -> Path:
        """PEM certificate that clients must trust (secure only)."""
        return self._certificates.ca_file

    @property
    def client_cert_file(self) -> Path:
        """PEM chain of a client certificate, known to the SSL listener as user `app` (secure only)."""
        return self._certificates.client_cert_file

    @property
    def client_key_file(self) -> Path:
        """PEM key of the client certificate (secure only)."""
        return self._certificates.client_key_file

    def client_settings(
        self, protocol: Protocol, *, mechanism: str = "SCRAM-SHA-512", user: str = USER
    ) -> dict[str, object]:
        """Arguments that connect a kafka-python client through this protocol, as `app` or `admin`."""
        if mechanism not in MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {mechanism!r}")
        settings: dict[str, object] = {
            "bootstrap_servers": self.bootstrap_for(protocol),
            "security_protocol": protocol,
        }
        if protocol in ("SSL", "SASL_SSL"):
            settings["ssl_cafile"] = str(self.ca_file)
        if protocol == "SSL":
            settings["ssl_certfile"] = str(self.client_cert_file)
            settings["ssl_keyfile"] = str(self.client_key_file)
        if protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
            settings["sasl_mechanism"] = mechanism
            settings["sasl_plain_username"] = user
            settings["sasl_plain_password"] = {USER: self.app_password, SUPER_USER: self.admin_password}[user]
        return settings

    # ---- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Start every node that does not run and wait until the cluster is usable; on failure all are killed."""
        try:
            for node in self.nodes:
                node.start()
            self.wait_ready(timeout)
            if self.acls:
                admin.allow_all(self.bootstrap, USER)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Controlled shutdown of all nodes at once; what has not ended within the timeout (s) is killed.

        Three nodes take about 6 s: the last ones have no quorum left to say goodbye to.
        """
        running = [node for node in self.nodes if node.running]
        for node in running:
            _ask_to_stop(node)
        deadline = time.monotonic() + timeout
        for node in running:
            _await_stop(node, deadline - time.monotonic())

    def kill(self) -> None:
        """SIGKILL to all nodes.  What was acknowledged is in the kernel's page cache, and survives."""
        for node in self.nodes:
            node.kill()

    def start_node(self, number: int) -> None:
        """Start a node (1, 2, 3), on the ports and data that it had; wait_ready() tells when it serves."""
        self._node(number).start()

    def stop_node(self, number: int, timeout: float = STOP_TIMEOUT_S) -> None:
        """SIGTERM and wait for its controlled shutdown; SIGKILL if it takes longer than timeout (s)."""
        node = self._node(number)
        _ask_to_stop(node)
        _await_stop(node, timeout)

    def kill_node(self, number: int) -> None:
        """SIGKILL: what a lost host or the kernel's out-of-memory killer does."""
        self._node(number).kill()

    def pause_node(self, number: int) -> None:
        """SIGSTOP: connections stay open and nothing answers, as with a hung host."""
        self._node(number).signal(signal.SIGSTOP)

    def resume_node(self, number: int) -> None:
        """SIGCONT after pause_node()."""
        self._node(number).signal(signal.SIGCONT)

    def pid(self, number: int) -> int | None:
        """Process id of a node's JVM, None while it does not run."""
        return self._node(number).pid

    def check(self) -> None:
        """Raises ClusterError with the log's end if a node ended by itself."""
        for node in self.nodes:
            node.check()

    def wait_ready(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Wait until the nodes that were started, and no others, serve, and groups and transactions work.

        timeout: in seconds.  Raises ClusterError with the end of the logs.
        """
        deadline = time.monotonic() + timeout
        running = [node for node in self.nodes if node.running]
        addresses = {node.number: node.address("PLAINTEXT") for node in running}
        try:
            while not all(admin.listens(address) for address in addresses.values()):
                self.check()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody listens yet on all of {', '.join(addresses.values())}")
                time.sleep(admin.POLL_S)
            admin.wait_ready(addresses, deadline)
        except (KafkaError, OSError) as error:
            self.check()
            logs = "\n".join(f"node {node.number}:\n{node.log_tail()}" for node in running)
            raise ClusterError(f"the cluster was not usable within {timeout:.0f} s: {error!r}\n{logs}") from error

    # ---- administration

    def create_topics(self, topics: Mapping[str, tuple[int, Mapping[str, object]]]) -> None:
        """Create topics, {name: (partitions, configuration)}; see admin.create_topics."""
        admin.create_topics(self._reachable(), topics)

    def list_topics(self) -> set[str]:
        """Names of all topics."""
        return admin.list_topics(self._reachable())

    def deny_app(self, kind: admin.Resource, name: str) -> None:
        """Withdraw `app`'s rights on one topic, group, transactional_id or the cluster (acls only)."""
        admin.deny(self._reachable(), USER, kind, name)

    def permit_app(self, kind: admin.Resource, name: str) -> None:
        """Undo deny_app()."""
        admin.undo_deny(self._reachable(), USER, kind, name)

    def set_producer_quota(self, client_id: str, bytes_per_s: int | None) -> None:
        """Bound what the producers of a client id may write to each broker; None: no bound."""
        admin.set_producer_quota(self._reachable(), client_id, bytes_per_s)

    def topic_bytes(self, topics: Collection[str]) -> int:
        """What these topics take on all brokers' disks, replicas included."""
        return admin.topic_bytes(self._reachable(), topics)

    # ---- inside

    def _node(self, number: int) -> Node:
        if not 1 <= number <= len(self.nodes):
            raise ValueError(f"nodes are numbered from 1 to {len(self.nodes)}, got {number}")
        return self.nodes[number - 1]

    def _reachable(self) -> str:
        return ",".join(node.address("PLAINTEXT") for node in self.nodes if node.running)

    def _state(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        """What is chosen once for a root: ports, ids, passwords.  It is written when the storage is formatted."""
        path = self.root / STATE_FILE
        if path.exists():
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: state.get(key, False) for key in shape}
            if kept != shape:
                raise ValueError(f"{self.root} holds a cluster of {kept}, asked for {dict(shape)}: use another root")
            return state
        if (self.root / "node1").exists():
            raise ClusterError(f"{self.root} holds a cluster whose preparation was interrupted: remove that folder")
        self.root.mkdir(parents=True, exist_ok=True)
        listeners = PLAIN_LISTENERS + (SECURE_LISTENERS if shape["secure"] else ())
        listeners += PROXIED_LISTENERS if shape["proxied"] else ()
        ports = iter(free_ports(shape["nodes"] * len(listeners)))
        if shape["secure"]:
            Certificates(self.root).create(HOST, client_name=USER)
        return {
            **shape,
            "cluster_id": base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("="),
            "ports": [{name: next(ports) for name in listeners} for _ in range(shape["nodes"])],
            "passwords": {user: secrets.token_hex(16) for user in (USER, SUPER_USER)},
        }

    def _format(self, state: Mapping[str, Any]) -> None:
        """Format every node's storage, and write the state as the sign that it is done.  Once for a root."""
        path = self.root / STATE_FILE
        if path.exists():
            return
        users = scram_credentials(state["passwords"]) if self.secure else []
        tools = [(node, node.format(state["cluster_id"], users)) for node in self.nodes]
        for node, tool in tools:
            if tool.wait(FORMAT_TIMEOUT_S) != 0:
                raise ClusterError(f"node {node.number}: its storage could not be formatted:\n{node.log_tail()}")
        path.touch(mode=0o600)
        path.write_text(json.dumps(state, indent=2), encoding="utf-8")


def _ask_to_stop(node: Node) -> None:
    if node.running:
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGCONT)  # a paused process would not see the other


def _await_stop(node: Node, timeout_s: float) -> None:
    try:
        node.reap(max(0.0, timeout_s))
    except subprocess.TimeoutExpired:
        node.kill()
