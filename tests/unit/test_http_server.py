import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from worker.adapters import http_server
from worker.adapters.http_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES, HttpServer
from worker.core.errors import ConfigurationError


class Temperature:
    """A collector with one gauge, or with a defect."""

    def __init__(self) -> None:
        self.broken = False

    def collect(self) -> list[GaugeMetricFamily]:
        if self.broken:
            raise RuntimeError("no thermometer")
        return [GaugeMetricFamily("temperature_celsius", "How warm it is.", 21.5)]


class Site:
    """A server with what it shows, and one-request clients."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.reason: str | None = None
        self.missing: list[str] = []
        self.temperature = Temperature()
        registry = CollectorRegistry()
        registry.register(self.temperature)
        self.server = HttpServer(
            "127.0.0.1", 0, registry, lambda: self.reason, lambda: self.missing, timeout_s=timeout_s
        )

    def request(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response, response.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.close()


@pytest.fixture
def hasty_site() -> Iterator[Site]:
    site = Site(timeout_s=0.3)
    yield site
    site.server.close()


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server hangs up, by a reset too."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def test_livez_answers_ok_or_the_reason(site: Site) -> None:
    response, body = site.request("/livez")
    assert (response.status, body) == (200, b"ok\n")
    site.reason = "the scoring thread made no progress for 61 s"
    response, body = site.request("/livez")
    assert (response.status, body) == (503, b"the scoring thread made no progress for 61 s\n")


def test_readyz_lists_what_is_missing(site: Site) -> None:
    response, body = site.request("/readyz")
    assert (response.status, json.loads(body)) == (200, [])
    site.missing = ["Kafka does not answer", "the model is being warmed up"]
    response, body = site.request("/readyz")
    assert (response.status, json.loads(body)) == (503, site.missing)
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("*/*", "text/plain; version=0.0.4", parse_text),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text",
            parse_openmetrics,
        ),
    ],
)
def test_metrics_come_in_the_format_asked_for(
    site: Site, accept: str, content_type: str, parse: Callable[[str], Iterator[GaugeMetricFamily]]
) -> None:
    response, body = site.request("/metrics?debug=1", headers={"Accept": accept})
    assert response.status == 200
    assert response.headers["Content-Type"].startswith(content_type)
    assert [family.samples[0].value for family in parse(body.decode())] == [21.5]


def test_metrics_are_compressed_only_when_asked(site: Site) -> None:
    plain, body = site.request("/metrics")
    compressed, packed = site.request("/metrics", headers={"Accept-Encoding": "deflate, gzip;q=0.8"})
    assert plain.headers["Content-Encoding"] is None
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == body


def test_a_metric_that_fails_gives_500_and_leaves_the_rest_alone(site: Site) -> None:
    site.temperature.broken = True
    response, body = site.request("/metrics")
    assert response.status == 500
    assert b"no thermometer" in body
    assert site.request("/livez")[0].status == 200


@pytest.mark.parametrize("path", ["/", "/metrics/", "/livez/x", "//[", "*"])
def test_other_paths_are_not_found(site: Site, path: str) -> None:
    assert site.request(path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_not_allowed(site: Site, method: str) -> None:
    response, _ = site.request("/metrics", method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/nowhere"])
def test_head_is_get_without_the_body(site: Site, path: str) -> None:
    get, body = site.request(path)
    with site.connect() as connection:  # by hand: http.client would not look for a body
        connection.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
        head = read_all(connection)
    assert head.startswith(f"HTTP/1.0 {get.status} ".encode())
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("start", [b"GET /", b"GET /livez HTTP/1.1\r\nX-Long: ", b"GET /livez HTTP/1.1\r\nA: b\r\n"])
def test_a_request_that_is_too_large_is_refused(site: Site, start: bytes) -> None:
    with site.connect() as connection:
        connection.sendall(start.ljust(MAX_REQUEST_BYTES, b"x"))
        assert b" 431 " in read_all(connection).partition(b"\r\n")[0]


@pytest.mark.parametrize("start", [b"", b"GET /metrics HTTP/1.1\r\nX-Slow: "])
def test_a_byte_now_and_then_does_not_keep_a_connection(hasty_site: Site, start: bytes) -> None:
    with hasty_site.connect() as connection:
        connection.sendall(start)
        connection.settimeout(0.05)
        answer = None
        with contextlib.suppress(ConnectionError):  # that is a hang-up, too
            for _ in range(200):
                connection.sendall(b"x")
                try:
                    answer = connection.recv(1)
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail("still connected after 10 s, 0.3 s are allowed")
        assert not answer


def test_a_client_that_says_nothing_is_hung_up_on(hasty_site: Site) -> None:
    with hasty_site.connect() as connection:
        connection.settimeout(0.05)
        for _ in range(100):
            try:
                assert connection.recv(1) == b""
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("still connected after 5 s, 0.3 s are allowed")


def test_slow_clients_do_not_keep_others_from_livez(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HANG_UP_S", 20.0)
    with contextlib.ExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            connection = stack.enter_context(site.connect())
            connection.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert site.request("/livez")[0].status == 200
        # Connections are taken in turn: all of them have been by now.
        assert sum(thread.name == "http-client" for thread in threading.enumerate()) <= MAX_CONNECTIONS


def test_pages_that_hang_do_not_pile_up_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    release, entered = threading.Event(), threading.Semaphore(0)

    def hang() -> str | None:
        entered.release()
        release.wait()
        return None

    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), hang, list)
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        stack.callback(release.set)
        # One by one: a connection that has asked for nothing yet may be hung up on for the next.
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert entered.acquire(timeout=20)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert read_all(client) == b""  # hung up on
        assert not entered.acquire(blocking=False)


def test_many_clients_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 160)  # the bound is another test's subject
    statuses: list[int] = []

    def scrape() -> None:
        statuses.extend(site.request("/metrics")[0].status for _ in range(20))

    clients = [threading.Thread(target=scrape) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert statuses == [200] * 160


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.text(max_size=60).map(lambda text: f"GET /metrics HTTP/1.1\r\nAccept: {text}\r\n\r\n".encode())
)
def test_no_bytes_hurt_the_server_or_write_to_stderr(
    site: Site, capfd: pytest.CaptureFixture[str], request_bytes: bytes
) -> None:
    with site.connect() as connection:
        connection.sendall(request_bytes)
        with contextlib.suppress(OSError):  # it has hung up already
            connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert site.request("/livez")[0].status == 200
    assert capfd.readouterr().err == ""


def test_a_port_in_use_names_the_setting(site: Site) -> None:
    with pytest.raises(ConfigurationError, match=f"http_port: {site.server.port} is already in use"):
        HttpServer("127.0.0.1", site.server.port, CollectorRegistry(), lambda: None, list)


@pytest.mark.parametrize("host", ["192.0.2.1", "é" * 70])
def test_a_host_that_is_not_ours_names_the_setting(host: str) -> None:
    with pytest.raises(ConfigurationError, match="http_host"):
        HttpServer(host, 0, CollectorRegistry(), lambda: None, list)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104 - so as to test it
def test_the_url_can_be_opened(host: str) -> None:
    with (
        contextlib.closing(HttpServer(host, 0, CollectorRegistry(), lambda: None, list)) as server,
        urllib.request.urlopen(server.url + "/livez", timeout=20) as response,  # noqa: S310 - it is http
    ):
        assert response.read() == b"ok\n"
        assert server.url.endswith(f":{server.port}")


def test_close_hangs_up_joins_and_frees_the_port(site: Site) -> None:
    before = set(threading.enumerate())
    answered_by: list[threading.Thread] = []

    def live() -> str | None:
        answered_by.append(threading.current_thread())
        return None

    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), live, list, timeout_s=30)
    with socket.create_connection(("127.0.0.1", server.port), 20) as idle:
        # Connections are taken in turn: once this one is answered, the idle one has its thread.
        with socket.create_connection(("127.0.0.1", server.port), 20) as second:
            second.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert read_all(second).endswith(b"ok\n")
        answered_by[0].join(20)  # it ends by itself
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 15
        assert idle.recv(1) == b""
    assert set(threading.enumerate()) <= before
    server.close()
    with contextlib.closing(HttpServer("127.0.0.1", server.port, CollectorRegistry(), lambda: None, list)) as again:
        assert again.port == server.port
