"""The settings and the command that would make a cache again, from what its manifest and records hold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import JobConfig
from trio_ray.store.layout import basis_name

MOST_INPUTS = 40
"""Patterns of input files that are written; more would hide the rest."""

_DIGITS = re.compile(r"\d+")


def job_that_repeats(cache: PrunedCache) -> str:
    """A YAML file for `trio-ray precompute --config`, with the settings that are not the defaults."""
    identity = cache.dataset.identity
    files = dict.fromkeys(commit.shard.uri for commit in cache.commits)
    patterns = brace_ranges(files)
    tree: dict[str, Any] = {"input": patterns[:MOST_INPUTS], "output": "THE-NEW-CACHE"}
    tree |= {name: values for name, values in _sections(cache, identity).items() if values}
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=90)
    if len(patterns) > MOST_INPUTS:
        text = f"# {len(patterns) - MOST_INPUTS} more input patterns are left out here\n{text}"
    return text


def command_that_repeats(cache: PrunedCache, file: str = "job.yaml") -> str:
    """The command line for `job_that_repeats` in `file`."""
    return shlex.join(["trio-ray", "precompute", "--config", file])


def brace_ranges(uris: Iterable[str]) -> list[str]:
    """URIs with runs of numbered neighbours as one pattern, such as `s3://corpus/{00000..00099}.tar`.

    In names with several numbers the last one that differs counts.
    """
    runs: list[tuple[str, str, str, str]] = []  # before the number, first, last, behind it
    plain: list[str] = []
    for uri in sorted(uris):
        numbers = list(_DIGITS.finditer(uri))
        if not numbers or any(sign in uri for sign in "{}*?["):
            plain.append(uri)
            continue
        for found in reversed(numbers):
            before, number, behind = uri[: found.start()], found[0], uri[found.end() :]
            if runs and _follows(runs[-1], before, number, behind):
                runs[-1] = (before, runs[-1][1], number, behind)
                break
        else:
            found = numbers[-1]
            runs.append((uri[: found.start()], found[0], found[0], uri[found.end() :]))
    ranges = [
        f"{before}{first}{behind}" if first == last else f"{before}{{{first}..{last}}}{behind}"
        for before, first, last, behind in runs
    ]
    return sorted([*ranges, *plain])


def _follows(run: tuple[str, str, str, str], before: str, number: str, behind: str) -> bool:
    same = (run[0], run[3]) == (before, behind) and len(run[2]) == len(number)
    return same and int(number) == int(run[2]) + 1


def _sections(cache: PrunedCache, identity: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stored = {name: dict(identity.get(name) or {}) for name in ("prompt", "method", "cache", "source")}
    made = {"name": cache.dataset.model_name or "THE-MODEL", "revision": cache.dataset.model_commit}
    model = {**made, **{name: identity.get("model", {}).get(name) for name in ("dtype", "matmul")}}
    defaults = JobConfig().model_dump(mode="json")
    sections = {"model": model, **stored}
    sections["cache"]["codec"] = _codec(cache)
    sections["cache"]["part_samples"] = cache.dataset.part_samples
    if sections["cache"].get("scope") != "image":
        sections["cache"].pop("instruction", None)
    return {
        name: {
            key: value
            for key, value in values.items()
            if value is not None and key in defaults[name] and value != defaults[name][key]
        }
        for name, values in sections.items()
    }


def _codec(cache: PrunedCache) -> dict[str, Any] | None:
    codec = cache.dataset.identity["cache"]["codec"]
    if codec is None or "basis" not in codec:
        return codec
    return {**codec, "basis": f"{cache.uri.rstrip('/')}/{basis_name(codec['basis'])}"}
