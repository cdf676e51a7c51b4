"""The log lines that wait for the disk: a bounded queue, which tells what it had to drop.

Guarantees:

- `put` takes no lock, and may be called from any thread, from a signal handler or a finalizer in the
  middle of itself: what must be exact is done by single C calls.
- Every line that was put is either taken or counted in `dropped`.
- Where lines are missing a line says how many, in the log of the run that wrote them.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from uuid import UUID

from asyncflow._rows import LogRow

__all__ = ["DROPPED", "MOST_CHARACTERS", "MOST_LINES", "LogQueue"]

MOST_LINES = 10_000
"""Lines that may wait; more are dropped."""
MOST_CHARACTERS = 16 * 1024 * 1024
"""About how much text they may have."""
DROPPED = "asyncflow.dropped"
"""The logger that is named by a line which says how many are missing; their number is in its `extra`."""
_WARNING = 30  # logging.WARNING, without the 3 ms that importing it takes


class _Gap:
    """Lines of one run that were dropped."""

    __slots__ = ("at", "count", "told")

    def __init__(self) -> None:
        self.count = count()
        self.at = 0
        """When the last of them was logged."""
        self.told = 0
        """How many of them a line has told of."""


class LogQueue:
    """Any thread puts, one takes."""

    __slots__ = ("_characters", "_dropped", "_gaps", "_is_told", "_lines")

    def __init__(self) -> None:
        self._lines: deque[LogRow] = deque()
        # Nearly: who adds at the same time as another, or while all are taken, may set it wrong until they are taken
        # next. So it does not count while nothing waits: nobody would take anything.
        self._characters = 0
        self._dropped = count()
        self._gaps: dict[tuple[bytes | None, bytes | None], _Gap] = {}
        """By flow run; by task run outside of any."""
        self._is_told = False

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def dropped(self) -> int:
        """How many lines were dropped, ever."""
        return _value(self._dropped)

    def put(self, row: LogRow) -> None:
        """Add a line, or drop it when there is no room."""
        waiting = len(self._lines)
        if waiting >= MOST_LINES or (waiting and self._characters >= MOST_CHARACTERS):
            self._drop(row)
            return
        self._characters += len(row.message) + len(row.extra or "")
        self._lines.append(row)

    def _drop(self, row: LogRow) -> None:
        next(self._dropped)
        whose = (row.flow_run_id, row.task_run_id if row.flow_run_id is None else None)
        gap = self._gaps.get(whose) or self._gaps.setdefault(whose, _Gap())
        gap.at = row.timestamp
        next(gap.count)

    def take(self) -> list[LogRow]:
        """All lines that wait, and one for each run that lines of are missing since they were taken last."""
        taken: list[LogRow] = []
        while self._lines:
            taken.append(self._lines.popleft())
        self._characters = 0
        for whose, gap in self._gaps.copy().items():
            missing = _value(gap.count) - gap.told
            if missing:
                gap.told += missing
                taken.append(_line_of(whose, missing, gap.at))
            else:  # only now: a thread that had just found it may have counted one more
                del self._gaps[whose]
        return taken

    def warning(self) -> str | None:
        """What is to be told of lines that were dropped, the first time."""
        if self._is_told or not self._gaps:
            return None
        self._is_told = True
        whose = next(iter(self._gaps.copy()))
        run = next(UUID(bytes=each) for each in whose if each is not None)
        return (
            f"log lines of run {run} were dropped, because they came faster than the disk took them; "
            f"its log says where. Others that are dropped later are counted in client.dropped_logs"
        )


def _line_of(whose: tuple[bytes | None, bytes | None], missing: int, at: int) -> LogRow:
    lines = "line is" if missing == 1 else "lines are"
    return LogRow(
        flow_run_id=whose[0],
        task_run_id=whose[1],
        timestamp=at,
        level=_WARNING,
        logger=DROPPED,
        message=f"{missing:,} log {lines} missing here: they came faster than the disk took them",
        extra=f'{{"dropped": {missing}}}',
    )


def _value(counter: count[int]) -> int:
    """How often `next` was called: the one way to look at a counter without changing it."""
    return int(repr(counter)[6:-1])
