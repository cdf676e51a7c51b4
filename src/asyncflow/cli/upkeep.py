"""`asyncflow runs reap`, `asyncflow runs rm`, `asyncflow gc`: what runtimes do by themselves, done now and told."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from cyclopts import Parameter

from asyncflow._engine.resuming import outermost_row
from asyncflow._retention import Pace, Retention
from asyncflow._rows import FIRST_FINAL, STATE_CODES, STATE_TYPES, TransactionRow, maybe_uuid, state_of
from asyncflow._services import Services
from asyncflow._upkeep import Sweeper, delete_batch, hooks_of, interruption, microseconds_now, reaping
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.output import UsageError, json_text, write_data
from asyncflow.cli.words import AsJSON, bytes_of, count_of, length_of, states_of
from asyncflow.exceptions import CannotDeleteRunError
from asyncflow.runtime import HOME

__all__ = ["gc", "reap", "rm"]

_ALL = 2**62
OlderThan = Annotated[str | None, Parameter(help="Runs that ended so long ago: 90s, 15m, 2h, 30d, 4w.")]


# --- asyncflow runs reap ---------------------------------------------------------------------


def reap(*, json: AsJSON = False, home: Home = None) -> int:
    """End the runs that dead processes left open: Crashed, or waiting to be resumed if their flow says so."""
    services = open_recorded(home)
    reaped = services.store.reap(microseconds_now(services))
    if json:
        found = {
            "crashed": reaped.crashed,
            "interrupted": reaped.interrupted,
            "transactions": [_transaction_json(each) for each in reaped.transactions],
        }
        write_data(json_text(found))
    else:
        write_data("".join(f"{line}\n" for line in (reaping(reaped), *map(interruption, reaped.transactions))))
    return 0


def _transaction_json(row: TransactionRow) -> dict[str, Any]:
    run_id = maybe_uuid(row.run_id)
    return {
        "id": str(UUID(bytes=row.id)),
        "key": row.key,
        "run_id": None if run_id is None else str(run_id),
        "hooks": hooks_of(row),
    }


# --- asyncflow runs rm -----------------------------------------------------------------------


def rm(
    *run_ids: Annotated[str, Parameter(help="Ids of outermost runs.")],
    older_than: OlderThan = None,
    state: Annotated[
        list[str] | None, Parameter(help="Only runs that ended in this state. Can be repeated.", negative="")
    ] = None,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """Delete outermost runs that have ended, with all below them, their logs and results. Asks nothing.

    Name their ids, or choose them by age and state. When one of the ids cannot be deleted, none is.
    """
    age, states = length_of("--older-than", older_than), states_of(state)
    if bool(run_ids) == (age is not None or states is not None):
        raise UsageError("name the ids of the runs to delete, or choose runs with --older-than, --state or both")
    codes = None if states is None else frozenset(STATE_CODES[each] for each in states)
    if codes is not None and min(codes) < FIRST_FINAL:
        final = ", ".join(each.value.lower() for each in STATE_TYPES[FIRST_FINAL:])
        raise UsageError(f"only runs that have ended can be deleted; the states of these are {final}")
    services = open_recorded(home)
    if run_ids:
        chosen = [_deletable(services, each) for each in run_ids]
    else:
        before = None if age is None else microseconds_now(services) - age
        chosen = [each for each in services.store.read_oldest(_ALL, before) if _is_in(services, each, codes)]
    deleted = _delete_all(services, chosen)
    if json:
        write_data(json_text({"deleted": [str(UUID(bytes=each)) for each in deleted]}))
    else:
        write_data(f"deleted {_runs(len(deleted))}\n")
    return 0


def _deletable(services: Services, run_id: str) -> bytes:
    row = row_of(services, run_id)
    if row.parent_id is not None:
        raise CannotDeleteRunError(
            run_id, f"it is a part of run {UUID(bytes=outermost_row(services, row).id)}; delete that one"
        )
    if row.state < FIRST_FINAL:
        hint = "cancel it first, or, if its process has died, let `asyncflow runs reap` end it"
        raise CannotDeleteRunError(run_id, f"it has not ended (it is {state_of(row).name}); {hint}")
    return row.id


def _is_in(services: Services, run_id: bytes, codes: frozenset[int] | None) -> bool:
    if codes is None:
        return True
    row = services.store.read_run(run_id)
    return row is not None and row.state in codes


def _delete_all(services: Services, chosen: list[bytes]) -> list[bytes]:
    deleted: list[bytes] = []
    pace, left = Pace(), list(dict.fromkeys(chosen))
    while left:
        batch, left = left[: pace.trees], left[pace.trees :]
        deleted += delete_batch(services, batch, pace)
    return deleted


# --- asyncflow gc ----------------------------------------------------------------------------


def gc(
    *,
    older_than: OlderThan = None,
    keep_runs: Annotated[int | None, Parameter(help="At most so many outermost runs.")] = None,
    keep_bytes: Annotated[str | None, Parameter(help="At most so many bytes of database: 200MB, 1.5GiB.")] = None,
    dry_run: Annotated[bool, Parameter(help="Delete nothing, and tell what would be.", negative="")] = False,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """Delete what is not to be kept any longer and give its space back to the disk, until nothing is left to do.

    What is kept is said by the ASYNCFLOW_RETENTION_* settings, and by the options in their place.
    """
    age, size = length_of("--older-than", older_than), bytes_of("--keep-bytes", keep_bytes)
    count = None if keep_runs is None else count_of("--keep-runs", keep_runs)
    services = open_recorded(home)
    given = {"age": age, "runs": count, "size": size}
    kept = replace(
        Retention.of(services.settings), **{name: value for name, value in given.items() if value is not None}
    )
    report = _foreseen(services, kept) if dry_run else _collected(services, kept)
    write_data(json_text(report) if json else _told(report))
    return 0


def _collected(services: Services, kept: Retention) -> dict[str, Any]:
    sweeper = Sweeper(services, kept)
    file = services.settings.home / "asyncflow.db"
    before, runs, cached, has_more = file.stat().st_size, 0, 0, True
    while has_more:
        swept = sweeper.sweep()
        runs, cached, has_more = runs + len(swept.runs), cached + len(swept.cached), swept.has_more
    kept_bytes = services.store.size()
    HOME.close_default()  # brings what is still in the log to the file
    return {
        "dry_run": False,
        "runs": runs,
        "cached_values": cached,
        "bytes_given_back": max(before - file.stat().st_size, 0),
        "bytes_kept": kept_bytes,
    }


def _foreseen(services: Services, kept: Retention) -> dict[str, Any]:
    store = services.store
    before = kept.before(microseconds_now(services))
    old = 0 if before is None else len(store.read_oldest(_ALL, before))
    size = store.size()
    excess = kept.excess(size, store.count_outermost)
    runs = max(old, len(store.read_oldest(excess)) if excess else 0)
    return {"dry_run": True, "runs": runs, "bytes_kept": size}


def _told(report: dict[str, Any]) -> str:
    if report["dry_run"]:
        now = _size(report["bytes_kept"])
        return f"would delete {_runs(report['runs'])} (an estimate where it is for the size); the database has {now}\n"
    cached = report["cached_values"]
    return (
        f"deleted {_runs(report['runs'])} and {cached:,} expired cached value{'' if cached == 1 else 's'}, "
        f"gave {_size(report['bytes_given_back'])} back; the database has {_size(report['bytes_kept'])}\n"
    )


def _runs(number: int) -> str:
    return f"{number:,} outermost run{'' if number == 1 else 's'}"


def _size(number: int) -> str:
    value, unit = float(number), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{number:,} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
