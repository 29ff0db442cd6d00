"""One pass of new rows through all decoder layers, over the pool: our own kernels on a GPU, plain torch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trio_ray.model.decode.attention import PaddedAttention, Scratch
from trio_ray.model.decode.pool import KVPool
from trio_ray.model.decode.rows import NewRows, SlotTable
from trio_ray.model.decoder import Decoder
from trio_ray.model.matrix import apply
from trio_ray.tensors import has_triton

TILE_ROWS = 64
"""Rows of queries, new rows times the query heads that share a key head, which attend together in a long pass."""
PROGRAMS_PER_UNIT = 4
"""Attention programs for each multiprocessor, where the keys can be split among so many."""
LONGEST_SPLIT = 1024
"""Most keys of a split, so that one long sequence among short ones does not run alone at the end."""
SHORTEST_SPLIT = 64


class Forward:
    """Passes over a model's layers; `table` says where each sequence's rows are in `pool`.

    Args:
        decoder: the model.
        pool: holds the sequences' keys and values; new ones are written to it.
        table: the sequences.
    """

    def __init__(self, decoder: Decoder, pool: KVPool, table: SlotTable) -> None:
        self.decoder, self.pool, self.table = decoder, pool, table
        self._kernels, self._scratch = has_triton(pool.device), Scratch()
        self._units = _multiprocessors(pool.device)
        self._rotary = _rotary_tables(decoder, pool)

    @property
    def tile_size(self) -> int:
        """New rows that attend together where a sequence has many of them."""
        return max(1, TILE_ROWS // (self.decoder.heads // self.decoder.kv_heads))

    def new_rows(self, slots: Sequence[int], counts: Sequence[int]) -> NewRows:
        """`counts[i]` new rows for the sequence in slot `slots[i]`."""
        return NewRows.of_counts(slots, counts, self.tile_size, self.pool.device)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, rows: NewRows, longest: Sequence[int]) -> Tensor:
        """Run new tokens through the layers; their keys and values are written behind their sequences.

        The sequences' lengths in the table stay as they are.

        Args:
            tokens: (T,) int64 or int32.
            rows: the sequence of each.
            longest: about how many rows the longest sequence has in each run of layers. It decides how the attention's
                work is split, never the result.

        Returns:
            (T, d) outputs of the last layer.
        """
        hidden = self.decoder.embed(tokens)
        position = self.table.positions(rows)
        return (self._by_kernels if self._kernels else self._by_torch)(hidden, position, rows, longest)

    def _by_torch(self, hidden: Tensor, position: Tensor, rows: NewRows, longest: Sequence[int]) -> Tensor:
        cos, sin = (table[position] for table in self._rotary)
        shape = (len(hidden), self.decoder.kv_heads, self.decoder.head_dim)
        new_keys, new_values = hidden.new_empty(shape), hidden.new_empty(shape)
        number = 0
        for run, extents in enumerate(self.table.runs):
            padded = PaddedAttention(rows, extents, self._scratch)
            for keys, values in zip(self.pool.keys(run), self.pool.values(run), strict=True):

                def attend(
                    query: Tensor,
                    key: Tensor,
                    value: Tensor,
                    scale: float,
                    padded: PaddedAttention = padded,
                    keys: Tensor = keys,
                    values: Tensor = values,
                ) -> Tensor:
                    padded.store(keys, values, key, value)
                    return padded.attend(query, keys, values, scale)

                hidden = self.decoder.run_layer(number, hidden, (cos, sin), attend, new_keys, new_values)
                number += 1
        return hidden

    def _by_kernels(self, hidden: Tensor, position: Tensor, rows: NewRows, longest: Sequence[int]) -> Tensor:
        from trio_ray.model.decode.kernels.attention import attend
        from trio_ray.model.decode.kernels.layer import add_and_norm, rotate_and_store, silu_product

        weights, update = iter(self.decoder.weights), None
        for run, extents in enumerate(self.table.runs):
            chunk, splits = self._split(rows.tiles, longest[run])
            for keys, values in zip(self.pool.keys(run), self.pool.values(run), strict=True):
                layer = next(weights)
                normed = add_and_norm(hidden, update, layer.input_norm, layer.eps)
                projected = apply(normed, layer.qkv)
                query = rotate_and_store(projected, self._rotary, position, keys, values, rows, extents)
                out = attend(query, keys, values, rows, extents, layer.scaling, chunk, splits)
                update = apply(out.flatten(1), layer.output)
                normed = add_and_norm(hidden, update, layer.mlp_norm, layer.eps)
                update = apply(silu_product(apply(normed, layer.gate_up)), layer.down)
        return hidden if update is None else hidden + update

    def _split(self, tiles: int, longest: int) -> tuple[int, int]:
        """Keys of a split and number of splits, a power of 2, so that few kernels are compiled."""
        wanted = PROGRAMS_PER_UNIT * self._units // (tiles * self.decoder.kv_heads)
        wanted = max(min(wanted, -(-longest // SHORTEST_SPLIT)), -(-longest // LONGEST_SPLIT), 1)
        splits = 1 << (wanted - 1).bit_length()
        return -(-longest // (splits * SHORTEST_SPLIT)) * SHORTEST_SPLIT, splits


def _rotary_tables(decoder: Decoder, pool: KVPool) -> tuple[Tensor, Tensor]:
    """(positions, D) of every position that the model allows."""
    like = torch.empty(0, dtype=pool.shape.dtype, device=pool.device)
    cos, sin = decoder.tables(like, torch.arange(decoder.context, device=pool.device))
    return cos.contiguous(), sin.contiguous()


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
