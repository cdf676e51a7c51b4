"""`asyncflow runs resume`, `runs reap`, `runs rm`, `gc`: the real commands on real homes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command_line import COMMAND, CommandLine

UNKNOWN = "01900000-0000-7000-8000-000000000000"

FLOWS = """
import sys
import time
from pathlib import Path

import anyio

from asyncflow import flow, task


def note(what: str) -> None:
    with Path("notes.txt").open("a") as file:
        file.write(what + "\\n")


@task
async def fetch(number: int) -> int:
    note(f"fetch {number}")
    return 10 * number


@task
async def publish(total: int, prefix: str) -> str:
    note("publish")
    if not Path("printer").exists():
        raise ValueError("out of paper")
    return f"{prefix}{total}"


@flow
async def inner(number: int) -> int:
    return await fetch(number)


@flow
async def report(upto: int, prefix: str = "total ") -> str:
    total = 0
    for number in range(upto):
        total += await inner(number)
    return await publish(total, prefix)


@task
def double(number: int) -> int:
    note("double")
    return 2 * number


@task
def fragile() -> None:
    if not Path("printer").exists():
        raise ValueError("out of paper")


@flow
def sync_report(number: int) -> int:
    found = double(number)
    fragile()
    return found


@flow
async def endless() -> None:
    await fetch(1)
    if not Path("printer").exists():
        sys.stderr.write("ready\\n")
        sys.stderr.flush()
        await anyio.sleep_forever()


@flow
async def quick(number: int = 0, filling: str = "") -> int:
    return number


@flow
async def many(number: int) -> None:
    for each in range(number):
        await fetch(each)
