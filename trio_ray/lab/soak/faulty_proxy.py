"""An HTTP proxy before a real S3 server that breaks requests on purpose, by a seeded draw."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("503", "500", "reset_before", "reset_after", "cut_body", "delay")
"""The server is busy; the server failed; the connection is reset before the request reached the server, or after it
took effect (the answer is lost); the answer's body ends early; the answer is late."""

LONGEST_DELAY_S = 2.0
_ANSWER_LIMIT_S = 60.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: closing sends RST."""
_ERRORS = {"503": ("SlowDown", "Please reduce your request rate."), "500": ("InternalError", "Try again.")}


class FaultyProxy(ThreadingHTTPServer):
    """Forwards S3 requests, a share of them faulty, and counts what it did.

    Args:
        target_url: of the real server.
        share: of the requests that get a fault, 0 to 1.
        seed: of the draws. Which request gets which draw depends on the order in which requests come.

    Attributes:
        requests: number of requests so far.
        faults: number of faults so far, by kind.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target_url: str, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        target = urlsplit(target_url)
        self.target = (target.hostname or "127.0.0.1", target.port or 80)
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self._share = share
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def endpoint_url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> tuple[str | None, float]:
        """The next request's fault, if any, and how far along (0 to 1) it strikes."""
        with self._lock:
            self.requests += 1
            fault = self._random.choice(FAULTS) if self._random.random() < self._share else None
            return fault, self._random.random()

    def count(self, fault: str) -> None:
        """A fault has been made."""
        with self._lock:
            self.faults[fault] += 1

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close without saying goodbye first, or a reset would not be one."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed, or give up, are what this proxy is for."""
        if not isinstance(sys.exception(), OSError | http.client.HTTPException):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def faulty_proxy(target_url: str, share: float, seed: int) -> Iterator[FaultyProxy]:
    """A proxy that serves until the end."""
    with FaultyProxy(target_url, share, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _forward(self) -> None:
        body = self._request_body()
        fault, at = self.server.draw()
        if fault in _ERRORS:
            self.server.count(fault)
            self._refuse(fault)
        elif fault == "reset_before":
            self.server.count(fault)
            self._reset()
        else:
            self._answer(body, fault, at)

    # The names that the base class calls.
    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """The counts say all."""

    def _request_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        del self.headers["Transfer-Encoding"]
        self.headers["Content-Length"] = str(sum(map(len, pieces)))
        return b"".join(pieces)

    def _answer(self, body: bytes, fault: str | None, at: float) -> None:
        connection = http.client.HTTPConnection(*self.server.target, timeout=_ANSWER_LIMIT_S)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if fault == "cut_body" and not content:
            fault = "reset_after"  # there is no body to cut
        if fault is not None:
            self.server.count(fault)
        if fault == "reset_after":
            self._reset()
            return
        if fault == "delay":
            time.sleep(at * LONGEST_DELAY_S)
        self._send(answer, content, int(at * len(content)) if fault == "cut_body" else len(content))

    def _send(self, answer: http.client.HTTPResponse, content: bytes, sent: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if length is not None and answer.status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[:sent])
        if sent < len(content):
            self.close_connection = True

    def _refuse(self, fault: str) -> None:
        code, message = _ERRORS[fault]
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        content = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(int(fault))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True
