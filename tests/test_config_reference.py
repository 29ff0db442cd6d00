"""The settings' reference says what the code says."""

from __future__ import annotations

from pathlib import Path

from trio_ray.config_reference import JOBS, _fields, reference

PAGE = Path(__file__).parents[1] / "jobs" / "CONFIGURATION.md"


def test_the_page_is_what_the_code_says() -> None:
    """Made anew by `python -m trio_ray.config_reference > jobs/CONFIGURATION.md`."""
    assert PAGE.read_text(encoding="utf-8") == reference()


def test_every_setting_says_what_it_means() -> None:
    silent = [name for _, _, kind in JOBS for name, entry in _fields(kind) if not entry.description]
    assert silent == []
