"""What only S3 does: broken connections, lost answers, refused credentials, wrong buckets."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from tests.seaweed import S3Server
from tests.store.breaking_proxy import breaking_proxy
from trio_ray import reachable
from trio_ray.config import S3Config
from trio_ray.errors import AccessRefused, ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.objects import TEMPORARY_PREFIX, ObjectStore
from trio_ray.store.opening import open_store, split_s3_uri
from trio_ray.store.s3 import S3Store
from trio_ray.store.s3_ranges import _provider, address_of

DATA = random.Random(5).randbytes(6_000_000)


def behind(store: ObjectStore, endpoint_url: str, **settings: int) -> S3Store:
    """The same prefix through another endpoint."""
    assert isinstance(store, S3Store)
    _, (bucket, prefix, config) = store.__reduce__()
    return S3Store(bucket, prefix, config.model_copy(update={"endpoint_url": endpoint_url, **settings}))


def test_a_stream_survives_connections_that_break_in_mid_body(s3_store: ObjectStore, s3_environment: S3Server) -> None:
    s3_store.put("big", DATA)

    def cut_most_bodies(request: bytes, answer: bytes, cuts: int) -> int | None:
        return 300_000 if request.startswith(b"GET") and cuts < 12 else None

    with breaking_proxy(s3_environment.endpoint_url, cut_most_bodies) as proxy:
        with behind(s3_store, proxy.endpoint_url).open("big") as file:
            assert file.read() == DATA
        assert proxy.cuts == 12


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:9", "cannot be reached (Connection refused)"),
        ("http://no-such-host.invalid:80", "cannot be reached ("),
        ("127.0.0.1:9000", "is no URL such as http://host:9000"),
        ("http://127.0.0.1:port", "is no URL such as http://host:9000"),
    ],
)
def test_an_endpoint_where_nothing_listens_is_told_in_seconds(
    s3_store: ObjectStore, endpoint: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a store that would try each request eight times."""
    monkeypatch.setattr(reachable, "PAUSE_S", 0.1)
    started = time.monotonic()
    with pytest.raises(StoreError, match=re.escape(words)):
        behind(s3_store, endpoint).read("any")
    assert time.monotonic() - started < 10


def test_whole_and_range_reads_survive_them_too(s3_store: ObjectStore, s3_environment: S3Server) -> None:
    s3_store.put("big", DATA)

    def cut_twice(request: bytes, answer: bytes, cuts: int) -> int | None:
        return 100_000 if request.startswith(b"GET") and cuts < 2 else None

    for read in (
        lambda store: store.read("big") == DATA,
        lambda store: store.read_range("big", 1_000_000, 2_000_000) == DATA[1_000_000:3_000_000],
    ):
        with breaking_proxy(s3_environment.endpoint_url, cut_twice) as proxy:
            assert read(behind(s3_store, proxy.endpoint_url))
            assert proxy.cuts == 2


def test_a_connection_that_always_breaks_is_a_typed_error_after_max_attempts(
    s3_store: ObjectStore, s3_environment: S3Server
) -> None:
    s3_store.put("big", DATA)

    def cut_every_header(request: bytes, answer: bytes, cuts: int) -> int | None:
        return answer.find(b"\r\n\r\n") + 4 if request.startswith(b"GET") else None

    with breaking_proxy(s3_environment.endpoint_url, cut_every_header) as proxy:
        store = behind(s3_store, proxy.endpoint_url, max_attempts=3)
        with store.open("big") as file, pytest.raises(StoreError, match="big"):
            file.read(10)
        assert proxy.cuts == 3
        for read in (store.read, lambda name: store.read_range(name, 5, 10)):
            before = proxy.cuts
            with pytest.raises(StoreError, match="big"):
                read("big")
            assert proxy.cuts == before + 3


def test_a_create_whose_answer_was_lost_is_still_ours_and_nobody_elses(
    s3_store: ObjectStore, s3_environment: S3Server
) -> None:
    """The first try did succeed, the retry is refused with 412: that is our own success, not a loss."""

    def lose_first_answer(request: bytes, answer: bytes, cuts: int) -> int | None:
        return 0 if request.startswith(b"PUT") and cuts < 1 else None

    with breaking_proxy(s3_environment.endpoint_url, lose_first_answer) as proxy:
        assert behind(s3_store, proxy.endpoint_url).create("commit", b"record")
        assert proxy.cuts == 1
    assert s3_store.read("commit") == b"record"
    assert not s3_store.create("commit", b"record")


