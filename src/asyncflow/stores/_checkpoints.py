"""When the write-ahead log is copied into the database file: by one connection at a time, of all processes.

An old fault of SQLite's (before 3.51.3) can damage the file when two connections do it at the same
time, so its own, which each connection does on its own account, are off, and a lock file stands
before ours.

An ordinary checkpoint waits for nobody. But the log starts anew only after one that caught up with
every writer, and among several busy ones none does: a log that has grown long is cut off while
writers wait. Readers never do.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from asyncflow.stores._locks import while_locked

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["Checkpoints"]

EVERY_PAGES = 1000
"""About how many pages a writer writes between two checkpoints; SQLite's own number."""
LONG_LOG = 8 * EVERY_PAGES
"""Pages in the log from which on writers are made to wait for it to be cut off."""
CUTTING_MS = 100
"""How long they may be made to wait for readers that need the log as it is."""
_BYTES_PER_PAGE = 4096 + 24


class Checkpoints:
    """One writer's checkpoints: used by its thread only."""

    def __init__(self, connection: sqlite3.Connection, database: Path, lock: Path) -> None:
        self._connection = connection
        self._lock = lock
        self._pages = 0
        with suppress(OSError):  # what was left by others
            self._pages = database.with_name(f"{database.name}-wal").stat().st_size // _BYTES_PER_PAGE

    def wrote(self, rows: int, characters: int = 0) -> None:
        """A commit has added so much: SQLite does not tell how many pages that were."""
        self._pages += 4 + rows // 6 + characters // 4096  # 4: each index has a page that changes

    def run_if_due(self) -> None:
        """Checkpoint, when enough has been written. Raises nothing: it is tried again after the next commits."""
        if self._pages < EVERY_PAGES:
            return
        import sqlite3

        self._pages = 0
        with suppress(OSError, sqlite3.Error), while_locked(self._lock) as is_ours:
            if is_ours:
                _, log, _ = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if log > LONG_LOG:
                    self._cut_off()

    def _cut_off(self) -> None:
        connection = self._connection
        (usual,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {CUTTING_MS}")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {usual}")
