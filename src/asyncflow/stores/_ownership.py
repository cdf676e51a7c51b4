"""Who writes what: each opened store has a number, a row in the table `process`, and a lock file.

The lock lasts exactly as long as its process, so a dead owner is proven at once, and one that is
stopped, busy or slow, or whose clock is wrong, is never mistaken for dead. What else could be
asked proves less: a process id is used again, and in another container it is another process's.
It is asked only when the file itself is gone, and then an owner is dead only if this machine can tell.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from asyncflow.ids import new_id
from asyncflow.stores._locks import can_be_locked, close, make_locked

__all__ = ["Ownership", "Process"]

_NAME = re.compile(r"[0-9a-f]{32}\.(lock|new)")
_BEING_MADE = 60.0
"""Seconds after which a file that has no name yet was left by a process that died over it."""
_STATE, _START_TIME = 0, 19
"""Fields of /proc/<pid>/stat, counted from after the name."""


class Process(NamedTuple):
    """A row of the table `process`."""

    id: int
    """The owner's number."""
    lock: str
    """Name of its lock file."""
    pid: int
    host: str
    boot: str | None
    """Which start of which machine, and which table of process ids: see `_boot`."""
    born: int | None
    """When the process began, in ticks since the machine did."""

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


class Ownership:
    """One opened store's proof that it lives, in the folder of lock files. Raises `OSError` when it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lock = f"{new_id().hex()}.lock"
        self._path = self._folder / self.lock
        self._guard = Lock()
        self._descriptor: int | None = make_locked(self._path)

    def process(self) -> Process:
        """This process, as others are to know it; without a number yet."""
        pid = os.getpid()
        return Process(0, self.lock, pid, os.uname().nodename, _boot(), _born(pid))

    def keep(self) -> None:
        """Make the lock file again when somebody has removed it: cleaners of old files do such a thing."""
        with self._guard:
            if self._descriptor is None or self._is_in_place(self._descriptor):
                return
            self._folder.mkdir(mode=0o700, exist_ok=True)
            former, self._descriptor = self._descriptor, make_locked(self._path)
            close(former)

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(descriptor))

    def is_dead(self, process: Process) -> bool:
        """Whether the process can be proven not to live any more."""
        try:
            return can_be_locked(self._folder / Path(process.lock).name)
        except FileNotFoundError:
            return _is_gone(process)

    def remove(self, process: Process) -> None:
        """Remove the lock file of a dead owner that has no row any more."""
        if self.is_dead(process):
            with suppress(OSError):
                (self._folder / Path(process.lock).name).unlink()

    def sweep(self, known: Iterable[Process]) -> None:
        """Remove lock files of processes that died before they had a row, or after it was deleted."""
        names = {process.lock for process in known}
        with suppress(OSError):
            for name in os.listdir(self._folder):  # noqa: PTH208  # names are all that is asked for
                path = self._folder / name
                with suppress(OSError):
                    if name not in names and _NAME.fullmatch(name) and _is_left(path) and can_be_locked(path):
                        path.unlink()

    def release(self, *, remove: bool) -> None:
        """Give the lock back: from now on the store counts as dead. The file stays when others are to find out."""
        with self._guard:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if remove and self._is_in_place(descriptor):
            with suppress(OSError):
                self._path.unlink()
        close(descriptor)

    def forget(self) -> None:
        """In a forked child, where the descriptor has been closed."""
        self._guard = Lock()
        self._descriptor = None


def _is_left(path: Path) -> bool:
    return path.suffix == ".lock" or abs(time.time() - path.stat().st_mtime) > _BEING_MADE


def _is_gone(process: Process) -> bool:
    """Whether a process without a lock file has certainly ended."""
    here = _boot()
    if process.boot is None or here is None:
        return process.host == os.uname().nodename and not _exists(process.pid)
    machine, table = process.boot.split(" ", 1)
    my_machine, my_table = here.split(" ", 1)
    if machine != my_machine:  # a database in WAL mode is used by one running machine at a time
        return True
    # In another table (a container's) the number says nothing.
    return table == my_table and (_born(process.pid) is None or _born(process.pid) != process.born)


@cache
def _boot() -> str | None:
    """Which start of which machine, and which table of process ids; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return None


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None when it has ended, or nobody tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[_STATE] in "ZX" else int(fields[_START_TIME])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
