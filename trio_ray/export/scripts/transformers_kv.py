"""Answers from this folder's keys and values with transformers: `python run_transformers.py`."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, DynamicCache, LlavaNextForConditionalGeneration

folder = Path(__file__).parent
about = json.loads((folder / "export.json").read_text())
prefixes = [json.loads(line) for line in (folder / "prefixes.jsonl").open()]
files = {name: load_file(folder / name) for name in {prefix["file"] for prefix in prefixes}}
model = LlavaNextForConditionalGeneration.from_pretrained(about["model"], dtype=about["dtype"])
tokenizer = AutoTokenizer.from_pretrained(about["model"])
for prefix in prefixes:
    keys, values = (files[prefix["file"]][f"{prefix['number']}.{name}"] for name in ("keys", "values"))
    ids = torch.tensor([prefix["prompt_token_ids"]])
    held = min(prefix["rows"], ids.shape[1] - 1)  # generate must read a token to say what comes next
    layers = [
        (k[None, :held].transpose(1, 2), v[None, :held].transpose(1, 2)) for k, v in zip(keys, values, strict=True)
    ]
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=DynamicCache(layers),
        max_new_tokens=32,
        do_sample=False,
    )
    answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    print(json.dumps({"key": prefix["key"], "answer": answer}))
