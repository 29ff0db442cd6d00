"""Read a cache of pruned prefixes: by key, in batches, in transformers, and in a training loop."""

import sys

import torch
from torch.utils.data import DataLoader

from trio_ray import PrunedCache, Replica
from trio_ray.cache.datasets import PrefixStream, prefetch
from trio_ray.config import ModelConfig
from trio_ray.model.hugging_face import generate_inputs

device = "cuda" if torch.cuda.is_available() else "cpu"
cache = PrunedCache(sys.argv[1])
print(cache)

# One sample by its key: one range read, and its checksum is compared.
key = cache.keys()[0]
prefix = cache.prefix(key, device=device)
print(key, prefix)

# Many samples: the next batches are fetched while one is restored. Prefixes of different length decode together.
replica = Replica.load(ModelConfig(name="bundled"))
rows = cache.rows_at(range(min(32, len(cache))))
prefixes = [stored.prefix for stored in cache.stream(rows, device=device)]
answers = replica.generate(prefixes, max_new_tokens=16)
for row, answer in list(zip(rows, answers, strict=True))[:4]:
    print(f"{row['prompt'][-60:]!r} -> {answer!r}")

# The same prefix in transformers' own generate. An answer begins with the last column of input_ids.
with generate_inputs(replica.model, [prefix]) as inputs:
    output = replica.model.generate(**inputs, max_new_tokens=16, do_sample=False)
print(replica.writer.decode(output[0, inputs["input_ids"].shape[1] - 1 :].tolist()))

# Training: by rank and worker, each sample once an epoch. `batch.state` resumes behind a batch.
stream = PrefixStream(cache, batch_size=8, seed=0, restore=False)
for batch in prefetch(DataLoader(stream, batch_size=None, num_workers=1), cache, device):
    print(len(batch.prefixes), "prefixes, state", sorted(batch.state))
    break
