"""`asyncflow doctor` on homes that are really damaged: what it says, what it mends, what it leaves alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from asyncflow import Runtime, flow, task
from asyncflow._rows import CachedRow
from asyncflow.doctor import Report, examine
from asyncflow.ids import new_id
from asyncflow.results import DictStorage, FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from tests.command_line import COMMAND
from tests.contracts.recordables import LiveRun, Waiter, run_row

FUZZED = int(os.environ.get("FUZZED", "100"))
LONG_AGO = 1_700_000_000
LARGE = 100_000


@task
def small(number: int) -> dict[str, int]:
    return {"number": number}


@task
def large() -> str:
    return "x" * LARGE


@flow
def nested() -> int:
    return small(3)["number"]


@flow
def job() -> int:
    large()
    return sum(small(number)["number"] for number in range(5)) + nested()


@flow
def big_job() -> str:
    return large()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with some runs in it, which is copied and never changed."""
    home = tmp_path_factory.mktemp("sound") / "home"
    with Runtime(home) as runtime:
        assert job() == 13
        assert len(big_job()) == LARGE
        services = runtime.services
        assert services is not None
        services.store.write_cached(
            CachedRow("a key", "small", new_id(), time.time_ns() // 1000, None, '{"n":1}', None)
        )
    return home


@pytest.fixture
def damaged(sound: Path, home: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(sound, home)
    return home


def kinds(report: Report, level: str = "problem") -> list[str]:
    return [finding.kind for finding in report.findings if finding.level == level]


def content(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in (home / "results").rglob("*") if path.is_file()}


def one(home: Path, pattern: str) -> Path:
    (found,) = home.glob(f"results/{pattern}")
    return found


def query(home: Path, sql: str, *values: object) -> list[Any]:
    connection = sqlite3.connect(home / "asyncflow.db", isolation_level=None)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def root_of(home: Path, name: str) -> Path:
    ((run_id,),) = query(home, "SELECT id FROM run WHERE function = ? AND kind = 0", name)
    return home / "results" / str(UUID(bytes=run_id))


def make_old(path: Path) -> None:
    os.utime(path, (LONG_AGO, LONG_AGO))


# --- homes without fault ---------------------------------------------------------------------


def test_a_sound_home_has_no_problems(damaged: Path) -> None:
    before = content(damaged)
    for repair in (False, True):
        report = examine(damaged, repair=repair)
        assert report.is_sound, report.problems
        assert kinds(report, "repaired") == []
    assert content(damaged) == before
    assert report.facts["outermost_runs"] == 2
    assert report.facts["runs"] == 12  # with the task run that stands for the nested flow
    assert report.facts["cited_files"] == 4
    assert report.facts["schema_version"] == 4
    assert report.facts["processes"] == []


def test_a_home_in_use_has_no_problems(home: Path) -> None:
    with Runtime(home):
        for _ in range(3):
            job()
            report = examine(home, repair=True)  # the copies may be on their way still
            assert report.is_sound, report.problems
            assert kinds(report, "repaired") == []
            assert report.facts["processes"] == [f"pid {os.getpid()} on {os.uname().nodename}"]
    assert examine(home).is_sound


def test_nothing_is_made_where_nothing_is(tmp_path: Path) -> None:
    report = examine(tmp_path / "none", repair=True)
    assert kinds(report) == ["empty"]
    assert not (tmp_path / "none").exists()


def test_what_has_not_been_used_yet_is_sound(home: Path) -> None:
    with Runtime(home):
        pass
    assert examine(home, repair=True).is_sound


# --- files that rows cite --------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (Path.unlink, "missing-file"),
        (flip, "changed-file"),
        (lambda path: os.truncate(path, 10), "changed-file"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "changed-file"),
    ],
)
@pytest.mark.parametrize("pattern", ["cache/*.json", "*/????????-*.json"])
def test_a_value_that_is_lost_is_told_and_not_mended(
    damaged: Path, damage: Callable[[Path], object], kind: str, pattern: str
) -> None:
    path = sorted(damaged.glob(f"results/{pattern}"))[0]
    damage(path)
    for _ in range(2):
        report = examine(damaged, repair=True)
        assert kinds(report) == [kind]
        assert str(path.relative_to(damaged)) in report.problems[0].examples[0]


