"""Where the values live that a row only cites: large ones, and cached ones.

The folder of the home is one adapter of the port `Storage`, and the one there is by default. It
also writes the copies for people, which are files whatever the storage is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

__all__ = ["RESULTS", "DictStorage", "FolderStorage", "Storage", "is_inside"]

RESULTS = "results"
_MOST_KNOWN_FOLDERS = 256
_LONGEST_LINE = 128 * 1024
"""Bytes. A line holds a value of at most 64 KiB, and a little more."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Storage(Protocol):
    """Keeps data under paths such as `results/<outermost run id>/<run id>.json`.

    Its methods block; they are called in the store's writing thread and in worker threads, several
    at a time, never on an event loop. Whatever they raise becomes a `StoreError`.
    """

    @property
    def name(self) -> str:
        """Stands in every row that cites it, and tells whoever lacks it what is missing."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Keep `data` in place of what was there. When it returns, a power cut does not lose it."""
        ...

    def read(self, path: str) -> bytes:
        """What was written; raises `FileNotFoundError` when there is nothing."""
        ...

    def delete(self, path: str) -> None:
        """Delete what is under `path`, and everything below it; that there is nothing is no error."""
        ...


class DictStorage:
    """A storage in a dict: for tests, and as an example of one."""

    def __init__(self, name: str = "dict") -> None:
        self.name = name
        self.data: dict[str, bytes] = {}

    def write(self, path: str, data: bytes) -> None:
        """As the port says, except that it lasts as long as the object."""
        self.data[path] = data

    def read(self, path: str) -> bytes:
        """As the port says."""
        try:
            return self.data[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def delete(self, path: str) -> None:
        """As the port says."""
        for each in [each for each in list(self.data) if each == path or each.startswith(f"{path}/")]:
            self.data.pop(each, None)


def is_inside(path: str) -> bool:
    """Whether `path`, as a row has it, stays inside of the folder of results."""
    inside = PurePosixPath(path)
    return not inside.is_absolute() and ".." not in inside.parts and inside.parts[:1] == (RESULTS,)


class FolderStorage:
    """Files below `home`, readable for their owner only. One thread at a time writes; any may read.

    Beside a busy event loop each system call waits for the GIL, so nothing is asked twice: a folder
    that was made is remembered.
    """

    name = "folder"

    def __init__(self, home: Path) -> None:
        self._home = str(home.absolute())
        self._known: dict[str, bool] = {}  # folders there are, the latest last; whether their entries are on disk
        # Of our own: another process may be writing the same cached value.
        self._suffix = f".{os.urandom(4).hex()}.tmp"

    def write(self, path: str, data: bytes) -> None:
        """As the port says: whole or not at all, whenever the process is killed or the power goes."""
        folder, _, name = path.rpartition("/")
        self._in_folder(folder, lambda where: self._replace(where, name, data, sync=True))
        self._sync(folder)

    def read(self, path: str) -> bytes:
        """As the port says."""
        with os.fdopen(os.open(self._inside(path), _READ), "rb") as file:
            return file.read()

    def delete(self, path: str) -> None:
        """As the port says. No symbolic link is followed, on the way or inside; one is itself deleted."""
        import shutil

        self._inside(path)
        *above, last = PurePosixPath(path).parts
        self._known.pop(path, None)
        descriptor = os.open(self._home, _FOLDER & ~os.O_NOFOLLOW)  # the home itself may be a link
        try:
            for name in above:
                outer = descriptor
                descriptor = os.open(name, _FOLDER, dir_fd=outer)
                os.close(outer)
            try:
                os.unlink(last, dir_fd=descriptor)
            except (IsADirectoryError, PermissionError):  # macOS says the latter of a folder
                shutil.rmtree(last, dir_fd=descriptor)
        except FileNotFoundError:
            pass
        finally:
            os.close(descriptor)

    # --- copies for people -------------------------------------------------------------------

    def replace(self, path: str, data: bytes) -> None:
        """Put a file in place whole, without waiting for the disk."""
        folder, _, name = path.rpartition("/")
        self._in_folder(folder, lambda where: self._replace(where, name, data, sync=False))

    def append(self, path: str, data: bytes) -> None:
        """Add lines to a file: all of them or none, unless the process is killed."""
        folder, _, name = path.rpartition("/")
        is_known = folder in self._known
        self._in_folder(folder, lambda where: _append(f"{where}/{name}", data, may_be_torn=not is_known))

    # --- folders -----------------------------------------------------------------------------

    def _inside(self, path: str) -> str:
        if not is_inside(path) or path == RESULTS:
            raise PermissionError(f"{path!r} is not inside of the folder {RESULTS!r}")
        return f"{self._home}/{path}"

    def _in_folder(self, folder: str, act: Callable[[str], None]) -> None:
        """Do `act` with `folder`, made if need be."""
        where = f"{self._home}/{folder}"
        if folder in self._known:
            try:
                return act(where)
            except FileNotFoundError:  # somebody tidied up
                self._known.pop(folder, None)
        try:
            _make_folder(where)
        except FileNotFoundError:
            _make_folder(f"{self._home}/{RESULTS}")
            _make_folder(where)
        if len(self._known) >= _MOST_KNOWN_FOLDERS:
            self._known.pop(next(iter(self._known)), None)  # another thread may be deleting
        self._known[folder] = False
        return act(where)

    def _sync(self, folder: str) -> None:
        """Bring the entries of `folder` to disk; once, also its own in the folders around it."""
        _sync_folder(f"{self._home}/{folder}")
        if not self._known.get(folder):
            _sync_folder(f"{self._home}/{RESULTS}")
            _sync_folder(self._home)
            self._known[folder] = True

    def _replace(self, folder: str, name: str, data: bytes, *, sync: bool) -> None:
        """Put a file in place whole: whoever opens it sees the old one, the new one, or none."""
        temporary = f"{folder}/.{name}{self._suffix}"
        descriptor = os.open(temporary, _NEW, 0o600)
        try:
            try:
                _write_all(descriptor, data)
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, f"{folder}/{name}")  # noqa: PTH104  # a Path costs more than the call
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise


def _append(path: str, data: bytes, *, may_be_torn: bool) -> None:
    descriptor = os.open(path, _APPEND, 0o600)
    try:
        if may_be_torn:
            _cut_half_a_line(descriptor)
        written = os.write(descriptor, data)
        if written < len(data):
            start = os.lseek(descriptor, 0, os.SEEK_CUR) - written
            try:
                _write_all(descriptor, data[written:])
            except OSError:
                os.ftruncate(descriptor, start)  # half a line would spoil the next one as well
                raise
    finally:
        os.close(descriptor)


def _cut_half_a_line(descriptor: int) -> None:
    """Cut what a process that was killed in the middle of a line left of it: the next line would be glued to it."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - _LONGEST_LINE)
    tail = os.pread(descriptor, _LONGEST_LINE, start) if size else b"\n"
    if not tail.endswith(b"\n"):
        os.ftruncate(descriptor, start + tail.rfind(b"\n") + 1)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _make_folder(folder: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)  # noqa: PTH102


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
