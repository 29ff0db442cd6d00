"""A Hugging Face hub of one process on 127.0.0.1: serves folders as repositories, and answers as the hub does when a
model is missing, gated or out of order.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "1" * 40, "old": "2" * 40}


@contextmanager
def hub_server(repositories: dict[str, dict[str, Path]]) -> Iterator[tuple[str, list[str]]]:
    """Serve repositories, each a folder by commit; gives the address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._serve(body=False)

        def do_GET(self) -> None:
            self._serve(body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            status, headers, data = _answer(path, repositories)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _answer(path: str, repositories: dict[str, dict[str, Path]]) -> tuple[int, dict[str, str], bytes]:
    for name, error in (("gated", (403, "GatedRepo")), ("broken", (503, "")), ("forbidden", (403, ""))):
        if f"owner/{name}" in path:
            return error[0], {"X-Error-Code": error[1]} if error[1] else {}, b"{}"
    for name, commits in repositories.items():
        if path.startswith(f"/api/models/{name}"):
            return _about(path.removeprefix(f"/api/models/{name}").strip("/"), name, commits)
        if path.startswith(f"/{name}/resolve/"):
            commit, _, file = path.removeprefix(f"/{name}/resolve/").partition("/")
            where = commits.get(COMMITS.get(commit, commit))
            if where is None or not (where / file).is_file():
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            data = (where / file).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMITS.get(commit, commit)}, data
    return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"


def _about(rest: str, name: str, commits: dict[str, Path]) -> tuple[int, dict[str, str], bytes]:
    kind, _, revision = rest.partition("/")
    revision = revision or "main"
    commit = COMMITS.get(revision, revision)
    if commit not in commits:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    files = sorted(file for file in commits[commit].iterdir() if file.is_file())
    if kind == "tree":
        content: object = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _oid(file)} for file in files
        ]
    else:
        content = {"id": name, "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