def test_a_link_in_place_of_a_file_is_not_followed(damaged: Path, tmp_path: Path) -> None:
    path = one(damaged, "cache/*.json")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert kinds(examine(damaged)) == ["changed-file"]


def test_a_row_that_leads_out_of_the_results_is_unsound(damaged: Path, tmp_path: Path) -> None:
    cited = json.dumps({"path": "results/../../secret", "sha256": "0", "size": 1})
    (tmp_path / "secret").write_text("1")
    query(damaged, "UPDATE cache SET result_file = ?", cited)
    assert "unsound-rows" in kinds(examine(damaged, repair=True))
    assert (tmp_path / "secret").read_text() == "1"
    assert list(damaged.glob("results/cache/*.json"))  # its file may be the one that is missed


def test_values_in_another_storage_are_left_to_it(home: Path) -> None:
    home.mkdir(0o700)
    results = FileResults(home, storage=DictStorage("bucket"))
    store = SQLiteStore(home, Settings(home=home), results)
    row, waiter = run_row(result='"' + "x" * LARGE + '"', owner=store.owner), Waiter()
    store.put(LiveRun(row))
    store.confirm(waiter.ticket())
    waiter.wait()
    store.close()
    report = examine(home, repair=True)
    assert report.is_sound
    assert "storage" in kinds(report, "note")


# --- copies for people -----------------------------------------------------------------------


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def drop_a_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def add_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + f'{{"id":"{UUID(bytes=new_id())}","task":"t"}}\n'.encode())


def change_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"number":4', b'"number":5'))


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


LINES = [Path.unlink, tear, drop_a_line, add_a_line, change_a_line, zero]
CASES = [("tasks.jsonl", damage) for damage in LINES] + [("result.json", damage) for damage in (Path.unlink, zero)]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_copy_is_written_again_from_the_rows(damaged: Path, name: str, damage: Callable[[Path], object]) -> None:
    before = content(damaged)
    damage(root_of(damaged, "job") / name)
    assert kinds(examine(damaged)) == ["copies"]
    assert content(damaged) != before
    report = examine(damaged, repair=True)
    assert report.is_sound
    assert kinds(report, "repaired") == ["copies"]
    after = content(damaged)
    assert after.keys() == before.keys()
    assert {path: sorted(data.splitlines()) for path, data in after.items()} == {
        path: sorted(data.splitlines()) for path, data in before.items()
    }
    assert kinds(examine(damaged), "problem") == []


def test_a_whole_folder_of_copies_is_written_again(damaged: Path) -> None:
    before = content(damaged)
    for name in ("tasks.jsonl", "result.json"):
        (root_of(damaged, "job") / name).unlink()
    assert len(examine(damaged).problems[0].examples) == 2
    assert examine(damaged, repair=True).is_sound
    assert content(damaged).keys() == before.keys()


