"""`asyncflow serve`: what is served, what is shown of it, and how signals end it."""

from __future__ import annotations

import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from asyncflow._rows import FLOW, STATE_CODES, RunRow
from asyncflow.cli.app import run_command
from asyncflow.cli.board import Board, Served
from asyncflow.states import StateType
from tests.command_line import SHOP, CommandLine, Serving, until
from tests.test_cli_terminal import Terminal

ONE = """
import anyio
from asyncflow import flow

@flow
async def helper() -> None: ...

@flow
async def one(number: int = 1, path: str | None = None, seconds: float = 0) -> int:
    print("a print of the user's")
    if path is not None:
        while not await anyio.Path(path).exists():
            await anyio.sleep(0.01)
    try:
        await anyio.sleep(seconds)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0)
    return number

@flow
async def deaf() -> None:
    while True:
        try:
            await anyio.sleep(1000)
        except BaseException:
            pass
"""


@pytest.fixture
def asyncflow(tmp_path: Path, home: Path) -> CommandLine:
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "shop.py").write_text(SHOP)
    return CommandLine(tmp_path, home)


@pytest.fixture
def servers() -> Iterator[list[Serving]]:
    begun: list[Serving] = []
    yield begun
    for each in begun:
        each.kill()


def begin(servers: list[Serving], asyncflow: CommandLine, *words: str) -> Serving:
    servers.append(Serving(asyncflow, *words))
    return servers[-1]


# --- what is served --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_flow_of_a_file_is_served_by_its_schedule_and_for_who_asks(
    asyncflow: CommandLine, servers: list[Serving], backend: str
) -> None:
    options = ["--interval", "0.5", "-p", "number=3", "--tag", "often", "--limit", "5", "--backend", backend]
    server = begin(servers, asyncflow, "one.py", *options)
    server.wait_for(r"Serving +one/one  every 0\.5 s, next \d{4}-")
    run = server.wait_for(r"Running +one/one (\S+)  (\S{36})\n")
    server.wait_for(f"Completed +one/one {run[1]} in ")
    asked = asyncflow.ok("deployments", "run", "one/one", "-p", "number=4", "--watch")
    assert asked.json == 4
    assert re.search(r"Completed +flow one \S+ in ", asked.err)
    assert server.stop(signal.SIGTERM) == 143
    assert re.search(r"Stopping +SIGTERM: no more runs begin", server.text)
    assert re.search(r"Stopped +\d+ runs?: \d+ Completed\n$", server.text)
    assert server.out == "", "what flows print goes to standard error"
    assert "a print of the user's\n" in server.text
    [newest, *_] = asyncflow.runs("--tag", "often", "--limit", "1")
    assert newest["state"]["type"] == "COMPLETED"


def test_the_deployments_of_a_file_are_served_and_failures_told(asyncflow: CommandLine, servers: list[Serving]) -> None:
    server = begin(servers, asyncflow, "shop.py")
    server.wait_for("Serving +waiting/shop  when asked")
    assert len(re.findall("Serving", server.text)) == 6
    failed = asyncflow("deployments", "run", "failing/shop", "--watch")
    assert (failed.status, failed.out) == (1, "")
    run_id = re.search(r"\S{36}", failed.err)
    assert run_id
    assert f": Failed\n  ValueError: no luck\n  asyncflow runs show {run_id[0]}\n" in failed.err
    server.wait_for(r"Failed +failing/shop \S+ in .*: ValueError: no luck")
    bad = asyncflow("deployments", "run", "add/shop", "-p", 'b="x"', "--watch")
    assert bad.status == 1
    assert "b: Input should be a valid integer" in bad.err
    assert "Running" not in asyncflow.ok("runs", "show", asyncflow.runs("--limit", "1")[0]["id"]).out
    assert server.stop(signal.SIGINT) == 130
    assert "Stopped       2 runs: 2 Failed\n" in server.text


# --- signals ---------------------------------------------------------------------------------


def test_the_first_signal_waits_for_what_goes_on(
    asyncflow: CommandLine, servers: list[Serving], tmp_path: Path
) -> None:
    server = begin(servers, asyncflow, "one.py")
    server.wait_for("Serving")
    run_id = until_known(asyncflow, "-p", f"path={tmp_path / 'go'}")
    server.wait_for(run_id)
    server.process.send_signal(signal.SIGINT)
    server.wait_for(
        "Stopping +Ctrl-C: no more runs begin; the run that goes on has 10 s to end, or until the next Ctrl-C"
    )
    waits = until_known(asyncflow)
    (tmp_path / "go").touch()
    assert server.process.wait(50) == 130
    assert asyncflow.state_of(run_id) == "Completed"
    assert asyncflow.state_of(waits) == "Scheduled"


