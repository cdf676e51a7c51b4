"""Results as files that open without asyncflow, beside the rows that hold the truth.

Under the home, in `results/<id of the outermost run>/`:

- `result.json`: that run's own value, whole or not at all (a temporary file, renamed);
- `tasks.jsonl`: one line of JSON for each run below it that ended;
- `<run id>.json`: a value over 64 KiB.

A value over 64 KiB is nowhere but in its file, so the file is brought to disk before the row that
cites it is committed, and a failure is a `StoreError`: the row waits. Every other value is in its
row as well. What cannot be written of those is reported once and left out, because a convenience
must not keep the record from disk; nor are they synced, because a sync per run costs more than
the run. They follow the commit, in the same turn of the writing thread: two new inodes for each
outermost run take longer than everything else about it, and nobody waits for them. So a process
that is killed in between leaves rows without their copies, and never a copy without its row.

Beside a busy event loop each system call waits for the GIL, so nothing is asked twice: a folder
that was made is remembered, and the lines of a batch that go to one file are one write.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from asyncflow._rows import FIRST_FINAL, FLOW, STAND_IN, STATE_CODES, STATE_TYPES, RunRow, storable
from asyncflow.abc import ResultStore
from asyncflow.exceptions import MissingResultError, StoreError
from asyncflow.states import StateType

__all__ = ["FileResults"]

MOST_IN_ROW = 64 * 1024
"""Bytes of JSON up to which a value travels in its row."""

_FOLDER = "results"
_MOST_KNOWN_FOLDERS = 256
_COMPLETED = STATE_CODES[StateType.COMPLETED]
_STATES = [type_.value for type_ in STATE_TYPES]
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class FileResults(ResultStore):
    """The results under the folder `home`. One thread at a time writes; any may read."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._folder = self._home / _FOLDER
        self._known: dict[bytes, str] = {}  # folders there are, the latest last
        self._reported = False

    def write(self, batch: Sequence[tuple[bytes, RunRow]]) -> list[RunRow]:
        """As the port says."""
        return self._write_large(batch)

    def publish(self, batch: Sequence[tuple[bytes, RunRow]]) -> None:
        """As the port says."""
        lines: dict[bytes, bytearray] = {}  # not lists of lines: orjson's bytes keep a buffer of 4 KiB each
        for root, row in batch:
            if row.id == root:
                if row.result is not None and row.state == _COMPLETED:
                    self._write_small(root, row.result)
            elif row.state >= FIRST_FINAL and row.kind != STAND_IN:
                lines.setdefault(root, bytearray()).extend(_line(row))
        for root, of_root in lines.items():
            self._append(root, bytes(of_root))

    async def read(self, row: RunRow, read_file: Callable[[Path], Awaitable[bytes]]) -> str | None:
        """As the port says."""
        if row.result_file is None:
            return row.result
        cited: dict[str, Any] = orjson.loads(row.result_file)
        inside = PurePosixPath(cited["path"])
        path = self._home / inside
        if inside.is_absolute() or ".." in inside.parts or inside.parts[:1] != (_FOLDER,):
            raise StoreError("reading a result", path, "its row leads out of the folder of results")
        try:
            data = await read_file(path)
        except FileNotFoundError:
            raise MissingResultError(_text_id(row.id), f"its file {str(path)!r} is gone") from None
        except OSError as error:
            raise StoreError("reading a result", path, error.strerror or error) from error
        if len(data) != cited["size"] or _sha256(data) != cited["sha256"]:
            raise StoreError("reading a result", path, "the file is not what was written (its checksum differs)")
        return data.decode()

    # --- files a row cites -------------------------------------------------------------------

    def _write_large(self, batch: Sequence[tuple[bytes, RunRow]]) -> list[RunRow]:
        """The rows of `batch`; those with a large value cite the file it has been written to."""
        rows: list[RunRow] = []
        folders: set[bytes] = set()
        for root, row in batch:
            data = None if row.result is None else _if_large(row.result)
            if data is None:
                rows.append(row)
                continue
            name = "result.json" if row.id == root else f"{_text_id(row.id)}.json"
            self._durably(root, partial(_replace, name=name, data=data, sync=True))
            folders.add(root)
            cited = {"path": f"{_FOLDER}/{_text_id(root)}/{name}", "sha256": _sha256(data), "size": len(data)}
            rows.append(row._replace(result=None, result_file=orjson.dumps(cited).decode()))
        for root in folders:
            self._durably(root, _sync_folder)
        if folders:  # a folder that is new is an entry in this one
            self._durably(next(iter(folders)), lambda folder: _sync_folder(str(self._folder)))
        return rows

    def _durably(self, root: bytes, act: Callable[[str], None]) -> None:
        try:
            self._in_folder(root, act)
        except OSError as error:
            raise StoreError("writing a result", error.filename or self._folder, error.strerror or error) from error

    # --- files that repeat what rows hold ----------------------------------------------------

    def _write_small(self, root: bytes, result: str) -> None:
        self._if_possible(root, partial(_replace, name="result.json", data=_bytes(result), sync=False))

    def _append(self, root: bytes, data: bytes) -> None:
        self._if_possible(root, lambda folder: _append(f"{folder}/tasks.jsonl", data))

    def _if_possible(self, root: bytes, act: Callable[[str], None]) -> None:
        try:
            self._in_folder(root, act)
        except OSError as error:
            if not self._reported:
                self._reported = True
                _report(
                    f"results under {str(self._folder)!r} are incomplete from now on ({error}); "
                    f"nothing is lost, `asyncflow doctor` writes them again from the database"
                )

    # --- folders -----------------------------------------------------------------------------

    def _in_folder(self, root: bytes, act: Callable[[str], None]) -> None:
        """Do `act` with the folder of `root`, made if need be."""
        folder = self._known.get(root)
        if folder is not None:
            try:
                return act(folder)
            except FileNotFoundError:  # somebody tidied up
                del self._known[root]
        return act(self._make_folder(root))

    def _make_folder(self, root: bytes) -> str:
        folder = f"{self._folder}/{_text_id(root)}"
        try:
            _make_folder(folder)
        except FileNotFoundError:
            _make_folder(str(self._folder))
            _make_folder(folder)
        if len(self._known) >= _MOST_KNOWN_FOLDERS:
            del self._known[next(iter(self._known))]
        self._known[root] = folder
        return folder


