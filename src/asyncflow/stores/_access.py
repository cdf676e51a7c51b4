"""The ways to the database that an open store has: connections to read with, and the writer to write."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from asyncflow._rows import storable
from asyncflow.stores._database import Database
from asyncflow.stores._forking import SQLITE
from asyncflow.stores._writer import Writer

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Access"]

_MOST_IDLE_READERS = 4

T = TypeVar("T")


class Access:
    """What the parts of a store share. Refuses everything once there is a reason to."""

    _writer: Writer
    owner: int

    def __init__(self, database: Database) -> None:
        self._database = database
        self._refusal: Callable[[], Exception] | None = None
        self._readers: list[sqlite3.Connection] = []

    def _read(self, operation: str, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
        # All at once: a reader that stays open keeps the log from being cut back.
        return self._ask(
            operation, lambda reader: reader.execute(sql, [storable(value) for value in values]).fetchall()
        )

    def _ask(self, operation: str, question: Callable[[sqlite3.Connection], T]) -> T:
        if self._refusal is not None:
            raise self._refusal()
        with SQLITE, self._database.mapped(operation), self._reader() as reader:
            return question(reader)

    @contextmanager
    def _reader(self) -> Generator[sqlite3.Connection]:
        """A connection of this thread's alone for as long as it needs it."""
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._database.open_reader()
        try:
            yield reader
        except BaseException:
            reader.close()  # whatever happened, the next one gets a sound connection
            raise
        if self._refusal is None and len(self._readers) < _MOST_IDLE_READERS:
            self._readers.append(reader)
        else:
            reader.close()

    def _call(self, operation: str, act: Callable[[sqlite3.Connection], T]) -> T:
        """Have the writer's thread do something, and wait for it."""
        if self._refusal is not None:
            raise self._refusal()
        return self._writer.call(operation, act)

    def _close_readers(self) -> None:
        while self._readers:
            with SQLITE, suppress(IndexError):
                self._readers.pop().close()