"""


@pytest.fixture
def asyncflow(tmp_path: Path, home: Path) -> CommandLine:
    (tmp_path / "jobs.py").write_text(FLOWS)
    return CommandLine(tmp_path, home)


def notes(asyncflow: CommandLine) -> list[str]:
    file = asyncflow.folder / "notes.txt"
    return file.read_text().splitlines() if file.exists() else []


def load_paper(asyncflow: CommandLine) -> None:
    (asyncflow.folder / "printer").touch()


def failed(asyncflow: CommandLine, *words: str) -> str:
    """A run of `words` that failed; gives its id."""
    assert asyncflow("run", *words).status == 1
    name = words[0].rpartition(":")[2].replace("_", "-")
    found: str = asyncflow.runs("--limit", "1", "--state", "failed", "--flow", name)[0]["id"]
    return found


@contextmanager
def in_the_middle(asyncflow: CommandLine) -> Generator[subprocess.Popen[str]]:
    """`asyncflow run` of a flow that waits; it has got to its waiting."""
    process = subprocess.Popen(
        [*COMMAND, "run", "jobs.py:endless"],
        cwd=asyncflow.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    with process, process.stderr, process.stdout:
        try:
            assert any(line == "ready\n" for line in process.stderr)
            yield process
        finally:
            process.kill()


def run_quick(asyncflow: CommandLine, number: int, filling: int = 0) -> None:
    """Several runs at the price of one process."""
    code = (
        "import anyio, jobs\n"
        "async def main():\n"
        f"    for number in range({number}):\n"
        f"        await jobs.quick(number, 'x' * {filling})\n"
        "anyio.run(main)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=asyncflow.folder, check=True, timeout=50)


def make_older(asyncflow: CommandLine, days: float, where: str = "1") -> None:
    """Turn the clock back for what was recorded."""
    past = round(days * 24 * 3600 * 1_000_000)
    connection = sqlite3.connect(asyncflow.home / "asyncflow.db", isolation_level=None)
    connection.execute(
        f"UPDATE run SET created = created - {past}, started = started - {past}, ended = ended - {past} WHERE {where}"
    )
    connection.close()


def folders(asyncflow: CommandLine) -> set[str]:
    return {each.name for each in (asyncflow.home / "results").iterdir() if each.name != "cache"}


# --- resume --------------------------------------------------------------------------------------


def test_a_failed_run_goes_on_where_it_failed(asyncflow: CommandLine) -> None:
    run = failed(asyncflow, "jobs.py:report", "-p", "upto=3")
    before = ["fetch 0", "fetch 1", "fetch 2", "publish"]
    assert notes(asyncflow) == before
    load_paper(asyncflow)
    done = asyncflow.ok("runs", "resume", run)
    assert done.json == "total 30"
    assert notes(asyncflow) == [*before, "publish"]
    assert f"asyncflow: resuming with {asyncflow.folder / 'jobs.py'}:report\n" in done.err
    assert "Completed     flow report" in done.err
    assert "out of paper" not in done.err  # that was before
    assert asyncflow.ok("runs", "result", run).json == "total 30"
    (shown,) = asyncflow.runs("--flow", "report")
    assert (shown["id"], shown["state"]["type"], shown["run_count"]) == (run, "COMPLETED", 2)


def test_a_sync_flow_is_resumed(asyncflow: CommandLine) -> None:
    run = failed(asyncflow, "jobs.py:sync_report", "-p", "number=4")
    load_paper(asyncflow)
    assert asyncflow.ok("runs", "resume", run).json == 8
    assert notes(asyncflow) == ["double"]


def test_it_is_resumed_on_trio_with_other_code_and_other_parameters(asyncflow: CommandLine) -> None:
    run = failed(asyncflow, "jobs.py:report", "-p", "upto=2")
    load_paper(asyncflow)
    code = (asyncflow.folder / "jobs.py").read_text().replace("total = 0", "total = 1000")
    (asyncflow.folder / "mended").mkdir()
    (asyncflow.folder / "mended" / "jobs.py").write_text(code)
    words = ["--code", "mended/jobs.py:report", "--parameters", '{"prefix": "sum "}', "--backend", "trio"]
    done = asyncflow.ok("runs", "resume", run, *words)
    assert done.json == "sum 1010"
    assert "resuming with" not in done.err
    assert notes(asyncflow) == ["fetch 0", "fetch 1", "publish", "publish"]


def test_it_fails_again_as_a_run_fails(asyncflow: CommandLine) -> None:
    run = failed(asyncflow, "jobs.py:report", "-p", "upto=1")
    done = asyncflow("runs", "resume", run)
    assert (done.status, done.out) == (1, "")
    assert "✗ flow report" in done.err
    assert "ValueError: out of paper\n    at jobs.py:" in done.err
    assert f"asyncflow runs show {run}" in done.err
    assert "Traceback" in asyncflow("runs", "resume", run, "--traceback").err


def test_a_run_whose_process_was_killed_is_resumed_and_one_that_lives_is_not(asyncflow: CommandLine) -> None:
    with in_the_middle(asyncflow) as process:
        (run,) = asyncflow.runs("--flow", "endless")
        load_paper(asyncflow)
        refused = asyncflow("runs", "resume", run["id"])
        assert (refused.status, refused.out) == (1, "")
        assert "cannot be resumed: it is Running" in refused.err
        assert "Traceback" not in refused.err
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert asyncflow.ok("runs", "resume", run["id"]).json is None
    assert notes(asyncflow) == ["fetch 1"]


def test_what_cannot_be_resumed_is_told_in_a_line(asyncflow: CommandLine) -> None:
    load_paper(asyncflow)
    asyncflow.ok("run", "jobs.py:report", "-p", "upto=1")
    (done,) = asyncflow.runs("--flow", "report")
    (nested,) = asyncflow.runs("--flow", "inner")
    (task,) = asyncflow.runs("--task", "publish")
    for run, why in (
        (done, "it is Completed"),
        (nested, f"it is a part of another run. Resume that one: {done['id']}"),
        (task, f"it is a part of another run. Resume that one: {done['id']}"),
    ):
        refused = asyncflow("runs", "resume", run["id"])
        assert (refused.status, refused.out) == (1, "")
        assert refused.err.startswith(f"asyncflow: run {run['id']} cannot be resumed: {why}")
        assert refused.err.count("\n") == 1


def test_where_the_code_is_has_to_be_known(asyncflow: CommandLine) -> None:
    code = (
        "from asyncflow import flow\n"
        "def make():\n"
        "    @flow\n"
        "    def hidden():\n"
        "        raise ValueError\n"
        "    return hidden\n"
        "make()()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=asyncflow.folder, stderr=subprocess.DEVNULL, check=False)
    (run,) = asyncflow.runs("--flow", "hidden")
    refused = asyncflow("runs", "resume", run["id"])
    assert refused.status == 2
    assert "--code path/to/file.py:flow" in refused.err
    moved = failed(asyncflow, "jobs.py:report", "-p", "upto=1")
    (asyncflow.folder / "jobs.py").rename(asyncflow.folder / "other.py")
    refused = asyncflow("runs", "resume", moved)
    assert refused.status == 2
    assert "there is no such file" in refused.err
    load_paper(asyncflow)
    assert asyncflow.ok("runs", "resume", moved, "--code", "other.py:report").json == "total 0"


@pytest.mark.parametrize("parameters", ["{", "[1]", "upto=3"])
def test_parameters_must_be_a_json_object(asyncflow: CommandLine, parameters: str) -> None:
    refused = asyncflow("runs", "resume", UNKNOWN, "--parameters", parameters)
    assert refused.status == 2
    assert refused.err.startswith("asyncflow: --parameters: it ")


# --- reap ----------------------------------------------------------------------------------------


def test_runs_of_a_killed_process_are_ended_and_those_of_a_living_one_are_not(asyncflow: CommandLine) -> None:
    with in_the_middle(asyncflow) as process:
        assert asyncflow.ok("runs", "reap").out == "0 runs of processes that have died ended as Crashed\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [run["state"]["type"] for run in asyncflow.runs()] == ["RUNNING"]  # looking changes nothing
    found = asyncflow.ok("runs", "reap", "--json").json
    assert found == {"crashed": 1, "interrupted": 0, "transactions": []}
    (run,) = asyncflow.runs()
    assert run["state"]["type"] == "CRASHED"
    assert asyncflow.ok("runs", "reap", "--json").json["crashed"] == 0


INTERRUPTED = """
import os
from asyncflow._rows import ACTIVE, TransactionRow
from asyncflow.ids import new_id
from asyncflow.runtime import HOME

