"""The container gives back what went in, and nothing that was tampered with gets past it or brings the reader down."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.kv.prefixes import CODECS, FINGERPRINT, KEY, LEAD, TEXTS, assert_same, codec_of, contained, random_prefix
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import checksum
from trio_ray.kv.header import ContainerError, FingerprintMismatch
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import read_container, read_containers

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RAW = codec_of(CODECS["raw, plain"])
"""Nothing but the tensors themselves, so that a test can change one and know what it has changed."""
SHRUNK = codec_of("raw")


def encoded(prefix: Prefix | None = None, codec: Codec = RAW) -> bytes:
    return contained(prefix or random_prefix(), codec)


def decode(data: bytes, codec: Codec = RAW, **expected: Any) -> Prefix:
    return read_container(data, codec, **expected)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The safetensors header as an object, and the payload."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(entries: Any, payload: bytes) -> bytes:
    """As it is written: the least text, filled up to a multiple of 8 bytes."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload


def with_header(data: bytes, **changes: Any) -> bytes:
    """The same container with other entries in our header; None takes an entry out."""
    entries, payload = split(data)
    header = json.loads(entries["__metadata__"]["trio_ray"]) | changes
    header = {name: value for name, value in header.items() if value is not None}
    entries["__metadata__"]["trio_ray"] = json.dumps(header, sort_keys=True, separators=(",", ":"))
    return join(entries, payload)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prefix_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    prefix = random_prefix(dtype)
    assert_same(decode(encoded(prefix), key=KEY, fingerprint=FINGERPRINT), prefix)


def test_infinities_nans_and_negative_zeros_come_back() -> None:
    prefix = random_prefix()
    prefix.segments[0].keys[0, :4, 0, 0] = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0])
    assert_same(decode(encoded(prefix)), prefix)


def test_a_prefix_that_kept_no_image_token_comes_back() -> None:
    prefix = random_prefix(rows=(30, 8, 8))
    assert [len(kept) for kept in prefix.kept] == [0, 0]
    assert_same(decode(encoded(prefix)), prefix)


def test_a_prefix_without_prune_points_comes_back() -> None:
    prefix = random_prefix(rows=(30,), layers=(4,))
    assert prefix.kept == ()
    assert_same(decode(encoded(prefix)), prefix)


def test_the_same_prefix_gives_the_same_bytes() -> None:
    assert encoded(random_prefix()) == encoded(random_prefix())
    assert checksum(encoded(random_prefix())) != checksum(encoded(random_prefix(seed=1)))


def test_any_safetensors_reader_can_open_it(tmp_path: Any) -> None:
    prefix = random_prefix()
    (tmp_path / "prefix.safetensors").write_bytes(encoded(prefix))
    with safe_open(str(tmp_path / "prefix.safetensors"), framework="np") as file:
        assert json.loads(file.metadata()["trio_ray"])["key"] == KEY
        np.testing.assert_array_equal(file.get_tensor("1.k"), prefix.segments[1].keys.transpose(0, 1).numpy())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_comes_back(data: st.DataObject) -> None:
    layers = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = sorted(data.draw(st.lists(st.integers(8, 40), min_size=len(layers), max_size=len(layers))), reverse=True)
    prefix = random_prefix(
        data.draw(st.sampled_from(DTYPES)), rows, layers, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    )
    assert_same(decode(encoded(prefix)), prefix)


STAGES = pytest.mark.parametrize("codec", [RAW, SHRUNK, codec_of("int4")], ids=["plain", "zstd", "int4"])


@STAGES
def test_every_truncation_is_refused(codec: Codec) -> None:
    data = encoded(codec=codec)
    for length in [*range(400), *range(400, len(data), 37), len(data) - 1]:
        with pytest.raises(ContainerError):
            decode(data[:length], codec)


@STAGES
def test_bytes_behind_the_end_are_refused(codec: Codec) -> None:
    with pytest.raises(ContainerError):
        decode(encoded(codec=codec) + b"\0", codec)


@STAGES
def test_a_flipped_byte_is_refused_or_stays_in_its_tensor(codec: Codec) -> None:
    """In the header it raises, or leaves a container of the same shape; in the payload it is the checksum's to find."""
    data, truth = encoded(codec=codec), random_prefix()
    start = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    places = [*range(0, start, 3), *random.integers(0, len(data), 400).tolist()]
    refused = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= int(random.integers(1, 256))
        assert checksum(bytes(flipped)) != checksum(data)
        try:
            prefix = decode(bytes(flipped), codec, key=KEY, fingerprint=FINGERPRINT)
        except ContainerError:
            refused += 1
        else:
            assert prefix.length >= truth.length
            assert [s.keys.shape for s in prefix.segments] == [s.keys.shape for s in truth.segments]
    assert refused > 300


