"""Stored bytes compared with their checksums: on a GPU beside the kernels that restore them, else here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.kv.container import CheckedContainer, checksum
from trio_ray.kv.staging import THREADS, Staged
from trio_ray.tensors import move_together, side_stream, to_host


@dataclass(frozen=True)
class Compared:
    """Which of B samples have another checksum than the wanted one.

    Attributes:
        found: (B,) int32 in host memory, not 0 for each of them, once `done` has happened.
        done: on the device's stream for this; None where `found` is known.
    """

    found: Tensor
    done: torch.cuda.Event | None = None

    def differing(self) -> list[bool]:
        """Wait, and say which."""
        if self.done is not None:
            self.done.synchronize()
        return [bool(differs) for differs in self.found.tolist()]


def compare_on_host(samples: Sequence[CheckedContainer], wanted: Sequence[str | None]) -> Compared | None:
    """Compare in threads, and wait for them; None where nothing has to be.

    Args:
        samples: with their bytes.
        wanted: the checksum of each, where it has yet to be compared.
    """
    if not any(wanted):
        return None

    def differs(sample: CheckedContainer, own: str | None) -> bool:
        return own is not None and checksum(sample.data.data) != own

    with ThreadPoolExecutor(THREADS) as pool:
        differ = list(pool.map(differs, samples, wanted))
    return Compared(torch.tensor(differ, dtype=torch.int32))


def compare_on_device(
    staged: Staged, samples: Sequence[CheckedContainer], wanted: Sequence[str | None]
) -> Compared | None:
    """The same on a GPU, on a stream of its own and without waiting for it; None, too, where the bytes are not there as
    they are stored, or not as the kernel wants them.
    """
    from trio_ray.kv.kernels.checksums import SHORTEST, differing, halves

    begins, lengths = staged.begins, [len(sample.data) for sample in samples]
    known = [own for own in wanted if own is not None]
    if begins is None or len(known) < len(samples) or min(lengths) < SHORTEST or any(begin % 8 for begin in begins):
        return None
    numbers = [torch.tensor(begins), torch.tensor(lengths), torch.tensor([halves(own) for own in known])]
    device = staged.source.device
    if staged.arrived is None:  # Triton's interpreter
        return Compared(differing(staged.source, numbers[0], numbers[1], max(lengths), numbers[2]))
    comparing = side_stream(device, "compare")
    comparing.wait_event(staged.arrived)
    with torch.cuda.stream(comparing):
        first, size, sums = move_together(numbers, device)
        found = to_host(differing(staged.source, first, size, max(lengths), sums))
        done = torch.cuda.Event()
        done.record(comparing)
    staged.source.record_stream(comparing)
    return Compared(found, done)
