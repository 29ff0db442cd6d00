"""Write stored prefixes as another engine takes them, with a script that answers from them.

A cache of level embeds gives prompt embeddings (scope prompt) or image rows (scope image), a uniform cache of level kv
(`method.layout: uniform`) gives keys and values that start at row 0. vLLM reads keys and values from the cache itself,
through a connector; see docs/engines.md. OUT holds prefixes.jsonl (one line a prefix), its tensors and run_ENGINE.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trio_ray.commands._options import (
    add_model_options,
    add_s3_options,
    key_and_shard,
    make_folder,
    model_config,
    s3_config,
    whole,
)
from trio_ray.config import BUNDLED_MODEL, PromptConfig
from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from trio_ray.cache.pruned_cache import PrunedCache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument("--to", choices=("vllm", "transformers"), required=True, help="the engine that reads OUT")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--keys", metavar="KEY", nargs="+", help="these samples alone; [shard:]key where several shards have one"
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="at most so many samples (default: all)")
    parser.add_argument("--shards", metavar="NAME", nargs="+", help="samples of these shards alone")
    parser.add_argument("--bodies", action="store_true", help="write ready HTTP bodies for vLLM's server")
    parser.add_argument(
        "--renumber", action="store_true",
        help="accept embeddings of original positions, which other engines number from 0: some answers differ",
    )  # fmt: skip
    add_model_options(parser)
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check that the cache can be exported, and write it."""
    from trio_ray.cache.pruned_cache import PrunedCache
    from trio_ray.export.folder import write_folder
    from trio_ray.export.forms import Exporter, form_of
    from trio_ray.model.checkpoint import check_checkpoint

    if arguments.bodies and arguments.to != "vllm":
        raise ConfigError("--bodies", "are for vLLM's server; use --to vllm")
    cache = PrunedCache(arguments.cache, s3_config(arguments), arguments.shards)
    identity = cache.dataset.identity
    form = form_of(cache, arguments.renumber)
    if arguments.bodies and form == "image_rows" and identity["prompt"]["template"] is not None:
        raise ConfigError("--bodies", "chat bodies need the model's chat template, and the cache has a prompt.template")
    folder = make_folder("--out", arguments.out)
    config = cache.model_that_made_it(model_config(arguments))
    checkpoint = check_checkpoint(config, PromptConfig.model_validate(identity["prompt"]))
    cache.check_model(checkpoint.folder, config.dtype)
    exporter = Exporter(cache, checkpoint, form)
    rows = islice(_rows(cache, arguments.keys), arguments.limit)
    from_hub = config.name != BUNDLED_MODEL and not Path(config.name).expanduser().is_dir()
    model = config.name if from_hub else str(checkpoint.folder.resolve())
    written = write_folder(folder, arguments.to, exporter, rows, checkpoint, model, arguments.bodies)
    print(f"{written.prefixes} prefixes as {form.replace('_', ' ')}; next: python {folder}/run_{arguments.to}.py")
    if exporter.left_out:
        print(f"{len(exporter.left_out)} samples with several images left out: {', '.join(exporter.left_out[:5])} ...")
    return 0


def _rows(cache: PrunedCache, keys: list[str] | None) -> Iterator[dict[str, Any]]:
    if keys is not None:
        shards = set(cache.commits.shards)
        yield from (cache.row(*key_and_shard(key, shards)) for key in keys)
        return
    from trio_ray.cache.part_tables import row_by_row

    with closing(cache.scan()) as tables:
        yield from row_by_row(tables)
