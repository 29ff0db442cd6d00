"""A TCP proxy that breaks connections on purpose: what a flaky network does to a client, made repeatable."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

Rule = Callable[[bytes, bytes, int], int | None]
"""From a connection's last request, the answer so far and the number of cuts made: how many bytes of the
answer may pass before the connection is cut, or None to let it be."""


@dataclass
class BreakingProxy:
    """Where the proxy listens, and how many connections it has cut."""

    endpoint_url: str
    cuts: int = 0


@contextlib.contextmanager
def breaking_proxy(target_url: str, rule: Rule) -> Iterator[BreakingProxy]:
    """Forward to `target_url`, cutting connections as `rule` says."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = BreakingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    target = ("127.0.0.1", urlsplit(target_url).port or 80)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_serve, args=(client, target, proxy, rule), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        listener.close()


def _serve(client: socket.socket, target: tuple[str, int], proxy: BreakingProxy, rule: Rule) -> None:
    server = socket.create_connection(target)
    current = {"request": b"", "answer": b""}

    def upstream() -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if current["answer"]:
                    current["request"], current["answer"] = b"", b""
                current["request"] += data
                server.sendall(data)
        _close(server)

    threading.Thread(target=upstream, daemon=True).start()
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 16):
            if not data.startswith(b"HTTP/1.1 100"):  # 'Continue' is no answer yet
                sent = len(current["answer"])
                current["answer"] += data
                allowed = rule(current["request"], current["answer"], proxy.cuts)
                if allowed is not None and allowed < sent + len(data):
                    proxy.cuts += 1
                    client.sendall(data[: max(0, allowed - sent)])
                    break
            client.sendall(data)
    _close(client)
    _close(server)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
