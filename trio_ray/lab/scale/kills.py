"""Writers are killed hundreds of times while they write parts, segments and indexes, and a reader must never notice."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trio_ray.config import S3Config
from trio_ray.lab.jobs.own_process import in_own_process
from trio_ray.study import Columns, Study, table

MODULE = "trio_ray.lab.scale.killed"


def run_kills(uri: str, s3: S3Config, kills: int, seed: int) -> dict[str, Any]:
    """Make a cache with `kills` lives of writers, and say what a reader met and what is left.

    Args:
        uri: of the cache; nothing may be there.
        s3: how S3 is reached.
        kills: lives; in a third of them two writers work side by side, and both are killed.
        seed: of the moments.

    Raises:
        JobFailed: a writer failed by itself, or nothing could be read at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        order = {
            "uri": uri,
            "s3": s3.model_dump(mode="json"),
            "kills": kills,
            "seed": seed,
            "confirmed": str(Path(folder) / "confirmed"),
        }
        return in_own_process(MODULE, f"run of {kills} kills", order)


def study(record: Mapping[str, Any]) -> Study:
    """What was struck, what the reader met, and what is left."""
    struck = [{"what": what, "kills": count} for what, count in record["struck"].items()]
    problems = record["problems"] + record["damage"] + record["left"]
    texts = [
        f"{record['kills']} writers killed in {record['seconds']:.0f} s; {record['openings']} openings and "
        f"{record['lookups']} lookups by a reader beside them: {len(record['problems'])} problems. "
        f"{record['parts']} parts: of {record['samples']} samples {record['lost']} lost, {record['doubled']} doubled, "
        f"{len(record['damage'])} findings of damage; {len(record['left'])} findings behind `gc`, which deleted "
        f"{record['garbage']} objects.",
        "",
        table(struck, _COLUMNS),
        *problems,
    ]
    return Study("kills", record, "\n".join(texts))


_COLUMNS: Columns[Mapping[str, Any]] = {
    "being written": lambda line: line["what"],
    "kills": lambda line: line["kills"],
}
