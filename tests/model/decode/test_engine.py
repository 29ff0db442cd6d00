"""The engine gives the tokens of the step-by-step reference, whatever is in the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.kv.prefixes import FINGERPRINT, KEY, codec_of, contained
from tests.model.corpus import prepare, samples_of_all_grids
from tests.model.decode.stepwise import stepwise
from tests.model.test_image_scope import image_prefixes, prepare_images
from trio_ray.calibration.codec_loss import without_last_rows
from trio_ray.config import ModelConfig
from trio_ray.kv.container import CheckedContainer, check_containers
from trio_ray.kv.prefix import NoFirstToken, Prefix
from trio_ray.kv.restore import read_containers, restore_containers, start_restore
from trio_ray.kv.target import TargetsInUse
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.continuation import ContextFull, Continuation
from trio_ray.model.decode.choice import Sampling
from trio_ray.model.decode.engine import End, Engine, Request, RequestRefused, answers_in_order, generate
from trio_ray.model.decode.graphs import StepGraphs
from trio_ray.model.decode.targets import PoolTargets
from trio_ray.model.replica import Replica

CPU = torch.device("cpu")
SCHEDULE = Schedule(8, (1, 3, 5), retention=0.25)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def prefixes_of(replica: Replica, count: int) -> list[Prefix]:
    """Prefixes of samples of many lengths."""
    return replica.prefill(prepare(replica, samples_of_all_grids(count)), Method(SCHEDULE, Trio())).prefixes


def test_a_ragged_batch_equals_the_stepwise_reference(replica: Replica) -> None:
    """Of every family. Answers end at different steps, so that sequences leave and others enter."""
    prefixes = prefixes_of(replica, 24)
    assert len({prefix.length for prefix in prefixes}) > 7
    free = generate(replica.decoder, prefixes, 8)
    stops = [token for token, _ in Counter(answer[2] for answer in free).most_common(3)]
    expected = [stepwise(replica.decoder, [prefix], 8, stops)[0] for prefix in prefixes]
    engine = Engine(replica.decoder, max_sequences=5)
    requests = [Request(n, prefix, 8, stop_tokens=stops) for n, prefix in enumerate(prefixes)]
    assert answers_in_order(engine, requests) == expected
    assert len({len(answer) for answer in expected}) > 3
    assert not engine.busy


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_200_ragged_prefixes_of_the_bundled_model_equal_the_stepwise_reference(device: str, scope: str) -> None:
    """In fp32. Each of 40 prefixes also stands without its last one, two, three and four rows."""
    replica = Replica.load(ModelConfig(dtype="float32"), device=torch.device(device))
    schedule = Schedule(16, (1, 5, 8), retention=0.2)
    samples = samples_of_all_grids(40)
    tokens, questions = (3 if device == "cpu" else 24), None
    if scope == "prompt":
        whole = replica.prefill(prepare(replica, samples), Method(schedule, Trio())).prefixes
    else:
        whole = image_prefixes(replica, prepare_images(replica, samples), Method(schedule, Trio()))
        questions = [(5 + n % 90, 7, 9 + n % 50) for n in range(5 * len(whole))]
    prefixes = [without_last_rows(prefix, count) for prefix in whole for count in range(5)]
    expected = stepwise(replica.decoder, prefixes, tokens, questions=questions)
    assert generate(replica.decoder, prefixes, tokens, questions=questions) == expected
    assert len({tuple(answer) for answer in expected}) > 20


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_new_tokens(llama: Replica, tokens: int) -> None:
    prefixes = prefixes_of(llama, 2)
    answers = generate(llama.decoder, prefixes, tokens)
    assert answers == [answer[:tokens] for answer in generate(llama.decoder, prefixes, 5)]


def test_requests_wait_where_memory_is_short_and_what_never_fits_is_refused_alone(llama: Replica) -> None:
    prefixes = sorted(prefixes_of(llama, 12), key=lambda prefix: prefix.kv_bytes)
    longest, others = prefixes[-1], prefixes[:6]
    memory = int(0.97 * longest.kv_bytes)  # the longest one does not fit
    engine = Engine(llama.decoder, memory=memory)
    requests = [Request(number, prefix, 6) for number, prefix in enumerate([others[0], longest, *others[1:]])]
    answers = {answer.key: answer for answer in engine.run(requests)}
    refused = answers.pop(1)
    assert refused.end is End.REFUSED
    assert isinstance(refused.error, RequestRefused)
    assert "request 1: it does not fit into the decode memory" in str(refused.error)
    assert [answers[key].tokens for key in sorted(answers, key=int)] == generate(llama.decoder, others, 6)
    assert not engine.pool.used


def test_questions_on_one_prefix_share_its_rows(llama: Replica) -> None:
    (prefix,) = image_prefixes(llama, prepare_images(llama, samples_of_all_grids(1)), Method(SCHEDULE, Trio()))
    questions = [[5, 6, n] for n in range(7, 15)]
    engine = Engine(llama.decoder)
    for number, question in enumerate(questions):
        engine.submit(Request(number, prefix, 4, question))
    answers = {answer.key: answer.tokens for answer in engine.step()}
    used = [rows - 1 - free for rows, free in zip(engine.pool.rows, engine.pool.free_rows, strict=True)]
    assert used == [segment.rows + len(questions) * (3 + 3) for segment in prefix.segments]
    answers |= {answer.key: answer.tokens for answer in engine.run(())}
    assert [answers[number] for number in range(8)] == stepwise(llama.decoder, [prefix] * 8, 4, questions=questions)


def test_answers_end_where_the_context_or_the_sliding_window_does(llama: Replica) -> None:
    """Not one position is used beyond it, and a question that does not fit is refused."""
    (prefix,) = prefixes_of(llama, 1)
    decoder = replace(llama.decoder, context=prefix.length + 3)
    assert generate(decoder, [prefix], 20) == generate(llama.decoder, [prefix], 4)
    engine = Engine(decoder)
    short, long = engine.run([Request("short", prefix, 9, [5, 6, 7]), Request("long", prefix, 9, [5, 6, 7, 8])])
    if short.key == "long":
        short, long = long, short
    assert (short.end, len(short.tokens)) == (End.LENGTH, 1)
    assert long.end is End.REFUSED
    assert f"context of {prefix.length + 3} positions" in str(long.error)
    with pytest.raises(ContextFull, match="context"):
        Continuation(decoder, [prefix], room=9).extend([[5, 6, 7, 8]])


def test_a_prefix_of_scope_image_needs_a_question(llama: Replica) -> None:
    (prefix,) = image_prefixes(llama, prepare_images(llama, samples_of_all_grids(1)), Method(SCHEDULE, Trio()))
    with pytest.raises(NoFirstToken):
        Engine(llama.decoder).submit(Request(0, prefix, 4))


def test_drawn_answers_depend_on_their_seed_and_not_on_the_batch(llama: Replica) -> None:
    prefixes = prefixes_of(llama, 6)
    requests = [Request(n, prefix, 8, sampling=Sampling(2.0, 0.9, seed=n)) for n, prefix in enumerate(prefixes)]
    together = answers_in_order(Engine(llama.decoder), requests)
    alone = [answers_in_order(Engine(llama.decoder), [replace(request, key=0)])[0] for request in requests]
    assert together == alone
    other = [replace(request, sampling=Sampling(2.0, 0.9, seed=99)) for request in requests]
    assert answers_in_order(Engine(llama.decoder), other) != together
    narrow = [replace(request, sampling=Sampling(2.0, 1e-9)) for request in requests]
    assert answers_in_order(Engine(llama.decoder), narrow) == generate(llama.decoder, prefixes, 8)


def test_forgotten_requests_cost_the_others_nothing_and_leave_no_rows_behind(llama: Replica) -> None:
    """Some of each kind run, and some wait."""
    prefixes = prefixes_of(llama, 8)
    engine = Engine(llama.decoder, max_sequences=4)
    for number, prefix in enumerate(prefixes):
        engine.submit(Request(number, prefix, 6))
    answers = engine.step()
    assert answers == []
    engine.clear(lambda key: isinstance(key, int) and key % 2 == 1)
    assert (engine.waiting, engine.busy) == (2, True)
    found = {answer.key: answer.tokens for answer in engine.run(())}
    assert found == dict(zip(range(0, 8, 2), generate(llama.decoder, prefixes[::2], 6), strict=True))
    assert not engine.pool.used


@pytest.mark.parametrize("device", DEVICES)
def test_prefixes_of_another_schedule_follow_when_the_pool_is_empty(device: str) -> None:
    """Again and again, and the last passes over the former pool may be under way when it is dropped."""
    replica = Replica.load(ModelConfig(dtype="float32"), device=torch.device(device))
    prepared = prepare(replica, samples_of_all_grids(2))
    schedules = [Schedule(16, (1, 5, 8), retention=0.2), Schedule(16, (1,), retention=0.2, weights=(1,))]
    both = [replica.prefill(prepared, Method(schedule, Trio())).prefixes for schedule in schedules]
    expected = [tokens for prefixes in both for tokens in generate(replica.decoder, prefixes, 5)]
    engine = Engine(replica.decoder)
    for number, prefix in enumerate([prefix for prefixes in (*both, *both) for prefix in prefixes]):
        engine.submit(Request(number, prefix, 5))
    answers: dict[object, list[int]] = {}
    while engine.busy:
        answers |= {answer.key: answer.tokens for answer in engine.step(under_way=4)}
    assert answers == dict(enumerate(expected * 2))


def test_requests_may_wait_while_more_prefixes_are_restored(llama: Replica) -> None:
    """`run` takes as many requests as may decode at once before it decodes; each keeps room for its answer."""
    prefixes = prefixes_of(llama, 12)
    raw = codec_of("raw")
    containers = [contained(prefix, raw) for prefix in prefixes]
    engine = Engine(llama.decoder, memory=5 * max(prefix.kv_bytes for prefix in prefixes))
    targets = PoolTargets(engine, 2 * 6)
    in_pool = 0

    def requests() -> Iterator[Request]:
        nonlocal in_pool
        for start in range(0, len(containers), 2):
            items = [(KEY, data) for data in containers[start : start + 2]]
            restored = read_containers(items, raw, device=CPU, allocate=targets)
            for number, prefix in enumerate(restored, start):
                assert isinstance(prefix, Prefix)
                in_pool += engine.pool.find(prefix) is not None
                for question in range(2):
                    yield Request((number, question), prefix, 6)
            targets.release()

    answers = {answer.key: answer for answer in engine.run(requests())}
    expected = generate(llama.decoder, prefixes, 6)
    assert {key: answer.tokens for key, answer in answers.items()} == {
        (number, question): tokens for number, tokens in enumerate(expected) for question in range(2)
    }
    assert in_pool == 12
    assert not engine.pool.used


def test_prefixes_are_restored_where_they_are_decoded(llama: Replica) -> None:
    """A damaged one costs nothing, what no request takes is freed, and rows that are short are waited for."""
    prefixes = prefixes_of(llama, 12)
    raw = codec_of("raw")
    containers = [contained(prefix, raw) for prefix in prefixes]
    largest = max(prefix.kv_bytes for prefix in prefixes)
    engine = Engine(llama.decoder, memory=5 * largest)
    targets = PoolTargets(engine, 6)
    answers = []
    for start in range(0, len(containers), 3):
        checked = check_containers([(KEY, data) for data in containers[start:][:3]], raw, FINGERPRINT)
        assert all(isinstance(container, CheckedContainer) for container in checked)
        restored = restore_containers(checked, raw, CPU, targets)
        for number, prefix in enumerate(restored, start):
            assert isinstance(prefix, Prefix)
            assert engine.pool.find(prefix) is not None
            if number != 4:
                engine.submit(Request(number, prefix, 6))
        targets.release()
        answers += engine.step()
    answers += engine.run(())
    expected = generate(llama.decoder, prefixes, 6)
    assert len(answers) == 11, "each is returned once"
    assert {answer.key: answer.tokens for answer in answers} == {
        number: tokens for number, tokens in enumerate(expected) if number != 4
    }
    assert not engine.pool.used


def test_a_pool_grows_once_for_as_many_prefixes_as_are_decoded_at_a_time(llama: Replica) -> None:
    """Each growth copies what is there, and the recorded decode steps are lost."""
    prefixes = prefixes_of(llama, 12)
    raw = codec_of("raw")
    checked = check_containers([(KEY, contained(prefix, raw)) for prefix in prefixes], raw, FINGERPRINT)
    sound = [container for container in checked if isinstance(container, CheckedContainer)]
    engine = Engine(llama.decoder, max_sequences=4)
    targets = PoolTargets(engine, 6)
    sizes, answers = [], []
    for start in range(0, len(sound), 2):
        for number, prefix in enumerate(restore_containers(sound[start : start + 2], raw, CPU, targets), start):
            assert isinstance(prefix, Prefix)
            engine.submit(Request(number, prefix, 3))
        targets.release()
        sizes.append(engine.pool.rows)
        answers += engine.step()
    answers += engine.run(())
    assert len(set(sizes)) == 1
    assert sizes[0][0] < sum(prefix.segments[0].rows for prefix in prefixes), "no more than decode at a time"
    assert {answer.key: answer.tokens for answer in answers} == dict(enumerate(generate(llama.decoder, prefixes, 3)))


def kv_bytes(prefixes: list[Prefix]) -> int:
    """Of all of them."""
    return sum(prefix.kv_bytes for prefix in prefixes)


@pytest.mark.parametrize("room", [1.1, 1.3, 1.6, 2.5])
@pytest.mark.parametrize("tokens", [8, 24, 48])
def test_what_is_restored_has_room_for_its_answer_however_short_memory_is(
    llama: Replica, room: float, tokens: int
) -> None:
    """Late runs of layers hold few rows of a prefix, but as many of an answer as the others."""
    prefixes = prefixes_of(llama, 8)
    raw = codec_of("raw")
    checked = check_containers([(KEY, contained(prefix, raw)) for prefix in prefixes], raw, FINGERPRINT)
    sound = [container for container in checked if isinstance(container, CheckedContainer)]
    engine = Engine(llama.decoder, memory=int(room * kv_bytes(prefixes)))
    targets = PoolTargets(engine, tokens)
    for number, prefix in enumerate(restore_containers(sound, raw, CPU, targets)):
        assert isinstance(prefix, Prefix)
        engine.submit(Request(number, prefix, tokens))
    targets.release()
    answers = {answer.key: answer.tokens for answer in engine.run(())}
    assert answers == dict(enumerate(generate(llama.decoder, prefixes, tokens)))


@pytest.mark.gpu
def test_steps_that_were_recorded_ahead_are_not_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of every size takes what is there, until the pool has to grow."""
    replica = Replica.load(ModelConfig(), device=torch.device("cuda"))
    prefixes = replica.prefill(
        prepare(replica, samples_of_all_grids(12)), Method(Schedule(16, (1, 5, 8), retention=0.2), Trio())
    ).prefixes
    engine = Engine(replica.decoder, max_sequences=12)
    expected = answers_in_order(engine, [Request(n, prefix, 12) for n, prefix in enumerate(prefixes)])
    engine.record_steps()
    recorded: list[int] = []
    capture = StepGraphs._capture
    monkeypatch.setattr(StepGraphs, "_capture", lambda self, size: (recorded.append(size), capture(self, size))[1])
    for count in (1, 3, 7, 12):
        requests = [Request(n, prefix, 12) for n, prefix in enumerate(prefixes[:count])]
        assert answers_in_order(engine, requests) == expected[:count]
    assert not recorded


