"""Decoding from prefixes: alone, in ragged batches, token by token or several at once, all the same."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.kv.prefixes import codec_of, contained
from tests.model.corpus import make_sample, prepare, samples_of_all_grids, words
from trio_ray.config import ModelConfig
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import read_container
from trio_ray.lab.accuracy.questions import held_out_questions
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.continuation import Continuation
from trio_ray.model.decode.engine import generate
from trio_ray.model.replica import Replica

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.25)


def prefixes_of(replica: Replica, count: int) -> list[Prefix]:
    """Prefixes of samples of many lengths."""
    return replica.prefill(prepare(replica, samples_of_all_grids(count)), Method(SCHEDULE, Trio())).prefixes


def relative_error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference in units of the largest value."""
    return float((ours - truth).abs().max() / truth.abs().max())


def test_a_stored_prefix_answers_as_the_one_in_memory(replica: Replica) -> None:
    prefixes = prefixes_of(replica, 6)
    raw = codec_of("raw")
    stored = [read_container(contained(prefix, raw), raw) for prefix in prefixes]
    assert generate(replica.decoder, stored, 12) == generate(replica.decoder, prefixes, 12)


def test_the_bundled_models_answers_in_one_batch_are_those_alone() -> None:
    replica = Replica.load(ModelConfig(dtype="float32"), device=torch.device("cpu"))
    questions = held_out_questions(12, per_scene=3, first_seed=40)
    samples = prepare(replica, [question.sample for question in questions])
    method = Method.build(replica.decoder.depth)
    prefixes = [prefix for sample in samples for prefix in replica.prefill([sample], method).prefixes]
    together = replica.generate(prefixes, 12)
    assert together == [replica.generate([prefix], 12)[0] for prefix in prefixes]
    assert len(set(together)) > 3


def test_several_tokens_at_once_equal_one_after_the_other(replica: Replica) -> None:
    prefixes = prefixes_of(replica, 3)
    tokens = [[5, 7, 20, 31, 9], [11, 12, 13, 14, 15], [8, 8, 8, 30, 31]]
    at_once = Continuation(replica.decoder, prefixes, room=5).extend(tokens)
    stepwise = Continuation(replica.decoder, prefixes, room=5)
    for step in range(5):
        logits = stepwise.extend([[run[step]] for run in tokens])
    assert relative_error(at_once, logits) < 1e-5


def test_the_best_tokens_are_never_more_than_the_vocabulary(llama: Replica) -> None:
    vocabulary = llama.decoder.head.weight.shape[0]
    (best,) = Continuation(llama.decoder, prefixes_of(llama, 1), room=2).top_k([[5, 6]], vocabulary + 1)
    assert [tensor.shape for tensor in best] == [(2, vocabulary)] * 2


def test_runs_of_different_length_equal_each_alone(replica: Replica) -> None:
    prefixes = prefixes_of(replica, 4)
    tokens = [[5], [11, 12, 13, 14, 15, 16, 17], [8, 9], [20, 21, 22]]
    together = Continuation(replica.decoder, prefixes, room=7).extend(tokens)
    for number, (prefix, run) in enumerate(zip(prefixes, tokens, strict=True)):
        alone = Continuation(replica.decoder, [prefix], room=len(run)).extend([run])
        assert relative_error(together[number], alone[0]) < 1e-5


def test_several_turns_of_ragged_runs_equal_each_alone(llama: Replica) -> None:
    """Padding of one turn must not be left behind as rows of the next."""
    prefixes = prefixes_of(llama, 3)
    turns = [[[5], [11, 12, 13, 14], [8, 9]], [[6, 7, 8], [15], [10]], [[9], [16, 17], [11, 12, 13, 14, 15]]]
    batch = Continuation(llama.decoder, prefixes, room=12)
    alone = [Continuation(llama.decoder, [prefix], room=12) for prefix in prefixes]
    for runs in turns:
        logits = batch.extend(runs)
        for number, state in enumerate(alone):
            assert relative_error(logits[number], state.extend([runs[number]])[0]) < 1e-5


def test_continuing_a_prompt_equals_prefilling_it_with_the_tokens_behind(llama: Replica) -> None:
    """With nothing dropped, prompt + tokens by the continuation is prompt + tokens by the prefill."""
    whole = Schedule(8, (1,), retention=1.0, weights=(1,))
    (sample,) = prepare(llama, [make_sample([(40, 50)], words(4))])
    (prefix,) = llama.prefill([sample], Method(whole, Trio()), top_k=40).prefixes
    tail = [20, 21, 22, 9]
    logits = Continuation(llama.decoder, [prefix], room=4).extend([tail])[0]
    ids = {"prompt_ids": (*sample.prompt_ids, *tail), "input_ids": (*sample.input_ids, *tail)}
    longer = replace(sample, **ids)
    (truth,) = llama.prefill([longer], Method(whole, Trio()), top_k=40).prefixes
    ours = logits.log_softmax(-1)[truth.top_ids.long()]
    assert relative_error(ours, truth.top_logprobs) < 1e-5


def test_the_best_entries_are_those_of_all_scores(llama: Replica) -> None:
    prefixes = prefixes_of(llama, 3)
    tokens = [[5, 7, 20], [11], [8, 8, 8, 30, 31]]
    scores = Continuation(llama.decoder, prefixes, room=5).score(tokens)
    best = Continuation(llama.decoder, prefixes, room=5).top_k(tokens, 4)
    for of_all, (ids, logprobs), run in zip(scores, best, tokens, strict=True):
        assert ids.shape == logprobs.shape == (len(run), 4)
        assert torch.equal(ids.long(), of_all.topk(4).indices)
        assert torch.allclose(logprobs, of_all.log_softmax(-1).topk(4).values)


def test_a_prefix_is_not_changed_by_decoding_from_it(llama: Replica) -> None:
    (prefix,) = prefixes_of(llama, 1)
    before = [segment.keys.clone() for segment in prefix.segments]
    assert generate(llama.decoder, [prefix], 8) == generate(llama.decoder, [prefix], 8)
    assert all(torch.equal(segment.keys, keys) for segment, keys in zip(prefix.segments, before, strict=True))
