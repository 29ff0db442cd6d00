"""Answers from stored keys and values with vLLM, which reads them from the cache itself: `python run_vllm.py`.

trio_ray must be installed beside vLLM. The tensors of this folder are for connectors of your own.
"""

import json
from pathlib import Path

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder = Path(__file__).parent
    about = json.loads((folder / "export.json").read_text())
    prefixes = [json.loads(line) for line in (folder / "prefixes.jsonl").open()]
    connector = {
        "kv_connector": "TrioRayConnector",
        "kv_connector_module_path": "trio_ray.export.vllm_connector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"cache": about["cache"]},
    }
    llm = LLM(
        about["model"], dtype=about["dtype"], limit_mm_per_prompt={"image": 0}, kv_transfer_config=connector
    )  # fmt: skip
    prompts = [{"prompt_token_ids": p["prompt_token_ids"], "cache_salt": p["cache_salt"]} for p in prefixes]
    sampling = [
        SamplingParams(temperature=0, max_tokens=32, extra_args={"kv_transfer_params": p["kv_transfer_params"]})
        for p in prefixes
    ]
    for prefix, output in zip(prefixes, llm.generate(prompts, sampling, use_tqdm=False), strict=True):
        print(json.dumps({"key": prefix["key"], "answer": output.outputs[0].text.strip()}))
