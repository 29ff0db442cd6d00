"""How many requests a job makes of an object store.

Per part: the table and the commit record, one PUT each; the tar, one PUT where it fits one piece (`s3.part_mib`), else
a multipart upload (create, pieces, complete); a quarantine table where a sample is bad; one HEAD whether another run
was faster. Once: a probe of the output, the dataset's record, listings. Retries and DELETEs, which cost nothing, are
left out. Of the input: a HEAD and the range requests that reading it straight through takes, and an image a line of a
JSONL file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trio_ray.config import JobConfig
from trio_ray.source.sample import Shard
from trio_ray.store.opening import S3_SCHEME

PROBE_WRITES, RECORD_WRITES = 2, 1
LISTINGS = 2
"""Of commit and failure records, before anything is stored."""

FIRST_WINDOW_BYTES, LARGEST_WINDOW_BYTES = 1 << 20, 64 << 20
"""As `trio_ray.store.s3_reader` doubles its range requests."""


@dataclass(frozen=True)
class RequestCount:
    """Requests of a whole job; 0 where a side is a local folder.

    Attributes:
        writes: PUT, POST (multipart uploads) and LIST, which providers price alike.
        reads: GET and HEAD, of input and output.
    """

    writes: int
    reads: int


def count_requests(
    config: JobConfig, shards: Sequence[Shard], parts: int, bad_parts: float, tar_bytes: float, images: float
) -> RequestCount:
    """Requests of a job that starts from nothing.

    Args:
        config: the job.
        shards: of the input.
        parts: of the output.
        bad_parts: how many of them have a bad sample.
        tar_bytes: of a part's tar; 0 for none.
        images: that are read one by one, beside the shards.
    """
    writes = reads = 0.0
    if config.output.startswith(S3_SCHEME):
        writes += PROBE_WRITES + RECORD_WRITES + LISTINGS
        writes += parts * (2 + tar_requests(tar_bytes, config.s3.part_mib << 20)) + bad_parts
        reads += 1 + parts
    remote = [shard for shard in shards if shard.uri.startswith(S3_SCHEME)]
    cut = Counter(shard.uri for shard in remote)  # shards that each file is cut into
    reads += len(cut) + sum(1 + _windows(shard.size / cut[shard.uri]) for shard in remote)
    reads += images if remote else 0.0
    return RequestCount(round(writes), round(reads))


def tar_requests(size: float, piece_bytes: int) -> int:
    """Requests that write an object of `size` bytes: none, one, or a multipart upload's."""
    if size <= 0:
        return 0
    return 1 if size <= piece_bytes else 2 + math.ceil(size / piece_bytes)


def _windows(size: float) -> int:
    windows, window = 0, FIRST_WINDOW_BYTES
    while size > 0:
        size -= window
        window = min(2 * window, LARGEST_WINDOW_BYTES)
        windows += 1
    return windows
