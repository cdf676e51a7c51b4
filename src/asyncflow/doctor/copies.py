"""The copies for people, `result.json` and `tasks.jsonl`, compared with the rows they were made from."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from asyncflow._rows import FIRST_FINAL, STAND_IN, STATE_CODES, RunRow
from asyncflow.doctor.records import Records, is_sound
from asyncflow.doctor.report import Report, counted
from asyncflow.results.files import value_bytes
from asyncflow.results.lines import line, text_id
from asyncflow.results.storage import RESULTS, FolderStorage
from asyncflow.states import StateType

__all__ = ["SETTLED_SECONDS", "check_copies", "read_regular"]

SETTLED_SECONDS = 60
"""How long after a run's end its copies may still be on their way, while its process lives."""
_COMPLETED = STATE_CODES[StateType.COMPLETED]
_ID = slice(7, 43)
"""Where a line has its id: it begins with `{"id":"`."""


def check_copies(records: Records, report: Report, home: Path, alive: set[int], *, repair: bool) -> None:
    """Compare the copies of every outermost run that nobody is writing to any more."""
    copies = _Copies(home, repair=repair)
    settled = (time.time() - SETTLED_SECONDS) * 1_000_000
    for root, _, ended, owner in records.roots():
        if owner not in alive or (isinstance(ended, int) and ended < settled):
            copies.compare(records.tree(root))
    if copies.unsound:
        what = counted(len(copies.unsound), "run holds", "runs hold")
        remedy = "the database was changed or damaged: take it from a backup, or delete them with `asyncflow runs rm`"
        report.add("unsound-rows", f"{what} what asyncflow never writes", remedy, copies.unsound)
    if copies.wrong:
        what = counted(len(copies.wrong), "copy for people is", "copies for people are")
        _add(report, f"{what} missing or not what the database says", copies.wrong, repaired=repair)
    if copies.failed:
        report.add("copies", f"{counted(len(copies.failed), 'file')} could not be written again", None, copies.failed)


def _add(report: Report, what: str, examples: Sequence[str], *, repaired: bool) -> None:
    if repaired:
        report.add("copies", f"{what}: written again", examples=examples, level="repaired")
    else:
        remedy = "nothing is lost; `asyncflow doctor --repair` writes them again"
        report.add("copies", what, remedy, examples)


class _Copies:
    """The copies under one home."""

    def __init__(self, home: Path, *, repair: bool) -> None:
        self._home = home
        self._folder = FolderStorage(home)
        self._repair = repair
        self.wrong: list[str] = []
        """What is wrong, or was."""
        self.failed: list[str] = []
        self.unsound: list[str] = []

    def compare(self, rows: Sequence[RunRow]) -> None:
        """Compare the copies of one outermost run, the first of `rows`, with all of them."""
        self.unsound += [f"run {row.id!r}" for row in rows if not is_sound(row)]
        sound = [row for row in rows if is_sound(row)]
        if not sound or sound[0] is not rows[0]:
            return
        root, *below = sound
        folder = f"{RESULTS}/{text_id(root.id)}"
        self._compare_result(f"{folder}/result.json", root)
        if len(sound) == len(rows):
            ended = [row for row in below if row.state >= FIRST_FINAL and row.kind != STAND_IN]
            self._compare_lines(f"{folder}/tasks.jsonl", ended)

    def _compare_result(self, path: str, root: RunRow) -> None:
        if root.result_file is not None:
            return  # it is no copy
        has_value = root.result is not None and root.state == _COMPLETED
        expected = value_bytes(root.result) if root.result is not None and has_value else None
        found = read_regular(self._home / path)
        if expected == found:
            return
        if expected is None:
            self._mend(f"{path} (of an earlier attempt)", lambda: self._folder.delete(path))
        else:
            self._mend(f"{path} ({_fault(found)})", lambda: self._folder.replace(path, expected))

    def _compare_lines(self, path: str, rows: Sequence[RunRow]) -> None:
        data = read_regular(self._home / path)
        if data is None and not rows:
            return
        expected = [line(row) for row in rows]
        found = _by_id(data or b"")
        wrong = sum(not _is_same(found.pop(each[_ID], b""), each) for each in expected)
        is_torn = bool(data) and not (data or b"").endswith(b"\n")
        if not (wrong or found or is_torn):
            return
        problem = "missing" if data is None else "torn" if is_torn else f"{counted(wrong + len(found), 'line')} wrong"
        self._mend(f"{path} ({problem})", lambda: self._folder.replace(path, b"".join(expected)))

    def _mend(self, what: str, act: Any) -> None:
        self.wrong.append(what)
        if self._repair:
            try:
                act()
            except OSError as error:
                self.failed.append(f"{what}: {error}")


def _by_id(data: bytes) -> dict[bytes, bytes]:
    """The lines by id; of a run that was resumed, the last one."""
    return {each[_ID]: each + b"\n" for each in data.split(b"\n") if each}


def _is_same(found: bytes, expected: bytes) -> bool:
    if found == expected:
        return True
    try:  # another version of asyncflow may have spelled it otherwise
        return bool(orjson.loads(found) == orjson.loads(expected))
    except ValueError:
        return False


def _fault(found: bytes | None) -> str:
    return "missing" if found is None else "torn or changed"


def read_regular(path: Path) -> bytes | None:
    """The content of a file; None when there is none. A symbolic link is never followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except OSError:
        return None
