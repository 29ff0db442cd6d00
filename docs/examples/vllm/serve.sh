#!/usr/bin/env bash
set -euo pipefail
out=${1:-example_output}
scenes=${SCENES:-10}
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} # GiB; without it vLLM asks for nearly all memory of a CPU machine
mkdir -p "$out"
python -c "from trio_ray.lab.scenes.corpus import write_corpus; write_corpus('$out/questions', $scenes, samples_per_shard=40)"
trio-ray precompute --input "$out/questions/*.tar" --output "$out/cache" --set cache.level=embeds --set method.layout=uniform --set model.dtype=float32
trio-ray export "$out/cache" --to vllm --out "$out/vllm" --bodies
model=$(python -c "from trio_ray.model.loading import BUNDLED_FOLDER; print(BUNDLED_FOLDER)")
python -m vllm.entrypoints.openai.api_server --model "$model" --dtype float32 --max-model-len 1024 --enforce-eager \
    --enable-prompt-embeds --limit-mm-per-prompt '{"image": 0}' --host 127.0.0.1 --port "${PORT:-8000}" > "$out/server.log" 2>&1 & server=$!
python "$(dirname "$0")/ask.py" "$out/vllm/requests.jsonl" "http://127.0.0.1:${PORT:-8000}" & asking=$!
trap 'kill $server $asking 2>/dev/null || true' EXIT
wait -n $server $asking || { kill -0 $server 2>/dev/null || echo "the server has ended: see $out/server.log" >&2; exit 1; }
