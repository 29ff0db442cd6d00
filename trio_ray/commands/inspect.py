"""Say what a cache holds, or what is stored of one sample.

With --quarantine every bad sample is listed with its reason, with --failed every shard that a job gave up. With --png
the sample's image is read again from its input and drawn: what each prune point keeps of it, with the question and the
answer. The input must still be readable and unchanged; --image-root says where images are that records name by path.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trio_ray.commands._options import (
    add_input_options,
    add_model_options,
    add_s3_options,
    check_file,
    model_config,
    s3_config,
)
from trio_ray.config import ModelConfig, S3Config
from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from trio_ray.store.totals import Totals

EXAMPLES = 10
"""Bad samples that are shown of a cache."""

THREADS = 16
WORDS = 14
"""Width of the names on the left."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a sample's key")
    parser.add_argument("--shard", metavar="NAME", help="the key's shard, where several have it")
    parser.add_argument("--quarantine", action="store_true", help="list every bad sample, with its reason")
    parser.add_argument("--failed", action="store_true", help="list every shard that was given up, with its reason")
    parser.add_argument("--png", metavar="OUT", help="draw the sample's kept and dropped tokens into this file")
    add_model_options(parser)
    add_input_options(parser)
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print, and draw if asked."""
    if arguments.png and not arguments.key:
        raise ConfigError("--png", "needs a sample's KEY")
    if arguments.quarantine and arguments.key:
        raise ConfigError("--quarantine", "lists the bad samples of the whole cache; leave out KEY")
    if arguments.failed and (arguments.key or arguments.quarantine):
        raise ConfigError("--failed", "lists the shards that were given up; leave out KEY and --quarantine")
    if arguments.png:
        check_file("--png", arguments.png)
    s3 = s3_config(arguments)
    if not arguments.key:
        _print_cache(arguments.cache, s3, arguments.quarantine, arguments.failed)
        return 0
    from trio_ray.cache.pruned_cache import PrunedCache

    cache = PrunedCache(arguments.cache, s3)
    row = cache.row(arguments.key, arguments.shard)
    if arguments.png:
        _draw(cache, row, arguments, s3)
    else:
        _print_sample(cache, row, model_config(arguments))
    return 0


def _print_cache(uri: str, s3: S3Config, all_quarantine: bool, all_failed: bool) -> None:
    """From the commit records alone, and without torch, so that it takes no longer than they do."""
    import yaml

    from trio_ray.store.commit_table import open_commits
    from trio_ray.store.dataset import load_dataset
    from trio_ray.store.failures import read_failures
    from trio_ray.store.opening import open_store
    from trio_ray.store.part_table import quarantine_rows

    store = open_store(uri, s3)
    dataset = load_dataset(store)
    failures = list(read_failures(store).values())
    if all_failed:
        for failure in failures:
            print(f"{failure.shard.label}: {failure.error}")
        return
    commits = open_commits(store, THREADS)
    if all_quarantine:
        for bad in quarantine_rows(store, commits):
            print(f"{bad['shard']}: {bad['key']} ({bad['reason']}): {bad['detail']}")
        return
    totals = commits.totals
    print(uri)
    _say("made", f"{dataset.created} with trio-ray {dataset.package_version}, model {dataset.model or 'not named'}")
    for name, text in _sums(totals, dataset.identity["cache"]["level"]):
        _say(name, text)
    for shard, damage in totals.damaged.items():
        _say("damaged", f"{shard}: {damage}")
    if failures:
        _say("given up", f"{len(failures)} shards, which the next run tries again")
        for failure in failures[:EXAMPLES]:
            print(f"  {failure.shard.label}: {failure.error}")
        if len(failures) > EXAMPLES:
            print(f"  ... and {len(failures) - EXAMPLES} more: trio-ray inspect {uri} --failed")
    if totals.quarantined:
        counts = ", ".join(f"{count} {reason}" for reason, count in totals.reasons.items())
        _say("quarantine", f"{totals.quarantined}: {counts}")
        for bad in islice(quarantine_rows(store, commits), EXAMPLES):
            print(f"  {bad['key']} ({bad['reason']}): {bad['detail']}")
        if totals.quarantined > EXAMPLES:
            print(f"  ... and {totals.quarantined - EXAMPLES} more: trio-ray inspect {uri} --quarantine")
    print("settings")
    text = yaml.safe_dump(_without_nulls(dataset.identity), allow_unicode=True, default_flow_style=None, width=100)
    print("".join(f"  {line}\n" for line in text.splitlines()), end="")


def _sums(totals: Totals, level: str) -> list[tuple[str, str]]:
    """Lines about a cache, with their names."""
    beside = {"kv": "bytes of KV", "embeds": "bytes of embeddings"}.get(level)
    lines = [
        ("samples", f"{totals.stored:,} stored, {totals.quarantined:,} in quarantine"),
        ("parts", f"{totals.parts:,} of {totals.shards:,} shards, {totals.complete_shards:,} of them complete"),
    ]
    if not totals.stored:
        return lines
    each = f"{totals.member_bytes / totals.stored:,.0f} a sample"
    stored = f"{totals.member_bytes:,} {beside}, {each}" if beside else "nothing beside the rows (level indices)"
    tokens = f"{totals.image_tokens / totals.stored:.1f} a sample"
    rate = f"{totals.stored / totals.device_s:,.1f} samples/s" if totals.device_s else "not known"
    return [
        *lines,
        ("bytes", f"{totals.file_bytes:,} in all; {stored}"),
        ("image tokens", f"{tokens}, {totals.retention:.1%} of them held (mean over layers)"),
        ("device", f"{totals.device_s:,.1f} s of prefill on {len(totals.replicas):,} devices, {rate} a device"),
    ]


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_nulls(value) for name, value in tree.items() if value is not None}
    return tree


def _print_sample(cache: Any, row: dict[str, Any], model: ModelConfig) -> None:
    words = _Words(cache, model)
    for name in ("key", "shard", "index", "prompt", "answer", "prompt_tokens", "image_tokens"):
        _say(name, row[name])
    for turn in row["turns"] or ():
        _say(f"own {turn['role']}", turn["text"])
    for image in row["images"]:
        grid = f"{image['grid_rows']} x {image['grid_columns']} tiles"
        size = f"{image['width']} x {image['height']} pixels"
        _say("image", f"{size}, {grid}, {image['tokens']} tokens, {image['hash']}")
    for layer, kept in zip(cache.method.schedule.prune_points, row["kept"], strict=True):
        _say("kept", f"before layer {layer}: {len(kept)}: {' '.join(map(str, kept))}")
    for segment in row["segments"]:
        last = segment["first_layer"] + segment["layers"] - 1
        _say("segment", f"layers {segment['first_layer']}..{last}: {segment['rows']} rows")
    _say("retention", f"{row['retention']:.4f} of {row['image_tokens']} image tokens, mean over layers")
    _say(cache.level, _read(cache, row))
    _say("first token", words.likely(row["top_ids"], row["top_logprobs"]) or "none: scope image")
    for token, ids, logprobs in zip(
        row["answer_ids"] or (), row["target_ids"] or (), row["target_logprobs"] or (), strict=True
    ):
        _say("target", f"{words.of(token)} <- {words.likely(ids, logprobs)}")


class _Words:
    """Token ids as text, where the model that made the cache can be found; else as numbers."""

    def __init__(self, cache: Any, model: ModelConfig) -> None:
        from tokenizers import Tokenizer

        from trio_ray.errors import TrioRayError
        from trio_ray.model.loading import model_folder

        self._tokenizer: Tokenizer | None = None
        try:
            file = model_folder(cache.model_that_made_it(model)) / "tokenizer.json"
            self._tokenizer = Tokenizer.from_file(str(file))
        except TrioRayError as error:
            print(f"(tokens are shown as numbers: {error})")
        except Exception as error:  # the tokenizers library raises bare Exceptions
            print(f"(tokens are shown as numbers: the model's tokenizer.json cannot be read: {error})")

    def of(self, token: int) -> str:
        """A token."""
        text = None if self._tokenizer is None else self._tokenizer.id_to_token(token)
        return str(token) if text is None else repr(text.replace("▁", " ").replace("Ġ", " "))

    def likely(self, ids: list[int], logprobs: list[float]) -> str:
        """Tokens with their probabilities."""
        from math import exp

        return ", ".join(f"{self.of(token)} {exp(value):.1%}" for token, value in zip(ids, logprobs, strict=True))


def _read(cache: Any, row: dict[str, Any]) -> str:
    """What is stored beside a row; its bytes are read and checked."""
    if cache.level == "indices":
        return "nothing beside this row"
    if cache.level == "kv":
        segment = cache.prefix(row).segments[0]
        what = f"heads {tuple(segment.keys.shape[2:])}, codec {row['codec']}"
    else:
        embeds = cache.embeds(row)
        what = f"{tuple(embeds.rows.shape)} {str(embeds.rows.dtype).removeprefix('torch.')}"
    where, start, length, checksum = (
        row[f"{cache.level}_{name}"] for name in ("object", "offset", "length", "checksum")
    )
    return f"{where} bytes {start}..{start + length - 1}, {what}, checksum {checksum} (read and equal)"


def _draw(cache: Any, row: dict[str, Any], arguments: argparse.Namespace, s3: S3Config) -> None:
    from trio_ray.cache.input_samples import Reread
    from trio_ray.report.pictures import pictures

    out = Path(arguments.png)
    how = Reread(s3, arguments.image_root, arguments.allow_any_path)
    for number, picture in enumerate(pictures(cache, row, how)):
        file = out if number == 0 else out.with_stem(f"{out.stem}-{number}")
        try:
            picture.save(file)
        except (OSError, ValueError) as error:
            raise ConfigError("--png", f"{file} cannot be written: {error}") from None
        print(f"drawn: {file}")


def _say(name: str, text: object) -> None:
    print(f"{name:{WORDS}s} {text}")
