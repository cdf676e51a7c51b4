"""Result files: what is written where, what survives, and what is never believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from uuid import UUID

import pytest

from asyncflow._backend.inline import InlineHost, drive
from asyncflow._rows import FLOW, STAND_IN, STATE_CODES, TASK, CachedRow, RunRow
from asyncflow.clock import SystemClock
from asyncflow.exceptions import MissingResultError, StoreError
from asyncflow.ids import new_id
from asyncflow.results import DictStorage, FileResults, FolderStorage
from asyncflow.results.files import MOST_IN_ROW
from asyncflow.states import StateType
from tests.contracts.recordables import run_row
from tests.contracts.recordables import write_results as write

FAILED, RUNNING, CANCELLED = (STATE_CODES[each] for each in (StateType.FAILED, StateType.RUNNING, StateType.CANCELLED))
LARGE = json.dumps("é" * MOST_IN_ROW, ensure_ascii=False)


@pytest.fixture
def results(home: Path) -> FileResults:
    home.mkdir(0o700)
    return FileResults(home)


def read_result(results: FileResults, row: RunRow | CachedRow) -> str | None:
    text: str | None = drive(results.read(row, InlineHost(SystemClock())))
    return text


def folder(home: Path, root: bytes) -> Path:
    return home / "results" / str(UUID(bytes=root))


def lines(home: Path, root: bytes) -> list[object]:
    return [json.loads(line) for line in (folder(home, root) / "tasks.jsonl").read_text().splitlines()]


def files(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("*") if path.is_file())


# --- what is written -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FLOW, TASK])
def test_the_value_of_an_outermost_run_is_a_file(results: FileResults, home: Path, kind: int) -> None:
    row = run_row(kind=kind, result='{"total":3}')
    assert write(results, [(row.id, row)]) == [row]
    assert (folder(home, row.id) / "result.json").read_text() == '{"total":3}'
    assert files(home) == ["result.json"]
    changed = row._replace(result="4", seq=4)  # the run was resumed
    write(results, [(row.id, changed)])
    assert (folder(home, row.id) / "result.json").read_text() == "4"


@pytest.mark.parametrize("columns", [{"result": None}, {"state": FAILED, "result": None}, {"state": RUNNING}])
def test_an_outermost_run_without_a_value_makes_no_file(
    results: FileResults, home: Path, columns: dict[str, int]
) -> None:
    row = run_row(**columns)
    assert write(results, [(row.id, row)]) == [row]
    assert list(home.iterdir()) == []


def test_each_run_below_that_ended_is_a_line(results: FileResults, home: Path) -> None:
    root = new_id()
    error = '{"type":"ValueError","module":"builtins","message":"no","traceback":"..."}'
    rows = [
        run_row(result='{"a":[1,2]}'),
        run_row(kind=FLOW, function="sub", name="calm-otter", result='"x"'),
        run_row(state=FAILED, state_name="TimedOut", result=None, error=error),
        run_row(state=CANCELLED, result=None, message="by its caller"),
        run_row(result=None, details='{"not_kept":"a socket is not JSON"}'),
        run_row(result='{\n "pretty": true\n}'),
    ]
    unseen = [run_row(state=RUNNING, result=None, ended=None), run_row(kind=STAND_IN)]
    assert write(results, [(root, row) for row in (*rows, *unseen)]) == [*rows, *unseen]
    ids = [str(UUID(bytes=row.id)) for row in rows]
    assert lines(home, root) == [
        {"id": ids[0], "task": "fetch", "state": "COMPLETED", "result": {"a": [1, 2]}},
        {"id": ids[1], "flow": "sub", "name": "calm-otter", "state": "COMPLETED", "result": "x"},
        {"id": ids[2], "task": "fetch", "state": "FAILED", "state_name": "TimedOut",
         "error": {"type": "ValueError", "message": "no"}},
        {"id": ids[3], "task": "fetch", "state": "CANCELLED", "message": "by its caller"},
        {"id": ids[4], "task": "fetch", "state": "COMPLETED", "not_kept": "a socket is not JSON"},
        {"id": ids[5], "task": "fetch", "state": "COMPLETED", "result": {"pretty": True}},
    ]  # fmt: skip
    write(results, [(root, later := run_row())])
    assert len(lines(home, root)) == 7
    assert files(home) == ["tasks.jsonl"]
    assert read_result(results, later) == "null"


def test_each_outermost_run_has_a_folder_of_its_own(results: FileResults, home: Path) -> None:
    roots = [run_row() for _ in range(300)]  # more than are remembered
    write(results, [(root.id, root) for root in roots])
    write(results, [(root.id, run_row()) for root in roots])
    assert {len(lines(home, root.id)) for root in roots} == {1}


def test_a_large_value_is_a_file_that_the_row_cites(results: FileResults, home: Path) -> None:
    root, below = run_row(kind=FLOW, result=LARGE), run_row(result=LARGE)
    stored = write(results, [(root.id, root), (root.id, below)])
    for row, name in zip(stored, ("result.json", f"{UUID(bytes=below.id)}.json"), strict=True):
        content = (folder(home, root.id) / name).read_bytes()
        assert row.result is None
        assert json.loads(row.result_file or "") == {
            "path": f"results/{UUID(bytes=root.id)}/{name}",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
        assert read_result(results, row) == LARGE
    assert stored[1] == below._replace(result=None, result_file=stored[1].result_file)
    (line,) = lines(home, root.id)
    assert isinstance(line, dict)
    assert line["result_file"] == json.loads(stored[1].result_file or "")


@pytest.mark.parametrize(
    ("value", "is_large"),
    [
        ("1" * MOST_IN_ROW, False),
        ("1" * (MOST_IN_ROW + 1), True),
        ('"' + "é" * (MOST_IN_ROW // 2 - 1) + '"', False),
        ('"' + "é" * (MOST_IN_ROW // 2) + '"', True),
    ],
)
def test_large_is_a_matter_of_bytes(results: FileResults, value: str, is_large: bool) -> None:
    row = run_row(result=value)
    (stored,) = write(results, [(new_id(), row)])
    assert (stored.result is None) == is_large
    assert read_result(results, stored) == value


def test_a_run_without_a_value_reads_as_none(results: FileResults) -> None:
    assert read_result(results, run_row(result=None)) is None


# --- what may go wrong -----------------------------------------------------------------------


def large(results: FileResults) -> RunRow:
    row = run_row(result=LARGE)
    (stored,) = write(results, [(row.id, row)])
    return stored


def test_a_file_that_is_gone_is_missed(results: FileResults, home: Path) -> None:
    row = large(results)
    (folder(home, row.id) / "result.json").unlink()
    with pytest.raises(MissingResultError, match=f"{UUID(bytes=row.id)}.*is gone"):
        read_result(results, row)


@pytest.mark.parametrize("damage", ["cut short", "changed"])
def test_a_file_that_was_changed_is_not_believed(results: FileResults, home: Path, damage: str) -> None:
    row = large(results)
    path = folder(home, row.id) / "result.json"
    content = path.read_bytes()
    path.write_bytes(content[:-2] if damage == "cut short" else b" " + content[:-1])
    with pytest.raises(StoreError, match="checksum"):
        read_result(results, row)


@pytest.mark.parametrize("path", ["results/../secret.json", "/etc/hostname", "asyncflow.db", "../results/x"])
def test_a_row_cannot_lead_out_of_the_results(results: FileResults, home: Path, path: str) -> None:
    (home / "secret.json").write_text("1")
    cited = json.dumps({"path": path, "sha256": hashlib.sha256(b"1").hexdigest(), "size": 1})
    with pytest.raises(StoreError, match="leads out"):
        read_result(results, run_row(result=None, result_file=cited))


def test_a_link_is_not_followed(results: FileResults, home: Path) -> None:
    row = large(results)
    path = folder(home, row.id) / "result.json"
    path.rename(home / "elsewhere.json")
    path.symlink_to(home / "elsewhere.json")
    with pytest.raises(StoreError):
        read_result(results, row)
    target = home / "target"
    target.touch()
    (folder(home, row.id) / "tasks.jsonl").symlink_to(target)
    write(results, [(row.id, run_row())])
    assert target.read_text() == ""


def test_what_a_killed_process_left_is_no_hindrance(results: FileResults, home: Path) -> None:
    row = run_row(result=LARGE)
    folder(home, row.id).mkdir(parents=True)
    (folder(home, row.id) / ".result.json.tmp").write_text("half a val")
    (stored,) = write(results, [(row.id, row)])
    assert read_result(results, stored) == LARGE
    assert files(home) == [".result.json.tmp", "result.json"]


def test_a_folder_that_was_removed_is_made_again(results: FileResults, home: Path) -> None:
    root = run_row()
    write(results, [(root.id, run_row())])
    shutil.rmtree(home / "results")
    write(results, [(root.id, run_row())])
    assert len(lines(home, root.id)) == 1


def test_a_large_value_that_cannot_be_written_is_an_error_and_leaves_no_lines(results: FileResults, home: Path) -> None:
    root = new_id()
    small, big = run_row(), run_row(result=LARGE)
    blocker = folder(home, root) / f"{UUID(bytes=big.id)}.json"
    blocker.mkdir(parents=True)  # a folder cannot be replaced by a file
    with pytest.raises(StoreError, match="writing a result"):
        write(results, [(root, small), (root, big)])
    assert files(home) == []
    blocker.rmdir()
    write(results, [(root, small), (root, big)])
    assert len(lines(home, root)) == 2


def test_a_convenience_that_cannot_be_written_is_reported_once_and_stops_nothing(
    results: FileResults, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "results").touch()
    root = run_row()
    batch = [(root.id, root), (root.id, run_row())]
    for _ in range(3):
        assert write(results, batch) == [row for _, row in batch]
    assert len(caplog.records) == 1
    assert "incomplete" in caplog.text


def test_a_line_that_cannot_be_told_is_told_shorter(results: FileResults, home: Path) -> None:
    root = new_id()
    rows = [run_row(function="half \ud83d"), run_row(state=FAILED, result=None, error="{no json"), run_row()]
    assert write(results, [(root, row) for row in rows]) == rows
    assert [sorted(line) for line in lines(home, root) if isinstance(line, dict)] == [
        ["id", "state", "task"], ["id", "state", "task"], ["id", "result", "state", "task"]
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_half_a_line_is_taken_back(results: FileResults, home: Path) -> None:
    """The disk is full in the middle of a write: what was there before stays readable."""
    resource = pytest.importorskip("resource")
    root = new_id()
    write(results, [(root, run_row())])
    child = os.fork()
    if child == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
        write(results, [(root, run_row())])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    write(results, [(root, run_row())])
    assert len(lines(home, root)) == 2


def test_files_are_private(results: FileResults, home: Path) -> None:
    large(results)
    write(results, [(new_id(), run_row())])
    for path in home.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- cached values ---------------------------------------------------------------------------


def cached_row(key: str = "a/../b", result: str | None = '{"n":1}') -> CachedRow:
    return CachedRow(key, "shop.fetch", new_id(), created=1, expires=None, result=result, result_file=None)


@pytest.mark.parametrize("key", ["plain", "../../etc/passwd", "/abs", "%2e%2e", "nul\0", "k" * 5000, "half \ud83d", ""])
def test_a_cached_value_is_a_file_named_by_its_keys_digest(results: FileResults, home: Path, key: str) -> None:
    stored = results.write_cached(cached_row(key))
    assert stored.result is None
    cited = json.loads(stored.result_file or "")
    digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
    assert cited == {
        "path": f"results/cache/{digest}.json",
        "sha256": hashlib.sha256(b'{"n":1}').hexdigest(),
        "size": 7,
    }
    assert (home / cited["path"]).read_text() == '{"n":1}'
    assert files(home) == [f"{digest}.json"]
    assert read_result(results, stored) == '{"n":1}'
    again = results.write_cached(cached_row(key, "2"))
    assert read_result(results, again) == "2"
    assert files(home) == [f"{digest}.json"]


def test_a_cached_row_without_a_value_stays_as_it_is(results: FileResults, home: Path) -> None:
    row = cached_row(result=None)
    assert results.write_cached(row) is row
    assert files(home) == []


def test_a_cached_value_that_is_gone_or_changed_is_not_believed(results: FileResults, home: Path) -> None:
    row = results.write_cached(cached_row())
    path = home / json.loads(row.result_file or "")["path"]
    path.write_text('{"n":2}')
    with pytest.raises(StoreError, match="checksum"):
        read_result(results, row)
    path.unlink()
    with pytest.raises(MissingResultError, match=f"{UUID(bytes=row.run_id)}.*is gone"):
        read_result(results, row)


def test_a_cached_value_that_cannot_be_written_is_an_error(results: FileResults, home: Path) -> None:
    (home / "results").touch()
    with pytest.raises(StoreError, match="writing a result"):
        results.write_cached(cached_row())


# --- deleting --------------------------------------------------------------------------------


def test_the_files_of_deleted_runs_are_deleted_and_no_others(results: FileResults, home: Path) -> None:
    gone, kept = run_row(result=LARGE), run_row(result=LARGE)
    for root in (gone, kept):
        write(results, [(root.id, root), (root.id, run_row(result=LARGE)), (root.id, run_row())])
    cached = [results.write_cached(cached_row(key)) for key in ("x", "y")]
    results.delete([gone.id, new_id()], cached[:1])
    assert not folder(home, gone.id).exists()
    assert len(list(folder(home, kept.id).iterdir())) == 3
    assert read_result(results, cached[1]) == '{"n":1}'
    with pytest.raises(MissingResultError):
        read_result(results, cached[0])
    (stored,) = write(results, [(gone.id, gone)])  # its folder is made again
    assert read_result(results, stored) == LARGE


def test_a_cached_value_that_was_replaced_meanwhile_stays(results: FileResults) -> None:
    former = results.write_cached(cached_row("key", "1"))
    newer = results.write_cached(cached_row("key", "2"))
    results.delete([], [former])
    assert read_result(results, newer) == "2"


def test_deleting_follows_no_link(results: FileResults, home: Path) -> None:
    outside = home.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    linked, inside = run_row(result=LARGE), run_row(result=LARGE)
    write(results, [(inside.id, inside)])
    (folder(home, inside.id) / "link").symlink_to(outside)
    folder(home, linked.id).symlink_to(outside)
    results.delete([linked.id, inside.id])
    assert (outside / "precious").read_text() == "kept"
    assert list((home / "results").iterdir()) == []
    (home / "results").rmdir()
    (home / "results").symlink_to(outside)
    (outside / str(UUID(bytes=inside.id))).mkdir()
    results.delete([inside.id])
    assert len(list(outside.iterdir())) == 2


@pytest.mark.parametrize(
    "path", ["results", "results/../asyncflow.db", "asyncflow.db", "/etc/hostname", "results/a/../../x", "", "locks/x"]
)
def test_only_what_is_inside_of_the_results_is_deleted_or_read(home: Path, path: str) -> None:
    (home / "results" / "a").mkdir(parents=True)
    (home / "asyncflow.db").touch()
    folder = FolderStorage(home)
    with pytest.raises(PermissionError, match="not inside"):
        folder.delete(path)
    with pytest.raises(PermissionError, match="not inside"):
        folder.read(path)
    assert (home / "asyncflow.db").exists()
    assert (home / "results" / "a").exists()


def test_deleting_raises_nothing(results: FileResults, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    results.delete([new_id()], [cached_row(), cached_row()._replace(result_file="{no json")])
    (home / "results").touch()
    results.delete([new_id()], [results_row := cached_row()._replace(result_file='{"sha256":"0"}')])
    assert results_row.result_file
    assert "could not be deleted" in caplog.text


# --- a storage of the user's own -------------------------------------------------------------


@pytest.fixture
def storage(home: Path) -> DictStorage:
    home.mkdir(0o700, exist_ok=True)
    return DictStorage("bucket")


def test_large_and_cached_values_can_live_elsewhere(home: Path, storage: DictStorage) -> None:
    results = FileResults(home, storage=storage)
    root, below, small = run_row(result=LARGE), run_row(result=LARGE), run_row(result="1")
    stored = write(results, [(root.id, root), (root.id, below), (root.id, small)])
    cached = results.write_cached(cached_row())
    assert files(home) == ["tasks.jsonl"]  # copies for people are files whatever the storage is
    rows: list[RunRow | CachedRow] = [*stored, cached]
    assert [read_result(results, row) for row in rows] == [LARGE, LARGE, "1", '{"n":1}']
    cited = json.loads(stored[1].result_file or "")
    assert cited["storage"] == "bucket"
    assert set(storage.data) == {
        f"results/{UUID(bytes=root.id)}/result.json",
        f"results/{UUID(bytes=root.id)}/{UUID(bytes=below.id)}.json",
        json.loads(cached.result_file or "")["path"],
    }
    results.delete([root.id], [cached])
    assert storage.data == {}
    assert files(home) == []


def test_a_storage_that_is_not_there_is_named(home: Path, storage: DictStorage) -> None:
    row = results_row = run_row(result=LARGE)
    (row,) = write(FileResults(home, storage=storage), [(results_row.id, results_row)])
    for other in (FileResults(home), FileResults(home, storage=DictStorage("other"))):
        with pytest.raises(StoreError, match="storage 'bucket'"):
            read_result(other, row)


def test_what_was_written_before_there_was_a_storage_is_read(
    results: FileResults, home: Path, storage: DictStorage
) -> None:
    assert read_result(FileResults(home, storage=storage), large(results)) == LARGE


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ConnectionError("no route"), RuntimeError("odd")])
def test_whatever_a_storage_raises_is_a_store_error(home: Path, error: Exception) -> None:
    class Broken(DictStorage):
        def read(self, path: str) -> bytes:
            raise error

        def write(self, path: str, data: bytes) -> None:
            if is_broken:
                raise error
            super().write(path, data)

        def delete(self, path: str) -> None:
            raise error

    row, is_broken = run_row(result=LARGE), True
    results = FileResults(home, storage=Broken("bucket"))
    with pytest.raises(StoreError, match=r"Input/output error|no route|odd"):
        write(results, [(row.id, row)])
    is_broken = False
    (stored,) = write(results, [(row.id, row)])
    with pytest.raises(StoreError, match=r"Input/output error|no route|odd"):
        read_result(results, stored)
    results.delete([row.id], [cached_row()._replace(result_file='{"sha256":"0"}')])


def test_a_value_that_a_storage_changed_is_not_believed(home: Path, storage: DictStorage) -> None:
    results = FileResults(home, storage=storage)
    row = large(results)
    (path,) = storage.data
    storage.data[path] = storage.data[path][:-1] + b" "
    with pytest.raises(StoreError, match="checksum"):
        read_result(results, row)
    storage.data.clear()
    with pytest.raises(MissingResultError):
        read_result(results, row)
