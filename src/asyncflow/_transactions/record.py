"""The record of a transaction, kept in step while it goes on.

It is on disk before the block begins, so that a process that dies inside leaves word of it. The
names of the hooks that are to be run are brought up to date behind the back of the block: a commit
for each task with hooks would make the task wait for the disk.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from asyncflow._rows import ACTIVE, TransactionRow, json_of
from asyncflow._services import Services
from asyncflow.ids import new_id
from asyncflow.logs import library_logger

__all__ = ["Contents", "TransactionRecord", "soon"]

_MICRO = 1_000_000


class Contents(NamedTuple):
    """What changes while a transaction goes on."""

    data: dict[str, str]
    """JSON by name."""
    hooks: list[str]


class TransactionRecord:
    """One transaction's row. `begin` and `end` block until it is on disk."""

    def __init__(
        self, services: Services, key: str | None, run_id: bytes | None, contents: Callable[[], Contents]
    ) -> None:
        self._services = services
        self._contents = contents
        self._row = TransactionRow(
            id=new_id(),
            key=key,
            run_id=run_id,
            state=ACTIVE,
            created=self._now(),
            ended=None,
            owner=services.store.owner,
            data=None,
            hooks=None,
        )
        self._lock = Lock()
        """Held while it is written: what is written behind must not come after the end."""
        self._has_ended = self._is_stale = self._is_behind = False
        self.may_be_on_disk: bool = False

    def begin(self) -> None:
        """Say that the transaction goes on."""
        with self._lock:
            self._write_active()

    def end(self, state: int, members: Sequence[bytes] = (), hooks: Sequence[str] = ()) -> None:
        """Say how it ended, which it may do once more: what could not be committed is rolled back.

        `hooks` are those that were not called although they should have been.
        """
        with self._lock:
            self._has_ended = True
            row = self._row_of(Contents(self._contents().data, list(hooks)))
            row = row._replace(state=state, ended=max(self._now(), self._row.created))
            self.may_be_on_disk = True
            self._services.store.write_transaction(row, members)

    def touch(self) -> None:
        """Bring what it holds up to date soon. Plain code, from any thread."""
        self._is_stale = True
        if not (self._is_behind or self._has_ended):
            # Two threads at once may start it twice: the second then finds nothing to do.
            self._is_behind = True
            _start(self._catch_up)

    def _catch_up(self) -> None:
        try:
            while self._is_stale and not self._has_ended:
                with self._lock:
                    self._is_stale = False
                    if not self._has_ended:
                        self._write_active()
        except Exception as error:  # noqa: BLE001  # nobody waits for this, and its end says how it ended
            library_logger().warning("a transaction's record could not be brought up to date: %s", error)
            return  # not again for each task: `_is_behind` stays
        self._is_behind = False
        if self._is_stale:  # it came between the last look and the line above
            self.touch()

    def _write_active(self) -> None:
        self.may_be_on_disk = True
        self._services.store.write_transaction(self._row_of(self._contents()))

    def _row_of(self, contents: Contents) -> TransactionRow:
        data = ",".join(f"{json_of(name)}:{text}" for name, text in contents.data.items())
        return self._row._replace(
            data=f"{{{data}}}" if data else None,
            hooks=json_of(contents.hooks) if contents.hooks else None,
        )

    def _now(self) -> int:
        return int(self._services.clock.now() * _MICRO)


def soon(write: Callable[[], None]) -> None:
    """Have a blocking write done by somebody else: for whoever must not wait, and can do nothing about an error."""

    def attempt() -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001  # nobody is left to tell
            library_logger().error("the end of a transaction could not be recorded: %s", error)

    _start(attempt)


def _start(fn: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # no thread is left, or the interpreter ends: a new start finds it interrupted
        _thread.start_new_thread(fn, ())
