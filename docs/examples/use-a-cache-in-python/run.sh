#!/usr/bin/env bash
set -euo pipefail
out=${1:-example_output}
scenes=${SCENES:-40}
mkdir -p "$out"
[ -d "$out/corpus" ] || python -c "from trio_ray.lab.scenes.corpus import write_corpus; write_corpus('$out/corpus', $scenes, samples_per_shard=40)"
trio-ray precompute --input "$out/corpus/*.tar" --output "$out/cache" --set cache.codec=int4
python "$(dirname "$0")/use_cache.py" "$out/cache"
