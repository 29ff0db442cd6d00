"""Streaming uploads: pieces go up in threads while the next ones are still being made."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from botocore.exceptions import ClientError

from trio_ray.errors import StoreError
from trio_ray.store.objects import BytesLike, ObjectWriter
from trio_ray.store.s3_errors import error_code, translated


class S3Writer(ObjectWriter):
    """One object: a single PUT if it fits a piece, else a multipart upload.

    At most `threads` pieces of `piece_bytes` are in flight and one is being filled; `write` then waits, so
    memory is bounded and the producer feels the network's speed. Nothing is visible until the upload is
    completed.
    """

    def __init__(self, client: Any, target: Mapping[str, str], uri: str, piece_bytes: int, threads: int) -> None:
        self._client = client
        self._target = target
        self._uri = uri
        self._piece_bytes = piece_bytes
        self._threads = threads
        self._piece = bytearray()
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
                if len(self._piece) == self._piece_bytes:
                    self._submit_piece()
                room = self._piece_bytes - len(self._piece)
                self._piece += view[:room]
                view = view[room:]

    def close(self) -> None:
        if not self._open:
            return
        with self._aborting():
            if self._upload_id is None:
                self._client.put_object(**self._target, Body=self._piece)
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
        self._pending.append(self._pool.submit(self._upload, self._pieces, self._piece))
        self._piece = bytearray()

    def _upload(self, number: int, piece: bytearray) -> dict[str, Any]:
        answer = self._client.upload_part(**self._target, UploadId=self._upload_id, PartNumber=number, Body=piece)
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        checksums.pop("ChecksumType", None)
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
        self._piece = bytearray()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
