"""A schedule for this model and corpus (`method.schedule: auto`): the one whose answers move least from the unpruned
model's, at the same mean number of image tokens.

No labels are needed. The unpruned model answers a sample of the corpus; every candidate prefills the same samples with
its pruning and is asked for the probability of each token of those answers. The divergence of the two distributions is
what the search makes small. It begins with the selector's default, the schedules that follow from where this model
reads its image (`depth_profile`), and the defaults of all selectors; then every setting of the selector is tried on the
best one alone. It goes on from the best few by small changes of prune points, weights, positions and the selector's own
settings. A generation of candidates at a time shares the layers that run on all tokens, and most candidates are dropped
after a part of the samples. A third of the images is held back from the search. Of the best candidates, those that beat
the selector's default there too are ranked by all samples, and the first one is adopted; if there is none, the default
is.

Where `method.selector` is auto, each of `SELECTORS` is searched with a part of the candidates, and the one whose result
moves answers least on the images that are held back is taken.

Where `method.full_depth` is auto, the share of the layers that run on all tokens is chosen first, with the default
schedule or one that follows from the profile: the smallest share that moves answers hardly, or hardly more than any
larger one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from statistics import fmean
from typing import Any

from trio_ray.calibration.answer_divergence import ReferenceBatch, reference_batches
from trio_ray.calibration.depth_profile import depth_profile, profile_shape
from trio_ray.config import MethodConfig
from trio_ray.errors import ConfigError
from trio_ray.method.schedule import ScheduleShape
from trio_ray.method.selectors.catalogue import bundled_selectors, selector_class
from trio_ray.model.image_scope import Scope
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica

SELECTORS = ("trio-plus", "sieve", "groups")
"""What `method.selector: auto` chooses from: those that lead a table of docs/measured/accuracy.md."""

CANDIDATES = 96
"""Schedules that are tried, the starts among them. Where layers run on all tokens, fewer are tried in the same time."""

GENERATION = 8
"""Candidates that are measured beside each other: the layers that run on all tokens run once for all of them."""

MOST_DRAWS = 20
"""Candidates are drawn this many times as often as they are wanted, before the search ends early."""

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the layers that are tried for `method.full_depth: auto`."""

SMALL_DIVERGENCE = 0.05
"""Nats an answer token: a share of the layers whose divergence is no larger is deep enough."""

SMALL_RATIO = 1.15
"""So is one whose divergence is at most this many times the smallest one's."""

POWERS = (1 / 3, 1 / 2)
"""Of the depth profile, whose shapes are tried first (`profile_shape`)."""

PROFILED_IMAGES = 16
"""Images that the depth profile is measured on."""

MIN_SAMPLES = 12
HELD_BACK = 3
"""One image in this many is held back."""

PRUNED_COST = 0.15
"""Roughly the share of an unpruned prefill's time that a pruned one takes; only the number of candidates needs it."""

LEADERS = 5
"""Candidates that the search goes on from."""

CHANGES = (1, 1, 2, 3)
"""Numbers of changes between a candidate and the one that it comes from, equally likely."""

TOLERANCE = 1.15
"""A candidate is dropped when its mean divergence so far is this many times the last leader's on the same samples."""

PARTS = 4
"""Batches, at least, that a candidate is measured on one after the other."""

MOST_POINTS = 8