store = HOME.open_default().store
store.write_transaction(TransactionRow(new_id(), "seat 7", None, ACTIVE, 1, None, store.owner, None, '["release"]'))
os._exit(0)
"""


def test_interrupted_transactions_are_told_with_the_hooks_that_were_not_run(asyncflow: CommandLine) -> None:
    subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=asyncflow.folder, check=True, timeout=50)
    (told,) = asyncflow.ok("runs", "reap", "--json").json["transactions"]
    assert (told["key"], told["run_id"], told["hooks"]) == ("seat 7", None, ["release"])
    subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=asyncflow.folder, check=True, timeout=50)
    lines = asyncflow.ok("runs", "reap").out.splitlines()
    assert lines[1].startswith("transaction 'seat 7' was interrupted")
    assert lines[1].endswith(": release")


# --- rm ------------------------------------------------------------------------------------------


def test_named_runs_are_deleted_with_all_that_is_of_them(asyncflow: CommandLine) -> None:
    load_paper(asyncflow)
    for upto in (1, 2, 3):
        asyncflow.ok("run", "jobs.py:report", "-p", f"upto={upto}")
    newest, middle, oldest = (run["id"] for run in asyncflow.runs("--flow", "report"))
    assert asyncflow.ok("runs", "rm", oldest, newest, "--json").json == {"deleted": [oldest, newest]}
    assert [run["id"] for run in asyncflow.runs("--flow", "report")] == [middle]
    assert len(asyncflow.runs("--flow", "inner")) == 2
    assert folders(asyncflow) == {middle}
    assert asyncflow.ok("runs", "rm", middle).out == "deleted 1 outermost run\n"
    assert asyncflow.runs() == asyncflow.runs("--tasks") == []


def test_when_one_cannot_be_deleted_none_is(asyncflow: CommandLine) -> None:
    load_paper(asyncflow)
    asyncflow.ok("run", "jobs.py:report", "-p", "upto=1")
    (whole,), (nested,) = asyncflow.runs("--flow", "report"), asyncflow.runs("--flow", "inner")
    (asyncflow.folder / "printer").unlink()
    with in_the_middle(asyncflow):
        (live,) = asyncflow.runs("--flow", "endless")
        for wrong, why in (
            (UNKNOWN, f"no run has the id '{UNKNOWN}'"),
            ("nonsense", "no run has the id 'nonsense'"),
            (nested["id"], f"cannot be deleted: it is a part of run {whole['id']}"),
            (live["id"], "cannot be deleted: it has not ended (it is Running)"),
        ):
            refused = asyncflow("runs", "rm", whole["id"], wrong)
            assert (refused.status, refused.out) == (1, "")
            assert why in refused.err
            assert refused.err.count("\n") == 1
        # Chosen by age or state, what goes on is left alone.
        assert asyncflow.ok("runs", "rm", "--older-than", "0s", "--json").json == {"deleted": [whole["id"]]}
        assert [run["id"] for run in asyncflow.runs()] == [live["id"]]


def test_runs_are_chosen_by_age_and_state(asyncflow: CommandLine) -> None:
    bad = failed(asyncflow, "jobs.py:report", "-p", "upto=1")
    worse = failed(asyncflow, "jobs.py:report", "-p", "upto=2")
    run_quick(asyncflow, 3)
    make_older(asyncflow, 10, f"hex(id) = '{bad.replace('-', '').upper()}'")
    make_older(asyncflow, 20, "function = 'quick' AND json_extract(parameters, '$.number') = 0")
    assert asyncflow.ok("runs", "rm", "--older-than", "3w", "--json").json == {"deleted": []}
    assert asyncflow.ok("runs", "rm", "--older-than", "9d", "--state", "failed", "--json").json == {"deleted": [bad]}
    assert asyncflow.ok("runs", "rm", "--older-than", "15d").out == "deleted 1 outermost run\n"
    assert asyncflow.ok("runs", "rm", "--state", "failed", "--state", "crashed", "--json").json == {"deleted": [worse]}
    assert len(asyncflow.runs()) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rm"], "name the ids of the runs to delete, or choose runs with --older-than"),
        (["rm", UNKNOWN, "--older-than", "1d"], "name the ids of the runs to delete, or choose"),
        (["rm", "--older-than", "soon"], "--older-than 'soon': write a length of time"),
        (["rm", "--older-than", "99999999999999d"], "--older-than '99999999999999d': write a length of time"),
        (["rm", "--state", "happy"], "the states are scheduled, pending, running"),
        (["rm", "--state", "running"], "only runs that have ended can be deleted; the states of these are completed"),
    ],
)
def test_misuse_of_rm(asyncflow: CommandLine, words: list[str], told: str) -> None:
    run_quick(asyncflow, 1)
    done = asyncflow("runs", *words)
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert len(asyncflow.runs()) == 1


# --- gc ------------------------------------------------------------------------------------------


def test_gc_does_what_the_settings_say_and_the_options_say_it_instead(asyncflow: CommandLine) -> None:
    run_quick(asyncflow, 40)
    make_older(asyncflow, 31, "json_extract(parameters, '$.number') < 10")
    make_older(asyncflow, 20, "json_extract(parameters, '$.number') BETWEEN 10 AND 19")
    assert len(asyncflow.runs()) == 40  # a command that only looks deletes nothing
    assert asyncflow.ok("gc", "--dry-run", "--json").json["runs"] == 10
    assert asyncflow.ok("gc", "--older-than", "2w", "--dry-run").out.startswith("would delete 20 outermost runs")
    assert asyncflow.ok("gc", "--keep-runs", "5", "--dry-run", "--json").json["runs"] == 35
    assert len(asyncflow.runs()) == 40
    assert asyncflow.ok("gc", "--json", ASYNCFLOW_RETENTION_DAYS="0").json["runs"] == 0
    assert asyncflow.ok("gc", "--json").json["runs"] == 10
    done = asyncflow.ok("gc", "--older-than", "2w")
    assert done.out.startswith("deleted 10 outermost runs and 0 expired cached values, gave ")
    assert asyncflow.ok("gc", "--json", ASYNCFLOW_RETENTION_RUNS="12").json["runs"] == 8
    assert asyncflow.ok("gc", "--keep-runs", "0", "--json").json["runs"] == 12
    assert asyncflow.runs() == []
    assert folders(asyncflow) == set()


def test_gc_gives_the_space_back(asyncflow: CommandLine) -> None:
    run_quick(asyncflow, 200, filling=20_000)
    file = asyncflow.home / "asyncflow.db"
    before = file.stat().st_size
    foreseen = asyncflow.ok("gc", "--keep-bytes", "1MB", "--dry-run", "--json").json
    assert 100 < foreseen["runs"] < 200
    done = asyncflow.ok("gc", "--keep-bytes", "1MB", "--json").json
    assert abs(done["runs"] - foreseen["runs"]) < 20
    assert done["bytes_kept"] <= 1_000_000
    assert file.stat().st_size <= 1_000_000
    assert done["bytes_given_back"] == before - file.stat().st_size
    kept = [run["parameters"]["number"] for run in asyncflow.runs("--limit", "200")]
    assert kept == list(range(199, 199 - len(kept), -1))


def test_gc_deletes_cached_values_that_have_expired(asyncflow: CommandLine) -> None:
    code = (
        "import time\n"
        "from asyncflow._rows import CachedRow\n"
        "from asyncflow.runtime import HOME\n"
        "store = HOME.open_default(upkeep=False).store\n"
        "store.write_cached(CachedRow('a', 'task', bytes(16), 1, 2, '1', None))\n"
        "store.write_cached(CachedRow('b', 'task', bytes(16), time.time_ns() // 1000, None, '1', None))\n"
    )
    env = {**os.environ, "ASYNCFLOW_UPKEEP_SECONDS": "1000"}
    subprocess.run([sys.executable, "-c", code], cwd=asyncflow.folder, env=env, check=True, timeout=50)
    assert asyncflow.ok("gc", "--json").json["cached_values"] == 1
    assert asyncflow.ok("gc", "--json").json["cached_values"] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--older-than", "-1d"], "--older-than"),
        (["--keep-bytes", "much"], "--keep-bytes 'much': write a number of bytes, such as 200MB"),
        (["--keep-bytes", "3 miles"], "--keep-bytes '3 miles': write a number of bytes"),
        (["--keep-runs", "-1"], "--keep-runs"),
    ],
)
def test_misuse_of_gc(asyncflow: CommandLine, words: list[str], told: str) -> None:
    run_quick(asyncflow, 1)
    done = asyncflow("gc", *words)
    assert (done.status, done.out) == (2, "")
    assert told in done.err


@pytest.mark.parametrize("words", [["runs", "resume", UNKNOWN], ["runs", "reap"], ["runs", "rm", UNKNOWN], ["gc"]])
def test_home_that_does_not_exist_is_not_made(asyncflow: CommandLine, tmp_path: Path, words: list[str]) -> None:
    home = tmp_path / "nowhere"
    done = asyncflow(*words, "--home", str(home))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"asyncflow: nothing is recorded in '{home}'")
    assert not home.exists()


@pytest.mark.parametrize("command", ["resume", "rm"])
def test_unknown_run(asyncflow: CommandLine, command: str) -> None:
    run_quick(asyncflow, 1)
    for wrong in (UNKNOWN, "nonsense"):
        done = asyncflow("runs", command, wrong)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith(f"asyncflow: no run has the id '{wrong}'")
        assert done.err.count("\n") == 1
