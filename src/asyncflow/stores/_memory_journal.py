"""The journal of the store in memory: a list of commits. Used with the store's lock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asyncflow._journal import Change, Cursor, EventRow, cursor_text, events_of_commit
from asyncflow._rows import RunRow
from asyncflow.exceptions import EventsGoneError

__all__ = ["MemoryJournal"]


class _Commit(NamedTuple):
    """What one call of a writing method told."""

    at: int
    """Never before the one before it."""
    changes: list[Change]
    events: list[EventRow]


class MemoryJournal:
    """What a store has told, each commit under its number."""

    def __init__(self) -> None:
        self._commits: list[_Commit] = []
        self._oldest = 1
        """The number of the first one that is kept."""

    def add(self, changes: Sequence[Change], events: Sequence[EventRow], at: int) -> None:
        """Tell what one commit brought."""
        latest = self._commits[-1].at if self._commits else 0
        self._commits.append(_Commit(max(latest, at), list(changes), list(events)))

    def read(self, after: Cursor | None, limit: int, runs: Mapping[bytes, RunRow]) -> list[EventRow]:
        """As the port says of `read_journal`."""
        since = Cursor(0, 0, 0) if after is None else after
        if self._oldest > since.journal > 0:
            oldest = cursor_text(Cursor(self._oldest, 0, 0))
            raise EventsGoneError(cursor_text(since), oldest=oldest, commits=self._oldest - since.journal)
        found: list[EventRow] = []
        first = max(since.journal, self._oldest)
        begin = first - self._oldest
        for number, commit in enumerate(self._commits[begin : begin + limit + 1], first):
            told = events_of_commit(number, commit.changes, runs, enumerate(commit.events))
            found += [event for event in told if event.cursor > since]
            if len(found) >= limit:
                break
        return [event._replace(run=event.run and _bare(event.run)) for event in found[:limit]]

    def newest(self) -> Cursor:
        """Before the next commit."""
        return Cursor(self._oldest + len(self._commits), 0, 0)

    def since(self, at: int) -> Cursor:
        """Before the first commit whose time is not before `at`."""
        return Cursor(self._oldest + bisect_left(self._commits, at, key=lambda commit: commit.at), 0, 0)

    def forget(self, before: int | None) -> int:
        """Forget the commits before a moment, or all of them; gives how many."""
        old = [commit for commit in self._commits if before is None or commit.at < before]
        del self._commits[: len(old)]
        self._oldest += len(old)
        return len(old)

    def forget_runs(self, gone: set[bytes]) -> None:
        """Forget what runs emitted that are deleted."""
        for n, commit in enumerate(self._commits):
            if any(gone & {event.flow_run_id, event.task_run_id} for event in commit.events):
                self._commits[n] = commit._replace(events=[])  # no commit has more than one

    def events(self) -> list[EventRow]:
        """All emitted ones."""
        return [event for commit in self._commits for event in commit.events]


def _bare(row: RunRow) -> RunRow:
    return row._replace(tags=None, parameters=None, result=None, result_file=None, error=None, digest=None)
