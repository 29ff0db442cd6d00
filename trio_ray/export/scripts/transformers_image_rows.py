"""Answers from this folder's image rows with transformers: `python run_transformers.py`."""

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoTokenizer, LlavaNextForConditionalGeneration

folder = Path(__file__).parent
about = json.loads((folder / "export.json").read_text())
prefixes = [json.loads(line) for line in (folder / "prefixes.jsonl").open()]
files = {name: load_file(folder / name) for name in {prefix["file"] for prefix in prefixes}}
model = LlavaNextForConditionalGeneration.from_pretrained(about["model"], dtype=about["dtype"])
tokenizer = AutoTokenizer.from_pretrained(about["model"])
image = tokenizer.decode([model.config.image_token_id])
for prefix in prefixes:
    text = prefix["prompt"].replace(image, image * prefix["image_rows"])
    ids = tokenizer(text, return_tensors="pt").input_ids
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == model.config.image_token_id] = files[prefix["file"]][f"{prefix['number']}.image_rows"][0]
    mask = embeds.new_ones(embeds.shape[:2])
    output = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=32, do_sample=False)
    print(json.dumps({"key": prefix["key"], "answer": tokenizer.decode(output[0], skip_special_tokens=True).strip()}))
