"""Keys of a task's documents in a cache whose keys are rows of files.

A benchmark's split is its files behind each other, in the order of their names, and a document is known by its number
in the split. Where the cache was made from all of these files, the number gives file and row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError
from trio_ray.source.record import row_key
from trio_ray.store.commits import ShardInput


class DocumentKeys:
    """The keys, and the shards they lie in, by a document's number.

    Args:
        shards: input shards of the cache.
        source: how their rows were given keys.
        documents: number of documents in the split; another number of rows would pair them wrongly.

    Raises:
        ConfigError: the shards are not the rows of that many documents; names `cache`.
    """

    def __init__(self, shards: Iterable[ShardInput], source: SourceConfig, documents: int) -> None:
        self._source = source
        ordered = sorted(
            {shard.name: shard for shard in shards}.values(),
            key=lambda shard: (shard.uri.rpartition("/")[2], shard.uri, shard.rows or (0, 0)),
        )
        self._shards: list[tuple[int, int, ShardInput]] = []  # number of the first document, its row, the shard
        first, uri, beyond = 0, "", 0
        for shard in ordered:
            if shard.rows is None:
                raise ConfigError("cache", f"was made from {shard.uri}, whose samples are no rows of a table")
            if shard.uri != uri:
                first, uri, beyond = first + beyond, shard.uri, 0
            if shard.rows[0] != beyond:
                raise ConfigError("cache", f"lacks rows {beyond} to {shard.rows[0] - 1} of {uri}; run its job again")
            self._shards.append((first + beyond, beyond, shard))
            beyond = shard.rows[1]
        if first + beyond != documents:
            raise ConfigError(
                "cache",
                f"was made from {first + beyond} rows, and the task's split has {documents} documents; keys that are "
                "rows of files (source.keys: row) need a cache that was made from all files of the split and no others",
            )

    def of(self, number: int) -> tuple[str, str]:
        """Key and shard of a document."""
        place = bisect_right(self._shards, number, key=lambda entry: entry[0]) - 1
        first, row, shard = self._shards[place]
        return row_key(self._source, shard.uri, row + number - first), shard.name