def test_lines_that_another_version_spelled_otherwise_are_right(damaged: Path) -> None:
    path = root_of(damaged, "job") / "tasks.jsonl"
    spelled = [json.dumps(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(line.replace('": "', '":"', 1) + "\n" for line in spelled))
    assert examine(damaged).is_sound


def test_the_earlier_lines_of_a_run_that_was_resumed_are_right(damaged: Path) -> None:
    path = root_of(damaged, "job") / "tasks.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line.replace('"COMPLETED"', '"CRASHED"') for line in lines) + "".join(lines))
    assert examine(damaged).is_sound


def test_the_value_of_an_earlier_attempt_is_removed(damaged: Path) -> None:
    root = root_of(damaged, "job")
    failed = "UPDATE run SET state = 6, result = NULL WHERE function = 'job'"
    query(damaged, failed)
    assert kinds(examine(damaged)) == ["copies"]
    assert examine(damaged, repair=True).is_sound
    assert not (root / "result.json").exists()


PUBLISH = """
import os, signal
from asyncflow import flow, task
from asyncflow.results import FileResults

def publish(self, batch):
    if any(row.id == root and row.ended for root, row in batch):  # the flow's end is committed, and with it all else
        os.kill(os.getpid(), signal.SIGKILL)

FileResults.publish = publish

@task
def double(number):
    return 2 * number

@flow
def killed():
    return [double(number) for number in range(3)]

killed()
signal.pause()
"""


def test_a_process_killed_between_commit_and_copies_leaves_rows_that_they_are_made_from(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PUBLISH], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(home) == {}
    report = examine(home)
    assert "copies" in kinds(report)
    report = examine(home, repair=True)
    assert report.is_sound, report.problems
    root = root_of(home, "killed")
    assert json.loads((root / "result.json").read_text()) == [0, 2, 4]
    lines = [json.loads(line) for line in (root / "tasks.jsonl").read_text().splitlines()]
    assert [line["result"] for line in lines] == [0, 2, 4]


# --- what nobody needs -----------------------------------------------------------------------


def strays(home: Path) -> list[Path]:
    root = root_of(home, "job")
    unknown = home / "results" / str(UUID(bytes=new_id()))
    unknown.mkdir(0o700)
    paths = [
        root / f"{UUID(bytes=new_id())}.json",
        root / ".result.json.0a1b2c3d.tmp",
        home / "results" / "cache" / f"{'0' * 64}.json",
        unknown / "result.json",
    ]
    for path in paths:
        path.write_text("{}")
        path.chmod(0o600)
    return paths


def test_files_that_nothing_refers_to_are_deleted(damaged: Path) -> None:
    before = content(damaged)
    paths = strays(damaged)
    mine = damaged / "results" / "notes.txt"  # a file of the user's
    mine.write_text("mine")
    mine.chmod(0o600)
    assert kinds(examine(damaged)) == ["uncited-file", "temporary-file"]
    report = examine(damaged, repair=True)
    assert report.is_sound
    assert kinds(report, "repaired") == ["uncited-file", "temporary-file"]
    assert not any(path.exists() for path in paths)
    assert not paths[-1].parent.exists()
    assert content(damaged) == {**before, "results/notes.txt": b"mine"}


def test_what_a_living_process_may_be_writing_is_left_alone(damaged: Path) -> None:
    paths = strays(damaged)
    with Runtime(damaged):
        report = examine(damaged, repair=True)
        assert report.is_sound
        assert kinds(report, "repaired") == []
        assert all(path.exists() for path in paths)
        for path in paths:
            make_old(path)  # older than the process
        assert examine(damaged, repair=True).is_sound
        assert not any(path.exists() for path in paths)


def test_nothing_is_deleted_while_a_value_is_missing(damaged: Path) -> None:
    path = next(root_of(damaged, "job").glob("????????-*.json"))
    moved = path.with_name(f"{UUID(bytes=new_id())}.json")
    path.rename(moved)
    assert kinds(examine(damaged, repair=True)) == ["missing-file", "uncited-file"]
    assert moved.exists()


def test_old_lock_files_of_dead_processes_are_deleted(damaged: Path) -> None:
    locks = damaged / "locks"
    locks.mkdir(exist_ok=True)
    dead = [locks / f"{'0' * 32}.lock", locks / f"{'1' * 32}.new", locks / f"key-{'2' * 64}.lock"]
    young, other = locks / f"{'3' * 32}.lock", locks / "other"
    for path in (*dead, young, other):
        path.touch(0o600)
        if path is not young:
            make_old(path)
    with Runtime(damaged, upkeep_seconds=0):
        living = {path.name for path in locks.iterdir()} - {path.name for path in (*dead, young, other)}
        for path in dead:  # opening may have removed them
            path.touch(0o600)
            make_old(path)
        report = examine(damaged)
        assert report.is_sound, report.findings
        assert "dead-lock" in kinds(report, "note")
        assert kinds(examine(damaged, repair=True), "repaired") == ["dead-lock"]
        left = {path.name for path in locks.iterdir()}
        assert left >= living | {other.name}
        assert not left & {path.name for path in dead}


# --- permissions -----------------------------------------------------------------------------


def test_rights_of_others_are_taken_away(damaged: Path) -> None:
    damaged.chmod(0o755)
    for path in damaged.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert kinds(examine(damaged)) == ["permissions"]
    report = examine(damaged, repair=True)
    assert kinds(report, "repaired") == ["permissions"]
    for path in (damaged, *damaged.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert examine(damaged).is_sound


def test_a_folder_that_holds_other_things_as_well_keeps_its_mode(damaged: Path) -> None:
    (damaged / "main.py").write_text("")
    damaged.chmod(0o755)
    assert examine(damaged, repair=True).is_sound
    assert stat.S_IMODE(damaged.stat().st_mode) == 0o755


def test_a_link_is_not_changed(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").touch(0o644)
    (tmp_path / "outside").chmod(0o644)
    (damaged / "results" / "link").symlink_to(tmp_path / "outside")
    examine(damaged, repair=True)
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o644


# --- what dead processes left open -----------------------------------------------------------

ORPHANED = """
import os, signal
from asyncflow import flow, task

@task
def stuck():
    os.kill(os.getpid(), signal.SIGKILL)

@flow
def orphaned():
    first()
    import time; time.sleep(0.2)  # on disk before the end
    stuck()

@task
def first():
    return 1

orphaned()
"""


def test_runs_of_dead_processes_are_told(home: Path) -> None:
    subprocess.run([sys.executable, "-c", ORPHANED], timeout=60, check=False)
    report = examine(home, repair=True)
    assert kinds(report) == ["orphans"]
    (orphans,) = report.problems
    assert "runs reap" in (orphans.remedy or "")
    assert "pid" in orphans.examples[0]
    subprocess.run([*COMMAND, "runs", "reap", "--home", str(home)], timeout=60, check=True, capture_output=True)
    assert "orphans" not in kinds(examine(home))


def test_transactions_that_were_interrupted_are_told(damaged: Path) -> None:
    query(damaged, "INSERT INTO txn (id, state, owner) VALUES (x'01', 3, 0), (x'02', 0, 77)")
    report = examine(damaged)
    assert "transactions" in kinds(report, "note")
    assert "2 transactions" in next(each.what for each in report.findings if each.kind == "transactions")


def test_what_retention_would_delete_is_told(damaged: Path) -> None:
    query(damaged, "UPDATE run SET created = 1, started = 1, ended = 1 WHERE function = 'big-job'")
    report = examine(damaged)
    assert report.is_sound
    assert report.facts["due_for_deletion"] == 1
    assert "retention" in kinds(report, "note")


# --- databases that cannot be read -----------------------------------------------------------


def not_a_database(path: Path) -> None:
    path.write_bytes(b"This is no database, whatever it is called. " * 100)


def foreign(path: Path) -> None:
    path.unlink()
    query(path.parent, "CREATE TABLE theirs (a)")
    path.chmod(0o600)


def newer(path: Path) -> None:
    query(path.parent, "PRAGMA user_version = 99")


def older(path: Path) -> None:
    query(path.parent, "PRAGMA user_version = 1")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 100)


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def damaged_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:4300] = bytes(range(204))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "kind", "text"),
    [
        (not_a_database, "unreadable", "damaged or not a database"),
        (foreign, "foreign", "another program's"),
        (newer, "newer", "version 99"),
        (cut, "", ""),
        (cut_to_nothing, "unreadable", "damaged or not a database"),
        (folder_in_its_place, "empty", "nothing is recorded"),
        (damaged_page, "", ""),
    ],
)
def test_a_database_that_cannot_be_read_is_one_clear_line(
    damaged: Path, damage: Callable[[Path], None], kind: str, text: str
) -> None:
    damage(damaged / "asyncflow.db")
    before = content(damaged)
    began = time.process_time()
    report = examine(damaged, repair=True)
    assert time.process_time() - began < 1
    (problem,) = report.problems
    assert problem.kind == (kind or problem.kind)
    assert problem.kind in {"unreadable", "damaged", "foreign", "newer", "empty"}
    assert text in problem.what
    assert "\n" not in problem.what
    assert content(damaged) == before


