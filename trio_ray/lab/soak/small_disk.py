"""A small file system of its own (tmpfs), which can really be filled up."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trio_ray.errors import ConfigError

_FILLER = "filler"
_PIECE = 1 << 16


class SmallDisk:
    """A mounted folder of a fixed size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Write until the file system says ENOSPC."""
        with (self.folder / _FILLER).open("ab", buffering=0) as file:
            for size in (_PIECE, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Make room again."""
        (self.folder / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """A tmpfs of `size` bytes at `folder` until the end.

    Raises:
        ConfigError: this process may not mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        why = done.stderr.strip() if done else "only root may mount"
        raise ConfigError("--without", f"disk_full needs a small file system, and none can be mounted here ({why}); "
                          "run as root, or give --without disk_full")  # fmt: skip
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
