"""One thing that the writer's thread is asked to do besides recording, by somebody who waits for the answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from asyncflow.exceptions import StoreBusyError, StoreError
from asyncflow.stores._database import Database

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Job"]

_LOOK_SECONDS = 0.5
"""How often who waits makes sure that the writer is alive."""


class Job:
    """`act`, called with the writer's connection; it commits what it does in one transaction of its own."""

    __slots__ = ("_answered", "_right", "act", "error", "give_up_at", "operation", "result")

    def __init__(self, operation: str, act: Callable[[sqlite3.Connection], Any], patience: float) -> None:
        self.operation = operation
        self.act = act
        self.give_up_at: float = time.monotonic() + patience
        self.result: Any = None
        self.error: Exception | None = None
        self._answered = Event()
        self._right = deque([None])  # to do it, or not to have it done: whoever takes it out has it

    def take(self) -> bool:
        """Whether this caller is the first: the writer to begin it, or who waits to withdraw it."""
        try:
            self._right.pop()
        except IndexError:
            return False
        return True

    def run(self, connection: sqlite3.Connection, database: Database, is_given_up: Callable[[], bool]) -> None:
        """Do it and answer; again while another process holds the lock, as long as there is time."""
        while True:
            try:
                with database.mapped(self.operation):
                    return self.answer(self.act(connection))
            except StoreBusyError as error:  # nothing was done: the lock is the first thing it asks for
                if time.monotonic() < self.give_up_at and not is_given_up():
                    continue
                return self.answer(error=error)
            except StoreError as error:
                return self.answer(error=error)
            except Exception as error:  # noqa: BLE001  # who waits is told; the others are not kept from disk
                return self.answer(error=StoreError(self.operation, database.path, repr(error)))

    def answer(self, result: Any = None, error: Exception | None = None) -> None:
        """Let who waits go on."""
        self.result, self.error = result, error
        self._answered.set()

    def wait(self, writer: Thread) -> bool:
        """Block until it is answered; false when it was withdrawn, because its time was up or the writer is gone."""
        while not self._answered.wait(max(0.0, min(_LOOK_SECONDS, self.give_up_at - time.monotonic()))):
            if (time.monotonic() >= self.give_up_at or not writer.is_alive()) and self.take():
                return False
            if time.monotonic() >= self.give_up_at:
                self._answered.wait(_LOOK_SECONDS)  # it has begun, and a commit cannot be called back
                if not writer.is_alive() and not self._answered.is_set():
                    return False
        return True
