"""The columns of a part's two Parquet tables, and of the catalog's segments.

`schemas/*.table.json` says the same in a language-neutral way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import pyarrow as pa

IDENTITY_KEY = b"trio_ray.identity_hash"
VERSION_KEY = b"trio_ray.schema_version"

MemberKind = Literal["kv", "embeds"]
"""What a sample's member of the tar holds: its prefix, or its retained input embeddings."""

MEMBER_KINDS: tuple[MemberKind, ...] = get_args(MemberKind)


def place_columns(kind: MemberKind) -> tuple[str, str, str, str]:
    """Columns that say where a sample's member lies, and its checksum. The part writer fills them."""
    return f"{kind}_object", f"{kind}_offset", f"{kind}_length", f"{kind}_checksum"


LENGTH_COLUMNS = tuple(f"{kind}_length" for kind in MEMBER_KINDS)

PLACE_COLUMNS = tuple(column for kind in MEMBER_KINDS for column in place_columns(kind))
"""All that the part writer fills; all others come with the row."""


def _column(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def _place_of(kind: MemberKind, what: str) -> list[pa.Field]:
    where, offset, length, checksum = place_columns(kind)
    return [
        _column(
            where, pa.string(), f"Name of the tar with the {what}, below the cache's root, if stored.", nullable=True
        ),
        _column(offset, pa.int64(), f"First byte of the {what} in the tar.", nullable=True),
        _column(length, pa.int64(), f"Bytes of the {what}.", nullable=True),
        _column(checksum, pa.string(), "xxh3-128 (hex) of these bytes.", nullable=True),
    ]


_IMAGE = _struct(
    hash=pa.string(),
    width=pa.int32(),
    height=pa.int32(),
    grid_rows=pa.int16(),
    grid_columns=pa.int16(),
    tokens=pa.int32(),
)
_TURN = _struct(role=pa.string(), text=pa.string())
_SEGMENT = _struct(first_layer=pa.int16(), layers=pa.int16(), rows=pa.int32())

SAMPLES = pa.schema(
    [
        _column("key", pa.string(), "The sample's key, unique within its shard."),
        _column("index", pa.int64(), "Its position in the shard; bad samples count too."),
        _column(
            "images",
            _list(_IMAGE),
            "Per image: xxh3-128 (hex) of the encoded bytes, size in pixels after EXIF rotation, tile grid "
            "without the base view, and the image tokens it takes in the unpruned prompt.",
        ),
        _column("prompt", pa.string(), "The prompt's text as the tokenizer got it, as far as the prefix covers it."),
        _column(
            "turns",
            pa.list_(pa.field("element", _TURN, nullable=False)),
            "With scope image: the sample's own turns, which the prefix does not cover, without image markers.",
            nullable=True,
        ),
        _column("answer", pa.string(), "The true answer, where the corpus has one.", nullable=True),
        _column("prompt_ids", _list(pa.int32()), "Token ids of `prompt`, one image placeholder per image."),
        _column("prompt_tokens", pa.int32(), "Rows of `prompt` without pruning, image tokens included."),
        _column("image_tokens", pa.int32(), "Image tokens of the unpruned prompt, of all images."),
        _column(
            "kept",
            _list(_list(pa.int32())),
            "Per prune point, the retained image tokens: indices into the prompt's original image tokens, ascending.",
        ),
        _column(
            "segments",
            _list(_SEGMENT),
            "Runs of layers that hold the same rows, from layer 0 up, and how many.",
        ),
        _column("retention", pa.float32(), "Image tokens held, mean over all layers, as a share of image_tokens."),
        _column("codec", pa.string(), "How K and V are coded in the prefix, where it is stored.", nullable=True),
        *_place_of("kv", "prefix"),
        *_place_of("embeds", "retained input embeddings"),
        _column(
            "first_token", pa.int32(), "The most likely token after the prompt; none with scope image.", nullable=True
        ),
        _column("first_logprob", pa.float32(), "Its natural-log probability.", nullable=True),
        _column(
            "top_ids",
            _list(pa.int32()),
            "The most likely tokens after the prompt, most likely first; none with scope image.",
        ),
        _column("top_logprobs", _list(pa.float32()), "Their natural-log probabilities."),
        _column(
            "answer_ids",
            _list(pa.int32()),
            "With targets: token ids of `answer` as they stand behind the prompt, the stop token last. Null where "
            "there is no answer, no room for it in the model's context, or no way to write it behind the prompt's "
            "own tokens.",
            nullable=True,
        ),
        _column(
            "target_ids",
            _list(_list(pa.int32())),
            "With targets: per token of `answer_ids`, the tokens that the model, given the pruned prompt and the "
            "answer so far, holds most likely in its place, most likely first.",
            nullable=True,
        ),
        _column("target_logprobs", _list(_list(pa.float32())), "Their natural-log probabilities.", nullable=True),
        _column(
            "prefill_ms",
            pa.float32(),
            "Time of the batch's prefill, vision included, shared out by rows, milliseconds.",
        ),
        _column(
            "encode_ms",
            pa.float32(),
            "Time that putting this prefix into its container took, milliseconds; on a CPU most of it is zstd.",
        ),
    ]
)

QUARANTINE = pa.schema(
    [
        _column("key", pa.string(), "The sample's key, or what stands for it where it has none."),
        _column("index", pa.int64(), "Its position in the shard."),
        _column("reason", pa.string(), "Why it is not in the cache: one of a fixed set of words."),
        _column("detail", pa.string(), "The same in a sentence, with the sizes or the error concerned."),
        _column("shard_uri", pa.string(), "The input file it came from."),
    ]
)


def _file_of(kind: str, nullable: bool = True) -> list[pa.Field]:
    return [
        _column(f"{kind}_name", pa.string(), f"Name of the {kind} file, below the cache's root.", nullable),
        _column(f"{kind}_size", pa.int64(), "Its bytes.", nullable),
        _column(f"{kind}_checksum", pa.string(), "xxh3-128 (hex) of the whole file.", nullable),
    ]


COMMITS = pa.schema(
    [
        _column("shard", pa.string(), "The shard's name in this cache."),
        _column("part", pa.int32(), "The part's number in its shard."),
        _column("record_etag", pa.string(), "Change marker of the commit record as the store listed it."),
        _column("schema_version", pa.int16(), "As the record has it, as all further columns."),
        _column("identity_hash", pa.string(), "SHA-256 (hex) of the identity's canonical JSON."),
        _column("attempt", pa.string(), "The attempt whose files these are."),
        _column("last", pa.bool_(), "Whether the shard ends with this part."),
        _column("stored", pa.int64(), "Samples in the samples table."),
        _column("quarantined", pa.int64(), "Samples in the quarantine table."),
        _column("damage", pa.string(), "What was wrong with the shard's file where it ends with this part.", True),
        _column("uri", pa.string(), "Where the input file was."),
        _column("size", pa.int64(), "Its bytes; -1 if it could not be read."),
        _column("etag", pa.string(), "Its change marker."),
        _column("first_row", pa.int64(), "First row of a file that was split.", True),
        _column("beyond_row", pa.int64(), "The row behind its last one.", True),
        _column("checksum", pa.string(), "xxh3-128 (hex) of a local input file.", True),
        *_file_of("samples"),
        _column("footer_size", pa.int64(), "Bytes of the footer, with which the samples file ends."),
        _column("footer_checksum", pa.string(), "xxh3-128 (hex) of the footer."),
        *_file_of("tar"),
        *_file_of("quarantine"),
        *_file_of("locators"),
        _column("image_tokens", pa.int64(), "Image tokens of the stored samples before pruning."),
        _column("held_tokens", pa.float64(), "Of these, how many are held, as the mean over all layers."),
        _column("member_bytes", pa.int64(), "Bytes stored beside the rows."),
        _column("device_s", pa.float64(), "Time that the device took for the stored samples, seconds."),
        _column(
            "reasons",
            _list(_struct(reason=pa.string(), count=pa.int64())),
            "Bad samples by the reason for their quarantine.",
        ),
        _column("run_id", pa.string(), "The run that made the part."),
        _column("host", pa.string(), "The host that made it."),
        _column("started", pa.string(), "When work on its samples began, ISO 8601 in UTC."),
        _column("finished", pa.string(), "When it was committed."),
        _column("package_version", pa.string(), "Version of the package that made it."),
        _column("replica", pa.string(), "The device that computed it."),
    ]
)


def stamped(schema: pa.Schema, schema_version: int, identity_hash: str) -> pa.Schema:
    """`schema` with the cache's version and identity as Parquet file metadata."""
    return schema.with_metadata({VERSION_KEY: str(schema_version), IDENTITY_KEY: identity_hash})


def column_faults(given: Iterable[str]) -> str | None:
    """What a row's columns lack or have too many; None if they are exactly those a caller provides."""
    wanted = set(SAMPLES.names) - set(PLACE_COLUMNS)
    missing, unknown = wanted - set(given), set(given) - wanted
    faults = [f"lacks {sorted(missing)}"] * bool(missing) + [f"has unknown {sorted(unknown)}"] * bool(unknown)
    return " and ".join(faults) or None
