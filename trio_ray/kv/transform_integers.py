"""Keys and values to symbols in whole numbers alone, so that all machines make the same bytes of them.

x = round(value * 2 ** exponent)              16 bits; multiplying by a power of two is exact
keys: turned back by their position           16-bit tables, so sums of 31 bits
y = (x - center) * fold >> FOLD_BITS          16 bits
sum = matrix @ y                              below 2 ** 39, so exact in any order of adding
symbol = (|sum - offset| * multiplier + rounding) >> STEP_BITS, with its sign
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.transform_basis import FOLD_BITS, INPUT_LIMIT, ROTATION_BITS, STEP_BITS, Basis, Components
from trio_ray.method.fusion import fused

SUM_LIMIT = 1 << 38


def whole_rows(exponent: Tensor, basis: Basis, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
    """(n, C) int32, the integers x above, keys turned back.

    Args:
        exponent: (C,) int8 of the layers that these are, `Group.exponent`.
        basis: whose tensors are on the device of the others.
        keys, values: (layers, n, kv_heads, head_dim), keys rotated.
        position: (n,) int32; beyond the tables it counts as their last.
    """
    place = position.long().clamp(0, len(basis.cosine) - 1)
    return _whole_rows(keys, values, basis.cosine[place], basis.sine[place], exponent)


def symbols(rows: Tensor, part: Components, mean: Tensor, rounding: int) -> Tensor:
    """(n, R) int64 symbols of (n, C) int32 `whole_rows`; `mean` (n,) int64 numbers the mean row of each."""
    sums = sums_of_products(folded(rows, part.center, part.fold), part.matrix)
    return _quantise(sums, part.offset[mean], part.multiplier, rounding)


def sums_of_products(rows: Tensor, matrix: Tensor) -> Tensor:
    """(n, R) int64 `rows @ matrix.T`, exact: (n, C) int32 of 16 bits, (R, C) int8."""
    if rows.is_cuda:
        return sums_by_bytes(rows, matrix)
    return (rows.double() @ matrix.double().T).long()


def sums_by_bytes(rows: Tensor, matrix: Tensor) -> Tensor:
    """The same by 8-bit matrix products with 32-bit sums, which a GPU has units for; they want whole tiles."""
    n, components = len(rows), len(matrix)
    padded = F.pad(rows, (0, 0, 0, max(32 - n, -n % 8)))
    matrix = F.pad(matrix, (0, 0, 0, -components % 8))
    high, low = padded >> 8, (padded & 255) - 128
    products = [torch._int_mm(part.to(torch.int8), matrix.T).long() for part in (high, low)]
    sums = products[0] * 256 + products[1] + 128 * matrix.sum(1, dtype=torch.int64)
    return sums[:n, :components]


@fused(keys=(1,), values=(1,), cosine=(0,), sine=(0,))
def _whole_rows(keys: Tensor, values: Tensor, cosine: Tensor, sine: Tensor, exponent: Tensor) -> Tensor:
    layers, n, heads, dim = keys.shape
    # Bits of the number 2 ** exponent, which no library's power function has to find.
    power = ((exponent.int() + 127) << 23).view(torch.float32).view(layers, 2, heads, dim)
    whole_keys, whole_values = _whole(keys, power[:, None, 0]), _whole(values, power[:, None, 1])
    low, high = whole_keys.chunk(2, -1)
    cosine, sine = cosine.int()[:, None], sine.int()[:, None]
    half = 1 << (ROTATION_BITS - 1)
    turned = torch.cat(
        [(low * cosine + high * sine + half) >> ROTATION_BITS, (high * cosine - low * sine + half) >> ROTATION_BITS], -1
    )
    return torch.stack([turned, whole_values], 2).transpose(0, 1).reshape(n, layers * 2 * heads * dim)


def _whole(x: Tensor, power: Tensor) -> Tensor:
    """To integers of 16 bits; what is no number counts as 0."""
    scaled = torch.nan_to_num(x.float(), nan=0.0) * power
    return scaled.clamp(-float(INPUT_LIMIT), float(INPUT_LIMIT)).round().int()


@fused(rows=(0,))
def folded(rows: Tensor, center: Tensor, fold: Tensor) -> Tensor:
    """(n, C) int32, the integers y above, of (n, C) int32 `whole_rows`."""
    weighed = ((rows - center).long() * fold + (1 << (FOLD_BITS - 1))) >> FOLD_BITS
    return weighed.clamp(-INPUT_LIMIT, INPUT_LIMIT).int()


@fused(sums=(0,), offset=(0,))
def _quantise(sums: Tensor, offset: Tensor, multiplier: Tensor, rounding: int) -> Tensor:
    away = (sums - offset).clamp(-SUM_LIMIT, SUM_LIMIT)
    return away.sign() * ((away.abs() * multiplier + rounding) >> STEP_BITS)
