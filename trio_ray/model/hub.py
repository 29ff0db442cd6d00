"""Download a model from the Hugging Face hub, with progress, and say in one sentence why that did not work."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from trio_ray.errors import ConfigError

NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
"""What is downloaded of a hub repository. Files in folders of the repository are left out by `UNNEEDED_FILES`."""
UNNEEDED_FILES = ["*/*", "consolidated*"]

log = logging.getLogger(__name__)


class DownloadDisplay(Protocol):
    """Shows how a download goes on."""

    def begin(self, what: str, size: int) -> None:
        """`size` bytes of `what` are downloaded from now on."""
        ...

    def show(self, done: int) -> None:
        """So many bytes are there. Is called by several threads, one at a time."""
        ...

    def end(self) -> None:
        """The download is over, or has failed."""
        ...


class _StandardError:
    """A line and a bar, whatever HF_HUB_DISABLE_PROGRESS_BARS says of the small files that others download."""

    def begin(self, what: str, size: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        print(f"downloading {what}: {size / 1e9:.2f} GB", file=sys.stderr, flush=True)
        every_s = 1.0 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=size, unit="B", unit_scale=True, file=sys.stderr, mininterval=every_s)

    def show(self, done: int) -> None:
        self._bar.update(done - self._bar.n)

    def end(self) -> None:
        self._bar.close()


_display: ContextVar[DownloadDisplay | None] = ContextVar("download_display", default=None)


@contextmanager
def downloads_shown_on(display: DownloadDisplay) -> Iterator[None]:
    """Downloads of this thread are shown on this display until the end, and not by a bar on standard error."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def download_model(name: str, revision: str | None) -> Path:
    """The local folder of a hub model, whose name is the commit. What is there already is not downloaded again.

    Where the hub cannot be reached, an earlier download of the revision is taken, and a warning logged.

    Args:
        name: `owner/model`.
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        ConfigError: the hub has no such model or revision, does not give it, or cannot be reached, and it was not
            downloaded before; names `model.name` or `model.revision`.
    """
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {
        "repo_id": name, "revision": revision, "allow_patterns": NEEDED_FILES, "ignore_patterns": UNNEEDED_FILES,
    }  # fmt: skip
    with _hub_errors_as_sentences(name, revision):
        try:
            files: Any = snapshot_download(**wanted, dry_run=True)
        except Exception as error:
            folder = _downloaded_before(wanted) if _unreachable(error) else None
            if folder is None:
                raise
            log.warning("%s: the hub cannot be reached, so the downloaded commit %s is used", name, folder.name)
            return folder
        missing = [file for file in files if file.will_download]
        wanted["revision"] = _commit(files, revision)
        if not missing:
            return Path(snapshot_download(**wanted, tqdm_class=_counter(None)))
        display = _display.get() or _StandardError()
        display.begin(f"{name} ({len(missing)} files)", sum(file.file_size or 0 for file in missing))
        try:
            return Path(snapshot_download(**wanted, tqdm_class=_counter(display)))
        finally:
            display.end()


def _downloaded_before(wanted: dict[str, Any]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except FileNotFoundError:
        return None


def _commit(files: Any, revision: str | None) -> str | None:
    """The commit that was listed: a push between listing and download must not change what is loaded."""
    return files[0].commit_hash if files else revision


def _counter(display: DownloadDisplay | None) -> Any:
    """A class that the hub client takes for a bar: it shows nothing, and tells the display how many bytes are there.

    The client counts bytes in several bars (received, written), of which the one that is furthest counts.
    """
    from tqdm import tqdm

    lock = threading.Lock()
    furthest = 0

    class Counter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._counts_bytes = kwargs.get("unit") == "B"
            self._bytes = 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            if display is None or not self._counts_bytes:
                return
            with lock:
                self._bytes += int(n or 0)
                if self._bytes > furthest:
                    furthest = self._bytes
                    display.show(furthest)

    return Counter


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unreachable(error: Exception) -> bool:
    """Whether an error says only that the hub could not be asked."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    causes = list(_causes(error))
    if any(isinstance(cause, RepositoryNotFoundError | GatedRepoError | RevisionNotFoundError) for cause in causes):
        return False
    statuses = [cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError) and cause.response]
    return all(status >= 500 for status in statuses) and not isinstance(error, ValueError)


@contextmanager
def _hub_errors_as_sentences(name: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the hub client lets errors of several libraries through
        field, message = _sentence(name, revision, error)
        raise ConfigError(field, message) from None


def _sentence(name: str, revision: str | None, error: Exception) -> tuple[str, str]:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))

    def caused_by(kind: type[BaseException]) -> Any:
        return next((cause for cause in causes if isinstance(cause, kind)), None)

    if caused_by(HFValidationError):
        return "model.name", f"{name!r} is neither a folder nor a hub name (owner/model)"
    if caused_by(GatedRepoError):
        return "model.name", (
            f"{name!r} is gated: accept its terms on {constants.ENDPOINT}/{name}, then set HF_TOKEN to a token of "
            "that account"
        )
    if caused_by(RevisionNotFoundError):
        return "model.revision", f"{name!r} has no revision {revision!r}; give a branch, a tag or a commit that it has"
    if caused_by(RepositoryNotFoundError):
        return "model.name", (
            f"{name!r} is neither a folder here nor a model on {constants.ENDPOINT}; check the spelling, and for a "
            "private model set HF_TOKEN"
        )
    if constants.HF_HUB_OFFLINE or caused_by(OfflineModeIsEnabled):
        return "model.name", (
            f"{name!r} is no folder and is not downloaded in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
            "download it; unset HF_HUB_OFFLINE, or give a folder"
        )
    answered = caused_by(HfHubHTTPError)
    if answered is not None and answered.response is not None:
        status = answered.response.status_code
        advice = {401: "check HF_TOKEN", 403: "check HF_TOKEN", 429: "wait, or set HF_TOKEN"}.get(status, "try again")
        return "model.name", f"{name!r}: {constants.ENDPOINT} answered with HTTP status {status}; {advice}"
    full = next((c for c in causes if isinstance(c, OSError) and c.errno in (errno.ENOSPC, errno.EDQUOT)), None)
    if full is not None:
        return (
            "model.name",
            f"{name!r} does not fit on the disk of {constants.HF_HUB_CACHE}: {os.strerror(full.errno or 0)}",
        )
    refused = caused_by(PermissionError)
    if refused is not None:
        return "model.name", f"{name!r} cannot be stored in {constants.HF_HUB_CACHE}: {refused.strerror}"
    last = causes[-1]
    return "model.name", (
        f"{name!r} is no folder here, and {constants.ENDPOINT} cannot be reached "
        f"({type(last).__name__}: {' '.join(str(last).split())[:200]}); check the network, HF_ENDPOINT and the proxy"
    )
