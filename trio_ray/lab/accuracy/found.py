"""Rows of the table whose schedule is searched first, on questions that the table does not ask."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.calibration.schedule_search import CANDIDATES, FoundSchedule, search_schedule
from trio_ray.lab.accuracy.accuracy import Setting, prepared_batches
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.model.replica import Replica


def found_settings(
    replica: Replica,
    questions: Sequence[HeldOutQuestion],
    settings: Sequence[Setting],
    instruction: str | None,
    batch_rows: int,
    candidates: int = CANDIDATES,
    choose_depth: bool = False,
) -> list[tuple[Setting, FoundSchedule]]:
    """For each pruning setting without an encoder step the same with `method.schedule: auto`, as "NAME, auto".

    Args:
        replica: the model.
        questions: to search on; their answers are not looked at.
        settings: of the table.
        instruction: of scope image; None for scope prompt.
        batch_rows: rows of a batch of unpruned prompts.
        candidates: schedules that are tried for each.
        choose_depth: whether the search chooses how many layers run on all tokens (`method.full_depth: auto`).

    Raises:
        ConfigError: there are too few questions.
    """
    samples = [sample for batch in prepared_batches(replica, questions, 64, instruction) for sample in batch]
    found = []
    for setting in settings:
        if setting.retention >= 1 or setting.config.encoder is not None:
            continue
        best = search_schedule(
            replica,
            samples,
            setting.config.model_copy(update={"full_depth": "auto"}) if choose_depth else setting.config,
            scope="image" if instruction else "prompt",
            batch_rows=batch_rows,
            candidates=candidates,
        )
        found.append((Setting(f"{setting.name}, auto", setting.retention, best.method), best))
    return found