@dataclass(frozen=True)
class FoundSchedule:
    """What the search found.

    Attributes:
        method: the job's settings with prune points, weights, positions and the selector's settings filled in.
        divergence: mean over held-back samples, nats a token of the unpruned model's answer.
        default_divergence: the same of the selector's default schedule.
        samples: number of samples that the search looked at.
        held_back: number of samples that it did not.
        tried: candidates.
        depths: shares of the layers that were tried for `full_depth`, each with the divergence on the samples of the
            search, of the default or of a schedule that follows from the depth profile; none where it was given.
    """

    method: MethodConfig
    divergence: float
    default_divergence: float
    samples: int
    held_back: int
    tried: int
    depths: tuple[tuple[float, float], ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing better than the selector's default was found."""
        return self.divergence >= self.default_divergence

    def __str__(self) -> str:
        """One line for people."""
        method = self.method
        found = "the selector's default, which nothing beat" if self.is_default else "found"
        weights = [round(weight, 3) for weight in method.weights or ()]
        return (
            f"selector {method.selector}, prune points {list(method.prune_points or ())} with weights {weights}, "
            f"positions {method.positions}, dropped tokens {method.dropped}, {found}: {self.divergence:.4f} nats an "
            f"answer token on {self.held_back} held-back samples (default {self.default_divergence:.4f}; {self.tried} "
            f"schedules tried on {self.samples} samples)"
        ) + self._depth_text

    @property
    def _depth_text(self) -> str:
        if not self.depths:
            return ""
        tried = ", ".join(f"{divergence:.4f} at {depth:g}" for depth, divergence in self.depths)
        return f"; full_depth {self.method.full_depth:g}, chosen from the divergences before the search: {tried}"


def search_schedule(
    replica: Replica,
    samples: Sequence[PreparedSample],
    method: MethodConfig,
    *,
    scope: Scope = "prompt",
    batch_rows: int = 16_384,
    candidates: int = CANDIDATES,
    seed: int = 0,
    on_candidate: Callable[[int], None] = lambda done: None,
) -> FoundSchedule:
    """Find the schedule under which the model's answers to these samples move least.

    Args:
        replica: the model.
        samples: of the corpus, in any order; for scope image prepared under the job's instruction.
        method: the job's settings: the selector, the budget, the layout. Settings that it gives stay as they are.
        scope: of the cache. For "image" several questions follow each prefix, which no selection has seen.
        batch_rows: rows of the unpruned prompts in one batch.
        candidates: schedules to try; fewer, in proportion to what each costs, where layers run on all tokens.
        seed: of the search; the same seed and samples give the same result on the same machine.
        on_candidate: told how much has been done, of `candidates`.

    Raises:
        ConfigError: there are too few samples, or the method leaves nothing to search.
    """
    if method.encoder is not None:
        raise ConfigError(
            "method.schedule", "auto is not possible with method.encoder, whose first prune point is given"
        )
    if len(samples) < MIN_SAMPLES:
        raise ConfigError(
            "method.schedule",
            f"auto needs {MIN_SAMPLES} samples or more, and {len(samples)} of the input could be used; give "
            "method.prune_points and method.weights, or leave method.schedule out",
        )
    references = _References.of(replica, samples, scope, batch_rows)
    kinds = SELECTORS if method.selector == "auto" else (method.selector,)
    part = max(1, candidates // len(kinds))

    def of_selector(number: int) -> FoundSchedule:
        one = method.model_copy(update={"selector": kinds[number]})
        return _search(replica, references, one, part, seed, lambda done: on_candidate(number * part + done))

    return min((of_selector(number) for number in range(len(kinds))), key=lambda found: found.divergence)


@dataclass(frozen=True)
class _References:
    """Samples with the unpruned model's answers.

    Attributes:
        seen: what candidates are measured on.
        few: a few of them, for the depth profile.
        unseen: what is held back.
        most_tokens: image tokens of the largest sample.
    """

    seen: Sequence[ReferenceBatch]
    few: Sequence[ReferenceBatch]
    unseen: Sequence[ReferenceBatch]
    most_tokens: int

    @classmethod
    def of(cls, replica: Replica, samples: Sequence[PreparedSample], scope: Scope, batch_rows: int) -> _References:
        searched, held = _split(samples)
        share = -(-sum(sample.rows for sample in searched) // PARTS)
        few = _of_first_images(searched, PROFILED_IMAGES)
        return cls(
            list(reference_batches(replica, searched, scope, min(batch_rows, share))),
            list(reference_batches(replica, few, scope, batch_rows)),
            list(reference_batches(replica, held, scope, batch_rows)),
            max(sample.image_tokens for sample in samples),
        )


def _search(
    replica: Replica,
    references: _References,
    method: MethodConfig,
    candidates: int,
    seed: int,
    on_candidate: Callable[[int], None],
) -> FoundSchedule:
    """See `search_schedule`; of one selector."""
    seen, few, unseen = references.seen, references.few, references.unseen
    space = _Space(method, replica.decoder.depth, references.most_tokens)
    depths: tuple[tuple[float, float], ...] = ()
    if method.full_depth == "auto":
        tried = dict(_tried_depths(replica, seen, few, space))
        depths = tuple((depth, divergence) for depth, (divergence, _) in tried.items())
        space = tried[_deep_enough(depths)][1]
    else:
        space = space.profiled(replica, few)
    climb = _Climb(replica, seen, space, random.Random(seed))
    affordable = max(1, round(candidates * _relative_speed(space.given)))
    for done in climb.run(affordable):
        on_candidate(done * candidates // affordable)
    default = space.filled(space.given)
    configs = [leader.config for leader in climb.leaders]
    before, *after = _mean_divergences(replica, unseen, [default, *configs])
    better = [number for number, divergence in enumerate(after) if divergence < before]
    found, divergence = default, before
    if better:
        # The leaders were chosen by the samples of the search, on which they look too good: all samples say more.
        best = min(better, key=lambda n: (HELD_BACK - 1) * climb.leaders[n].mean(len(seen)) + after[n])
        found, divergence = configs[best], after[best]
    samples, held_back = (sum(len(batch.samples) for batch in batches) for batches in (seen, unseen))
    return FoundSchedule(found, divergence, before, samples, held_back, climb.tried, depths)


def _tried_depths(
    replica: Replica, batches: Sequence[ReferenceBatch], few: Sequence[ReferenceBatch], space: _Space
) -> Iterator[tuple[float, tuple[float, _Space]]]:
    """Shares of the layers, up to the first that moves answers hardly, each with the smallest divergence of its first
    schedules, and with the space that it leaves.
    """
    for depth in DEPTHS:
        there = replace(space, given=space.given.model_copy(update={"full_depth": depth})).profiled(replica, few)
        divergence = min(_mean_divergences(replica, batches, list(there.first())))
        yield depth, (divergence, there)
        if divergence <= SMALL_DIVERGENCE:
            return


def _deep_enough(tried: Sequence[tuple[float, float]]) -> float:
    """The smallest share that moves answers hardly, or hardly more than any other."""
    limit = max(SMALL_DIVERGENCE, SMALL_RATIO * min(divergence for _, divergence in tried))
    return next(depth for depth, divergence in tried if divergence <= limit)


def _relative_speed(method: MethodConfig) -> float:
    """How fast a candidate is, of what it would be if no layer ran on all tokens; rows times layers say so."""
    depth = float(method.full_depth)
    return PRUNED_COST / (depth / GENERATION + PRUNED_COST)


def _of_first_images(samples: Sequence[PreparedSample], count: int) -> list[PreparedSample]:
    """The samples of the first so many images."""
    images = set(islice({sample.images[0].hash: None for sample in samples}, count))
    return [sample for sample in samples if sample.images[0].hash in images]


def _split(samples: Sequence[PreparedSample]) -> tuple[list[PreparedSample], list[PreparedSample]]:
    """Samples for the search and samples that are held back, which have no image in common."""
    number_of: dict[str, int] = {}
    searched: list[PreparedSample] = []
    held: list[PreparedSample] = []
    for sample in samples:
        number = number_of.setdefault(sample.images[0].hash, len(number_of))
        (held if number % HELD_BACK == HELD_BACK - 1 else searched).append(sample)
    return searched, held


def _mean_divergences(
    replica: Replica, batches: Sequence[ReferenceBatch], configs: Sequence[MethodConfig]
) -> list[float]:
    methods = [config.build(replica.decoder.depth) for config in configs]
    found = [batch.divergences(replica, methods) for batch in batches]
    return [_mean(of_method) for of_method in zip(*found, strict=True)]


_Move = Callable[[MethodConfig, random.Random], dict[str, Any] | None]
"""A small change of some settings; None where it is not possible."""


@dataclass(frozen=True)
class _Space:
    """What may be varied: all that the job's settings leave open."""

    given: MethodConfig
    depth: int
    most_tokens: int
    """Image tokens of the largest sample: what a fixed budget must have room for."""
    shapes: tuple[ScheduleShape, ...] = ()
    """What the model's depth profile says."""

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Values to try of each setting of the selector that the job has not set."""
        searched = selector_class(self.given.selector).searched
        return {name: values for name, values in searched.items() if name not in self.given.settings}

    def filled(self, config: MethodConfig) -> MethodConfig:
        """The settings with prune points, weights and positions written out."""
        built = config.build(self.depth)
        return config.model_copy(
            update={
                "schedule": "given",
                "prune_points": built.schedule.prune_points,
                "weights": built.schedule.weights,
                "positions": built.positions,
                "dropped": built.dropped,
            }
        )

    def profiled(self, replica: Replica, batches: Sequence[ReferenceBatch]) -> _Space:
        """The same with the shapes that the model's depth profile says."""
        if self.given.layout == "uniform":
            return self
        profile = depth_profile(replica, batches, self.filled(self.given))
        shapes = tuple(profile_shape(profile, power) for power in POWERS) if profile[0] > 0 else ()
        return replace(self, shapes=shapes)

    def first(self) -> Iterator[MethodConfig]:
        """The selector's default, and what the depth profile says; in the uniform layout, which leaves no other choice,
        the default with and without rows that stand for those that are dropped.
        """
        default = self.filled(self.given)
        yield default
        if self.given.layout == "uniform" and self.given.dropped is None:
            yield default.model_copy(update={"dropped": "represented"})
        for shape in self.shapes:
            yield from self._of_shape(shape, default.positions)

    def starts(self) -> Iterator[MethodConfig]:
        """The first ones, then the shapes of the other selectors and some plain ones."""
        yield from self.first()
        if self.given.layout == "uniform":
            return
        for shape in (*self.shapes, *self._full_depth_shapes(), *_plain_shapes()):
            for positions in ("compact", "original") if self.given.positions is None else (self.given.positions,):
                yield from self._of_shape(shape, positions)

    def _of_shape(self, shape: ScheduleShape, positions: str | None) -> Iterator[MethodConfig]:
        """The default with the prune points and weights of a shape, if that is possible."""
        points = shape.points_for(self.depth, self.given.retention if self.given.tokens is None else 0.0)
        changes = {"prune_points": points, "weights": shape.weights_for(len(points)), "positions": positions}
        changed = self.changed(self.filled(self.given), changes)
        if changed is not None:
            yield changed

    def _full_depth_shapes(self) -> Iterator[ScheduleShape]:
        if self.given.full_depth:
            kinds = bundled_selectors().values()
            yield from (kind.full_depth_shape for kind in kinds if kind.full_depth_shape is not None)

    def with_other_settings(self, config: MethodConfig) -> Iterator[MethodConfig]:
        """The same with another value of one of the selector's settings."""
        for name, values in self.choices.items():
            for value in values:
                changed = self.changed(config, {"settings": {**config.settings, name: value}})
                if changed is not None:
                    yield changed

    def neighbour(self, config: MethodConfig, chance: random.Random) -> MethodConfig | None:
        """Make a small change; None if the result is not possible."""
        moves: list[_Move] = [self._change_setting] if self.choices else []
        if self.given.layout == "ragged":
            moves += [self._move_point, self._scale_weight, self._scale_weight, self._split_point, self._drop_point]
            if self.given.positions is None:
                moves.append(self._turn_positions)
        changes = chance.choice(moves)(config, chance) if moves else None
        return None if changes is None else self.changed(config, changes)

    def changed(self, config: MethodConfig, changes: dict[str, Any]) -> MethodConfig | None:
        """The settings with these changes; None if they are not possible for this model."""
        try:
            changed = MethodConfig.model_validate({**config.model_dump(), **changes})
            has_room = changed.build(self.depth).schedule.has_room_for(self.most_tokens)
        except (ConfigError, ValueError):
            return None
        return changed if has_room else None

    def _change_setting(self, config: MethodConfig, chance: random.Random) -> dict[str, Any]:
        name = chance.choice(sorted(self.choices))
        return {"settings": {**config.settings, name: chance.choice(self.choices[name])}}

    def _turn_positions(self, config: MethodConfig, chance: random.Random) -> dict[str, Any]:
        return {"positions": "compact" if config.positions == "original" else "original"}

    def _move_point(self, config: MethodConfig, chance: random.Random) -> dict[str, Any]:
        points, _ = _shape_of(config)
        reach = max(1, self.depth // 8)
        points[chance.randrange(len(points))] += chance.choice([-reach, -1, 1, reach])
        return {"prune_points": tuple(points)}

    def _scale_weight(self, config: MethodConfig, chance: random.Random) -> dict[str, Any]:
        _, weights = _shape_of(config)
        weights[chance.randrange(len(weights))] *= 2.0 ** chance.uniform(-1.0, 1.0)
        return {"weights": tuple(round(weight, 4) for weight in accumulate(weights, min))}

    def _split_point(self, config: MethodConfig, chance: random.Random) -> dict[str, Any] | None:
        points, weights = _shape_of(config)
        free = [layer for layer in range(self.depth) if layer not in points]
        if len(points) >= MOST_POINTS or not free:
            return None
        layer = chance.choice(free)
        place = sum(point < layer for point in points)
        around = [weights[place - 1]] * bool(place) + weights[place : place + 1]
        points.insert(place, layer)
        weights.insert(place, round(fmean(around), 4))
        return {"prune_points": tuple(points), "weights": tuple(weights)}

    def _drop_point(self, config: MethodConfig, chance: random.Random) -> dict[str, Any] | None:
        points, weights = _shape_of(config)
        if len(points) == 1:
            return None
        place = chance.randrange(len(points))
        del points[place], weights[place]
        return {"prune_points": tuple(points), "weights": tuple(weights)}


def _plain_shapes() -> list[ScheduleShape]:
    shapes = {kind.shape for kind in bundled_selectors().values()}
    shapes |= {ScheduleShape(8, (0, 1, 2, 4), (8, 4, 2, 1)), ScheduleShape(8, (0, 2), (3, 1))}
    return sorted(shapes, key=lambda shape: shape.prune_points)


def _shape_of(config: MethodConfig) -> tuple[list[int], list[float]]:
    return list(config.prune_points or ()), list(config.weights or ())


@dataclass
class _Leader:
    """A candidate that was measured on all batches, and the divergences of each batch's samples."""

    config: MethodConfig
    found: list[list[float]]

    def mean(self, batches: int) -> float:
        """Mean over the samples of the first so many batches."""
        return _mean(self.found[:batches])


def _mean(found: Sequence[Sequence[float]]) -> float:
    return fmean(value for one in found for value in one)


@dataclass
class _Climb:
    """The search.

    Attributes:
        replica: the model.
        batches: what candidates are measured on, one batch after the other.
        space: what is varied.
        chance: draws the changes.
        leaders: the best candidates so far, the best one first.
        tried: number of candidates.
    """

    replica: Replica
    batches: Sequence[ReferenceBatch]
    space: _Space
    chance: random.Random
    leaders: list[_Leader] = field(default_factory=list)
    tried: int = 0
    _known: set[str] = field(default_factory=set)

    def run(self, candidates: int) -> Iterator[int]:
        """Try this many candidates; yields how many were tried."""
        yield from self._try_all(self.space.starts(), candidates)
        yield from self._try_all(self.space.with_other_settings(self.leaders[0].config), candidates)
        yield from self._try_all(self._successors(MOST_DRAWS * candidates), candidates)

    def _try_all(self, source: Iterable[MethodConfig], candidates: int) -> Iterator[int]:
        """Try candidates of a source, one generation after the other, until there are `candidates` in all."""
        new = self._new(source)
        while generation := list(islice(new, min(GENERATION, candidates - self.tried))):
            self._try(generation)
            yield self.tried

    def _new(self, candidates: Iterable[MethodConfig]) -> Iterator[MethodConfig]:
        """Those of the candidates that were not met before."""
        for candidate in candidates:
            method = str(candidate.build(self.replica.decoder.depth).to_dict())  # settings may be given or default
            if method not in self._known:
                self._known.add(method)
                yield candidate

    def _successors(self, draws: int) -> Iterator[MethodConfig]:
        """Leaders, the better the likelier, with one to three changes each."""
        for _ in range(draws):
            place = min(int(self.chance.expovariate(0.5)), len(self.leaders) - 1)
            candidate: MethodConfig | None = self.leaders[place].config
            for _ in range(self.chance.choice(CHANGES)):
                candidate = candidate and self.space.neighbour(candidate, self.chance)
            if candidate is not None:
                yield candidate

    def _try(self, generation: Sequence[MethodConfig]) -> None:
        """Measure candidates beside each other on one batch after the other, and drop each of them as soon as it is
        clearly worse than the last of those that lead then.
        """
        self.tried += len(generation)
        running = [_Leader(candidate, []) for candidate in generation]
        for number, batch in enumerate(self.batches, 1):
            methods = [one.config.build(self.replica.decoder.depth) for one in running]
            for one, found in zip(running, batch.divergences(self.replica, methods), strict=True):
                one.found.append(found)
            means = sorted(one.mean(number) for one in (*self.leaders, *running))
            limit = TOLERANCE * means[:LEADERS][-1]
            running = [one for one in running if one.mean(number) <= limit]
            if not running:
                return
        self.leaders.extend(running)
        self.leaders.sort(key=lambda leader: leader.mean(len(self.batches)))
        del self.leaders[LEADERS:]