@pytest.mark.parametrize("lost", [b"uploadId=", b"partNumber=2"])
def test_a_multipart_upload_survives_lost_answers(s3_store: ObjectStore, s3_environment: S3Server, lost: bytes) -> None:
    def lose_first_answer(request: bytes, answer: bytes, cuts: int) -> int | None:
        line = request.split(b"\r\n", 1)[0]
        completes = line.startswith(b"POST") or lost != b"uploadId="
        return 0 if lost in line and completes and cuts < 1 else None

    data = DATA * 2
    with breaking_proxy(s3_environment.endpoint_url, lose_first_answer) as proxy:
        with behind(s3_store, proxy.endpoint_url).writer("object") as writer:
            writer.write(data)
        assert proxy.cuts == 1
    assert s3_store.read("object") == data
    assert list(s3_store.list_unfinished()) == []


def test_a_failing_upload_raises_in_the_producer_and_leaves_nothing(
    s3_store: ObjectStore, s3_environment: S3Server
) -> None:
    def lose_every_piece(request: bytes, answer: bytes, cuts: int) -> int | None:
        return 0 if b"partNumber=" in request.split(b"\r\n", 1)[0] else None

    with breaking_proxy(s3_environment.endpoint_url, lose_every_piece) as proxy:
        writer = behind(s3_store, proxy.endpoint_url, max_attempts=2, upload_threads=2).writer("object")

        def produce_for_ever() -> None:
            while True:
                writer.write(bytes(1 << 20))

        with pytest.raises(StoreError, match="object"):
            produce_for_ever()
    assert list(s3_store.list()) == []
    assert list(s3_store.list_unfinished()) == []


def test_writing_waits_while_all_upload_threads_are_busy(s3_store: ObjectStore, s3_environment: S3Server) -> None:
    """Memory is bounded: pieces in flight and the one being filled, however fast the producer is."""
    release = threading.Event()

    def hold(request: bytes, answer: bytes, cuts: int) -> int | None:
        if b"partNumber=" in request.split(b"\r\n", 1)[0]:
            release.wait(30)
        return None

    with breaking_proxy(s3_environment.endpoint_url, hold) as proxy:
        writer = behind(s3_store, proxy.endpoint_url, upload_threads=2).writer("object")
        written = []

        def produce() -> None:
            for _ in range(40):
                writer.write(bytes(1 << 20))
                written.append(1)

        producer = threading.Thread(target=produce)
        producer.start()
        time.sleep(1.5)
        held = len(written)
        release.set()
        producer.join()
        writer.close()
    assert 10 <= held <= 15  # two pieces of 5 MiB in flight, one filled
    assert s3_store.stat("object").size == 40 << 20


def test_an_object_replaced_while_it_is_read_is_an_error_and_no_mixture(s3_store: ObjectStore) -> None:
    s3_store.put("big", DATA)
    with s3_store.open("big") as file:
        assert file.read(1000) == DATA[:1000]
        s3_store.put("big", bytes(len(DATA)))
        with pytest.raises(ObjectDamaged, match="replaced while it was being read"):
            file.read()


def test_a_range_of_an_object_replaced_while_its_body_broke_off_is_no_mixture(
    s3_store: ObjectStore, s3_environment: S3Server
) -> None:
    s3_store.put("big", DATA)

    def cut_and_replace(request: bytes, answer: bytes, cuts: int) -> int | None:
        if cuts or not request.startswith(b"GET") or len(answer) < 1_500_000:
            return None
        s3_store.put("big", bytes(len(DATA)))
        return 1_000_000

    with breaking_proxy(s3_environment.endpoint_url, cut_and_replace) as proxy:
        with pytest.raises(StoreError, match="big"):
            behind(s3_store, proxy.endpoint_url).read_range("big", 0, len(DATA))
        assert proxy.cuts == 1