@pytest.mark.parametrize(
    ("device", "under_way"),
    [("cpu", 1), *(pytest.param("cuda", passes, marks=pytest.mark.gpu) for passes in (1, 2, 4))],
)
def test_requests_in_little_memory_get_the_same_answers_as_together(device: str, under_way: int) -> None:
    """The memory holds six of 24 prefixes. Some answers end with a stop token and some with their length, others take
    their place, whose last tokens may not be known yet, and three requests are forgotten on the way.
    """
    replica = Replica.load(ModelConfig(dtype="float32"), device=torch.device(device))
    prefixes = replica.prefill(
        prepare(replica, samples_of_all_grids(24)), Method(Schedule(16, (1, 5, 8), retention=0.2), Trio())
    ).prefixes
    free = generate(replica.decoder, prefixes, 7)
    stops = [token for token, _ in Counter(answer[3] for answer in free).most_common(2)]
    expected = generate(replica.decoder, prefixes, 7, stops)
    assert len({len(answer) for answer in expected}) > 1, "some end with a stop token"
    room = 6 * sum(prefix.kv_bytes for prefix in prefixes) // len(prefixes)
    engine = Engine(replica.decoder, max_sequences=5, memory=room)
    for number, prefix in enumerate(prefixes):
        engine.submit(Request(number, prefix, 7, stop_tokens=stops))
    found = []
    for _ in range(2):
        found += engine.step(under_way)
    known = {answer.key for answer in found}
    engine.clear(lambda key: key in (1, 4, 20))
    while engine.busy:
        found += engine.step(under_way)
    assert {answer.key: answer.tokens for answer in found} == {
        number: tokens for number, tokens in enumerate(expected) if number not in {1, 4, 20} - known
    }
    assert not engine.pool.used


