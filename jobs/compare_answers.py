"""Hold a cache against what it saves: its questions answered from it, and again from their images; answers and times.

python -m jobs.compare_answers --config precompute.yaml [--set KEY=VALUE ...] [--max-new-tokens N]

The configuration is that of the job that made the cache. Ends with 1 if an answer differs; with a codec that rounds,
some may.
"""

from __future__ import annotations

import argparse
import json
import sys

from trio_ray.answering.config import AnsweringConfig
from trio_ray.answering.recomputing import Comparison, compare
from trio_ray.answering.stored_level import require_prefixes
from trio_ray.cache import PrunedCache
from trio_ray.config import load_config
from trio_ray.errors import ConfigError, TrioRayError
from trio_ray.model.loading import model_folder
from trio_ray.model.replica import Replica


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="the job's YAML file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any setting of the job")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default 32)")
    chosen = parser.parse_args()
    try:
        return _report(_compare(chosen))
    except TrioRayError as error:
        print(f"compare_answers: {error}", file=sys.stderr)
        return error.exit_code


def _compare(chosen: argparse.Namespace) -> Comparison:
    config = load_config(chosen.config, chosen.set)
    cache = PrunedCache(config.output, config.s3)
    require_prefixes(cache)
    if cache.method.scope != "prompt":
        raise ConfigError("cache.scope", "a prefix that ends with its image has no question of its own")
    dtype = cache.dataset.identity["model"]["dtype"]
    cache.check_model(model_folder(config.model), dtype)
    replica = Replica.load(config.model.model_copy(update={"dtype": dtype}), config.prompt)
    return compare(cache, config, replica, AnsweringConfig(max_new_tokens=chosen.max_new_tokens))


def _report(found: Comparison) -> int:
    different = found.different
    result = {
        "questions": len(found.stored),
        "equal": len(found.stored) - len(different),
        "from_the_cache_s": round(found.stored_s, 2),
        "recomputed_s": round(found.recomputed_s, 2),
        "read_bytes": found.read_bytes,
    }
    print(json.dumps(result))
    for name in different[:10]:
        print(f"{'/'.join(name)}: {found.stored[name]!r}, recomputed {found.recomputed.get(name)!r}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
