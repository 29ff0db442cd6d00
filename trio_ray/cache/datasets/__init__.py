"""PyTorch datasets over a cache, and batches made ready on a device ahead of the model."""

from trio_ray.cache.datasets.batch import Batch, collate
from trio_ray.cache.datasets.prefetch import prefetch
from trio_ray.cache.datasets.prefix_dataset import PrefixDataset
from trio_ray.cache.datasets.prefix_stream import PrefixStream

__all__ = ["Batch", "PrefixDataset", "PrefixStream", "collate", "prefetch"]