def test_a_batch_ahead_waits_for_the_one_before_where_the_memory_holds_one(llama: Replica) -> None:
    """What is restored but not yet submitted is not decoded, so that waiting would never end."""
    prefixes = prefixes_of(llama, 8)
    raw = codec_of("raw")
    checked = check_containers([(KEY, contained(prefix, raw)) for prefix in prefixes], raw, FINGERPRINT)
    sound = [container for container in checked if isinstance(container, CheckedContainer)]
    engine = Engine(llama.decoder, memory=int(1.7 * max(kv_bytes(half) for half in (prefixes[:4], prefixes[4:]))))
    targets = PoolTargets(engine, 6)
    first = start_restore(sound[:4], raw, CPU, targets)
    with pytest.raises(TargetsInUse):
        start_restore(sound[4:], raw, CPU, targets)
    for number, prefix in enumerate(first.finish()):
        assert isinstance(prefix, Prefix)
        engine.submit(Request(number, prefix, 6))
    targets.release()
    second = start_restore(sound[4:], raw, CPU, targets)
    for number, prefix in enumerate(second.finish(), 4):
        assert isinstance(prefix, Prefix)
        assert engine.pool.find(prefix) is not None
        engine.submit(Request(number, prefix, 6))
    targets.close()
    expected = generate(llama.decoder, prefixes, 6)
    assert {answer.key: answer.tokens for answer in engine.run(())} == dict(enumerate(expected))
    assert not engine.pool.used
