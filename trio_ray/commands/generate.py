"""Answer from stored prefixes: no image is opened and no prompt is prefilled.

The model must be the one that made the cache; any other is refused by the name of the file that differs. Without keys,
the first --limit samples are answered. With --json each line is a JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json

from trio_ray.commands.s3_options import add_s3_options, s3_config
from trio_ray.config import BUNDLED_MODEL, ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    help_keys = "keys, right behind CACHE; [shard:]key where several shards have one"
    parser.add_argument("keys", metavar="KEY", nargs="*", help=help_keys)
    parser.add_argument(
        "--model", default=BUNDLED_MODEL, metavar="NAME", help="the model that made it (default bundled)"
    )
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="samples answered without keys (default 8)")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default 32)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="prefixes decoded together (default 16)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print question, answer and, where the corpus has one, the true answer."""
    from trio_ray.cache import PrunedCache
    from trio_ray.model.loading import model_folder
    from trio_ray.model.replica import Replica

    cache = PrunedCache(arguments.cache, s3_config(arguments))
    dtype = cache.dataset.identity["model"]["dtype"]
    config = ModelConfig(name=arguments.model, dtype=dtype)
    if arguments.keys:
        shards = {commit.shard.name for commit in cache.commits}
        rows = [cache.row(*_key_and_shard(key, shards)) for key in arguments.keys]
    else:
        rows = cache.table.slice(0, arguments.limit).to_pylist()
    cache.check_model(model_folder(config), dtype)
    replica = Replica.load(config)
    stored = cache.load_many(rows)
    known = right = 0
    while batch := list(itertools.islice(stored, arguments.batch)):
        answers = replica.generate([item.prefix for item in batch], arguments.max_new_tokens)
        for item, answer in zip(batch, answers, strict=True):
            _show(item.row, answer, arguments.json)
            known += item.row["answer"] is not None
            right += item.row["answer"] == answer
    if known and not arguments.json:
        print(f"{right} of {known} answers equal the true ones")
    return 0


def _key_and_shard(argument: str, shards: set[str]) -> tuple[str, str | None]:
    """Split `shard:key`; a key may hold colons itself, a shard's name cannot."""
    shard, _, key = argument.partition(":")
    return (key, shard) if shard in shards else (argument, None)


def _show(row: dict[str, object], answer: str, as_json: bool) -> None:
    if as_json:
        shown = {name: row[name] for name in ("shard", "key", "prompt")}
        print(json.dumps({**shown, "answer": answer, "truth": row["answer"]}, ensure_ascii=False))
        return
    truth = f"   (true: {row['answer']})" if row["answer"] is not None else ""
    print(f"{row['key']}: {row['prompt']}\n    -> {answer}{truth}")