def test_another_samples_container_is_refused() -> None:
    with pytest.raises(ContainerError, match="shard-7/0003"):
        decode(encoded(), key="shard-7/0004")


def test_another_caches_container_is_refused() -> None:
    with pytest.raises(FingerprintMismatch, match=FINGERPRINT):
        decode(encoded(), fingerprint="f" * 32)


@pytest.mark.parametrize(
    ("codec", "field"),
    [
        ("int4", "codec.name"),
        ("raw", "codec.zstd"),
    ],
    ids=str,
)
def test_a_prefix_of_another_codec_is_refused_by_the_parameters_name(codec: Any, field: str) -> None:
    with pytest.raises(FingerprintMismatch) as caught:
        decode(encoded(), codec_of(codec))
    assert caught.value.field == field
    assert field in str(caught.value)


@STAGES
def test_containers_read_together_come_back_as_alone_each_bad_one_with_its_own_error(codec: Codec) -> None:
    sizes = [((30, 17, 9), (1, 2, 3)), ((40, 8, 8), (1, 2, 3)), ((25,), (6,)), ((20, 20, 9), (1, 2, 3))]
    prefixes = [random_prefix(rows=rows, layers=layers, seed=seed) for seed, (rows, layers) in enumerate(sizes)]
    good = [(f"good{number}", contained(prefix, codec, f"good{number}")) for number, prefix in enumerate(prefixes)]
    bad = [
        ("cut", encoded(codec=codec)[:500]),
        ("swapped", encoded(codec=codec)),
        ("rows", with_header(contained(prefixes[0], codec, "rows"), length=10)),
        ("other", contained(prefixes[0], codec, "other", fingerprint="f" * 64)),
        ("raw", contained(prefixes[0], codec_of({"name": "raw", "zstd": 9}), "raw")),
        ("empty", b""),
    ]
    items = [item for pair in zip(good, bad, strict=False) for item in pair] + bad[len(good) :]
    outcomes = dict(zip((key for key, _ in items), read_containers(items, codec, fingerprint=FINGERPRINT), strict=True))
    for key, data in good:
        ours = outcomes[key]
        assert isinstance(ours, Prefix)
        assert_same(ours, decode(data, codec, key=key))
    for key, data in bad:
        with pytest.raises(ContainerError) as alone:
            decode(data, codec, key=key, fingerprint=FINGERPRINT)
        assert type(outcomes[key]) is alone.type
        assert str(outcomes[key]) == str(alone.value)


def test_nothing_read_together_is_nothing() -> None:
    assert read_containers([], RAW) == []


@pytest.mark.parametrize("codec", [RAW, SHRUNK], ids=["plain", "zstd"])
@pytest.mark.parametrize(
    "change",
    [{"dtype": "I8"}, {"shape": [1]}, {"data_offsets": [0, 8]}, {"data_offsets": [0]}, {"extra": 1}],
    ids=str,
)
def test_a_list_of_tensors_that_says_something_else_is_refused(codec: Codec, change: dict[str, Any]) -> None:
    """Other readers of safetensors believe it."""
    data = encoded(codec=codec)
    entries, payload = split(data)
    assert join(entries, payload) == data, "else this would prove nothing"
    entries["1.v"] |= change
    with pytest.raises(ContainerError):
        decode(join(entries, payload), codec)
    del entries["1.v"]
    with pytest.raises(ContainerError):
        decode(join(entries, payload), codec)


def test_another_version_is_named() -> None:
    with pytest.raises(ContainerError, match="99"):
        decode(with_header(encoded(), version=99))


def segment(first_layer: int, layers: int, rows: int, **changes: int) -> dict[str, int]:
    return {"first_layer": first_layer, "layers": layers, "rows": rows, "images": rows - TEXTS, "lead": LEAD, **changes}


