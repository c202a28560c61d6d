"""The worker's own pages: /metrics for Prometheus, /livez and /readyz for whoever restarts and routes.

Rules: a client can neither stop nor slow the worker, nor keep others from /livez: bytes of a request, seconds
for a request and for an answer, and connections are bounded; when all are taken, the oldest is hung up on. One
request per connection (HTTP/1.0). Nothing is written to stderr.
"""

import errno
import gzip
import http.client
import io
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from worker.core.errors import ConfigurationError

MAX_REQUEST_BYTES = 16 << 10
MAX_CONNECTIONS = 16
TIMEOUT_S = 10.0
# How long a connection that was hung up on may take to end before a new one is refused in its place.
HANG_UP_S = 1.0

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class HttpServer:
    """Serves from construction until `close`, in threads of its own.

    Args:
        host: address to listen on.
        port: its port; 0 takes any free one.
        registry: what /metrics shows.
        live: None, or why the process ought to be restarted.
        ready: what is missing before the worker can do its work; nothing means ready.
        timeout_s: the most seconds that a client may take to send its request, and again to take the answer.

    Both callables are called from several threads and must return quickly.

    Raises:
        ConfigurationError: it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        live: Callable[[], str | None],
        ready: Callable[[], Sequence[str]],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(family, address, _Pages(registry, live, ready), timeout_s)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(_cannot_listen(host, port, error)) from error
        self.port: int = self._server.socket.getsockname()[1]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here
        self.url = f"http://[{shown}]:{self.port}" if ":" in shown else f"http://{shown}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, hang up on every client, and wait for the threads. May be called again."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"http_port: {port} is already in use on {host}. Give another port, or 0 for any free one."
    if isinstance(error, PermissionError):
        return (
            f"http_port: {port} is not allowed for this user. Give a port from 1024 to 65535, or 0 for any free one."
        )
    return f"http_host: cannot listen on '{host}': {error}. Give an address of this machine, such as 127.0.0.1."


class _Pages:
    """What there is to read."""

    def __init__(
        self, registry: CollectorRegistry, live: Callable[[], str | None], ready: Callable[[], Sequence[str]]
    ) -> None:
        self._registry = registry
        self._live = live
        self._ready = ready

    def page(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of a path."""
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return HTTPStatus.OK, content_type, encode(self._registry)
        if path == "/livez":
            reason = self._live()
            return _health(reason is None), TEXT, f"{reason or 'ok'}\n".encode()
        if path == "/readyz":
            missing = list(self._ready())
            return _health(not missing), JSON, json.dumps(missing).encode() + b"\n"
        return HTTPStatus.NOT_FOUND, TEXT, b"There are /metrics, /livez and /readyz.\n"


def _health(healthy: bool) -> HTTPStatus:
    return HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE


class _Server(socketserver.TCPServer):
    """One thread per connection, at most MAX_CONNECTIONS of them."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, family: int, address: Any, pages: _Pages, timeout_s: float) -> None:
        self.address_family = family
        self.pages = pages
        self.timeout_s = timeout_s
        self._open: dict[threading.Thread, socket.socket] = {}  # in order of arrival
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection to a thread; if all are busy, to that of the oldest connection."""
        with self._lock:
            oldest = next(iter(self._open.items())) if len(self._open) >= MAX_CONNECTIONS else None
        if oldest is not None:
            _hang_up(oldest[1])
            oldest[0].join(timeout=HANG_UP_S)
            if oldest[0].is_alive():
                # A page takes seconds to make: others wait no shorter, but threads must not pile up.
                self.shutdown_request(request)
                return
        thread = threading.Thread(target=self._serve, args=(request, client_address), name="http-client", daemon=True)
        with self._lock:
            # In this order, and the thread's end waits for the lock: only threads that run are counted.
            thread.start()
            self._open[thread] = request

    def server_close(self) -> None:
        """Close the listening socket, and every connection with its thread."""
        super().server_close()
        with self._lock:
            connections = list(self._open.items())
        for thread, connection in connections:
            _hang_up(connection)
            thread.join(self.timeout_s)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client hung up. Defects of a page were answered with status 500."""

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            with suppress(OSError):
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            with self._lock:
                del self._open[threading.current_thread()]


def _hang_up(connection: socket.socket) -> None:
    # OSError: it is closed already.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _RequestTooLargeError(http.client.HTTPException):
    """The base class answers this with status 431 where it comes up within the headers."""


class _BoundedReader(io.RawIOBase):
    """Reads at most MAX_REQUEST_BYTES from a socket, until one deadline: a byte now and then extends nothing."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + timeout_s
        self._left = MAX_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left == 0:
            raise _RequestTooLargeError
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    server_version = "reconstream"
    sys_version = ""
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = TEXT

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_BoundedReader(self.connection, self.server.timeout_s))

    def handle(self) -> None:
        try:
            self.handle_one_request()
        except _RequestTooLargeError:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def do_GET(self) -> None:
        try:
            status, content_type, body = self.server.pages.page(
                self.path.partition("?")[0], ", ".join(self.headers.get_all("Accept", []))
            )
        except Exception as error:  # noqa: BLE001 - a defect in a metric or a check: its reader must see it
            status, content_type = HTTPStatus.INTERNAL_SERVER_ERROR, TEXT
            body = f"This page failed: {type(error).__name__}: {error}\n".encode("utf-8", "replace")
        self._answer(status, content_type, body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The base class calls do_<METHOD>, whatever the client wrote there.
        if name.startswith("do_"):
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"Only GET and HEAD.\n", ("Allow", "GET, HEAD"))

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes, *headers: tuple[str, str]) -> None:
        # Of sendall a timeout bounds the whole, not each part.
        self.connection.settimeout(self.server.timeout_s)
        if gzip_accepted(", ".join(self.headers.get_all("Accept-Encoding", []))):
            body = gzip.compress(body, compresslevel=1)
            headers = (*headers, ("Content-Encoding", "gzip"))
        self.send_response(status)
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept, Accept-Encoding"),
            *headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: a probe every few seconds is no news."""
