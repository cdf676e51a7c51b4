"""The examination of a home, from its database to its last file."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from asyncflow.doctor.belongings import check_locks, check_permissions
from asyncflow.doctor.cited import check_cited, check_uncited
from asyncflow.doctor.copies import check_copies
from asyncflow.doctor.database import RESCUE, check_database, check_left_behind
from asyncflow.doctor.records import Records
from asyncflow.doctor.report import Report, counted
from asyncflow.exceptions import StoreError
from asyncflow.settings import Settings
from asyncflow.stores._log_queue import DROPPED

__all__ = ["examine"]

_DAY = 86_400
_DROPPED_LINES = f"""SELECT total(CASE WHEN json_valid(extra) THEN json_extract(extra, '$.dropped') END)
FROM log WHERE logger = '{DROPPED}'"""
_LOSSES = {"missing-file", "changed-file", "unsound-rows"}


def examine(home: str | Path | None = None, *, repair: bool = False) -> Report:
    """Look at everything in `home` (else where settings say) while others may be using it. Blocks.

    The database is only read. `repair` mends what is beside it: it writes the copies for people
    again, deletes what no process can need any more, and takes rights away from others. Whatever
    cannot be read is a finding, never an exception.
    """
    folder = Settings.load(home=home).home.absolute()
    report = Report(home=str(folder))
    try:
        if not (folder / "asyncflow.db").is_file():
            report.add("empty", "nothing is recorded there: it holds no database", "name the folder with --home")
            return report
        with closing(Records(folder)) as records:
            if check_database(records, report):
                _check_rows_and_files(records, report, folder, repair=repair)
        check_permissions(report, folder, repair=repair)
    except StoreError as error:
        report.add("unreadable", str(error), f"where the file is damaged, {RESCUE}")
    except OSError as error:
        report.add("unreadable", f"{error.filename or str(folder)!r} cannot be read: {error.strerror or error}")
    return report


def _check_rows_and_files(records: Records, report: Report, home: Path, *, repair: bool) -> None:
    alive = check_left_behind(records, report, home)
    living = [owner for owner in records.owners() if owner.id in alive]
    _count(records, report, home)
    cited = check_cited(records, report, home)
    check_copies(records, report, home, alive, repair=repair)
    # What a damaged row cited may look like a file that nobody needs.
    is_damaged = not _LOSSES.isdisjoint(finding.kind for finding in report.problems)
    check_uncited(records, report, home, cited, living, repair=repair and not is_damaged)
    check_locks(report, home, living, repair=repair)


def _count(records: Records, report: Report, home: Path) -> None:
    for name, sql in (
        ("runs", "SELECT count(*) FROM run"),
        ("outermost_runs", "SELECT count(*) FROM run WHERE parent_id IS NULL"),
        ("log_lines", "SELECT count(*) FROM log"),
        ("dropped_log_lines", _DROPPED_LINES),
        ("cached_values", "SELECT count(*) FROM cache"),
    ):
        report.facts[name] = int(records.value(sql))
    if dropped := report.facts["dropped_log_lines"]:
        report.note(
            "dropped-logs",
            f"{counted(dropped, 'log line was', 'log lines were')} dropped: they came faster than the disk took them",
            "the logs of their runs say where; a higher `ASYNCFLOW_LOG_LEVEL` keeps fewer",
        )
    settings = Settings.load(home=home)
    due = 0
    if settings.retention_days:
        before = int((time.time() - settings.retention_days * _DAY) * 1_000_000)
        due = int(records.value("SELECT count(*) FROM run WHERE parent_id IS NULL AND ended < ?", before))
    if settings.retention_runs:
        due = max(due, report.facts["outermost_runs"] - settings.retention_runs)
    report.facts["due_for_deletion"] = due
    if due:
        runs = counted(due, "outermost run is", "outermost runs are")
        report.note(
            "retention",
            f"{runs} older, or more, than is kept",
            "`asyncflow gc` deletes them, or any flow that is run here",
        )
