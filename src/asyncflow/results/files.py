"""Results as files that open without asyncflow, beside the rows that hold the truth.

Under the home, in `results/<id of the outermost run>/`:

- `result.json`: that run's own value, whole or not at all (a temporary file, renamed);
- `tasks.jsonl`: one line of JSON for each run below it that ended;
- `<run id>.json`: a value over 64 KiB;

and in `results/cache/<SHA-256 of the key>.json`: a cached value.

A value over 64 KiB and a cached one are nowhere but in their file, so the file is brought to disk
before the row that cites it is committed, and a failure is a `StoreError`: the row waits. Every
other value is in its row as well. What cannot be written of those is reported once and left out,
because a convenience must not keep the record from disk; nor are they synced, because a sync per
run costs more than the run. They follow the commit, in the same turn of the writing thread: two new
inodes for each outermost run take longer than everything else about it, and nobody waits for them.
So a process that is killed in between leaves rows without their copies, and never a copy without
its row.

With a codec, a value is encoded here and nowhere else, before anything of it is written: the rows
that are committed and the copies made from them hold what the codec wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from asyncflow._rows import FIRST_FINAL, STAND_IN, STATE_CODES, CachedRow, RunRow
from asyncflow.abc import Reader, ResultStore
from asyncflow.codecs import Codec, seal, sealed_by, unseal
from asyncflow.exceptions import MissingResultError, StoreError
from asyncflow.results.lines import line, text_id
from asyncflow.results.storage import RESULTS, FolderStorage, Storage, is_inside
from asyncflow.states import StateType

__all__ = ["MOST_IN_ROW", "FileResults", "cached_path", "checksum", "value_bytes"]

MOST_IN_ROW = 64 * 1024
"""Bytes of JSON up to which a value travels in its row."""

_COMPLETED = STATE_CODES[StateType.COMPLETED]


class FileResults(ResultStore):
    """The results under the folder `home`. One thread at a time writes; any may read.

    Args:
        home: The folder.
        codec: What values are written with; None writes them as JSON.
        storage: Where large and cached values are kept, if not in files under `home`.
    """

    def __init__(self, home: Path, *, codec: Codec | None = None, storage: Storage | None = None) -> None:
        self._home = home.absolute()
        self._codec = codec
        self.seals = codec is not None
        self._copies = FolderStorage(home)
        self._given_storage = storage
        self._storage: Storage = storage or self._copies
        self._reported = False

    # --- writing -----------------------------------------------------------------------------

    def write(self, batch: Sequence[tuple[bytes, RunRow]]) -> list[RunRow]:
        """As the port says."""
        # Nearly all values are short enough to be left as they are at a glance.
        short = -1 if self._codec is not None else MOST_IN_ROW // 4
        return [
            row if (text := row.result) is None or len(text) <= short else self._written(root, row, text)
            for root, row in batch
        ]

    def write_cached(self, row: CachedRow) -> CachedRow:
        """As the port says."""
        if row.result is None:
            return row
        text = row.result if self._codec is None else seal(row.result, self._codec, f"cache key {row.key!r}")
        cited = self._keep(cached_path(row.key), value_bytes(text))
        return row._replace(result=None, result_file=cited)

    def publish(self, batch: Sequence[tuple[bytes, RunRow]]) -> None:
        """As the port says."""
        lines: dict[bytes, bytearray] = {}  # not lists of lines: orjson's bytes keep a buffer of 4 KiB each
        for root, row in batch:
            if row.id == root:
                if row.result is not None and row.state == _COMPLETED:
                    path, data = f"{RESULTS}/{text_id(root)}/result.json", value_bytes(row.result)
                    self._if_possible(partial(self._copies.replace, path, data))
            elif row.state >= FIRST_FINAL and row.kind != STAND_IN:
                lines.setdefault(root, bytearray()).extend(line(row))
        for root, of_root in lines.items():
            path = f"{RESULTS}/{text_id(root)}/tasks.jsonl"
            self._if_possible(partial(self._copies.append, path, bytes(of_root)))

    def _written(self, root: bytes, row: RunRow, result: str) -> RunRow:
        """`row` as it is committed: its value encoded, and in a file if it is large."""
        text = result if self._codec is None else seal(result, self._codec, f"run {text_id(row.id)}")
        data = _if_large(text)
        if data is None:
            return row if text is result else row._replace(result=text)
        name = "result.json" if row.id == root else f"{text_id(row.id)}.json"
        return row._replace(result=None, result_file=self._keep(f"{RESULTS}/{text_id(root)}/{name}", data))

    def _keep(self, path: str, data: bytes) -> str:
        """Bring `data` to disk; gives what a row says to cite it."""
        try:
            self._storage.write(path, data)
        except OSError as error:
            raise StoreError(
                "writing a result", error.filename or self._home / path, error.strerror or error
            ) from error
        except Exception as error:
            raise StoreError("writing a result", path, f"storage {self._storage.name!r} raised {error!r}") from error
        cited: dict[str, Any] = {"path": path, "sha256": checksum(data), "size": len(data)}
        if self._given_storage is not None:
            cited["storage"] = self._given_storage.name
        return orjson.dumps(cited).decode()

    def _if_possible(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._reported:
                self._reported = True
                _report(
                    f"results under {str(self._home / RESULTS)!r} are incomplete from now on ({error}); "
                    f"nothing is lost, `asyncflow doctor --repair` writes them again from the database"
                )

    # --- deleting ----------------------------------------------------------------------------

    def delete(self, root_ids: Sequence[bytes], cached: Sequence[CachedRow] = ()) -> None:
        """As the port says. A cached value that was replaced meanwhile stays."""
        storages: list[Storage] = [self._copies] if self._given_storage is None else [self._copies, self._given_storage]
        for root in root_ids:
            for storage in storages:
                _quietly(partial(storage.delete, f"{RESULTS}/{text_id(root)}"))
        for row in cached:
            _quietly(partial(self._delete_cached, row))

    def _delete_cached(self, row: CachedRow) -> None:
        if row.result_file is None:
            return
        path = cached_path(row.key)
        if checksum(self._storage.read(path)) == orjson.loads(row.result_file)["sha256"]:
            self._storage.delete(path)

    def seal(self, text: str, what: str) -> str:
        """As the port says."""
        return text if self._codec is None else seal(text, self._codec, what)

    def unseal(self, text: str, what: str) -> str:
        """As the port says."""
        return text if sealed_by(text) is None else unseal(text, self._codec, what)

    # --- reading -----------------------------------------------------------------------------

    async def read(self, row: RunRow | CachedRow, reader: Reader) -> str | None:
        """As the port says."""
        elsewhere = reader.run_blocking
        what = f"cache key {row.key!r}" if isinstance(row, CachedRow) else f"run {text_id(row.id)}"
        if row.result_file is None:
            if row.result is None or sealed_by(row.result) is None:
                return row.result
            return str(await elsewhere(partial(unseal, row.result, self._codec, what)))
        cited: dict[str, Any] = orjson.loads(row.result_file)
        path = self._home / cited["path"]
        if not is_inside(cited["path"]):
            raise StoreError("reading a result", path, "its row leads out of the folder of results")
        storage = self._cited_storage(cited)
        try:
            data: bytes = await (
                reader.read_file(path) if storage is None else elsewhere(partial(storage.read, cited["path"]))
            )
        except FileNotFoundError:
            run_id = row.run_id if isinstance(row, CachedRow) else row.id
            raise MissingResultError(text_id(run_id), f"its file {str(path)!r} is gone") from None
        except OSError as error:
            raise StoreError("reading a result", path, error.strerror or error) from error
        except Exception as error:
            raise StoreError("reading a result", path, f"storage {cited['storage']!r} raised {error!r}") from error
        return str(await elsewhere(partial(_opened, data, cited, self._codec, path)))

    def _cited_storage(self, cited: dict[str, Any]) -> Storage | None:
        """Where the file that a row cites is; None for the folder of the home."""
        name: str | None = cited.get("storage")
        given = self._given_storage
        if name is None or (given is not None and given.name == name):
            return None if name is None else given
        found = "it has none" if given is None else f"it has {given.name!r}"
        raise StoreError(
            "reading a result",
            cited["path"],
            f"it is in the storage {name!r}: open the runtime with it, Runtime(storage=...); {found}",
        )


def _opened(data: bytes, cited: dict[str, Any], codec: Codec | None, path: Path) -> str:
    if len(data) != cited["size"] or checksum(data) != cited["sha256"]:
        raise StoreError("reading a result", path, "the file is not what was written (its checksum differs)")
    return unseal(data.decode(), codec, str(path))


def cached_path(key: str) -> str:
    """Where the value under a cache key is kept: a key may hold anything, and never becomes a path."""
    return f"{RESULTS}/cache/{checksum(key.encode('utf-8', 'backslashreplace'))}.json"


def checksum(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    import hashlib

    return hashlib.sha256(data).hexdigest()


def value_bytes(text: str) -> bytes:
    """The JSON of a value as it stands in a file."""
    # Half a surrogate pair becomes its escape, which inside of JSON means just that.
    return text.encode("utf-8", "backslashreplace")


def _if_large(text: str) -> bytes | None:
    """The value's bytes when they are too many for a row."""
    if len(text) <= MOST_IN_ROW // 4 or (text.isascii() and len(text) <= MOST_IN_ROW):
        return None
    data = value_bytes(text)
    return data if len(data) > MOST_IN_ROW else None


def _quietly(delete: Callable[[], None]) -> None:
    try:
        delete()
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001  # a storage of the user's may raise anything
        _report(f"the files of a deleted run could not be deleted ({error}); `asyncflow doctor` finds what is left")


def _report(message: str) -> None:
    import logging

    logging.getLogger("asyncflow").warning(message)
