"""vLLM's own HTTP server over a cache of scope image, with little memory, so that requests are preempted."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

READY_TIMEOUT_S = 300.0
BLOCKS = 28
"""Blocks of 32 rows: 20 requests of at least two blocks each do not fit at once."""


class Server:
    """A server that is starting; `wait` until it answers.

    Args:
        options: its engine's settings, as for `LLM`.
        template: a chat template that begins with BOS.
        log: where it writes.
    """

    def __init__(self, options: dict[str, Any], template: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        self.model = options["model"]
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
            "--port", str(self.port), "--model", options["model"], "--dtype", options["dtype"], "--enforce-eager",
            "--max-model-len", "512", "--block-size", "32", "--num-gpu-blocks-override", str(BLOCKS),
            "--enable-mm-embeds", "--enable-prompt-embeds", "--chat-template", str(template),
            "--kv-transfer-config", json.dumps(options["kv_transfer_config"]),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Return when it answers; raise `AssertionError` with the end of its log when it does not."""
        end = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the server did not start:\n" + self.log.read_text(errors="replace")[-3000:])

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps({"model": self.model, "temperature": 0, "return_token_ids": True, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=240) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def post_all(self, path: str, bodies: Iterable[dict[str, Any]], at_once: int) -> list[tuple[int, dict[str, Any]]]:
        """The same for many requests, so many at once; in order."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda body: self.post(path, body), bodies))

    def counter(self, name: str) -> float:
        """One of the server's own counters, summed over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as response:
            text = response.read().decode()
        found = re.findall(rf"^vllm:{name}_total\{{[^}}]*\}} ([0-9.e+]+)$", text, re.MULTILINE)
        assert found, f"the server has no counter {name}"
        return sum(map(float, found))
