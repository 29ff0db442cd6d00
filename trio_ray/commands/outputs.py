"""Where a command writes what it finds: made or looked at before anything is measured for it."""

from __future__ import annotations

from pathlib import Path

from trio_ray.errors import ConfigError


def make_folder(option: str, path: str) -> Path:
    """The folder that an option names, made if it is not there.

    Raises:
        ConfigError: it cannot be; names the option.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(option, f"{path} cannot be made a folder: {error.strerror}; give another") from None
    return folder


def check_file(option: str, path: str) -> None:
    """Raise `ConfigError` that names the option if there cannot be such a file."""
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ConfigError(option, f"there is no folder {folder}; make it, or give another file")
    if Path(path).is_dir():
        raise ConfigError(option, f"{path} is a folder; give a file")
