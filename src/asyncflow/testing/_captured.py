"""What the runs of a test have logged, and what has happened to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

from asyncflow._event_rows import event_of
from asyncflow._rows import FLOW, TASK, log_record_of
from asyncflow.abc import LogQuery, RunQuery, RunStore
from asyncflow.events import Event
from asyncflow.runs import LogRecord
from asyncflow.runtime import Runtime

__all__ = ["Captured", "CapturedEvents", "CapturedLogs"]

T = TypeVar("T")
_ALL = frozenset({FLOW, TASK})
_MANY = 1_000_000


class Captured(Sequence[T]):
    """A list that is read anew from the store whenever it is looked at."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def read(self) -> list[T]:
        """What there is now, oldest first. Blocks, for a store on disk."""
        raise NotImplementedError

    @property
    def store(self) -> RunStore:
        """Where it is read from."""
        return self._runtime.open().store

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self.read()[index]

    def __len__(self) -> int:
        return len(self.read())

    def __repr__(self) -> str:
        return repr(self.read())


class CapturedLogs(Captured[LogRecord]):
    """The log records of all runs, oldest first."""

    def read(self) -> list[LogRecord]:
        """The records so far."""
        runs = self.store.read_runs(RunQuery(kinds=_ALL, limit=_MANY))
        # A flow's lines are asked for with those of its tasks: each line comes once or twice.
        lines = {line.id: line for run in runs for line in self.store.read_logs(LogQuery(run_id=run.id, limit=_MANY))}
        return [log_record_of(lines[each]) for each in sorted(lines)]

    @property
    def messages(self) -> list[str]:
        """The texts of the records."""
        return [record.message for record in self.read()]

    @property
    def text(self) -> str:
        """The texts of the records, each on a line."""
        return "\n".join(self.messages)


class CapturedEvents(Captured[Event]):
    """What has happened, in order: each state that a run came to, and each event that was emitted."""

    def read(self) -> list[Event]:
        """The events so far."""
        return [event_of(row) for row in self.store.read_journal(None, _MANY)]

    @property
    def names(self) -> list[str]:
        """The names of the events, such as "flow-run.Completed"."""
        return [event.name for event in self.read()]
