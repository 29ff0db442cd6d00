"""A copy of an input is the same input, however it was copied; another content never is."""

from __future__ import annotations

import random

import pytest

from tests.seaweed import S3Server
from trio_ray.config import S3Config
from trio_ray.store.input_version import is_copy
from trio_ray.store.inputs import StoreOpener, expand_inputs

MIB = 1 << 20
DATA = random.Random(3).randbytes(11 * MIB + 17)


@pytest.fixture
def uri(s3_environment: S3Server) -> str:
    """An object that was put in one request."""
    uri = f"{s3_environment.fresh_uri()}/a.tar"
    put(s3_environment, uri, DATA)
    return uri


def put(server: S3Server, uri: str, data: bytes, piece: int | None = None) -> str:
    """Put an object, in pieces if their size is given; returns its ETag."""
    client, key = server.client(), uri.removeprefix(f"s3://{server.bucket}/")
    target = {"Bucket": server.bucket, "Key": key}
    if piece is None:
        client.put_object(**target, Body=data)
    else:
        upload = client.create_multipart_upload(**target)["UploadId"]
        parts = [
            {
                "PartNumber": number,
                "ETag": client.upload_part(
                    **target, UploadId=upload, PartNumber=number, Body=data[start : start + piece]
                )["ETag"],
            }
            for number, start in enumerate(range(0, len(data), piece), 1)
        ]
        client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
    (file,) = expand_inputs([uri], S3Config())
    return file.etag


def test_an_object_that_is_uploaded_anew_in_other_pieces_is_the_same_input(uri: str, s3_environment: S3Server) -> None:
    opener = StoreOpener(S3Config())
    etags = {piece: put(s3_environment, uri, DATA, piece) for piece in (5 * MIB, 8 * MIB, 6 * 10**6, None)}
    assert len(set(etags.values())) == 4
    now = etags[None]  # the last one
    for piece, etag in etags.items():
        assert is_copy(uri, len(DATA), now, etag, None, opener), piece
    in_pieces = put(s3_environment, uri, DATA, 8 * MIB)
    assert is_copy(uri, len(DATA), in_pieces, now, None, opener), "also the other way round"

    changed = bytearray(DATA)
    changed[-1] ^= 1
    other = put(s3_environment, uri, bytes(changed), 8 * MIB)
    assert not any(is_copy(uri, len(DATA), other, etag, None, opener) for etag in etags.values())


@pytest.mark.parametrize("etag", ["", "0123", "f" * 32 + "-0", "f" * 32 + "-99999", "no md5 at all"])
def test_a_marker_that_is_no_checksum_of_the_content_counts_as_a_change(uri: str, etag: str) -> None:
    (file,) = expand_inputs([uri], S3Config())
    assert not is_copy(uri, len(DATA), file.etag, etag, None, StoreOpener(S3Config()))