def test_a_client_is_made_once_however_many_threads_are_the_first_to_use_a_store(
    s3_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What boto3 makes clients with must not be used by two threads at the same time."""
    made: list[int] = []
    make = boto3.Session.client

    def slowly(session: boto3.Session, *given: Any, **settings: Any) -> Any:
        made.append(1)
        time.sleep(0.2)
        return make(session, *given, **settings)

    monkeypatch.setattr(boto3.Session, "client", slowly)
    s3_store.put("data", DATA)
    fresh, made[:] = pickle.loads(pickle.dumps(s3_store)), []

    def read(number: int) -> bytes:
        buffer = bytearray(1000)
        fresh.read_into("data", 1000 * number, memoryview(buffer))
        return bytes(buffer)

    with ThreadPoolExecutor(8) as pool:
        assert b"".join(pool.map(read, range(8))) == DATA[:8000]
    assert made == [1]


def test_a_forked_process_reads_ranges_although_its_parent_has(s3_store: ObjectStore) -> None:
    """The workers of a data loader are forks; obstore's threads are not in them."""
    s3_store.put("big", DATA)
    assert s3_store.read_range("big", 5, 10) == DATA[5:15]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(s3_store.read_range, ("big", 1_000_000, 2_000_000)).get(30) == DATA[1_000_000:3_000_000]
        with pytest.raises(ObjectDamaged, match="truncated"):
            pool.apply_async(s3_store.read_range, ("big", len(DATA) - 5, 10)).get(30)


@pytest.mark.parametrize("name", ["a//b", "a b%2F#?*~", "ü/%", "plain"])
def test_any_key_of_s3_is_read_by_range(s3_store: ObjectStore, name: str) -> None:
    s3_store.put(name, b"0123456789")
    assert s3_store.read_range(name, 2, 4) == b"2345"


def test_credentials_of_a_profile_that_expire_are_asked_for_again(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """boto3 finds them, by whatever it knows; ranges are read with the same."""
    expiry = (datetime.now(UTC) + timedelta(minutes=9)).isoformat()  # so soon that each use asks anew
    answer = {
        "Version": 1, "AccessKeyId": s3_environment.access_key, "SecretAccessKey": s3_environment.secret_key,
        "SessionToken": "", "Expiration": expiry,
    }  # fmt: skip
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    asked = tmp_path / "asked"
    process = f"sh -c 'echo >> {asked}; cat {tmp_path}/answer.json'"
    (tmp_path / "aws-config").write_text(f"[profile short]\ncredential_process = {process}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = open_store(s3_environment.fresh_uri(), s3_environment.config.model_copy(update={"profile": "short"}))
    store.put("object", b"0123456789")
    assert isinstance(store, S3Store)
    before = len(asked.read_text())
    assert store.read_range("object", 2, 4) == b"2345"
    assert len(asked.read_text()) > before
    provided = _provider(store._session.get_credentials())()
    assert provided["expires_at"] is not None
    assert provided["expires_at"] <= datetime.now(UTC) + timedelta(minutes=10)


def test_a_bucket_has_the_address_that_boto3_gives_it() -> None:
    aws = "https://s3.eu-west-1.amazonaws.com"
    assert address_of("bucket", aws, by_path=False) == ("https://bucket.s3.eu-west-1.amazonaws.com", True)
    for bucket, by_path in [("bucket", True), ("with.dots", False), ("UPPER", False)]:
        assert address_of(bucket, aws, by_path) == (aws, False)


def one_sentence(error: BaseException, server: S3Server) -> str:
    """The message, after checking that a person can read it and nobody can abuse it."""
    message = str(error)
    assert "\n" not in message
    assert len(message) < 400
    assert server.secret_key not in message
    assert "Traceback" not in message
    return message


def test_wrong_credentials_are_named_in_one_sentence_without_the_secret(
    s3_store: ObjectStore, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "wrong-secret-xyz")]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_environment.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_environment.secret_key)
        monkeypatch.setenv(name, value)
        refused = behind(s3_store, s3_environment.endpoint_url)
        for act in (
            refused.check_writable,
            lambda refused=refused: list(refused.list()),
            lambda refused=refused: refused.read_range("object", 0, 5),
        ):
            with pytest.raises(AccessRefused, match=r"S3 refused .* check the credentials") as caught:
                act()
            assert "wrong-secret-xyz" not in one_sentence(caught.value, s3_environment)


def test_no_credentials_and_an_unknown_profile_are_named(
    s3_store: ObjectStore, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    without = behind(s3_store, s3_environment.endpoint_url)
    for act in (without.check_writable, lambda: without.read_range("object", 0, 5)):
        with pytest.raises(AccessRefused, match="no usable AWS credentials"):
            act()
    with pytest.raises(AccessRefused, match="nobodys-profile"):
        open_store("s3://bucket", S3Config(profile="nobodys-profile")).check_writable()


def read_a_range(store: ObjectStore) -> None:
    store.read_range("object", 0, 5)


@pytest.mark.parametrize("act", [ObjectStore.check_writable, read_a_range])
def test_a_wrong_bucket_and_an_unreachable_endpoint_are_named(
    s3_environment: S3Server, act: Callable[[ObjectStore], None]
) -> None:
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.*bucket does not exist") as caught:
        act(open_store("s3://no-such-bucket/x", s3_environment.config))
    one_sentence(caught.value, s3_environment)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nowhere = S3Config(endpoint_url=f"http://127.0.0.1:{port}", region="us-east-1", max_attempts=2)
    with pytest.raises(StoreError, match=r"cannot be reached.*s3\.endpoint_url") as caught:
        act(open_store("s3://bucket/x", nowhere))
    one_sentence(caught.value, s3_environment)


def test_a_uri_without_bucket_or_of_another_scheme_is_refused() -> None:
    for uri in ("s3://", "s3:///key", "gs://bucket/x", "http://host/x", ""):
        with pytest.raises(StoreError):
            open_store(uri, S3Config())


def test_a_store_that_ignores_create_only_is_refused(s3_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """On such a server two runs would overwrite each other's commits."""

    def create(self: S3Store, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(S3Store, "create", create)
    with pytest.raises(StoreError, match="honours If-None-Match"):
        s3_store.check_writable()
    assert list(s3_store.list()) == []


def test_a_streamed_object_carries_its_parts_and_two_stores_share_a_bucket(s3_environment: S3Server) -> None:
    root = s3_environment.fresh_uri()
    one, other = (open_store(f"{root}/{name}/", s3_environment.config) for name in ("one", "other"))
    with one.writer("x") as writer:
        writer.write(bytes(11 << 20))
    other.put("x", b"2")
    assert one.uri == f"{root}/one"
    assert [info.name for info in one.list()] == ["x"]
    assert one.stat("x").etag.endswith("-3")
    with pytest.raises(ObjectMissing):
        open_store(root, s3_environment.config).read("x")
    # A console's folder marker is no object.
    bucket, prefix = split_s3_uri(f"{root}/one/empty/")
    s3_environment.client().put_object(Bucket=bucket, Key=prefix, Body=b"")
    assert [info.name for info in one.list()] == ["x"]


def answer_once(store: ObjectStore, operation: str, status: int, code: str) -> None:
    """Let the next such request be answered with an error that AWS gives, but this server never does."""
    assert isinstance(store, S3Store)
    answers = [
        (
            AWSResponse("", status, HTTPHeaders(), None),
            {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {}},
        )
    ]
    store._client.meta.events.register(f"before-call.s3.{operation}", lambda **_: answers.pop() if answers else None)


def test_a_create_that_meets_another_one_under_way_tries_again(s3_store: ObjectStore) -> None:
    answer_once(s3_store, "PutObject", 409, "ConditionalRequestConflict")
    assert s3_store.create("commit", b"record")
    answer_once(s3_store, "PutObject", 409, "ConditionalRequestConflict")
    assert not s3_store.create("commit", b"another")


def test_an_upload_that_was_completed_by_a_lost_first_try_counts_as_written(s3_store: ObjectStore) -> None:
    """AWS answers a repeated completion with NoSuchUpload; only the object itself can tell what happened."""
    with s3_store.writer("object") as writer:
        writer.write(DATA)
    answer_once(s3_store, "CompleteMultipartUpload", 404, "NoSuchUpload")
    with s3_store.writer("object") as writer:
        writer.write(DATA)
    answer_once(s3_store, "CompleteMultipartUpload", 404, "NoSuchUpload")
    writer = s3_store.writer("never-written")
    writer.write(DATA)
    with pytest.raises(StoreError, match="never-written"):
        writer.close()


def test_an_upload_that_is_gone_already_is_no_error_to_remove(s3_store: ObjectStore) -> None:
    writer = s3_store.writer("object")
    writer.write(DATA)
    (unfinished,) = s3_store.list_unfinished()
    answer_once(s3_store, "AbortMultipartUpload", 404, "NoSuchUpload")
    s3_store.remove_unfinished(unfinished)
    answer_once(s3_store, "AbortMultipartUpload", 403, "AccessDenied")
    with pytest.raises(AccessRefused):
        s3_store.remove_unfinished(unfinished)
    writer.abort()


def test_a_probe_left_by_a_killed_check_is_no_object_and_can_be_removed(s3_store: ObjectStore) -> None:
    s3_store.put(f"{TEMPORARY_PREFIX}dead", b"probe")
    assert list(s3_store.list()) == []
    (probe,) = s3_store.list_unfinished()
    s3_store.remove_unfinished(probe)
    assert list(s3_store.list_unfinished()) == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (301, "PermanentRedirect", r"another region .* set s3\.region"),
        (400, "ExpiredToken", "check the credentials"),
        (400, "EntityTooLarge", "S3 answered EntityTooLarge: no message"),
    ],
)
def test_other_answers_are_one_sentence_too(
    s3_store: ObjectStore, s3_environment: S3Server, status: int, code: str, message: str
) -> None:
    answer_once(s3_store, "PutObject", status, code)
    with pytest.raises(StoreError, match=message) as caught:
        s3_store.put("object", b"1")
    one_sentence(caught.value, s3_environment)


@contextlib.contextmanager
def answering(status: int, code: str) -> Iterator[tuple[str, Counter[str]]]:
    """A server that answers every GET with an error, its URL, and how often each path was asked for."""
    tries: Counter[str] = Counter()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tries[self.path] += 1
            body = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tries
        server.shutdown()


def test_every_request_is_tried_as_often_as_is_set_however_many_are_slowed_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that gives up for all after some hundred tries would lose shards in the first storm."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with answering(503, "SlowDown") as (endpoint, tries):
        store = S3Store("bucket", "cache/", S3Config(endpoint_url=endpoint, region="us-east-1", max_attempts=4))

        def slowed_down(read: Callable[[], object]) -> None:
            with pytest.raises(StoreError, match="SlowDown"):
                read()

        with ThreadPoolExecutor(16) as pool:
            wholes = [partial(store.read, f"{number}") for number in range(60)]
            ranges = [partial(store.read_range, f"range-{number}", 5, 10) for number in range(60)]
            list(pool.map(slowed_down, wholes + ranges))
    assert len(tries) == 120
    assert set(tries.values()) == {4}


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (301, "PermanentRedirect", StoreError, r"another region .* set s3\.region"),
        (400, "ExpiredToken", AccessRefused, "check the credentials"),
        (401, "Unauthorized", StoreError, "."),
        (412, "PreconditionFailed", ObjectDamaged, "was replaced"),
        (416, "InvalidRange", ObjectDamaged, "it was truncated"),
        (400, "EntityTooLarge", StoreError, "S3 answered EntityTooLarge: Please reduce"),
    ],
)
def test_a_range_that_is_refused_is_the_same_error_as_elsewhere(
    s3_environment: S3Server, status: int, code: str, error: type[StoreError], message: str
) -> None:
    with answering(status, code) as (endpoint, tries):
        store = open_store("s3://bucket/x", S3Config(endpoint_url=endpoint, region="us-east-1"))
        with pytest.raises(error, match=message) as caught:
            store.read_range("object", 5, 10)
        one_sentence(caught.value, s3_environment)
    assert set(tries.values()) == {1}
