"""Power cuts at any moment: `synchronous=full` loses nothing that was acknowledged, `normal` only the
newest of it, and neither is ever damaged.

The store's own writer does its work once, on a disk that notes what is written and synced. Then
the power is cut after every so many of those notes, and SQLite opens what might be left.
`CUTS=1000` (nox -s crash) is as many as a release wants.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from asyncflow._journal import decoded
from asyncflow._rows import STATE_CODES, RunRow
from asyncflow.abc import Ticket
from asyncflow.results import FileResults
from asyncflow.states import StateType
from asyncflow.stores import _checkpoints
from asyncflow.stores._schema import VERSION
from asyncflow.stores._writer import Writer
from tests.contracts.recordables import LiveRun, Waiter, run_row
from tests.crash.disk import DATABASE, Note, NotedDatabase, NotingVFS, power_cuts

CUTS = int(os.environ.get("CUTS", "150"))
GROUPS = 60
MODES = ("full", "normal")

Mode = Literal["full", "normal"]


class Record(NamedTuple):
    """A store's life."""

    events: list[RunRow]
    """Everything it was told, in order."""
    notes: list[Note]
    """What reached the disk; an acknowledgement is of the first so many events."""


@pytest.fixture(autouse=True)
def many_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more than 1,000 pages would make, some of which cut the log off: they are what is delicate."""
    monkeypatch.setattr(_checkpoints, "EVERY_PAGES", 60)
    monkeypatch.setattr(_checkpoints, "LONG_LOG", 80)


def life_of_a_store(folder: Path, synchronous: Mode, chance: random.Random) -> Record:
    """Groups of runs that begin, go on and end; each group is acknowledged before the next."""
    vfs = NotingVFS(f"noting {folder}")
    database = NotedDatabase(folder, vfs.name, synchronous)
    writer = Writer(database, FileResults(folder))
    events: list[RunRow] = []
    going: list[LiveRun] = []
    for _ in range(GROUPS):
        chance.shuffle(going)
        ending, going = going[:20], going[20:]
        for run in ending:
            (row,) = run.current
            run.current = (row._replace(state=STATE_CODES[StateType.COMPLETED], seq=3, result='"ended"'),)
        begun = [LiveRun(_running(chance)) for _ in range(chance.randint(1, 30))]
        going += begun
        for run in ending + begun:
            events += run.current
            writer.put(run)
        waiter = Waiter()
        ticket = waiter.ticket()
        ticket.wake = partial(_note_and_wake, vfs.notes, len(events), waiter)
        writer.confirm(ticket)
        waiter.wait()
        assert ticket.error is None
    assert writer.close(10)
    vfs.unregister()
    return Record(events, vfs.notes)


def _note_and_wake(notes: list[Note], count: int, waiter: Waiter, tickets: list[Ticket]) -> None:
    notes.append(Note("acknowledge", "", count))
    waiter.wake(tickets)


def _running(chance: random.Random) -> RunRow:
    return run_row(
        state=STATE_CODES[StateType.RUNNING], seq=2, result=None, ended=None, message="x" * chance.choice((0, 10, 3000))
    )


def found(folder: Path) -> dict[bytes, int]:
    """The runs that SQLite finds in the files, and the state each is in."""
    with closing(sqlite3.connect(folder / "asyncflow.db", isolation_level=None)) as database:
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        assert (tables, version) == (0, 0) or (tables > 0 and version == VERSION), "half a schema"
        if not tables:
            return {}
        rows = database.execute("SELECT id, seq, state, result FROM run").fetchall()
        assert all((seq == 3) == (result == '"ended"') for _, seq, _, result in rows)
        seqs = {run_id: seq for run_id, seq, _, _ in rows}
        told: dict[bytes, int] = {}
        for (changes,) in database.execute("SELECT changes FROM journal ORDER BY id"):
            for change in decoded(changes):
                assert told.get(change.run_id, 0) == change.since
                told[change.run_id] = change.until
        assert told == seqs, "the journal does not tell what is on record"
        return seqs


class History:
    """What the store was told, so that any state of it can be recognised."""

    def __init__(self, events: Sequence[RunRow]) -> None:
        self._moments: dict[int, int] = {0: 0}
        """How many events had come, by what the runs were then: their sum, as it were."""
        self._seqs: dict[bytes, int] = {}
        signature = 0
        for count, row in enumerate(events, 1):
            if row.id in self._seqs:
                signature ^= hash((row.id, self._seqs[row.id]))
            self._seqs[row.id] = row.seq
            signature ^= hash((row.id, row.seq))
            self._moments[signature] = count

    def moment(self, seqs: Mapping[bytes, int]) -> int | None:
        """After how many events the store held just this; None when it never did."""
        signature = 0
        for item in seqs.items():
            signature ^= hash(item)
        return self._moments.get(signature)


def losses(record: Record, folder: Path, points: Sequence[int], chance: random.Random, **how: bool) -> list[int]:
    """How many acknowledged events are lost in a power cut at each of `points`."""
    history = History(record.events)
    lost: list[int] = []
    for acknowledged, files in power_cuts(record.notes, points, chance, **how):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        kept = history.moment(found(folder))
        assert kept is not None, "what is there was never the state of the store: not the newest is missing"
        lost.append(max(0, acknowledged - kept))
        shutil.rmtree(folder)
    return lost


@pytest.mark.parametrize("synchronous", MODES)
@pytest.mark.timeout(60 + CUTS)
def test_power_cuts(tmp_path: Path, synchronous: Mode) -> None:
    seed = random.randrange(2**32)
    print(f"{seed=}")
    chance = random.Random(seed)
    record = life_of_a_store(tmp_path / "life", synchronous, chance)
    assert len([note for note in record.notes if note[:2] == ("sync", DATABASE)]) > 10, "hardly any checkpoint"
    points = [chance.randint(0, len(record.notes)) for _ in range(CUTS)]
    lost = losses(record, tmp_path / "cut", points, chance)
    if synchronous == "full":
        assert not any(lost), f"acknowledged and lost, in {sum(map(bool, lost))} of {CUTS} cuts"
    else:
        assert any(lost), "the cuts did not hit anything: this test shows nothing"


def test_a_disk_that_lies_about_syncs_is_found_out(tmp_path: Path) -> None:
    """The test of the test: where nothing is ever synced, cuts must lose or damage something."""
    chance = random.Random(1)
    record = life_of_a_store(tmp_path / "life", "full", chance)
    harmed = 0
    for number in range(40):
        try:
            lost = losses(record, tmp_path / f"cut-{number}", [len(record.notes)], chance, disk_lies=True)
        except (AssertionError, sqlite3.DatabaseError):
            harmed += 1
        else:
            harmed += any(lost)
    assert harmed > 10
