"""The files that rows cite, which hold the only copy of a value, and the files that no row cites."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from asyncflow.doctor.records import Owner, Records
from asyncflow.doctor.report import Report, counted
from asyncflow.results.lines import text_id
from asyncflow.results.storage import RESULTS, FolderStorage, is_inside

__all__ = ["check_cited", "check_uncited"]

_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OURS = re.compile(rf"{RESULTS}/({_UUID}(/(result\.json|tasks\.jsonl|{_UUID}\.json))?|cache/[0-9a-f]{{64}}\.json)")
_TEMPORARY = re.compile(rf"{RESULTS}/({_UUID}|cache)/\.[^/]+\.tmp")
_CLOCK_SECONDS = 60
"""How far the clocks of the files and of the processes may be apart."""
_BLOCK = 1 << 20


# --- files that rows cite ------------------------------------------------------------------


def check_cited(records: Records, report: Report, home: Path) -> set[str]:
    """Compare every cited file with its checksum; gives the paths that are cited."""
    cited: set[str] = set()
    elsewhere: dict[str, int] = {}
    missing: list[str] = []
    changed: list[str] = []
    size = 0
    for what, text, is_current in _citations(records):
        found = _parsed(text)
        if found is None:
            report.add(
                "unsound-rows", f"{what} cites what asyncflow never writes", "the database was changed or damaged"
            )
            continue
        if storage := found.get("storage"):
            elsewhere[storage] = elsewhere.get(storage, 0) + 1
            continue
        cited.add(found["path"])
        fault = _fault(home / found["path"], found["size"], found["sha256"])
        size += found["size"]
        if fault and is_current():  # else it was deleted or replaced while we looked
            (missing if fault == "missing" else changed).append(f"{found['path']} ({fault}) of {what}")
    report.facts["cited_files"] = len(cited)
    report.facts["cited_bytes"] = size
    remedy = "the value is lost; a cached one is computed again when it is asked for, a run's when it is run again"
    if missing:
        report.add(
            "missing-file", f"{counted(len(missing), 'file')} with a recorded value cannot be found", remedy, missing
        )
    if changed:
        report.add("changed-file", f"{counted(len(changed), 'file')} changed after being written", remedy, changed)
    for storage, number in elsewhere.items():
        report.note(
            "storage", f"{counted(number, 'value is', 'values are')} kept in storage {storage!r}: not looked at"
        )
    return cited


def _citations(records: Records) -> Iterator[tuple[str, Any, Any]]:
    """What cites a file, the text it has for that, and a question whether it still has it."""
    for run_id, text in records.citing():
        sql = "SELECT count(*) FROM run WHERE id = ? AND result_file IS ?"
        name = text_id(run_id) if isinstance(run_id, bytes) else repr(run_id)
        yield f"run {name}", text, _still(records, sql, run_id, text)
    for row in records.cached():
        sql = "SELECT count(*) FROM cache WHERE key = ? AND result_file IS ?"
        if row.result_file is not None:
            yield f"cache key {row.key!r}", row.result_file, _still(records, sql, row.key, row.result_file)


def _still(records: Records, sql: str, *values: Any) -> Any:
    return lambda: bool(records.value(sql, *values))


def _parsed(text: Any) -> dict[str, Any] | None:
    """What a row cites; None when it cannot have been written by asyncflow."""
    try:
        found: Any = orjson.loads(text)
        good = isinstance(found["size"], int) and isinstance(found["sha256"], str) and is_inside(found["path"])
        return found if good and isinstance(found.get("storage", ""), str) else None
    except (ValueError, TypeError, KeyError):
        return None


def _fault(path: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file, in a word or two."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError):  # such as a NUL in its name
        return "missing"
    except OSError as error:
        return error.strerror or str(error)
    digest = hashlib.sha256()
    try:
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_size != size:
                return "another size"
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        return error.strerror or str(error)
    return None if digest.hexdigest() == sha256 else "another checksum"


# --- files that no row cites -----------------------------------------------------------------


def check_uncited(
    records: Records, report: Report, home: Path, cited: set[str], living: Iterable[Owner], *, repair: bool
) -> None:
    """Find the files that nothing refers to; `repair` deletes those that no living process can have written.

    Whoever writes such a file cites it right after, or never. So a file is safe to delete when it
    is older than every process that lives.
    """
    oldest = min((owner.opened / 1_000_000 for owner in living), default=time.time() + _CLOCK_SECONDS)
    uncited: list[str] = []
    left: list[str] = []
    for path, modified in _files(home):
        kind = left if _TEMPORARY.fullmatch(path) else uncited
        if modified > oldest - _CLOCK_SECONDS or not (kind is left or _is_uncited(records, path, cited)):
            continue
        kind.append(path)
    if uncited:
        what = f"{counted(len(uncited), 'file')} that no run or cached value refers to"
        _settle(report, home, "uncited-file", what, uncited, repair=repair)
    if left:
        what = f"{counted(len(left), 'file')} that a killed process left half written"
        _settle(report, home, "temporary-file", what, left, repair=repair)


def _settle(report: Report, home: Path, kind: str, what: str, paths: list[str], *, repair: bool) -> None:
    if not repair:
        remedy = "`asyncflow doctor --repair` deletes them, unless values are missing that may be in them"
        report.add(kind, what, remedy, paths)
        return
    folder = FolderStorage(home)
    failed: list[str] = []
    for path in paths:
        try:
            folder.delete(path)
            with suppress(OSError):  # it is not empty
                if path.count("/") > 1 and not path.startswith(f"{RESULTS}/cache/"):
                    (home / path).parent.rmdir()
        except OSError as error:
            failed.append(f"{path}: {error}")
    if failed:
        report.add(kind, f"{counted(len(failed), 'file')} could not be deleted", None, failed)
    if len(failed) < len(paths):
        report.add(kind, f"{what}: deleted", examples=paths, level="repaired")


def _files(home: Path) -> Iterator[tuple[str, float]]:
    """Every file and empty folder below the results that asyncflow may have made, and when it was changed last."""
    for folder, _, names in os.walk(home / RESULTS, followlinks=False):
        inside = Path(folder).relative_to(home).as_posix()
        for path in [f"{inside}/{name}" for name in names] or [inside]:
            if _OURS.fullmatch(path) or _TEMPORARY.fullmatch(path):
                try:
                    yield path, (home / path).lstat().st_mtime
                except OSError:  # deleted meanwhile
                    continue


def _is_uncited(records: Records, path: str, cited: set[str]) -> bool:
    """Whether no row refers to `path`, now."""
    if path in cited:
        return False
    _, folder, *rest = path.split("/")
    if folder == "cache":
        return not records.value("SELECT count(*) FROM cache WHERE instr(result_file, ?)", path)
    root = UUID(folder).bytes
    if not records.value("SELECT count(*) FROM run WHERE id = ? AND parent_id IS NULL", root):
        return True
    if not rest or rest[0] in ("result.json", "tasks.jsonl"):
        return False  # compared with the rows elsewhere
    run_id = UUID(rest[0].removesuffix(".json")).bytes
    sql = (
        "SELECT count(*) FROM run WHERE id = ? AND json_valid(result_file) AND json_extract(result_file, '$.path') = ?"
    )
    return not records.value(sql, run_id, path)
