"""What a pool of actors tells the job that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass(frozen=True)
class ActorDownloads:
    """An actor that loads downloads `what`: `done` of `size` bytes are there."""

    actor: int
    what: str
    done: int
    size: int

    def __str__(self) -> str:
        """`replica 3 downloads llava-hf/some-model (4 files): 1.20 of 15.13 GB`."""
        return f"replica {self.actor} downloads {self.what}: {self.done / 1e9:.2f} of {self.size / 1e9:.2f} GB"


@dataclass(frozen=True)
class ActorReady:
    """An actor has loaded what it needs; `where` says what it runs on."""

    actor: int
    where: str


@dataclass(frozen=True)
class ActorLost:
    """An actor died, failed to start, was silent for too long, or was ended because all work fails on it."""

    actor: int
    why: str


@dataclass(frozen=True)
class ActorEnded:
    """An actor was ended because there is no work left for it. Nothing is lost."""

    actor: int


@dataclass(frozen=True)
class Report(Generic[W]):
    """Something that an actor yielded while it was at a piece of work."""

    actor: int
    work: W
    content: object


@dataclass(frozen=True)
class WorkDone(Generic[W]):
    """A piece of work was done to its end."""

    actor: int
    work: W


@dataclass(frozen=True)
class WorkFailed(Generic[W]):
    """A piece of work was given up after so many attempts; `why` is the last error in one line."""

    work: W
    attempts: int
    why: str


PoolEvent = ActorDownloads | ActorReady | ActorLost | ActorEnded | Report[W] | WorkDone[W] | WorkFailed[W]