def test_the_second_interrupts_it_and_another_server_takes_it_up(
    asyncflow: CommandLine, servers: list[Serving], tmp_path: Path
) -> None:
    server = begin(servers, asyncflow, "one.py")
    server.wait_for("Serving")
    run_id = until_known(asyncflow, "-p", f"path={tmp_path / 'go'}")
    server.wait_for(run_id)
    server.process.send_signal(signal.SIGINT)
    server.wait_for("Stopping")
    assert server.stop(signal.SIGINT) == 130
    assert re.search(r"Interrupted +one/one .*: interrupted because its runtime is stopping\n", server.text)
    assert server.text.endswith("Stopped       1 run: 1 Interrupted\n")
    assert asyncflow.state_of(run_id) == "Interrupted"

    begin(servers, asyncflow, "one.py").wait_for("Serving")
    assert asyncflow.ok("runs", "resume", run_id).out.endswith(" waits for a process that serves one/one\n")
    (tmp_path / "go").touch()
    until(lambda: asyncflow.state_of(run_id) == "Completed", lambda: run_id)
    assert servers[-1].stop(signal.SIGTERM) == 143


def until_known(asyncflow: CommandLine, *words: str) -> str:
    """The id of a run of one/one, once the server has made that known."""
    return until(lambda: asyncflow("deployments", "run", "one/one", *words).out.strip(), lambda: "one/one")