SEGMENTS = [segment(0, 1, 30), segment(1, 2, 17)]
LAST = segment(3, 3, 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"length": None}, {"length": -1}, {"length": 10}, {"length": 30.0}, {"length": "30"}, {"length": [30]},
        {"length": float("nan")}, {"length": True}, {"kv_heads": 1 << 62}, {"kv_heads": -2}, {"kv_heads": 2.0},
        {"head_dim": 0}, {"head_dim": 1e308}, {"dtype": "float64"}, {"dtype": None}, {"dtype": ["float32"]},
        {"dtype": "float16"}, {"segments": None}, {"segments": []}, {"segments": SEGMENTS}, {"segments": "abc"},
        {"segments": [1, 2, 3]}, {"segments": [{}]}, {"segments": {"first_layer": 0}}, {"kept": None}, {"kept": [1,
        2, 3]},
        {"kept": []}, {"kept": [-9, 1]}, {"kept": 5}, {"kept": [1 << 70, 1]}, {"top_k": None}, {"top_k": 4},
        {"top_k": "3"},
        {"top_k": 3.0}, {"codec": None}, {"codec": ["raw"]}, {"codec": {"raw": 1}}, {"codec": "raw"},
        {"version": None}, {"key": None},
        {"segments": [segment(0, 6, 30)]}, {"segments": [segment(3, 1, 30), SEGMENTS[1], LAST]},
        {"segments": [segment(0, -1, 30), SEGMENTS[1], LAST]},
        {"segments": [segment(0, 1, 1 << 60), SEGMENTS[1], LAST]},
        {"segments": [segment(0, 1, 30, images=23), SEGMENTS[1], LAST]},
        {"segments": [segment(0, 1, 30, images=31), SEGMENTS[1], LAST]},
        {"segments": [segment(0, 1, 30, images=-1), SEGMENTS[1], LAST]},
        {"segments": [segment(0, 1, 30, lead=9), SEGMENTS[1], LAST]},
        {"segments": [segment(0, 1, 30, extra=1), SEGMENTS[1], LAST]},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_is_not_as_written_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ContainerError):
        decode(with_header(encoded(), **changes), key=KEY)


@pytest.mark.parametrize("codec", [RAW, codec_of("int4")], ids=["plain", "int4"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_heads": 0}, "without heads"),
        ({"head_dim": 0}, "without heads"),
        ({"segments": [segment(0, 1 << 30, 30)]}, "1073741824 layers"),
        ({"segments": [segment(0, 1 << 12, 30), segment(1 << 12, 1, 30)]}, "4097 layers"),
        ({"kv_heads": 0, "segments": [segment(0, 1 << 30, 30)]}, "without heads"),
    ],
    ids=str,
)
def test_keys_and_values_of_no_bytes_or_of_endless_layers_are_refused(
    codec: Codec, changes: dict[str, Any], words: str
) -> None:
    """Their tensors would fit any file, and their layers keep the reader busy for ever."""
    with pytest.raises(ContainerError, match=words):
        decode(with_header(encoded(codec=codec), **changes), codec)


@pytest.mark.parametrize(
    "entries",
    [
        [], 5, None, "x", {}, {"__metadata__": None}, {"__metadata__": {}}, {"__metadata__": {"trio_ray": 5}},
        {"__metadata__": {"trio_ray": "{"}}, {"__metadata__": {"trio_ray": "[]"}}, {"__metadata__": {"trio_ray":
        "null"}},
        {"__metadata__": {"trio_ray": "[" * 90_000}},
    ],
    ids=lambda entries: str(entries)[:40],
)  # fmt: skip
def test_a_file_without_our_header_is_refused(entries: Any) -> None:
    with pytest.raises(ContainerError):
        decode(join(entries, b""))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_size_that_lies_is_refused(size: int) -> None:
    with pytest.raises(ContainerError):
        decode(size.to_bytes(8, "little") + b"{}" * 50)


