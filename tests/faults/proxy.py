"""A TCP proxy on loopback between the workers and their brokers, which misbehaves on request.

Rules: it knows Kafka's framing (a request is its size, int32, then its API key, int16: Kafka protocol guide,
"Request Header"), so that it can hold one kind of request and let heartbeats through; what it has taken from a
client it delivers once it is released, also after the client has given up: as a network may.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self

HOST = "127.0.0.1"
PRODUCE = 0
# A connection that says nothing for so long after cut() is closed between two requests.
CUT_WITHIN_S = 0.3
CHUNK = 64 << 10
CALL_TIMEOUT_S = 10


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    cut: bool = False

    def abort(self) -> None:
        for writer in (self.client, self.broker):
            writer.transport.abort()


class Proxy:
    """Forwards (port clients connect to, port of the broker) pairs; as a context manager it serves.

    Attributes:
        delay_s: how long every request waits.
        connections_cut: how many connections cut() has ended.
    """

    def __init__(self, routes: Sequence[tuple[int, int]]) -> None:
        self.delay_s = 0.0
        self.connections_cut = 0
        self._routes = routes
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: int | None = None  # the API key that waits
        self._everything_held = False
        self._released = asyncio.Event()
        self.holds = threading.Event()  # set once a request waits

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    def cut(self) -> None:
        """End every connection: in the middle of its next request or answer, at the latest after 0.3 s."""
        self._call(self._cut())

    def hold(self, api_key: int | None = None) -> None:
        """From now on requests of one kind wait, and what follows them on their connection; None: all requests."""
        self._loop.call_soon_threadsafe(self._hold, api_key)

    def release(self) -> None:
        """Deliver what was held, and hold nothing more."""
        self._loop.call_soon_threadsafe(self._release)

    # On the proxy's own thread.

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    async def _open(self) -> None:
        for port, broker_port in self._routes:
            self._servers.append(await asyncio.start_server(self._serving(broker_port), HOST, port))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._release()
        # Ended by their sockets: a cancelled connection's task would be reported as an error by asyncio.
        for connection in self._connections:
            connection.abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CALL_TIMEOUT_S / 2)

    def _serving(self, broker_port: int) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            try:
                broker_reader, broker_writer = await asyncio.open_connection(HOST, broker_port)
            except OSError:
                writer.transport.abort()
                return
            connection = _Connection(writer, broker_writer)
            self._connections.add(connection)
            answers = asyncio.ensure_future(self._answers(broker_reader, connection))
            try:
                await self._requests(reader, connection)
                # The client has gone; what it had asked for is still on its way.
                await answers
            finally:
                answers.cancel()
                connection.abort()
                self._connections.discard(connection)

        return serve

    async def _requests(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(4)
                frame = head + await reader.readexactly(int.from_bytes(head))
                key = int.from_bytes(frame[4:6])
                while self._everything_held or key == self._held:
                    self.holds.set()
                    await self._released.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._forward(frame, connection.broker, connection)
        with contextlib.suppress(OSError):
            connection.broker.write_eof()

    async def _answers(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                # A client that has hung up hears nothing, and does not stop what it had sent.
                if not connection.client.transport.is_closing():
                    await self._forward(chunk, connection.client, connection)
        connection.abort()

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, connection: _Connection) -> None:
        if connection.cut:
            writer.write(data[: len(data) // 2])
            await writer.drain()
            connection.abort()
            return
        writer.write(data)
        await writer.drain()

    async def _cut(self) -> None:
        for connection in self._connections:
            connection.cut = True
            self.connections_cut += 1
            self._loop.call_later(CUT_WITHIN_S, connection.abort)

    def _hold(self, api_key: int | None) -> None:
        self._released.clear()
        self._held, self._everything_held = api_key, api_key is None

    def _release(self) -> None:
        self._held, self._everything_held = None, False
        self.holds.clear()
        self._released.set()
