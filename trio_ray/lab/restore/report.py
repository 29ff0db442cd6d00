"""A record of reading as tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from trio_ray.study import Columns, Study, shown, table

Record = dict[str, Any]
Named = tuple[str, Record]
"""A contestant's name and its record."""


def study(record: Record) -> Study:
    """The machine, and the tables of each part for each model's shapes; as far as the record goes."""
    machine = record["machine"]
    texts = [f"{machine['device']} with {machine['cpus']} CPUs, {record['date'][:10]}."]
    for shapes, results in record["shapes"].items():
        for part, found in results.items():
            title, write = _PARTS[part]
            texts += [f"## {shapes}: {title}", *write(found)]
    return Study("restore", record, "\n\n".join(texts))


MEMORY_COLUMNS: Columns[Named] = {
    "": lambda one: one[0],
    "samples/s": lambda one: shown(one[1]["samples_per_s"], ",.0f"),
    "times prefill": lambda one: shown(one[1]["times_prefill"], ".1f"),
    "GB/s of 16 bit": lambda one: shown(one[1].get("gb_per_s_16bit"), ".1f"),
    "MB a sample": lambda one: shown(one[1].get("stored_mb"), ".2f"),
    "smaller than 16 bit": lambda one: shown(one[1].get("ratio"), ".1f", "x"),
}


def _memory(found: Record) -> list[str]:
    codecs = [(name, one["stages_ms"]) for name, one in found.items() if "stages_ms" in one]
    stages = dict.fromkeys(stage for _, own in codecs for stage in own)
    columns: dict[str, Callable[[Named], object]] = {"": lambda one: one[0]}
    columns |= {stage: partial(_stage, stage) for stage in stages}
    return [
        table(found.items(), MEMORY_COLUMNS),
        "Milliseconds a sample of one batch, each stage alone and waited for. The host compares headers. "
        "`restore` is checksums, copy, lossless stage and inverse together.",
        table(codecs, columns),
    ]


def _stage(stage: str, one: Named) -> str | None:
    return shown(one[1].get(stage), ".3f")


STORE_COLUMNS: Columns[tuple[str, str, str, Record]] = {
    "from": lambda one: one[0],
    "codec": lambda one: one[1],
    "": lambda one: one[2],
    "samples/s": lambda one: shown(one[3]["samples_per_s"], ",.0f"),
    "GB/s stored": lambda one: shown(one[3]["gb_per_s"], ".2f"),
    "MB a range": lambda one: shown(one[3]["mb_per_range"], ".1f"),
    "process CPU ms a range": lambda one: shown(one[3]["cpu_ms_per_range"], ".2f"),
}


def _store(found: Record) -> list[str]:
    rows = [
        (where, codec, what, one)
        for where, codecs in found.items()
        for codec, contestants in codecs.items()
        for what, one in contestants.items()
    ]
    return [
        table(rows, STORE_COLUMNS),
        "`restore` ends with keys and values on the device; `fetch and check` with compared checksums in host memory; "
        "the others are bare clients that read the same ranges and throw them away.",
    ]


STEP_COLUMNS: Columns[Record] = {
    "sequences": lambda one: one["sequences"],
    "first steps, ms": lambda one: shown(one["first_ms"], ".2f"),
    "limit, ms": lambda one: shown(one["first_limit_ms"], ".2f"),
    "times the limit": lambda one: shown(one["first_ms"] / one["first_limit_ms"], ".2f"),
    "tokens/s": lambda one: shown(one["sequences"] / one["first_ms"], ",.0f", times=1e3),
    "at step": lambda one: one["steps"],
    "last steps, ms": lambda one: shown(one["last_ms"], ".2f"),
    "their limit, ms": lambda one: shown(one["last_limit_ms"], ".2f"),
    "times their limit": lambda one: shown(one["last_ms"] / one["last_limit_ms"], ".2f"),
}

GENERATE_COLUMNS: Columns[Record] = {
    "prompts": lambda one: one["batch"],
    "first token, ms": lambda one: shown(one["first_ms"], ",.0f"),
    "step, ms": lambda one: shown(one["step_ms"], ".1f"),
    "tokens/s": lambda one: shown(one["batch"] / one["step_ms"], ",.0f", times=1e3),
}


def _decode(found: Record) -> list[str]:
    return [
        f"A copy moves {found['copy_bytes_per_s'] / 1e12:.2f} TB/s; the limit is that of the bytes a step reads.",
        table(found["steps"], STEP_COLUMNS),
        "transformers' generate on unpruned prompts, without cuDNN's attention:",
        table(found["generate"], GENERATE_COLUMNS),
    ]


def _answers(found: Record) -> list[str]:
    names = dict.fromkeys(name for own in found["answer_tokens"].values() for name in own)
    columns: dict[str, Callable[[Named], object]] = {"tokens an answer": lambda one: one[0]}
    columns |= {name: partial(_rate, name) for name in names}
    return [
        f"Answers a second; codec {found['codec']}.",
        table(found["answer_tokens"].items(), columns),
    ]


QUESTION_COLUMNS: Columns[Named] = {
    "": lambda one: one[0],
    "answers/s": lambda one: shown(one[1]["answers_per_s"], ",.1f"),
}


def _questions(found: Record) -> list[str]:
    return [f"Answers a second; codec {found['codec']}.", table(found["contestants"].items(), QUESTION_COLUMNS)]


def _rate(contestant: str, one: Named) -> str | None:
    found = one[1].get(contestant)
    return None if found is None else shown(found["answers_per_s"], ",.1f")


CPU_COLUMNS: Columns[Named] = {
    "": lambda one: one[0],
    "questions/s": lambda one: shown(one[1]["questions_per_s"], ".2f"),
    "right answers": lambda one: one[1]["right"],
}


def _cpu(found: Record) -> list[str]:
    return [
        f"The bundled model on the CPU, {found['questions']} questions; containers {found['ratio']:.1f} times smaller "
        f"than keys and values in memory. The cache answers {found['times']:.1f} times as many.",
        table(found["contestants"].items(), CPU_COLUMNS),
    ]


CORE_COLUMNS: Columns[Named] = {
    "inverse transform on one core": lambda one: one[0],
    "GB/s, median": lambda one: shown(one[1]["gb_per_s"], ".3f"),
    "best round": lambda one: shown(one[1]["best_gb_per_s"], ".3f"),
}


def _core(found: Record) -> list[str]:
    components = ", ".join(map(str, found["components"]))
    return [
        f"{found['samples']} samples of {found['gb']:.3f} GB of keys and values in 16 bit; of each group of layers so "
        f"many components in the bands wide, byte, nibble and trit: {components}. Processor time of one thread. "
        f"Products of 8 bits make it {found['times']:.1f} times as fast as products of fp32.",
        table(found["contestants"].items(), CORE_COLUMNS),
    ]


_PARTS: dict[str, tuple[str, Callable[[Record], list[str]]]] = {
    "memory": ("restored from host memory", _memory),
    "store": ("restored from a store", _store),
    "decode": ("decode steps", _decode),
    "answers": ("answers", _answers),
    "questions": ("several questions on an image", _questions),
    "cpu": ("on the CPU", _cpu),
    "core": ("inverse transform on one core", _core),
}
"""For each part its title, and the function that writes it."""
