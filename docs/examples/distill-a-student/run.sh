#!/usr/bin/env bash
set -euo pipefail
out=${1:-example_output}
scenes=${SCENES:-40}
mkdir -p "$out"
for split in train test; do
    python -c "from trio_ray.lab.scenes.corpus import write_corpus; write_corpus('$out/$split', $scenes, samples_per_shard=40, split='$split')"
    trio-ray precompute --input "$out/$split/*.tar" --output "$out/cache-$split" --set cache.level=embeds --set cache.targets=top_k
done
trio-ray distill --cache "$out/cache-train" --output "$out/student" --set student.layers=4 --set training.steps=${STEPS:-60} \
    --set training.batch_size=8 --set training.warmup_steps=5 --set test.cache="$out/cache-test"