def peak_bytes() -> int:
    """Most memory that this process has ever held; also what torch and zstd take, which tracemalloc does not see."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@STAGES
def test_tensors_that_promise_gigabytes_are_refused_without_allocating_them(codec: Codec) -> None:
    data = encoded(codec=codec)
    entries, payload = split(data)
    huge = 1 << 30
    segments = json.loads(entries["__metadata__"]["trio_ray"])["segments"]
    segments[0] |= {"rows": huge, "images": huge - TEXTS}
    if codec is RAW:
        entries["0.k"] |= {"shape": [1, huge, 2, 8], "data_offsets": [0, huge * 64]}
    before = peak_bytes()
    with pytest.raises(ContainerError):
        decode(with_header(join(entries, payload), segments=segments, length=huge), codec)
    assert peak_bytes() - before < 5_000_000


def test_a_zstd_frame_that_grows_beyond_belief_is_refused_before_it_is_expanded() -> None:
    rows = 1 << 22
    bomb = pa.Codec("zstd").compress(bytes(rows * 64)).to_pybytes()
    entries, payload = split(encoded(codec=SHRUNK))
    shift = len(bomb) - (entries["0.k"]["data_offsets"][1] - entries["0.k"]["data_offsets"][0])
    start, stop = entries["0.k"]["data_offsets"]
    for name, entry in entries.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= stop:
            entry["data_offsets"] = [place + shift for place in entry["data_offsets"]]
    entries["0.k"] |= {"shape": [len(bomb)], "data_offsets": [start, start + len(bomb)]}
    segments = json.loads(entries["__metadata__"]["trio_ray"])["segments"]
    segments[0] |= {"rows": rows, "images": rows - TEXTS}
    data = with_header(join(entries, payload[:start] + bomb + payload[stop:]), segments=segments, length=rows)
    before = peak_bytes()
    with pytest.raises(ContainerError, match="cannot stand for"):
        decode(data, SHRUNK)
    assert peak_bytes() - before < 5_000_000


@pytest.mark.parametrize("name", ["0.k", "rows"])
def test_a_zstd_frame_of_another_size_is_refused(name: str) -> None:
    entries, payload = split(encoded(random_prefix(rows=(200, 100, 50)), SHRUNK))
    start, stop = entries[name]["data_offsets"]
    frame = pa.Codec("zstd").compress(bytes(7)).to_pybytes().ljust(stop - start, b"\0")[: stop - start]
    with pytest.raises(ContainerError):
        decode(join(entries, payload[:start] + frame + payload[stop:]), SHRUNK)


@pytest.mark.parametrize("place", range(25))
def test_rows_that_are_not_as_many_as_the_header_says_are_refused(place: int) -> None:
    """Any single bit of text, positions and kept tokens changes a count."""
    entries, payload = split(encoded())
    start, _ = entries["rows"]["data_offsets"]
    bad = bytearray(payload)
    bad[start + place] ^= 1 << place % 8
    with pytest.raises(ContainerError):
        decode(join(entries, bytes(bad)))


@pytest.mark.parametrize("offsets", [[0, 4], [-4, 60], [10, 5], ["a", 2], [0], None])
def test_offsets_that_do_not_fit_are_refused(offsets: Any) -> None:
    entries, payload = split(encoded())
    entries["1.v"]["data_offsets"] = offsets
    with pytest.raises(ContainerError):
        decode(join(entries, payload))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "version",
    "key",
    "fingerprint",
    "codec",
    "dtype",
    "length",
    "kv_heads",
    "head_dim",
    "segments",
    "kept",
    "kept_end",
    "top_k",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1))
def test_any_json_in_our_header_is_refused_or_says_the_same(changes: dict[str, Any]) -> None:
    data = encoded()
    try:
        prefix = decode(with_header(data, **changes))
    except ContainerError:
        return
    # Key and fingerprint may say anything where nobody asks; how long the prompt once was, nothing else tells.
    length = changes.get("length", 30)
    assert type(length) is int
    assert length >= 30
    assert_same(prefix, replace(random_prefix(), length=length))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_container_is_refused_or_decoded_and_takes_little_memory(data: st.DataObject) -> None:
    """Whatever is cut out, put in or overwritten, also where lengths still add up: no crash, no large allocation."""
    codec = data.draw(st.sampled_from([RAW, SHRUNK, codec_of("int2"), codec_of("int8")]))
    whole = bytearray(encoded(codec=codec))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        run = data.draw(st.binary(min_size=1, max_size=12))
        kind = data.draw(st.sampled_from(["overwrite", "insert", "remove"]))
        whole[place : place + len(run) * (kind != "insert")] = b"" if kind == "remove" else run
    before = peak_bytes()
    try:
        prefix = decode(bytes(whole), codec)
    except ContainerError:
        pass
    else:
        assert [s.keys.shape for s in prefix.segments] == [s.keys.shape for s in random_prefix().segments]
    assert peak_bytes() - before < 20_000_000


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(junk: bytes, framed: bool) -> None:
    data = len(junk).to_bytes(8, "little") + junk if framed else junk
    with pytest.raises(ContainerError):
        decode(data)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=10), JSON, max_size=4), st.binary(max_size=40))
def test_any_json_as_the_files_header_is_refused(entries: dict[str, Any], payload: bytes) -> None:
    with pytest.raises(ContainerError):
        decode(join(entries, payload))


def test_a_prefix_that_ends_before_the_prompt_does_has_no_first_token() -> None:
    prefix = replace(random_prefix(), top_ids=torch.zeros(0, dtype=torch.int32), top_logprobs=torch.zeros(0))
    for codec in (RAW, SHRUNK):
        assert_same(decode(encoded(prefix, codec), codec), prefix)
