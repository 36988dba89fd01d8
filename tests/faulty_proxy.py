"""An HTTP server on loopback that stands between a client and a registry, writes down every request, and breaks some.

Nothing is changed but what a fault changes: the client's `Host` is handed on, so that a registry writes its addresses
as those of the proxy. What goes wrong in the proxy itself is raised when it is left.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Kind = Literal[
    "hang up",  # at once, before anything is read
    "cut the request",  # when half of the request's body is through
    "lose the answer",  # all is done, but the client does not hear of it
    "cut the answer",  # when half of the answer's body is through
    "stall",  # in the middle of the answer's body, for `seconds`
    "delay",  # the request, for `seconds`
    "corrupt",  # the first byte of the answer's body
    "corrupt the request",  # the first byte of the request's body
    "forget the range",  # that was asked for: the answer holds everything
    "answer",  # with `status` and `headers`, without asking the registry
    "redirect",  # to the same path below the address `to`
]


@dataclass
class Fault:
    kind: Kind
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    to: str = ""


@dataclass
class Exchange:
    """A request and its answer. `received` and `sent` count the bytes of their bodies."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    received: int = 0
    sent: int = 0


@dataclass
class _Rule:
    fault: Fault
    at: int | None
    method: str
    path: str
    left: int

    def takes(self, exchange: Exchange) -> bool:
        """Whether the fault is for this request; counts it."""
        if self.left == 0 or self.at not in (None, exchange.number):
            return False
        if not (re.fullmatch(self.method, exchange.method) and re.search(self.path, exchange.path)):
            return False
        self.left -= 1
        return True


ALWAYS = -1


class FaultyProxy:
    """Forwards to `upstream` ("127.0.0.1:PORT"). Its own address is `host`. Use as a context manager."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.exchanges: list[Exchange] = []
        self.lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._server = _Server(self)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._server.failures:
            raise self._server.failures[0]

    def fault(
        self, kind: Kind, *, at: int | None = None, method: str = ".*", path: str = "", times: int = 1, **details: Any
    ) -> None:
        """Break the next requests that match, `times` of them. `at` is a request's number (from 1), the others are
        regular expressions.
        """
        self._rules.append(_Rule(Fault(kind, **details), at, method, path, times))

    def asked(self, method: str = ".*", path: str = "") -> list[Exchange]:
        """The requests that match."""
        return [each for each in self.exchanges if re.fullmatch(method, each.method) and re.search(path, each.path)]

    def forget(self) -> None:
        """Requests and rules so far. The next request has the number 1."""
        with self.lock:
            self.exchanges.clear()
            self._rules.clear()

    def intercept(self, exchange: Exchange) -> Fault | None:
        """For subclasses: an answer instead of the registry's."""
        del exchange
        return None

    def note(self, method: str, path: str, headers: dict[str, str]) -> tuple[Exchange, Fault | None]:
        with self.lock:
            exchange = Exchange(len(self.exchanges) + 1, method, path, headers)
            self.exchanges.append(exchange)
            fault = next((rule.fault for rule in self._rules if rule.takes(exchange)), None)
        return exchange, fault or self.intercept(exchange)


class Line(FaultyProxy):
    """A line that may also break for good. `watch` hears of every request before it is handed on."""

    end: int | None = None
    last: Fault
    watch: Callable[[Exchange], None] = staticmethod(lambda _: None)

    def break_at(self, number: int, fault: Fault) -> None:
        """The request of this number and all behind it."""
        self.end, self.last = number, fault

    def forget(self) -> None:
        super().forget()
        self.end = None
        self.watch = lambda _: None

    def intercept(self, exchange: Exchange) -> Fault | None:
        self.watch(exchange)
        return self.last if self.end is not None and exchange.number >= self.end else None


class _HungUp(Exception):
    """The connection to the client is to be closed as it is."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self.failures: list[BaseException] = []
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().close_request(request)

    def server_close(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):  # a client may leave when it likes
            self.failures.append(error)


_OF_ONE_LINE = ("Content-Length", "Connection", "Transfer-Encoding")
"""Headers of a connection rather than of an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        """Nothing: the requests are written down."""

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        exchange, fault = self.server.proxy.note(self.command, self.path, dict(self.headers.items()))
        try:
            self._handle(exchange, fault or Fault("delay"))
        except _HungUp:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _handle(self, exchange: Exchange, fault: Fault) -> None:
        if fault.kind == "hang up":
            raise _HungUp
        if fault.kind in ("answer", "redirect"):
            for _ in self._body(exchange, fault):
                pass
            headers = {"Location": fault.to + self.path} if fault.kind == "redirect" else fault.headers
            self._start(exchange, 307 if fault.kind == "redirect" else fault.status, headers, len(fault.body))
            self.wfile.write(fault.body if self.command != "HEAD" else b"")
            return
        if fault.kind == "delay":
            time.sleep(fault.seconds)
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=30)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if fault.kind == "forget the range" and name == "Range":
                    continue
                upstream.putheader(name, value)
            upstream.endheaders()
            for piece in self._body(exchange, fault):
                upstream.send(piece)
            self._answer(exchange, fault, upstream.getresponse())

    def _body(self, exchange: Exchange, fault: Fault) -> Iterator[bytes]:
        size = int(self.headers.get("Content-Length") or 0)
        while left := size - exchange.received:
            if fault.kind == "cut the request" and exchange.received >= size // 2:
                raise _HungUp
            piece = self.rfile.read1(min(left, 1 << 16, max(1, size // 4)))
            if not piece:
                raise _HungUp
            if fault.kind == "corrupt the request" and exchange.received == 0:
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            exchange.received += len(piece)
            yield piece

    def _answer(self, exchange: Exchange, fault: Fault, answer: http.client.HTTPResponse) -> None:
        if fault.kind == "lose the answer":
            exchange.status = answer.status
            raise _HungUp
        headers = {name: value for name, value in answer.getheaders() if name not in _OF_ONE_LINE}
        stated = answer.getheader("Content-Length")
        body = io.BytesIO(answer.read()) if stated is None else answer
        size = len(body.getvalue()) if isinstance(body, io.BytesIO) else int(stated or 0)
        self._start(exchange, answer.status, headers, size)
        while piece := body.read(min(1 << 16, max(1, size // 4))):
            half = exchange.sent >= size // 2
            if fault.kind == "cut the answer" and half:
                raise _HungUp
            if fault.kind == "stall" and half:
                time.sleep(fault.seconds)
            if fault.kind == "corrupt" and exchange.sent == 0:
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            exchange.sent += len(piece)  # first, since the client goes on once it has the piece
            self.wfile.write(piece)

    def _start(self, exchange: Exchange, status: int, headers: dict[str, str], size: int) -> None:
        exchange.status = status
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != http.client.NO_CONTENT:
            self.send_header("Content-Length", str(size))
        self.end_headers()
