"""The database file: finding it, making it, opening connections to it, and what its errors mean.

Connections are in autocommit mode: a transaction is `BEGIN IMMEDIATE` or one statement, because a
deferred one that reads first and writes later fails at once when somebody else wrote in between,
however long its busy timeout.

No file of the database is ever opened except by SQLite: closing any descriptor of a file drops
all locks this process holds on it, those of another open runtime included.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

from asyncflow.exceptions import HomeError, StoreBusyError, StoreError, UnsupportedSchemaError
from asyncflow.stores._forking import SQLITE
from asyncflow.stores._queries import number
from asyncflow.stores._schema import APPLICATION_ID, VERSION, migrate

if TYPE_CHECKING:
    import sqlite3

__all__ = ["LOCKS", "Database", "transaction"]

LOCKS = "locks"
"""The folder of the lock files."""
WRITER_BUSY_MS = 40
"""How long SQLite waits for the write lock before the writer asks again. It looks less and less
often, so among many writers one that has waited long would lose to those that come anew."""
_NAME = "asyncflow.db"
_OPENING_SECONDS = 10.0
"""How long opening waits for other processes that open the same file, or write to it."""
_INCREMENTAL = 2
"""`PRAGMA auto_vacuum`: free pages are given back when asked."""
_SMALLEST = 512
"""Bytes of the smallest page a database can have."""

_creating = Lock()


def _reset() -> None:
    global _creating  # another thread of the parent may have held it
    _creating = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


class Database:
    """The file `asyncflow.db` in the folder `home`, made if need be.

    Raises `HomeError` when the folder or the file cannot be used, `UnsupportedSchemaError` when a
    newer asyncflow wrote it, `StoreBusyError` when another process holds it for long.
    """

    def __init__(self, home: Path, *, synchronous: Literal["full", "normal"], busy_seconds: float) -> None:
        self.home = home.absolute()
        self.path = self.home / _NAME
        self._synchronous = synchronous
        self.busy_seconds = busy_seconds
        """How long somebody waits for a lock before it counts as held for long."""
        self.checkpoint_lock = self.home / LOCKS / "checkpoint"
        """Held by whichever process copies the log into the file."""
        _make_private_folder(self.home)
        _make_private_folder(self.home / LOCKS)
        _make_private_file(self.path)
        with self.mapped("opening the database", HomeError):
            self._identity = _identity(self.path)
            if 0 < self.path.stat().st_size < _SMALLEST:
                # SQLite would take it for an empty one and write over it.
                raise HomeError("opening the database", self.path, "the file is damaged or not a database")

    def open_writer(self) -> sqlite3.Connection:
        """The connection that writes, its schema up to date; used by one thread at a time."""
        with SQLITE, self.mapped("opening the database", HomeError):
            connection = self._connect(_OPENING_SECONDS)
            try:
                self._prepare(connection)
                connection.execute("PRAGMA wal_autocheckpoint = 0")  # see `_checkpoints`
                connection.execute(f"PRAGMA busy_timeout = {WRITER_BUSY_MS}")
            except BaseException:
                connection.close()
                raise
            return connection

    def open_reader(self) -> sqlite3.Connection:
        """A connection that cannot write, nor run checkpoints: see `_checkpoints`."""
        with self.mapped("opening the database"):
            connection = self._connect(self.busy_seconds)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            return connection

    def check_in_place(self) -> None:
        """Raise `HomeError` when the file was removed or replaced: SQLite would go on writing to the old one."""
        with self.mapped("writing", HomeError):
            found = _identity(self.path)
        if found != self._identity:
            raise HomeError("writing", self.path, "the file was replaced while it was in use")

    @contextmanager
    def mapped(self, operation: str, kind: type[StoreError] = StoreError) -> Generator[None]:
        """Turns SQLite's errors and the system's into a `StoreError`: `kind`, unless more can be told."""
        import sqlite3

        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(operation, error, kind) from error
        except OSError as error:
            raise kind(operation, error.filename or self.path, error.strerror or error) from error

    def _explained(self, operation: str, error: sqlite3.Error, kind: type[StoreError]) -> StoreError:
        import sqlite3

        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells variants apart
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            holder = _holder_of_write_lock(self.path)
            who = "another process" if holder is None else f"process {holder}"
            return StoreBusyError(
                operation, self.path, f"{who} has held the database's write lock for longer than we wait"
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return HomeError(operation, self.path, f"the file is damaged or not a database of asyncflow's ({error})")
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return HomeError(operation, self.path, error)
        return kind(operation, self.path, error)

    def _connect(self, busy_seconds: float) -> sqlite3.Connection:
        import sqlite3

        # mode=rw: a file that was removed must be missed, not made again, empty.
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._check_version(connection)
        if number(connection, "PRAGMA auto_vacuum") != _INCREMENTAL:
            # Must come before the first table; lets retention give space back. Setting it takes the write
            # lock even where it is set, and whoever opens a busy database would queue for nothing.
            connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        mode = _switch_to_wal(connection)
        if mode != "wal":
            raise HomeError("opening the database", self.path, f"no write-ahead log can be kept there (got {mode!r})")
        connection.execute("PRAGMA synchronous = " + {"full": "FULL", "normal": "NORMAL"}[self._synchronous])
        connection.execute("PRAGMA fullfsync = ON")  # macOS: its fsync alone does not reach the disk
        if self._check_version(connection) < VERSION:
            self._migrate(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            # Read again under the lock: another process may have been first.
            found = self._check_version(connection)
            if found < VERSION:
                migrate(connection, found)

    def _check_version(self, connection: sqlite3.Connection) -> int:
        """The schema's version, 0 for an empty file; refuses what is not ours or too new."""
        # In this order: another process may make the schema between two of these, in one commit, and
        # whoever saw a table or a version of it must then see whose it is.
        tables = number(connection, "SELECT count(*) FROM sqlite_master")
        found = number(connection, "PRAGMA user_version")
        application = number(connection, "PRAGMA application_id")
        if application != APPLICATION_ID and (application or found or tables):
            raise HomeError("opening the database", self.path, "the file is a database of another program's")
        if found > VERSION:
            raise UnsupportedSchemaError(self.path, found=found, supported=VERSION)
        return found


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """Holds the database's write lock; commits at the end, or rolls back."""
    if connection.in_transaction:  # a rollback of the last try failed
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back by itself, and a second time would be an error.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _switch_to_wal(connection: sqlite3.Connection) -> str:
    """Turn the write-ahead log on; gives the mode there is afterwards.

    SQLite does not wait here when another process does the same at this moment, so we do.
    """
    import sqlite3

    give_up_at = time.monotonic() + _OPENING_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return str(mode)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _make_private_folder(home: Path) -> None:
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            home.mkdir(mode=0o700)
            home.chmod(0o700)  # whatever the umask took away
            _sync(home.parent)
        mode = home.stat().st_mode
    except OSError as error:
        raise HomeError("opening the home folder", home, error.strerror or error) from error
    if not stat.S_ISDIR(mode):
        raise HomeError("opening the home folder", home, "it is not a folder")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise HomeError("opening the home folder", home, f"everybody can write to it (mode {mode & 0o7777:o})")


def _sync(folder: Path) -> None:
    """Bring a new entry in a folder to disk: the sync of a file in it does so on some file systems only."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_private_file(path: Path) -> None:
    """Make the database file with our permissions; SQLite gives those of the file to -wal and -shm.

    Closing the new file drops every lock on it, so no other thread may have got hold of it
    before: all come through here, and wait.
    """
    with _creating:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
            _sync(path.parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise HomeError("creating the database", path, error.strerror or error) from error


def _holder_of_write_lock(path: Path) -> int | None:
    """The process that holds the write lock, where the system tells (Linux).

    In WAL mode that lock is one on byte 120 of the -shm file.
    """
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[3] != "WRITE" or not fields[5].endswith(f":{inode}"):
            continue
        if int(fields[6]) <= 120 and (fields[7] == "EOF" or int(fields[7]) >= 120):
            return int(fields[4]) if int(fields[4]) > 0 else None
    return None
