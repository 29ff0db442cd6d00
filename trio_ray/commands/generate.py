"""Answer from what is stored: nothing of an image is looked at but what the cache holds of it.

The model is the one that made the cache; any other is refused by the name of what differs. Without keys,
the first --limit samples are answered. Of a cache of scope image, --question is put to every image; without it each
sample's own. A cache of level indices has its input read and prefilled again. With --json each line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from trio_ray.commands._options import (
    SHARE,
    add_input_options,
    add_model_options,
    add_s3_options,
    key_and_shard,
    model_config,
    number,
    s3_config,
    whole,
)
from trio_ray.config import PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.source.sample import Turn

if TYPE_CHECKING:
    from trio_ray.kv.prefix import Prefix
    from trio_ray.model.replica import Replica


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    help_keys = "keys, right behind CACHE; [shard:]key where several shards have one"
    parser.add_argument("keys", metavar="KEY", nargs="*", help=help_keys)
    add_model_options(parser)
    parser.add_argument(
        "--limit", type=whole(1), default=8, metavar="N", help="samples answered without keys (default 8)"
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=32, metavar="N", help="longest answer (default 32)")
    parser.add_argument(
        "--batch", type=whole(1), default=16, metavar="N", help="prefixes decoded together (default 16)"
    )
    temperature = "0 takes the most likely token (default); above 0 tokens are drawn"
    parser.add_argument("--temperature", type=number(least=0), default=0.0, metavar="T", help=temperature)
    top_p = "draw from the most likely tokens that have this chance together (default 1)"
    parser.add_argument("--top-p", type=SHARE, default=1.0, metavar="P", help=top_p)
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="of the draws (default 0)")
    parser.add_argument("--question", metavar="TEXT", help="what to ask of each image (caches of scope image)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_input_options(parser)
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print question, answer and, where the corpus has one, the true answer."""
    from trio_ray.cache.input_samples import Reread
    from trio_ray.cache.pruned_cache import PrunedCache
    from trio_ray.cache.stored_prefixes import prefixes_of
    from trio_ray.model.checkpoint import check_checkpoint
    from trio_ray.model.replica import Replica

    s3 = s3_config(arguments)
    cache = PrunedCache(arguments.cache, s3)
    identity = cache.dataset.identity
    if arguments.question is not None and cache.scope != "image":
        raise ConfigError(
            "--question", "the prefixes of this cache end with questions of their own (cache.scope: prompt)"
        )
    config = cache.model_that_made_it(model_config(arguments))
    if arguments.keys:
        shards = set(cache.commits.shards)
        rows = [cache.row(*key_and_shard(key, shards)) for key in arguments.keys]
    else:
        rows = cache.rows_at(range(min(arguments.limit, len(cache))))
    prompt = PromptConfig.model_validate(identity["prompt"])
    cache.check_model(check_checkpoint(config, prompt).folder, config.dtype)
    replica = Replica.load(config, prompt)
    reread = Reread(s3, arguments.image_root, arguments.allow_any_path)
    known = right = 0
    for start in range(0, len(rows), arguments.batch):
        batch = rows[start : start + arguments.batch]
        prefixes = prefixes_of(cache, replica, batch, reread)
        for row, answer in zip(batch, _answers(replica, prefixes, batch, arguments), strict=True):
            truth = row["answer"] if arguments.question is None else None
            _show(row, _question(row, arguments), answer, truth, arguments.json)
            known += truth is not None
            right += truth is not None and truth == answer
    if known and not arguments.json:
        print(f"{right} of {known} answers equal the true ones")
    return 0


def _answers(
    replica: Replica, prefixes: list[Prefix], rows: list[dict[str, Any]], arguments: argparse.Namespace
) -> list[str]:
    from trio_ray.model.decode.choice import Sampling

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    if rows[0]["turns"] is None:
        return replica.generate(prefixes, arguments.max_new_tokens, sampling)
    own = [[Turn(**turn) for turn in row["turns"]] for row in rows]
    questions = own if arguments.question is None else [arguments.question] * len(rows)
    return replica.ask(prefixes, [row["prompt"] for row in rows], questions, arguments.max_new_tokens, sampling)


def _question(row: dict[str, Any], arguments: argparse.Namespace) -> str:
    """What is answered: the prompt, or behind an image the question."""
    if arguments.question is not None:
        return str(arguments.question)
    return "\n".join(turn["text"] for turn in row["turns"]) if row["turns"] else row["prompt"]


def _show(row: dict[str, Any], question: str, answer: str, truth: str | None, as_json: bool) -> None:
    if as_json:
        shown = {"shard": row["shard"], "key": row["key"], "prompt": question}
        print(json.dumps({**shown, "answer": answer, "truth": truth}, ensure_ascii=False))
        return
    shown_truth = f"   (true: {truth})" if truth is not None else ""
    print(f"{row['key']}: {question}\n    -> {answer}{shown_truth}")
