"""Say what a cache holds, or what is stored of one sample.

With --png the sample's image is read again from its input shard and drawn with the kept and dropped tokens of each
prune point over the tile grid; the shard must still be readable and unchanged, and the model says how images are tiled.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from trio_ray.commands._options import (
    add_input_options,
    add_model_options,
    add_s3_options,
    model_config,
    s3_config,
)
from trio_ray.config import S3Config
from trio_ray.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a sample's key")
    parser.add_argument("--shard", metavar="NAME", help="the key's shard, where several have it")
    parser.add_argument("--png", metavar="OUT", help="draw the sample's kept and dropped tokens into this file")
    add_model_options(parser)
    add_input_options(parser)
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print, and draw if asked."""
    from trio_ray.cache.pruned_cache import PrunedCache

    if arguments.png and not arguments.key:
        raise ConfigError("--png", "needs a sample's KEY")
    s3 = s3_config(arguments)
    cache = PrunedCache(arguments.cache, s3)
    if not arguments.key:
        _print_cache(cache)
        return 0
    row = cache.row(arguments.key, arguments.shard)
    _print_sample(cache, row)
    if arguments.png:
        _draw(cache, row, arguments, s3)
        print(f"drawn: {arguments.png}")
    return 0


def _print_cache(cache: Any) -> None:
    dataset, table = cache.dataset, cache.table
    print(f"{cache.uri}: made {dataset.created} with trio-ray {dataset.package_version}")
    for section, values in sorted(dataset.identity.items()):
        print(f"  {section}: {values}")
    parts = f"{len(cache.commits)} parts of up to {dataset.part_samples} samples"
    print(f"  {parts}, {len(table)} samples, {_stored(cache)}")
    if len(table):
        image_tokens = sum(table.column("image_tokens").to_pylist())
        retention = sum(table.column("retention").to_pylist()) / len(table)
        print(
            f"  {image_tokens / len(table):.1f} image tokens a sample, {retention:.1%} of them held (mean over layers)"
        )
    reasons = Counter(cache.quarantine.column("reason").to_pylist())
    print(
        f"  {sum(reasons.values())} quarantined"
        + "".join(f"; {count} {reason}" for reason, count in reasons.most_common())
    )
    for bad in cache.quarantine.to_pylist():
        print(f"    {bad['key']} ({bad['reason']}): {bad['detail']}")


def _print_sample(cache: Any, row: dict[str, Any]) -> None:
    for name in ("key", "shard", "index", "prompt", "answer", "prompt_tokens", "image_tokens"):
        print(f"{name:14s} {row[name]}")
    for turn in row["turns"] or ():
        print(f"{'own ' + turn['role']:14s} {turn['text']}")
    for image in row["images"]:
        grid = f"{image['grid_rows']} x {image['grid_columns']} tiles"
        size = f"{image['width']} x {image['height']} pixels"
        print(f"{'image':14s} {size}, {grid}, {image['tokens']} tokens, {image['hash']}")
    for layer, kept in zip(cache.method.schedule.prune_points, row["kept"], strict=True):
        print(f"{'kept':14s} before layer {layer}: {len(kept)}: {' '.join(map(str, kept))}")
    for segment in row["segments"]:
        last = segment["first_layer"] + segment["layers"] - 1
        print(f"{'segment':14s} layers {segment['first_layer']}..{last}: {segment['rows']} rows")
    print(f"{'retention':14s} {row['retention']:.4f} of {row['image_tokens']} image tokens, mean over layers")
    print(f"{cache.level:14s} {_read(cache, row)}")
    print(f"{'first token':14s} {_distribution(row['top_ids'], row['top_logprobs']) or 'none: scope image'}")
    for token, ids, logprobs in zip(
        row["answer_ids"] or (), row["target_ids"] or (), row["target_logprobs"] or (), strict=True
    ):
        print(f"{'target':14s} {token} <- {_distribution(ids, logprobs)}")


def _stored(cache: Any) -> str:
    """What is stored beside the rows of all samples."""
    if cache.level == "indices":
        return "nothing beside their rows (level indices)"
    size = sum(cache.table.column(f"{cache.level}_length").to_pylist())
    return f"{size:,} bytes of {'KV' if cache.level == 'kv' else 'embeddings'}"


def _read(cache: Any, row: dict[str, Any]) -> str:
    """What is stored beside a row; its bytes are read and checked."""
    if cache.level == "indices":
        return "nothing beside this row"
    if cache.level == "kv":
        segment = cache.prefix(row).segments[0]
        what = f"heads {tuple(segment.keys.shape[2:])}, codec {row['codec']}"
    else:
        embeds = cache.embeds(row)
        what = f"{tuple(embeds.rows.shape)} {str(embeds.rows.dtype).removeprefix('torch.')}"
    where, start, length, checksum = (
        row[f"{cache.level}_{name}"] for name in ("object", "offset", "length", "checksum")
    )
    return f"{where} bytes {start}..{start + length - 1}, {what}, checksum {checksum} (read and equal)"


def _distribution(ids: list[int], logprobs: list[float]) -> str:
    return ", ".join(f"{token} ({logprob:.3f})" for token, logprob in zip(ids, logprobs, strict=True))


def _draw(cache: Any, row: dict[str, Any], arguments: argparse.Namespace, s3: S3Config) -> None:
    from trio_ray.cache.input_samples import Reread, read_again
    from trio_ray.model.loading import load_processor, model_folder, read_model_config
    from trio_ray.model.tiles import Tiler
    from trio_ray.report.overlay import draw_overlay
    from trio_ray.source.images import decode_image

    model = cache.model_that_made_it(model_config(arguments))
    folder = model_folder(model)
    cache.check_model(folder, model.dtype)  # another model's grid would be a wrong picture
    tiler = Tiler.from_processor(load_processor(folder)[1], read_model_config(folder).vision_config.patch_size)
    out, start = Path(arguments.png), 0
    (sample,) = read_again(cache, [row], Reread(s3, arguments.image_root, arguments.allow_any_path))
    for number, (data, image) in enumerate(zip(sample.images, row["images"], strict=True)):
        stop = start + image["tokens"]
        kept = [[token - start for token in point if start <= token < stop] for point in row["kept"]]
        pixels = decode_image(data, max_pixels=cache.dataset.identity["source"]["max_pixels"])
        picture = draw_overlay(pixels, tiler, kept, cache.method.schedule.prune_points)
        _save(picture, out if number == 0 else out.with_stem(f"{out.stem}-{number}"))
        start = stop


def _save(picture: Any, out: Path) -> None:
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise ConfigError("--png", f"{out} cannot be written: {error}") from None
