"""The database itself: whose it is, whether it is whole, and what it says of processes that died."""

from __future__ import annotations

from pathlib import Path

from asyncflow._rows import ACTIVE, FIRST_FINAL, INTERRUPTED, STATE_CODES
from asyncflow.doctor.records import Owner, Records
from asyncflow.doctor.report import Report, counted
from asyncflow.states import StateType
from asyncflow.stores._queries import ENQUEUED, WAITS
from asyncflow.stores._schema import APPLICATION_ID, VERSION

__all__ = ["RESCUE", "check_database", "check_left_behind"]

_MENDED = (3, 51, 3)
_CHECKED_WHOLE = 512 * 1024 * 1024
"""Bytes up to which the indexes are compared with their tables as well: in larger files that takes minutes."""
_PAUSED = STATE_CODES[StateType.PAUSED]
RESCUE = (
    "stop what uses it and take it from a backup; or `sqlite3 asyncflow.db .recover | sqlite3 new.db` saves what can "
    "be read. The files under results/ do not need it"
)
_INTERRUPTED = f"(state = {_PAUSED} AND state_name IS 'Interrupted')"
_NOBODYS = f"({WAITS} OR {ENQUEUED})"


def check_database(records: Records, report: Report) -> bool:
    """Whether there are rows that can be looked at."""
    import sqlite3

    facts = report.facts
    facts["sqlite_version"] = sqlite3.sqlite_version
    facts["schema_version"] = found = int(records.value("PRAGMA user_version"))
    application = int(records.value("PRAGMA application_id"))
    tables = int(records.value("SELECT count(*) FROM sqlite_master"))
    if application != APPLICATION_ID and (application or found or tables):
        report.add("foreign", "the database is another program's", "set ASYNCFLOW_HOME, or --home, to another folder")
        return False
    if found > VERSION:
        newer = f"the database has schema version {found}, and this asyncflow knows versions up to {VERSION}"
        report.add("newer", newer, "upgrade asyncflow")
        return False
    if not _is_whole(records, report):
        return False
    _note_versions(report, found, sqlite3.sqlite_version_info)
    return found == VERSION


def _is_whole(records: Records, report: Report) -> bool:
    page, pages, free = (int(records.value(f"PRAGMA {name}")) for name in ("page_size", "page_count", "freelist_count"))
    log = records.path.with_name(f"{records.path.name}-wal")
    report.facts |= {
        "database_bytes": page * pages,
        "free_bytes": page * free,
        "log_bytes": log.stat().st_size if log.exists() else 0,
        "journal_mode": records.value("PRAGMA journal_mode"),
        "auto_vacuum": ("none", "full", "incremental")[int(records.value("PRAGMA auto_vacuum"))],
    }
    check = "integrity_check" if page * pages <= _CHECKED_WHOLE else "quick_check"
    found = [str(row[0]) for row in records.rows(f"PRAGMA {check}(20)")]
    if found != ["ok"]:
        report.add("damaged", f"the database is damaged: {found[0].splitlines()[0]}", RESCUE, found)
        return False
    report.facts["integrity"] = check
    if report.facts["journal_mode"] != "wal" and report.facts["schema_version"]:
        report.note("journal", "the database is not in WAL mode; asyncflow switches it when it opens it")
    return True


def _note_versions(report: Report, schema: int, sqlite: tuple[int, int, int]) -> None:
    if 0 < schema < VERSION:
        older = f"the database has schema version {schema}; version {VERSION} is current"
        report.note("older", older, "`asyncflow runs ls` brings it up to date; then look again")
    if sqlite < _MENDED:
        report.note(
            "sqlite",
            f"SQLite {'.'.join(map(str, sqlite))} is older than 3.51.3, which mended a fault: two connections that "
            f"reset the write-ahead log at the same moment can damage the file (it is very rare)",
            "use a Python whose SQLite is newer where several processes share a home",
        )


def check_left_behind(records: Records, report: Report, home: Path) -> set[int]:
    """What dead processes left open. Gives the numbers of the owners that may be alive."""
    owners = records.owners()
    living = [owner for owner in owners if not owner.is_dead(home)]
    alive = {owner.id for owner in living}
    report.facts["processes"] = [f"pid {owner.pid} on {owner.host}" for owner in living]
    _orphans(records, report, owners, alive)
    waiting = int(records.value(f"SELECT count(*) FROM run WHERE state < {FIRST_FINAL} AND {_INTERRUPTED}"))
    if waiting:
        runs = counted(waiting, "interrupted flow run waits", "interrupted flow runs wait")
        report.note("interrupted-runs", f"{runs} to be resumed", "`asyncflow runs resume ID`")
    _transactions(records, report, alive)
    return alive


def _orphans(records: Records, report: Report, owners: list[Owner], alive: set[int]) -> None:
    rows = records.rows(
        f"SELECT owner, count(*) FROM run WHERE state < {FIRST_FINAL} AND NOT {_NOBODYS} GROUP BY owner"
    )
    known = {owner.id: owner for owner in owners}
    dead = {owner: number for owner, number in rows if owner not in alive}
    if dead:
        processes = (
            f"{counted(number, 'run')} of pid {known[owner].pid} on {known[owner].host}"
            if owner in known
            else f"{counted(number, 'run')} of a process nothing is known of"
            for owner, number in dead.items()
        )
        total = counted(
            sum(dead.values()), "run is open though its process has", "runs are open though their process has"
        )
        report.add(
            "orphans", f"{total} died", "`asyncflow runs reap` ends them, or any flow that is run here", processes
        )


def _transactions(records: Records, report: Report, alive: set[int]) -> None:
    left = 0
    for state, owner, number in records.rows(
        f"SELECT state, owner, count(*) FROM txn WHERE state IN ({ACTIVE}, {INTERRUPTED}) GROUP BY state, owner"
    ):
        left += number if state == INTERRUPTED or owner not in alive else 0
    if left:
        what = counted(left, "transaction was interrupted by its", "transactions were interrupted by their")
        report.note(
            "transactions",
            f"{what} process's death: none of the hooks was run",
            "see in the table `txn` which they are, and undo by hand what must be undone",
        )
