"""Codecs that a command line asks for. Some of them must be fitted to a model's states first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from trio_ray.calibration.basis_size import BasisSize
from trio_ray.calibration.calibrate import DEFAULT_RANK
from trio_ray.calibration.choice import DEFAULT_DIVERGENCE, Fitted, fit
from trio_ray.calibration.codec_loss import Trial, in_16_bit, without_last_rows
from trio_ray.calibration.corpus import DrawnPrefix
from trio_ray.errors import ConfigError
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.lab.accuracy.accuracy import Setting, prepared_batches
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.lab.codecs.coded_questions import prefill
from trio_ray.lab.codecs.continued_text import Passage, prefill_text
from trio_ray.lab.codecs.language_model import LanguageModel
from trio_ray.model.replica import Replica

TRANSFORM = "transform"

Calibrate = Callable[[int, int | None], Fitted]
"""Maps (rank, group_layers) to the statistics that are learnt with these limits."""


@dataclass(frozen=True)
class Fit(BasisSize):
    """How a basis is fitted.

    Attributes:
        divergence: nats that it may cost on real states that it was not fitted to.
        ratio: how many times smaller than 16 bit it makes containers of made-up states, whose speed is measured.
    """

    divergence: float = DEFAULT_DIVERGENCE
    ratio: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.divergence < 10:
            raise ValueError(f"divergence {self.divergence} must be above 0 and below 10 nats")
        if not 1 < self.ratio <= 1000:
            raise ValueError(f"ratio {self.ratio} must be above 1 and at most 1000")


@dataclass(frozen=True)
class Recipe:
    """A codec under its name in the tables.

    Attributes:
        name: in the tables.
        spec: name and parameters, without a basis.
        fit: of a codec with a basis, which is fitted to each model and setting.
    """

    name: str
    spec: dict[str, Any]
    fit: Fit | None

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """A codec's name, or a mapping that begins with its name; of `transform` a `Fit`'s settings and no `basis`.

        Raises:
            ConfigError: it is none; names `--codecs`.
        """
        try:
            given = yaml.safe_load(text)
            spec = {"name": given} if isinstance(given, str) else dict(given)
            if spec.get("name") == TRANSFORM and "basis" in spec:
                raise ValueError("basis: none can be given, it is fitted to the states that are measured")
            fit = Fit.taken_from(spec) if spec.get("name") == TRANSFORM else None
            # A basis is known by its hash, which there is only once it is fitted.
            full_spec(spec if fit is None else {**spec, "basis": "0" * 32})
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise ConfigError("--codecs", f"{text!r}: {' '.join(str(error).split())}") from None
        return cls(_label(given), spec, fit)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters, as JSON."""
        return full_spec(self.spec) if self.fit is None else {**self.spec, **asdict(self.fit)}

    def trial(self, calibration: Calibrate) -> Trial | None:
        """Make the codec; None if no basis with so few components comes close enough. `calibration` is only called when
        it is needed.

        `calibration` is only called where it is needed.
        """
        wanted = self.fit
        if wanted is None:
            return Trial(self.name, make_codec(full_spec(self.spec)))
        parameters = {name: value for name, value in self.spec.items() if name != "name"}
        found = calibration(wanted.rank, wanted.group_layers).choose(wanted.divergence, parameters)
        return None if found is None else Trial(self.name, found.codec)


def calibrate_on_questions(
    replica: Replica,
    setting: Setting,
    asked: Sequence[HeldOutQuestion],
    batch: int,
    rank: int = DEFAULT_RANK,
    group_layers: int | None = None,
) -> Fitted:
    """What prefixes look like under a setting, learnt from questions that are not measured."""
    drawn = []
    for samples in prepared_batches(replica, asked, batch):
        for prefix, sample in zip(in_16_bit(prefill(replica, samples, setting)).split(), samples, strict=True):
            images = frozenset(image.hash for image in sample.images)
            drawn.append(DrawnPrefix(without_last_rows(prefix, 1), sample.input_ids[-1], images))
    return fit(replica, drawn, {}, {}, rank, group_layers)


def calibrate_on_text(
    model: LanguageModel,
    passages: Sequence[Passage],
    batch: int,
    rank: int = DEFAULT_RANK,
    group_layers: int | None = None,
) -> Fitted:
    """What prefixes look like in a language model, learnt from passages that are not measured."""
    drawn = []
    for start in range(0, len(passages), batch):
        some = passages[start : start + batch]
        for prefix, passage in zip(in_16_bit(prefill_text(model, some)).split(), some, strict=True):
            drawn.append(DrawnPrefix(without_last_rows(prefix, 1), passage.prefix[-1]))
    return fit(model, drawn, {}, {}, rank, group_layers)


def _label(spec: str | Mapping[str, Any]) -> str:
    """`int: keys 2, values 4`."""
    if isinstance(spec, str):
        return spec
    changes = [f"{name} {value}" for name, value in spec.items() if name != "name"]
    return ": ".join([str(spec["name"]), *([", ".join(changes)] if changes else [])])
