"""Codecs as they are asked for on the command line, some of which must be fitted to a model's states first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from trio_ray.calibration.calibrate import DEFAULT_DIVERGENCE, DEFAULT_RANK, Calibration, calibrate, largest_step
from trio_ray.errors import ConfigError
from trio_ray.evaluation.accuracy import Setting, prepared_batches
from trio_ray.evaluation.codecs import Trial, in_16_bit, without_last_rows
from trio_ray.evaluation.coded_questions import prefill
from trio_ray.evaluation.continued_text import Passage, prefill_text
from trio_ray.evaluation.language_model import LanguageModel
from trio_ray.evaluation.questions import HeldOutQuestion
from trio_ray.kv.codecs import make_codec
from trio_ray.kv.container import checksum
from trio_ray.kv.spec import full_spec
from trio_ray.kv.transform_basis import write_basis
from trio_ray.model.replica import Replica

TRANSFORM = "transform"

Calibrate = Callable[[int, int | None], Calibration]
"""(rank, group_layers) -> what `calibrate` learns with them."""


@dataclass(frozen=True)
class Fit:
    """How a basis is fitted: nats that it may cost, and `calibrate`'s `rank` and `group_layers`."""

    divergence: float = DEFAULT_DIVERGENCE
    rank: int = DEFAULT_RANK
    group_layers: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.divergence < 10:
            raise ValueError(f"divergence {self.divergence} must be above 0 and below 10 nats")
        for name in ("rank", "group_layers"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} {value!r} must be a whole number of at least 1")

    @classmethod
    def taken_from(cls, spec: dict[str, Any]) -> Fit:
        """Takes its settings out of a codec's."""
        given = {name: spec.pop(name) for name in ("divergence", "rank", "group_layers") if name in spec}
        if "divergence" in given:
            given["divergence"] = float(given["divergence"])
        return cls(**given)


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
        """The codec; None where no basis with as few components as it may have comes so close.

        `calibration` is only called where it is needed.
        """
        fit = self.fit
        if fit is None:
            return Trial(self.name, make_codec(full_spec(self.spec)))
        known = calibration(fit.rank, fit.group_layers)
        step = largest_step(lambda step: known.divergence(step) <= fit.divergence)
        if step is None:
            return None
        basis = write_basis(known.basis(step))
        return Trial(self.name, make_codec(full_spec({**self.spec, "basis": checksum(basis)}), lambda _: basis))


def calibrate_on_questions(
    replica: Replica,
    setting: Setting,
    asked: Sequence[HeldOutQuestion],
    batch: int,
    rank: int = DEFAULT_RANK,
    group_layers: int | None = None,
) -> Calibration:
    """What prefixes look like under a setting, learnt from questions that are not measured."""
    prefixes, tails = [], []
    for samples in prepared_batches(replica, asked, batch):
        whole = in_16_bit(prefill(replica, samples, setting)).split()
        prefixes += [without_last_rows(prefix, 1) for prefix in whole]
        tails += [[sample.input_ids[-1]] for sample in samples]
    return calibrate(replica, prefixes, tails, {}, {}, rank, group_layers)


def calibrate_on_text(
    model: LanguageModel,
    passages: Sequence[Passage],
    batch: int,
    rank: int = DEFAULT_RANK,
    group_layers: int | None = None,
) -> Calibration:
    """What prefixes look like in a language model, learnt from passages that are not measured."""
    prefixes = []
    for start in range(0, len(passages), batch):
        whole = in_16_bit(prefill_text(model, passages[start : start + batch])).split()
        prefixes += [without_last_rows(prefix, 1) for prefix in whole]
    tails = [passage.prefix[-1:] for passage in passages]
    return calibrate(model, prefixes, tails, {}, {}, rank, group_layers)


def _label(spec: str | Mapping[str, Any]) -> str:
    """`int: keys 2, values 4`."""
    if isinstance(spec, str):
        return spec
    changes = [f"{name} {value}" for name, value in spec.items() if name != "name"]
    return ": ".join([str(spec["name"]), *([", ".join(changes)] if changes else [])])
