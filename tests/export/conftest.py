"""Tests beside the real vLLM run in an environment of their own (`make test-vllm`)."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("vllm") else ["vllm"]
