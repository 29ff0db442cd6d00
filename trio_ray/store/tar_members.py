"""The tar of a part, in WebDataset's convention: one member a sample, `<encoded key>.<kind>.safetensors`.

The writer appends members to a stream without ever seeking, and knows where each one's bytes begin; so a
reader needs the tar's structure only to stream it, and a range read to fetch one sample.
"""

from __future__ import annotations

import io
import tarfile
from urllib.parse import quote

import xxhash

from trio_ray.store.tables import MemberKind

SUFFIX = ".safetensors"
END = bytes(2 * tarfile.BLOCKSIZE)
"""What closes a tar."""

MAX_HEADER = 1 << 16
"""More than any member's header takes; what is longer is damage."""

_LONGEST = 200


def member_name(key: str, kind: MemberKind) -> str:
    """The member of a key: another one for every key, and one that `webdataset` takes for a single sample.

    Everything but ASCII letters, digits, `_` and `-` is percent-encoded (a dot would end WebDataset's key, a
    slash would make a folder). Names too long for a file system keep their beginning and get `~` and the
    key's xxh3-128.
    """
    encoded = quote(key, safe="").replace(".", "%2E").replace("~", "%7E")
    if not encoded or len(encoded) > _LONGEST:
        encoded = f"{encoded[: _LONGEST - 33]}~{xxhash.xxh3_128_hexdigest(key.encode())}"
    return f"{encoded}.{kind}{SUFFIX}"


def member_header(key: str, kind: MemberKind, length: int) -> bytes:
    """What precedes the `length` bytes of a key's member.

    The same for the same arguments: no times, no owners.
    """
    member = tarfile.TarInfo(member_name(key, kind))
    member.size = length
    return member.tobuf(tarfile.PAX_FORMAT)


def padding(length: int) -> int:
    """Zero bytes that follow a member of `length` bytes."""
    return -length % tarfile.BLOCKSIZE


def header_fault(header: bytes, key: str, kind: MemberKind, length: int) -> str | None:
    """What is wrong with the bytes before a member, for any tar dialect;

    None if they announce exactly this member.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as tar:
            member = tar.next()
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        return f"the tar header cannot be read ({error})"
    if member is None:
        return "there is no tar header"
    if member.name != member_name(key, kind):
        return f"the tar member is called {member.name!r}, not {member_name(key, kind)!r}"
    if member.size != length or member.offset_data != len(header):
        return f"the tar header announces {member.size} bytes at another place than the row's {length}"
    return None