def test_an_older_database_is_left_as_it_is(damaged: Path) -> None:
    older(damaged / "asyncflow.db")
    report = examine(damaged, repair=True)
    assert report.is_sound
    assert "older" in kinds(report, "note")
    assert query(damaged, "PRAGMA user_version") == [(1,)]


def fuzz(data: bytearray, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            del data[chance.randrange(len(data)) :]
        case 1:
            for _ in range(chance.choice([1, 1, 8, 200])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 2:
            start = chance.randrange(len(data))
            data[start : start + chance.randrange(5000)] = b""
        case _:
            start = chance.randrange(len(data))
            data[start : start + 4096] = chance.randbytes(min(4096, len(data) - start))


def test_any_damage_at_all_is_a_finding_and_never_an_exception(sound: Path, home: Path) -> None:
    """`FUZZED=1000 pytest tests/test_doctor.py` is as many as a release wants."""
    chance = random.Random(20_261_122)
    original = (sound / "asyncflow.db").read_bytes()
    shutil.copytree(sound, home)
    longest, found = 0.0, 0
    for number in range(FUZZED):
        data = bytearray(original)
        fuzz(data, chance)
        for suffix in ("-wal", "-shm"):
            (home / f"asyncflow.db{suffix}").unlink(missing_ok=True)
        (home / "asyncflow.db").write_bytes(data)
        if chance.random() < 0.2:
            (home / "asyncflow.db-wal").write_bytes(chance.randbytes(chance.randrange(9000)))
        began = time.process_time()
        report = examine(home)
        longest = max(longest, time.process_time() - began)
        found += not report.is_sound
        json.dumps(report.as_json())
        assert all("\n" not in finding.what for finding in report.findings), number
    assert longest < 1
    assert found > FUZZED // 2


@pytest.mark.parametrize(
    "change",
    [
        "state = 99",
        "state = 'text'",
        "id = x'010203'",
        "kind = 7",
        "error = '{no json'",
        "error = '[]'",
        "result = '{no json'",
        "function = NULL",
        "function = x'ff'",
        "created = 'yesterday'",
        "ended = NULL",
        "ended = 'late'",
        "result_file = 'x'",
        "result_file = '{}'",
        "owner = 'me'",
        "run_count = 1.5",
        "details = '3'",
        "tags = '{}'",
    ],
)
def test_a_row_that_asyncflow_cannot_have_written_is_told(damaged: Path, change: str) -> None:
    before = content(damaged)
    query(damaged, f"UPDATE run SET {change} WHERE function = 'nested' AND kind = 0")
    report = examine(damaged, repair=True)
    assert kinds(report)
    assert content(damaged).keys() >= before.keys()
    json.dumps(report.as_json())


def test_an_unreadable_file_is_no_exception(damaged: Path) -> None:
    query(damaged, "UPDATE process SET lock = x'ff00', opened = 'never'")
    query(damaged, "INSERT INTO process (lock, opened) VALUES ('../../etc/passwd', 'never')")
    examine(damaged, repair=True)


# --- the command -----------------------------------------------------------------------------


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "doctor", "--home", str(home), *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_says_what_is_wrong_and_what_to_do(damaged: Path) -> None:
    done = command(damaged)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no problems" in done.stdout
    (root_of(damaged, "job") / "tasks.jsonl").unlink()
    done = command(damaged)
    assert done.returncode == 1
    assert "✗ 1 copy for people is missing" in done.stdout
    assert "--repair" in done.stdout
    assert "tasks.jsonl (missing)" in done.stdout
    done = command(damaged, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["is_sound"] is False
    assert [finding["kind"] for finding in report["findings"] if finding["level"] == "problem"] == ["copies"]
    done = command(damaged, "--repair")
    assert done.returncode == 0
    assert "✓ 1 copy for people is missing" in done.stdout
    assert command(damaged, "--no-such-option").returncode == 2


def test_the_command_tells_of_a_damaged_file_without_a_traceback(damaged: Path) -> None:
    not_a_database(damaged / "asyncflow.db")
    done = command(damaged)
    assert done.returncode == 1
    assert "damaged or not a database" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert command(damaged / "none").returncode == 1
