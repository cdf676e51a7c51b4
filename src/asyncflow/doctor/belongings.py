"""What else is in a home: permissions, and lock files of processes that died."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from asyncflow.doctor.records import Owner
from asyncflow.doctor.report import Report, counted
from asyncflow.results.storage import RESULTS
from asyncflow.stores._locks import can_be_locked

__all__ = ["check_locks", "check_permissions"]

LOCKS = "locks"
_LIVE = "live"
_DATABASE = ("asyncflow.db", "asyncflow.db-wal", "asyncflow.db-shm")
_LOCK = re.compile(r"([0-9a-f]{32}|key-[0-9a-f]{64})\.(lock|new)")
_BEING_MADE_SECONDS = 60


def check_permissions(report: Report, home: Path, *, repair: bool) -> None:
    """Find what others may read or write. A home that holds other people's things as well keeps its mode."""
    wide: list[tuple[Path, int]] = []
    for path in _belongings(home):
        with suppress(OSError):
            found = path.lstat()
            mode = stat.S_IMODE(found.st_mode)
            if mode & 0o077 and not stat.S_ISLNK(found.st_mode):
                wide.append((path, mode))
    if not wide:
        return
    what = f"{counted(len(wide), 'file or folder', 'files and folders')} that others than the owner have rights to"
    examples = [f"{path.relative_to(home).as_posix()} ({mode:o})" for path, mode in wide]
    if not repair:
        report.add("permissions", what, "`asyncflow doctor --repair` takes them away", examples)
        return
    try:
        for path, mode in wide:
            os.chmod(path, mode & 0o700)  # noqa: PTH101
    except OSError as error:
        report.add("permissions", f"{what}; changing that failed: {error}", None, examples)
    else:
        report.add("permissions", f"{what}: taken away", examples=examples, level="repaired")


def _belongings(home: Path) -> Iterator[Path]:
    """Every file and folder of ours, without following links."""
    names = {path.name for path in home.iterdir()}
    if names <= {*_DATABASE, RESULTS, LOCKS, _LIVE}:
        yield home
    yield from (home / name for name in _DATABASE if name in names)
    for top in (RESULTS, LOCKS, _LIVE):
        if top in names:
            yield home / top
        for folder, folders, files in os.walk(home / top, followlinks=False):
            yield from (Path(folder) / name for name in (*folders, *files))


def check_locks(report: Report, home: Path, living: Iterable[Owner], *, repair: bool) -> None:
    """Find the lock files of processes that died. They do no harm, and whoever opens the home removes them too."""
    in_use = {owner.lock for owner in living}
    dead = [path for path in _lock_files(home) if path.name not in in_use and _is_left(path)]
    if not dead:
        return
    what = f"{counted(len(dead), 'lock file')} of processes that have died"
    if repair:
        for path in dead:
            with suppress(OSError):
                _remove(path)
        report.add("dead-lock", f"{what}: deleted", examples=[path.name for path in dead], level="repaired")
    else:
        remedy = "harmless; the next run here removes them, or `asyncflow doctor --repair`"
        report.note("dead-lock", what, remedy, [path.name for path in dead])


def _lock_files(home: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in (home / LOCKS).iterdir() if _LOCK.fullmatch(path.name)]
    return []


def _is_left(path: Path) -> bool:
    try:  # one without its row yet belongs to a process that is just starting
        return time.time() - path.lstat().st_mtime > _BEING_MADE_SECONDS and can_be_locked(path)
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove a lock file while holding its lock: who waits for it sees then that it has gone."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.lstat(), os.fstat(descriptor)):
            path.unlink()
    finally:
        os.close(descriptor)