@pytest.mark.parametrize("signals", [1, 3])
def test_runs_that_ignore_it_cannot_keep_a_server(
    asyncflow: CommandLine, servers: list[Serving], signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCFLOW_DRAIN_SECONDS", "0.2" if signals == 1 else "100")
    monkeypatch.setenv("ASYNCFLOW_GRACE_SECONDS", "0.3" if signals == 1 else "100")
    server = begin(servers, asyncflow, "one.py:deaf", "--interval", "0.2", "--concurrency-limit", "2")
    runs = [server.wait_for(r"(?s)(?:Running +deaf/one \S+  (\S{36})\n.*){2}")[1]]
    for told in ("Stopping", "Interrupting", "")[:signals]:  # those that come while one is pending are one
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(told)
    assert server.process.wait(50) == 143
    if signals == 1:
        assert (
            "has not ended 1.3 seconds after SIGTERM; what was still open is recorded as interrupted\n" in server.text
        )
        assert asyncflow.state_of(runs[0]) == "Interrupted"
    else:
        assert asyncflow.state_of(runs[0]) == "Running", "nobody had the time to record more"
        asyncflow.ok("runs", "reap")
        assert asyncflow.state_of(runs[0]) == "Crashed"


# --- misuse ----------------------------------------------------------------------------------


@pytest.fixture
def folder(asyncflow: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder; what a command imports from there is forgotten again."""
    monkeypatch.chdir(asyncflow.folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield asyncflow.folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) in (
            str(asyncflow.folder / "one.py"),
            str(asyncflow.folder / "shop.py"),
        ):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "there is nothing to serve: name a file, asyncflow serve path/to/file.py"),
        (["none.py"], "'none.py': there is no such file; name a Python file"),
        (["one.py:nope"], "'one.py:nope': it has no flow named 'nope'; its flows are:"),
        (
            ["shop.py", "--interval", "5", "--paused"],
            "--interval, --paused: 'add/shop' and the like say that themselves",
        ),
        (["one.py:one", "one.py:helper", "--name", "x"], "--name: that is for one flow, and there are 2 to serve"),
        (["one.py", "--cron", "0 25 * * *"], "Cron: expression='0 25 * * *': expected another hour field: "),
        (
            ["one.py", "--cron", "@daily", "--timezone", "Europe/Berln"],
            "Cron: timezone='Europe/Berln': expected a name of",
        ),
        (
            ["one.py", "--timezone", "UTC"],
            "--timezone 'UTC': it is of --cron, --interval or --rrule, and there is none",
        ),
        (["one.py", "--interval", "often"], "--interval 'often': write seconds, such as 5 or 0.5, or 15m, 2h, 7d"),
        (["one.py", "--interval", "0"], "Interval: every=0.0: expected seconds from 0.001"),
        (["one.py", "--rrule", "FREQ=OFTEN"], "RRule: rule='FREQ=OFTEN': expected FREQ to be one of YEARLY, "),
        (["one.py", "--limit", "0"], "--limit 0: it must be 1 or more"),
        (["one.py", "--concurrency-limit", "0"], "concurrency_limit=0: expected a whole number from 1, or None"),
        (["one.py", "--name", "a/b"], "name='a/b': expected a text that is not empty and has no '/' in it"),
        (
            ["one.py", "-p", "nmber=1"],
            "deployment 'one/one' was given parameters that do not fit its flow:\n"
            "  - nmber: No such parameter (there are: number, path, seconds), got 1\n"
            "asyncflow schema one.py shows the parameters there are\n",
        ),
    ],
)
def test_misuse_is_one_message(folder: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["serve", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"asyncflow: {told}"), err
    assert not (folder / "home").exists(), "nothing was recorded"


# --- on a terminal ---------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_the_board_stays_within_the_terminal(
    asyncflow: CommandLine, columns: int, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal(asyncflow.folder, "serve", "one.py", "shop.py", rows=24, columns=columns)
    try:
        terminal.read_until(lambda text: "when asked" in text)
        until(lambda: (home / "asyncflow.db").exists(), lambda: "the home")
        run_id = asyncflow.ok(
            "deployments", "run", "waiting/shop", "-p", "path=go", "--name", "waits-for-go"
        ).out.strip()
        asyncflow.ok("deployments", "run", "failing/shop", "--name", "goes-wrong")
        terminal.read_until(lambda text: "waits-for-go  Running" in text and "goes-wrong  Failed" in text)
        shown = terminal.screen.text()
        assert re.search(
            r"^waiting/shop +when asked +1 +0 +0 +0$" if columns == 80 else "^waiting/shop +when asked ", shown, re.M
        )
        assert ("SCHEDULE" in shown) is (columns == 120)
        assert re.search(r"<time>  Failed        failing/shop goes-wrong in <took>: ValueError: no luck  \S{36}", shown)
        board = shown[shown.index("asyncflow serve · pid") :].splitlines()
        assert len(board) <= 24
        assert all(len(line) <= columns for line in board)
        (asyncflow.folder / "go").touch()
        terminal.read_until(lambda text: "waits-for-go  Completed" in text)
        terminal.type("\x03")
        terminal.read_until()
        assert terminal.wait() == 130
        assert "Stopping      Ctrl-C: no more runs begin" in terminal.screen.text()
        assert "\x1b[?25h" in terminal.screen.written, "the cursor is shown again"
        assert asyncflow.state_of(run_id) == "Completed"
    finally:
        terminal.close()


def test_the_board_says_how_many_it_leaves_out() -> None:
    served = {bytes([n]): Served(f"flow/deployment-{n}", "every 5 s") for n in range(40)}
    board = Board(served, "serving")
    for n in range(100):
        board.take(row_of(n, StateType.RUNNING))
    for height in (8, 10, 24, 80):
        lines = board.lines(now=2_000_000, width=80, height=height)
        assert len(lines) <= height
        text = "\n".join(line.plain for line in lines)
        assert height >= 80 or "more deployments" in text
        if height >= 10:
            shown = text.count("  Running  ")
            assert f"… and {100 - shown} more that go on" in text
    for n in range(100):
        board.take(row_of(n, StateType.FAILED if n % 10 == 0 else StateType.COMPLETED))
    assert sum(each.ended["done"] for each in served.values()) == 90
    assert sum(each.ended["failed"] for each in served.values()) == 10
    in_full = board.lines(now=2_000_000, width=80, height=80)
    assert sum("  Completed  " in line.plain for line in in_full) == 5


def test_a_board_without_a_change_is_the_same() -> None:
    board = Board({b"": Served("one/one", "when asked")}, "serving")
    board.take(row_of(1, StateType.RUNNING)._replace(deployment_id=b""))
    first = board.lines(now=5_100_000, width=80, height=24)
    assert board.lines(now=5_900_000, width=80, height=24) == first, "nothing is drawn between two seconds"
    assert board.lines(now=6_100_000, width=80, height=24) != first
    assert isinstance(first[0], Text)
    assert Console(width=80).render_lines(first[0])


def row_of(n: int, state: StateType) -> RunRow:
    """A run of one of 40 deployments."""
    is_final = state.is_final
    return RunRow(
        id=n.to_bytes(16, "big"), kind=FLOW, parent_id=None, flow_run_id=None, function="flow", key="flow",
        name=f"run-{n}", state=STATE_CODES[state], state_name=None, message=None, created=0, started=1_000_000,
        ended=2_000_000 if is_final else None, run_count=1, seq=3 if is_final else 2, tags=None, parameters=None,
        result=None, result_file=None, error=None, history=None, details=None, digest=None, owner=1,
        deployment_id=bytes([n % 40]),
    )  # fmt: skip


def test_nothing_is_left_of_a_server_that_was_stopped(
    asyncflow: CommandLine, servers: list[Serving], home: Path
) -> None:
    server = begin(servers, asyncflow, "one.py", "--interval", "0.2", "--concurrency-limit", "2", "-p", "seconds=0.5")
    server.wait_for("Completed")
    assert server.stop(signal.SIGINT) == 130
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        states = {name for (name,) in database.execute("SELECT DISTINCT state_name FROM flow_runs")}
    assert states <= {"Completed", "Scheduled", "Late"}
