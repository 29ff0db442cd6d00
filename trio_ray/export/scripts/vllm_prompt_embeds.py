"""Answers from this folder's prompt embeddings with vLLM: `python run_vllm.py`."""

import json
from pathlib import Path

from safetensors.torch import load_file
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder = Path(__file__).parent
    about = json.loads((folder / "export.json").read_text())
    prefixes = [json.loads(line) for line in (folder / "prefixes.jsonl").open()]
    files = {name: load_file(folder / name) for name in {prefix["file"] for prefix in prefixes}}
    llm = LLM(
        about["model"], dtype=about["dtype"], enable_prompt_embeds=True, limit_mm_per_prompt={"image": 0}
    )  # fmt: skip
    prompts = [{"prompt_embeds": files[p["file"]][f"{p['number']}.prompt_embeds"]} for p in prefixes]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    for prefix, output in zip(prefixes, outputs, strict=True):
        print(json.dumps({"key": prefix["key"], "answer": output.outputs[0].text.strip()}))