def _line(row: RunRow) -> bytes:
    try:
        return _line_of(row)
    except (TypeError, ValueError):
        # Text that is not Unicode, or JSON that is none. The row has it; the line does without.
        bare = row._replace(result=None, result_file=None, error=None, details=None)
        return _line_of(RunRow._make(map(storable, bare)))


@lru_cache(1024)
def _beginning(kind: int, function: str) -> str:
    return f'","{"flow" if kind == FLOW else "task"}":{orjson.dumps(function).decode()},"state":"COMPLETED","result":'


def _one_line(result: str) -> str:
    # A line break in JSON is white space (in a text it is written \n), but here it ends the line.
    return result.replace("\n", " ") if "\n" in result else result


def _line_of(row: RunRow) -> bytes:
    result = row.result
    if result is not None and row.state == _COMPLETED and not (row.name or row.state_name or row.details):
        # Nearly every line is such a one: put together here it takes a third of the time.
        return f'{{"id":"{_text_id(row.id)}{_beginning(row.kind, row.function)}{_one_line(result)}}}\n'.encode()
    line: dict[str, Any] = {"id": _text_id(row.id), "flow" if row.kind == FLOW else "task": row.function}
    if row.name is not None:
        line["name"] = row.name
    line["state"] = _STATES[row.state]
    if row.state_name is not None:
        line["state_name"] = row.state_name
    if row.result_file is not None:
        line["result_file"] = orjson.Fragment(row.result_file)
    elif row.result is not None:
        line["result"] = orjson.Fragment(_one_line(row.result))
    elif row.error is not None:
        error = orjson.loads(row.error)
        line["error"] = {"type": error.get("type"), "message": error.get("message")}
    elif row.state != _COMPLETED and row.message is not None:
        line["message"] = row.message
    if row.details is not None and (reason := orjson.loads(row.details).get("not_kept")):
        line["not_kept"] = reason
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _text_id(value: bytes) -> str:
    # `str(UUID(...))` costs as much as the rest of a line.
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _if_large(result: str) -> bytes | None:
    """The value's bytes when they are too many for a row."""
    if len(result) <= MOST_IN_ROW // 4 or (result.isascii() and len(result) <= MOST_IN_ROW):
        return None
    data = _bytes(result)
    return data if len(data) > MOST_IN_ROW else None


def _bytes(text: str) -> bytes:
    # Half a surrogate pair becomes its escape, which inside of JSON means just that.
    return text.encode("utf-8", "backslashreplace")


def _replace(folder: str, name: str, data: bytes, *, sync: bool) -> None:
    """Put a file in place whole: whoever opens it sees the old one, the new one, or none."""
    temporary = f"{folder}/.{name}.tmp"
    try:
        descriptor = os.open(temporary, _NEW, 0o600)
    except FileExistsError:  # of a process that was killed here; only one process ever writes a run
        os.unlink(temporary)  # noqa: PTH108
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


def _append(path: str, data: bytes) -> None:
    descriptor = os.open(path, _APPEND, 0o600)
    try:
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


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _report(message: str) -> None:
    import logging

    logging.getLogger("asyncflow").warning(message)
