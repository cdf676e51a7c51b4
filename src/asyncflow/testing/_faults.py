"""What a disk does wrong, and when: the plan of a `FaultyStore`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from asyncflow.exceptions import OptionError

__all__ = ["Fault", "FaultPlan", "Kind"]


class Kind(Enum):
    """What goes wrong."""

    FAIL = "fail"
    BUSY = "busy"
    DELAY = "delay"
    LOSE = "lose"
    CRASH = "crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong with a store; made by `Fault.fail`, `.busy`, `.delay`, `.lose`, `.crash`.

    All of them take:

    - `operation`: the name of a method of `RunStore`, with `*` for any characters: `"put"` (a run is
      recorded), `"put_*"`, `"confirm"` (somebody waits for the disk), `"read_*"`, `"write_*"`, `"*"`;
    - `after`: how many such operations pass before the first that goes wrong;
    - `times`: how many go wrong then; None for all of them, until `FaultyStore.repair`. A write that
      fails is tried again, and each try is an operation;
    - `chance`: how likely each of them goes wrong, by the seed of the store.
    """

    kind: Kind
    operation: str
    after: int = 0
    times: int | None = 1
    chance: float = 1.0
    reason: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.after < 0:
            raise OptionError("after", self.after, "a number of operations, from 0")
        if self.times is not None and self.times < 1:
            raise OptionError("times", self.times, "a number of operations, from 1, or None for all")
        if not 0 <= self.chance <= 1:
            raise OptionError("chance", self.chance, "a number from 0 to 1")

    @classmethod
    def fail(cls, operation: str = "put", *, reason: str = "No space left on device", **when: Any) -> Fault:
        """A write that waits until it can be done, as on a full disk; a read that raises `StoreError`."""
        return cls(kind=Kind.FAIL, operation=operation, reason=reason, **when)

    @classmethod
    def busy(cls, operation: str = "put", **when: Any) -> Fault:
        """The same, as when another process holds the database: a read raises `StoreBusyError`."""
        return cls(kind=Kind.BUSY, operation=operation, reason="database is locked", **when)

    @classmethod
    def delay(cls, seconds: float | timedelta, operation: str = "confirm", **when: Any) -> Fault:
        """One that takes so long, by the store's clock; writes after it wait for it."""
        length = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        return cls(kind=Kind.DELAY, operation=operation, reason="the disk is slow", seconds=length, **when)

    @classmethod
    def lose(cls, operation: str = "confirm", **when: Any) -> Fault:
        """What never comes: of `confirm`, the word that all is on disk (which it is); of a write, the record."""
        return cls(kind=Kind.LOSE, operation=operation, **when)

    @classmethod
    def crash(cls, operation: str = "put", **when: Any) -> Fault:
        """The end of the process, as the store sees it: it and all that comes later is lost. See `restarted`."""
        return cls(kind=Kind.CRASH, operation=operation, reason="the process has crashed", **when)


@dataclass(slots=True)
class _Armed:
    fault: Fault
    after: int
    times: int | None


class FaultPlan:
    """Says of each operation, in the order they come, what goes wrong with it."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._armed = [_Armed(fault, fault.after, fault.times) for fault in faults]
        self._random = random.Random(seed)

    def of(self, operation: str) -> Fault | None:
        """What goes wrong with this one; the first of the faults that fits."""
        found: Fault | None = None
        for each in self._armed:
            if each.times == 0 or not fnmatchcase(operation, each.fault.operation):
                continue
            if each.after:
                each.after -= 1
            elif found is None and self._random.random() < each.fault.chance:
                found = each.fault
                if each.times is not None:
                    each.times -= 1
        return found

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._armed.clear()
