"""Answers from this folder's image rows with vLLM: `python run_vllm.py`.

vLLM ends when images of one batch have different numbers of rows, unless trio_ray is installed beside it; so this
script makes a batch of each number.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder = Path(__file__).parent
    about = json.loads((folder / "export.json").read_text())
    prefixes = [json.loads(line) for line in (folder / "prefixes.jsonl").open()]
    files = {name: load_file(folder / name) for name in {prefix["file"] for prefix in prefixes}}
    llm = LLM(about["model"], dtype=about["dtype"], enable_mm_embeds=True, limit_mm_per_prompt={"image": 0})
    for rows in sorted({prefix["image_rows"] for prefix in prefixes}):
        batch = [prefix for prefix in prefixes if prefix["image_rows"] == rows]
        prompts = [
            {
                "prompt": p["prompt"],
                "multi_modal_data": {"image": files[p["file"]][f"{p['number']}.image_rows"]},
            }
            for p in batch
        ]
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
        for prefix, output in zip(batch, outputs, strict=True):
            print(json.dumps({"key": prefix["key"], "answer": output.outputs[0].text.strip()}))
