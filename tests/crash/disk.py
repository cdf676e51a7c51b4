"""A disk that notes every write and sync of SQLite's, and what a power cut would have left of them.

`NotingVFS` hands everything on to the real file system. From its notes `power_cuts` makes
the files as they might be found when the power had gone after the first n of them: what was synced
is there; of what was written since, any part is, in sectors of 512 bytes, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apsw

from asyncflow.stores._database import Database

__all__ = ["DATABASE", "Note", "NotedDatabase", "NotingVFS", "power_cuts"]

DATABASE = "asyncflow.db"
SECTOR = 512


class Note(NamedTuple):
    """One thing that happened."""

    what: Literal["write", "truncate", "sync", "delete", "acknowledge"]
    file: str
    at: int = 0
    """Offset of a write, size after a truncation, how much is acknowledged."""
    data: bytes = b""


class NotingVFS(apsw.VFS):
    """The file system, with notes."""

    def __init__(self, name: str) -> None:
        super().__init__(name, base="")
        self.name = name
        self.notes: list[Note] = []

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _NotingFile(self.notes, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.notes.append(Note("delete", Path(filename).name))


class _NotingFile(apsw.VFSFile):
    def __init__(self, notes: list[Note], name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._notes = notes if path else []  # nobody looks for a temporary file after a power cut
        self._file = Path(path or "").name

    def xWrite(self, data: Any, offset: int) -> None:
        super().xWrite(data, offset)
        self._notes.append(Note("write", self._file, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._notes.append(Note("truncate", self._file, newsize))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._notes.append(Note("sync", self._file))


@dataclass(slots=True)
class _Cursor:
    """What the store uses of a cursor."""

    _apsw: apsw.Cursor
    rowcount: int
    lastrowid: int

    def fetchone(self) -> Any:
        return self._apsw.fetchone()

    def fetchall(self) -> list[Any]:
        return self._apsw.fetchall()


class _Connection:
    """What the store uses of a connection, with apsw below it."""

    def __init__(self, path: Path, vfs: str) -> None:
        self._apsw = apsw.Connection(str(path), vfs=vfs)
        # There is no shared memory in a VFS written in Python; a connection that is alone needs none.
        self._apsw.execute("PRAGMA locking_mode = EXCLUSIVE")

    def execute(self, sql: str, values: Sequence[Any] = ()) -> _Cursor:
        cursor = self._apsw.execute(sql, values)
        return _Cursor(cursor, self._apsw.changes(), self._apsw.last_insert_rowid())

    @property
    def in_transaction(self) -> bool:
        return self._apsw.in_transaction

    def close(self) -> None:
        self._apsw.close()


class NotedDatabase(Database):
    """The store's own database, opened, prepared and written by its own code, on a `NotingVFS`."""

    def __init__(self, home: Path, vfs: str, synchronous: Literal["full", "normal"]) -> None:
        self._vfs = vfs
        super().__init__(home, synchronous=synchronous, busy_seconds=1)

    def _connect(self, busy_seconds: float) -> Any:
        return _Connection(self.path, self._vfs)


def _always() -> bool:
    return True


@dataclass(slots=True)
class _File:
    """A file as the disk has it, and what has not been synced yet."""

    durable: bytearray = field(default_factory=bytearray)
    exists: bool = False
    pending: list[Note] = field(default_factory=list[Note])

    def sync(self) -> None:
        for note in self.pending:
            self._apply(note, _always)
        self.pending.clear()

    def cut(self, chance: random.Random) -> bytes | None:
        """Its content after a power cut; None when it is not there."""
        if not self.exists and chance.random() < 0.5:
            return None
        kept = chance.choice((0.0, 1.0, chance.random()))
        found = _File(bytearray(self.durable))
        for note in self.pending:
            found._apply(note, lambda: chance.random() < kept)
        return bytes(found.durable)

    def _apply(self, note: Note, keeps: Callable[[], bool]) -> None:
        if note.what == "truncate":
            if keeps():
                del self.durable[note.at :]
                self.durable.extend(bytes(note.at - len(self.durable)))
            return
        for start in range(0, len(note.data), SECTOR):
            if keeps():
                sector = note.data[start : start + SECTOR]
                begin = note.at + start
                self.durable.extend(bytes(max(0, begin - len(self.durable))))
                self.durable[begin : begin + len(sector)] = sector


class _Disk:
    """The files of one folder."""

    def __init__(self) -> None:
        self.files = {DATABASE: _File()}  # the store makes it, empty, before SQLite comes
        self.deleted: dict[str, _File] = {}
        """Whose deletion is not durable yet: they may come back."""

    def take(self, note: Note) -> None:
        if note.what == "delete":
            file = self.files.pop(note.file, None)
            if file is not None and file.exists:
                self.deleted[note.file] = file
            return
        file = self.files.setdefault(note.file, _File())
        if note.what != "sync":
            file.pending.append(note)
            return
        if not file.exists and note.file != DATABASE:
            # SQLite syncs the folder with the first sync of each new journal or log.
            self.deleted.clear()
            self.files[DATABASE].exists = True
        file.exists = file.exists or note.file != DATABASE
        file.sync()

    def cut(self, chance: random.Random) -> dict[str, bytes]:
        came_back = {name: file for name, file in self.deleted.items() if chance.random() < 0.5}
        contents = {name: file.cut(chance) for name, file in (came_back | self.files).items()}
        return {name: content for name, content in contents.items() if content is not None}


def power_cuts(
    notes: Sequence[Note], points: Iterable[int], chance: random.Random, *, disk_lies: bool = False
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """For each of `points`, in order: how much was acknowledged when so many `notes` were made, and the files
    that may be found if the power went then.

    `disk_lies`: it says that it has synced, and has not.
    """
    disk = _Disk()
    done = acknowledged = 0
    for point in sorted(points):
        for note in notes[done:point]:
            if note.what == "acknowledge":
                acknowledged = note.at
            elif note.what != "sync" or not disk_lies:
                disk.take(note)
        done = point
        yield acknowledged, disk.cut(chance)
