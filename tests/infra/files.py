"""Where the files are, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"


def load_yaml(path: str) -> Any:
    """The only document of a YAML file under infra/."""
    return yaml.safe_load((INFRA / path).read_text(encoding="utf-8"))
