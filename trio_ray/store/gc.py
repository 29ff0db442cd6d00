"""Removing what dead or beaten attempts left behind."""

from __future__ import annotations

import time

from trio_ray.store.commits import read_commits
from trio_ray.store.dataset import NotACacheError, load_dataset
from trio_ray.store.layout import BASES, COMMITS, DATA, basis_name, is_basis_name, parse_commit_name, parse_data_name
from trio_ray.store.objects import ObjectInfo, ObjectStore

_THREADS = 16


def collect_garbage(store: ObjectStore, older_than_s: float, dry_run: bool) -> list[ObjectInfo]:
    """Remove attempt objects that no commit references, bases that the identity does not name, temporary files, and
    open multipart uploads.

    Args:
        older_than_s: nothing younger is touched. It must exceed the longest time between an attempt's first
            uploaded byte and its commit, or a running attempt loses its files; a day is safe.
        dry_run: only say what would be removed.

    Returns:
        What was (or would be) removed. The size is 0 where the store does not tell, as for multipart uploads.

    Raises:
        NotACacheError: neither a cache nor a basis is there, or commits are and their `dataset.json` is lost; nothing
            was removed, whatever has such names.
        ObjectDamaged: a commit record or `dataset.json` cannot be read, so it is not known what it references; nothing
            was removed.
    """
    newest = time.time() - older_than_s
    # Data and bases are listed before the records are read: what is committed in between is then known to be.
    attempts = [info for info in store.list(DATA) if parse_data_name(info.name) and info.modified < newest]
    bases = [info for info in store.list(BASES) if is_basis_name(info.name) and info.modified < newest]
    unfinished = [write for write in store.list_unfinished() if write.modified < newest]
    try:
        basis = load_dataset(store).basis
    except NotACacheError:
        if not bases or any(parse_commit_name(info.name) for info in store.list(COMMITS)):
            raise  # of a cache whose manifest is lost nothing is garbage
        # A job that calibrated and got no further: it began no attempt, so whatever else is here is not its.
        attempts, unfinished, basis = [], [], None
    referenced = {file.name for record in read_commits(store, _THREADS) for file in record.files.values()}
    if basis is not None:
        referenced.add(basis_name(basis))
    orphans = [info for info in [*attempts, *bases] if info.name not in referenced]
    if not dry_run:
        for info in orphans:
            store.delete(info.name)
        for write in unfinished:
            store.remove_unfinished(write)
    return orphans + [ObjectInfo(write.name, write.size, "", write.modified) for write in unfinished]
