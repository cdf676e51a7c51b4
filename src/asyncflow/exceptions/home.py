"""Errors of the store, the runtime and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncflow.exceptions.base import AsyncflowError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "CodecError",
    "DurabilityError",
    "ForkedRuntimeError",
    "HomeError",
    "LimitConflictError",
    "LimitDeadlockError",
    "LimitTimeoutError",
    "RunNotFoundError",
    "RuntimeClosedError",
    "RuntimeStoppingError",
    "SettingsFileError",
    "SeveralRuntimesError",
    "StoreBusyError",
    "StoreError",
    "UnsupportedSchemaError",
]

_MOST_LISTED = 5


class RunNotFoundError(AsyncflowError, LookupError):
    """No run has this id."""

    def __init__(self, run_id: object, home: Path | str | None = None) -> None:
        self.run_id: str = str(run_id)
        self.home: str | None = None if home is None else str(home)
        where = "" if self.home is None else f" in {self.home!r}"
        super().__init__(f"no run has the id {self.run_id!r}{where}; `asyncflow runs ls` lists the runs there are")


class StoreError(AsyncflowError):
    """The store failed at ``operation`` on ``path``; what it was told before is not lost."""

    def __init__(self, operation: str, path: Path | str, reason: object) -> None:
        self.operation = operation
        self.path: str = str(path)
        self.reason: str = str(reason)
        super().__init__(f"{operation} failed on {self.path!r}: {self.reason}")


class CodecError(StoreError):
    """A recorded value cannot be read, or one cannot be written, because of the codec."""


class StoreBusyError(StoreError):
    """Another process held the database's write lock longer than we wait for it."""


class HomeError(StoreError):
    """The home folder cannot be used: not writable, damaged, or not ours."""

    def __init__(self, operation: str, path: Path | str, reason: object) -> None:
        super().__init__(
            operation, path, f"{reason}. Set ASYNCFLOW_HOME to a folder that you own and that can be written"
        )


class UnsupportedSchemaError(StoreError):
    """The database was written by a newer asyncflow than this one."""

    def __init__(self, path: Path | str, *, found: int, supported: int) -> None:
        self.found = found
        self.supported = supported
        super().__init__(
            "opening the database",
            path,
            f"it has schema version {found}, and this asyncflow knows versions up to {supported}; "
            f"upgrade asyncflow, or set ASYNCFLOW_HOME to another folder",
        )


class DurabilityError(AsyncflowError):
    """A run reached its final state, but the store has not confirmed it is on disk.

    ``state`` is that final state: the work was done, only its record is in doubt.
    """

    def __init__(self, run: str, state: Any, reason: object) -> None:
        self.run = run
        self.state = state
        self.reason: str = str(reason)
        super().__init__(f"run {run!r} ended {state}, but that is not confirmed on disk: {self.reason}")


class ForkedRuntimeError(AsyncflowError, RuntimeError):
    """A runtime that was opened before ``fork`` was used in the child process."""

    def __init__(self, owner_pid: int, pid: int) -> None:
        self.owner_pid = owner_pid
        self.pid = pid
        super().__init__(
            f"this runtime was opened in process {owner_pid} and is used in process {pid}, its fork, where "
            f"writes would be lost; open a Runtime in the child, or start processes with 'spawn'"
        )


class RuntimeClosedError(AsyncflowError, RuntimeError):
    """A runtime was used after it was closed."""

    def __init__(self, home: Path | str) -> None:
        self.home: str = str(home)
        super().__init__(f"the runtime on {self.home!r} is closed; open a new one: async with asyncflow.Runtime(...)")


class RuntimeStoppingError(AsyncflowError, RuntimeError):
    """A run was to begin in a runtime that is being left: it takes none any more."""

    def __init__(self, function: str, home: Path | str) -> None:
        self.function = function
        self.home: str = str(home)
        super().__init__(
            f"{function!r} was called outside of any run while the runtime on {self.home!r} is stopping; "
            f"what is to run during a shutdown belongs before the end of its `async with` block"
        )


class SeveralRuntimesError(AsyncflowError, RuntimeError):
    """Several runtimes are open where a run begins, and nothing says which of them it belongs to."""

    def __init__(self, homes: Sequence[Path | str]) -> None:
        self.homes: tuple[str, ...] = tuple(map(str, homes))
        listed = " and ".join(map(repr, self.homes))
        super().__init__(
            f"{len(self.homes)} runtimes are open here, on {listed}; say which one is meant:\n"
            f"    with runtime.as_current():\n"
            f"        ...  # call the flow here"
        )


class SettingsFileError(AsyncflowError, ValueError):
    """A `pyproject.toml` that may hold settings cannot be read."""

    def __init__(self, path: Path | str, reason: object) -> None:
        self.path: str = str(path)
        self.reason: str = str(reason)
        super().__init__(f"the settings in {self.path!r} cannot be read: {self.reason}")


class LimitConflictError(AsyncflowError, ValueError):
    """A named limit was asked for with another value while somebody uses it."""

    def __init__(self, kind: str, name: str, *, in_use: float, asked: float) -> None:
        self.kind = kind
        self.name = name
        self.in_use = in_use
        self.asked = asked
        super().__init__(
            f"{kind}({name!r}, {asked!r}) was asked for while {kind}({name!r}, {in_use!r}) is in use; a name "
            f"stands for one limit in the whole runtime: give the same value everywhere, or use another name"
        )


class LimitDeadlockError(AsyncflowError, RuntimeError):
    """A concurrency limit was asked for inside of blocks that hold it already: it could never be had."""

    def __init__(self, name: str, limit: int, *, asked: int, held: int, holders: Sequence[str]) -> None:
        self.name = name
        self.limit = limit
        self.asked = asked
        self.held = held
        self.holders: tuple[str, ...] = tuple(holders)
        super().__init__(
            f"{asked} of the {limit} slots of concurrency limit {name!r} asked for inside of a block of "
            f"{_listed(self.holders)} that holds {held} of them until this ends, so both would wait for ever; "
            f"leave the outer block first, or use a higher limit or another name for one of them"
        )


class LimitTimeoutError(AsyncflowError, TimeoutError):
    """A concurrency or rate limit could not be had within `timeout_seconds`.

    ``holders`` are those who held a concurrency limit then; ``waiting`` is how many others stood in line.
    """

    def __init__(
        self, limit: str, name: str, *, asked: int, seconds: float, waiting: int, holders: Sequence[str] = ()
    ) -> None:
        self.limit = limit
        self.name = name
        self.asked = asked
        self.seconds = seconds
        self.waiting = waiting
        self.holders: tuple[str, ...] = tuple(holders)
        held = f"; held by {_listed(self.holders)}" if self.holders else ""
        super().__init__(
            f"{limit} could not be had within {seconds:g} seconds (asked for {asked}; {waiting} others wait{held})"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
