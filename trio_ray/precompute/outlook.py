"""How far a run is, and what it will come to, told from what its replicas report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from trio_ray.source.sample import Shard


@dataclass(frozen=True)
class ShardAdvanced:
    """A replica has done more of a shard.

    `samples` are through the model or found to be bad, but not in a part that was reported; they may still be lost.
    `share` of the shard's input has been read.
    """

    shard: str
    samples: int
    share: float


class Outlook:
    """The share of a run's work that is done, by bytes of input.

    Args:
        planned: all shards of the input, which tell how many share a file.
        left: those that the run has to do.
    """

    def __init__(self, planned: Iterable[Shard], left: Iterable[Shard]) -> None:
        of_file = Counter(shard.uri for shard in planned)
        self._weights = {shard.name: max(1, shard.size) / of_file[shard.uri] for shard in left}
        self._total = sum(self._weights.values())
        self._done = 0.0
        self._underway: dict[str, tuple[int, ShardAdvanced]] = {}

    def advanced(self, actor: int, news: ShardAdvanced) -> None:
        """A replica reports; an earlier attempt at the shard counts no more."""
        self._underway[news.shard] = (actor, news)

    def ended(self, shard: str) -> None:
        """A shard is done or given up."""
        self._underway.pop(shard, None)
        self._done += self._weights.get(shard, 0.0)

    def lost(self, actor: int) -> None:
        """What a replica had not committed is lost with it."""
        self._underway = {name: entry for name, entry in self._underway.items() if entry[0] != actor}

    @property
    def uncommitted(self) -> int:
        """Samples that are done, but not committed."""
        return sum(news.samples for _, news in self._underway.values())

    @property
    def share(self) -> float:
        """Of the run's work that is done, from 0 to 1."""
        underway = sum(self._weights.get(name, 0.0) * news.share for name, (_, news) in self._underway.items())
        return min(1.0, (self._done + underway) / self._total) if self._total else 1.0

    def expected_bytes(self, stored: int, committed: int) -> int | None:
        """What the run will have stored at its end; None as long as nobody can know.

        Args:
            stored: bytes in parts so far.
            committed: samples in parts so far, good and bad.
        """
        if not committed or not self.share:
            return None
        return int(stored / committed * (committed + self.uncommitted) / self.share)
