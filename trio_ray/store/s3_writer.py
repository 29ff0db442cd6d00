"""Streaming uploads: pieces go up in threads while the next ones are still being made."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from botocore.exceptions import ClientError

from trio_ray.errors import StoreError
from trio_ray.store.objects import BytesLike, ObjectWriter
from trio_ray.store.s3_errors import error_code, translated


class Pieces:
    """Memory for pieces of uploads, used again and again: to get it anew, touched for the first time, would take as
    long as filling it. Thread-safe.

    Args:
        size: of a piece, bytes.
        most: pieces that are kept while nobody needs them.
    """

    def __init__(self, size: int, most: int) -> None:
        self.size = size
        self._most = most
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        """A piece, contents undefined."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(self.size)

    def give_back(self, piece: bytearray | None) -> None:
        """It is needed no more."""
        if piece is not None and len(self._free) < self._most:
            self._free.append(piece)


class S3Writer(ObjectWriter):
    """One object: a single PUT if it fits a piece, else a multipart upload.

    At most `threads` pieces of `piece_bytes` are in flight and one is being filled; `write` then waits, so
    memory is bounded and the producer feels the network's speed. Nothing is visible until the upload is
    completed.
    """

    def __init__(self, client: Any, target: Mapping[str, str], uri: str, pieces: Pieces, threads: int) -> None:
        self._client = client
        self._target = target
        self._uri = uri
        self._memory = pieces
        self._threads = threads
        self._piece: bytearray | None = None
        self._filled = 0
        self._upload_id: str | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[dict[str, Any]]] = deque()
        self._uploaded: list[dict[str, Any]] = []
        self._pieces = 0
        self._bytes = 0
        self._open = True

    def write(self, data: BytesLike) -> None:
        view = memoryview(data).cast("B")
        self._bytes += len(view)
        with self._aborting():
            while len(view):
                # A full piece goes up only when more follows, so that an object of one piece stays one PUT.
                if self._filled == self._memory.size:
                    self._submit_piece()
                view = view[self._fill(view) :]

    def _fill(self, data: memoryview) -> int:
        """Copy as much as the piece has room for."""
        if self._piece is None:
            self._piece = self._memory.take()
        count = min(len(data), self._memory.size - self._filled)
        # By numpy, which lets go of Python's lock.
        room = np.frombuffer(self._piece, np.uint8)[self._filled : self._filled + count]
        room[:] = np.frombuffer(data[:count], np.uint8)
        self._filled += count
        return count

    def close(self) -> None:
        if not self._open:
            return
        with self._aborting():
            if self._upload_id is None:
                self._client.put_object(**self._target, Body=self._body())
            else:
                self._submit_piece()
                while self._pending:
                    self._collect_oldest()
                self._complete()
        self._finish()

    def abort(self) -> None:
        if not self._open:
            return
        for upload in self._pending:
            upload.cancel()
        self._finish()  # waits for pieces under way: one that lands after the abort would stay and cost money
        if self._upload_id is not None:
            with contextlib.suppress(StoreError), translated(self._uri):
                self._client.abort_multipart_upload(**self._target, UploadId=self._upload_id)

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        """Typed errors, and no multipart upload left behind after one."""
        try:
            with translated(self._uri):
                yield
        except BaseException:
            self.abort()
            raise

    def _submit_piece(self) -> None:
        if self._pool is None:
            self._upload_id = str(self._client.create_multipart_upload(**self._target)["UploadId"])
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="s3-upload")
        if len(self._pending) == self._threads:
            self._collect_oldest()
        self._pieces += 1
        self._pending.append(self._pool.submit(self._upload, self._pieces, self._piece, self._body()))
        self._piece, self._filled = None, 0

    def _body(self) -> bytes | bytearray:
        """What the piece holds."""
        if self._piece is None:
            return b""
        return self._piece if self._filled == len(self._piece) else bytes(memoryview(self._piece)[: self._filled])

    def _upload(self, number: int, piece: bytearray | None, body: bytes | bytearray) -> dict[str, Any]:
        answer = self._client.upload_part(**self._target, UploadId=self._upload_id, PartNumber=number, Body=body)
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        checksums.pop("ChecksumType", None)
        self._memory.give_back(piece)
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def _collect_oldest(self) -> None:
        self._uploaded.append(self._pending.popleft().result())

    def _complete(self) -> None:
        parts = {"Parts": self._uploaded}
        try:
            self._client.complete_multipart_upload(**self._target, UploadId=self._upload_id, MultipartUpload=parts)
        except ClientError as error:
            # The answer to a first try may have been lost; the retry then finds the upload gone and the
            # object there.
            if error_code(error) != "NoSuchUpload" or not self._is_whole():
                raise

    def _is_whole(self) -> bool:
        head = self._client.head_object(**self._target)
        return head["ContentLength"] == self._bytes

    def _finish(self) -> None:
        self._open = False
        self._memory.give_back(self._piece)
        self._piece = None
        if self._pool is not None:
            self._pool.shutdown(wait=True)
