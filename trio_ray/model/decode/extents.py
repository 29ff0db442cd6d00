"""First-fit allocation of ranges of rows."""

from __future__ import annotations

from bisect import bisect_left


class Extents:
    """Which of the rows `first .. rows - 1` are free, as ranges that neither touch nor overlap."""

    def __init__(self, rows: int, first: int = 0) -> None:
        self._free = [(first, rows)] if rows > first else []

    @property
    def free(self) -> int:
        """Free rows, in one range or several."""
        return sum(stop - start for start, stop in self._free)

    def take(self, rows: int) -> int | None:
        """The first row of a range of `rows` rows that is free until now; None where no range is long enough."""
        if rows == 0:
            return 0
        for place, (start, stop) in enumerate(self._free):
            if stop - start >= rows:
                self._free[place : place + 1] = [(start + rows, stop)] if stop - start > rows else []
                return start
        return None

    def give_back(self, start: int, rows: int) -> None:
        """Free the range that begins with `start`."""
        if rows == 0:
            return
        stop = start + rows
        place = bisect_left(self._free, (start, stop))
        first = last = place
        if place > 0 and self._free[place - 1][1] == start:
            first, start = place - 1, self._free[place - 1][0]
        if place < len(self._free) and self._free[place][0] == stop:
            last, stop = place + 1, self._free[place][1]
        self._free[first:last] = [(start, stop)]
