"""`asyncflow runs logs`: a line for each record whatever it holds, the newest ones, and those that are to come."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from asyncflow.cli.app import run_command
from asyncflow.cli.logs import split_traceback, summary_of
from asyncflow.cli.output import escaped
from tests.command_line import COMMAND, CommandLine, Done

FLOWS = r"""
import sys
import time
from pathlib import Path

import anyio

from asyncflow import flow, get_run_logger, task

NASTY = [
    "two\nlines",
    "2026-11-23 01:00:00.000  ERROR     main: forged\r2026 over it",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\x00\x07\x08\x7f\x85\x9b31m",
    "\u202egnitirw\u2066 \u200f\u2028\u2029",
    "half \ud800 a pair",
    "tabs\tand spaces\u00a0of\u3000kinds",
    "ü ☃ 𝄞 \U0001f468\u200d\U0001f469\u200d\U0001f467 متن",
    "[bold]markup[/bold] :smile: \\n",
    "x" * 1_000_000,
]


@task(task_run_name="the part")
async def part() -> None:
    get_run_logger().warning("in the part")


@flow(flow_run_name="odd\nname")
async def nasty() -> None:
    for text in NASTY:
        get_run_logger().info(text)
    try:
        raise ValueError("the\nreason")
    except ValueError:
        get_run_logger().exception("it failed\nTraceback (most recent call last):\nnot really")


@flow(flow_run_name="main")
async def main(lines: int = 5) -> None:
    for n in range(lines):
        get_run_logger().info("line %d", n, extra={"n": n})
    await part()
    try:
        await anyio.to_thread.run_sync(fail)
    except ValueError:
        get_run_logger().exception("it failed")


def fail() -> None:
    raise ValueError("the reason")


@flow(flow_run_name="slow")
def slow(go_on: str) -> None:
    get_run_logger().info("begun")
    for n in range(3):
        while not Path(go_on).exists():
            time.sleep(0.01)
        get_run_logger().warning("line %d", n)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A home with some runs in it, which the tests only read."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "jobs.py").write_text(FLOWS)
    command = CommandLine(folder, folder / "home")
    for words in (["nasty"], ["main"]):
        command.ok("run", f"jobs.py:{words[0]}", *words[1:], "--home", "home")
    return command


class Commands:
    """Runs commands that only look in this process: starting one takes longer than all that they do."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capture = capfd

    def __call__(self, *words: str) -> Done:
        status = run_command(words)
        out, err = self._capture.readouterr()
        return Done(status, out, err)

    def ok(self, *words: str) -> Done:
        done = self(*words)
        assert done.status == 0, done.err
        return done

    def run_id(self, flow: str) -> str:
        found: str = self.ok("runs", "ls", "--json", "--flow", flow).json[0]["id"]
        return found


@pytest.fixture
def asyncflow(recorded: CommandLine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    """Commands on the recorded home."""
    monkeypatch.setenv("ASYNCFLOW_HOME", str(recorded.home))
    return Commands(capfd)


# --- lines ---------------------------------------------------------------------------------------

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  ([A-Z]+) +(.*)")


def told(text: str) -> list[tuple[str, str]]:
    """Level and rest of each line."""
    found: list[tuple[str, str]] = []
    for line in text.removesuffix("\n").split("\n"):
        match = LINE.fullmatch(line)
        assert match is not None, line[:1000]
        found.append((match[1], match[2]))
    return found


def test_a_line_has_time_level_run_and_text(asyncflow: Commands) -> None:
    run = asyncflow.run_id("main")
    lines = [("INFO", f"main: line {n}") for n in range(5)]
    lines += [("WARNING", "the part: in the part"), ("ERROR", "main: it failed: ValueError: the reason")]
    assert told(asyncflow.ok("runs", "logs", run).out) == lines
    assert told(asyncflow.ok("runs", "logs", run, "--level", "warning").out) == lines[-2:]
    assert told(asyncflow.ok("runs", "logs", run, "--tail", "2").out) == lines[-2:]
    assert told(asyncflow.ok("runs", "logs", run, "--tail", "1", "--level", "warning").out) == lines[-1:]
    assert told(asyncflow.ok("runs", "logs", run, "--limit", "3").out) == lines[:3]
    assert asyncflow.ok("runs", "logs", run, "--tail", "0").out == ""
    (task_run,) = asyncflow.ok("runs", "ls", "--json", "--task", "part").json
    assert told(asyncflow.ok("runs", "logs", task_run["id"]).out) == lines[5:6]


def test_a_traceback_is_shown_below_its_line_when_asked_for(asyncflow: Commands) -> None:
    shown = asyncflow.ok("runs", "logs", asyncflow.run_id("main"), "--level", "error", "--traceback").out
    first, *below = shown.removesuffix("\n").split("\n")
    assert told(first) == [("ERROR", "main: it failed")]
    assert below[0] == "    Traceback (most recent call last):"
    assert below[-1] == "    ValueError: the reason"
    assert '        raise ValueError("the reason")' in below
    assert all(line.startswith("    ") for line in below)


def test_json_has_the_text_as_it_was(asyncflow: Commands) -> None:
    records = asyncflow.ok("runs", "logs", asyncflow.run_id("main"), "--json").json
    assert [record["extra"] for record in records[:5]] == [{"n": n} for n in range(5)]
    assert records[-1]["message"].startswith("it failed\nTraceback (most recent call last):\n")
    assert records[5]["task_run_id"] == asyncflow.ok("runs", "ls", "--json", "--task", "part").json[0]["id"]
    assert [
        each["extra"]["n"]
        for each in asyncflow.ok("runs", "logs", records[0]["flow_run_id"], "--json", "--limit", "2").json
    ] == [0, 1]
    nasty = asyncflow.ok("runs", "logs", asyncflow.run_id("nasty"), "--json").json
    followed = asyncflow.ok("runs", "logs", asyncflow.run_id("nasty"), "--json", "-f").out
    assert followed.isascii()
    assert [json.loads(line) for line in followed.splitlines()] == nasty
    assert [record["message"] for record in nasty[:2]] == [
        "two\nlines",
        "2026-11-23 01:00:00.000  ERROR     main: forged\r2026 over it",
    ]


NASTY = [
    r"two\nlines",
    r"2026-11-23 01:00:00.000  ERROR     main: forged\r2026 over it",
    r"\x1b[2J\x1b[31mred\x1b]0;title\x07",
    r"\x00\x07\x08\x7f\x85\x9b31m",
    r"\u202egnitirw\u2066 \u200f\u2028\u2029",
    r"half \ud800 a pair",
    "tabs\tand spaces\u00a0of\u3000kinds",
    "ü ☃ 𝄞 \U0001f468\u200d\U0001f469\u200d\U0001f467 متن",
    r"[bold]markup[/bold] :smile: \n",
]


def test_one_line_stays_one_line_whatever_it_holds(asyncflow: Commands) -> None:
    run = asyncflow.run_id("nasty")
    for words in ([], ["--follow"], ["--traceback"]):
        lines = asyncflow.ok("runs", "logs", run, *words).out.split("\n")
        for line, text in zip(lines, NASTY, strict=False):
            assert told(line) == [("INFO", rf"odd\nname: {text}")]
        (long,) = told(lines[len(NASTY)])
        assert re.fullmatch(r"odd\\nname: x+ \.\.\. 934,464 characters left out \.\.\. x+", long[1])
        if not words or words == ["--follow"]:
            assert told(lines[-2]) == [("ERROR", r"odd\nname: it failed: ValueError: the")]
            assert len(lines) == len(NASTY) + 3


def test_one_line_stays_one_line_in_the_live_view(recorded: CommandLine, tmp_path: Path) -> None:
    done = recorded.ok("run", "jobs.py:nasty", "--plain", "--home", str(tmp_path))
    lines = done.err.split("\n")
    texts = [re.sub(r"^[\d:.]{12}  Info +odd name: ", "", line) for line in lines if "  Info " in line]
    blanks = re.compile("[ \t]+")  # a tab is shown as spaces
    assert [blanks.sub(" ", text) for text in texts[: len(NASTY)]] == [blanks.sub(" ", text) for text in NASTY]
    below = lines[next(n for n, line in enumerate(lines) if "  Error " in line) + 1 :]
    ended = next(n for n, line in enumerate(below) if "  Completed " in line)
    assert all(line.startswith("    ") for line in below[:ended])
    assert "    ValueError: the" in below


@contextmanager
def terminal(*words: str, cwd: Path) -> Generator[Callable[[], str]]:
    """A command on a terminal; the function gives all that it showed, when it has ended."""
    outer, inner = pty.openpty()
    process = subprocess.Popen([*COMMAND, *words], cwd=cwd, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)

    def shown() -> str:
        data = b""
        while select.select([outer], [], [], 50)[0]:
            try:
                more = os.read(outer, 65536)
            except OSError:  # how the end is told on Linux
                break
            if not more:
                break
            data += more
        process.wait(10)
        return data.decode()

    try:
        yield shown
    finally:
        process.kill()
        process.wait()
        os.close(outer)


def test_on_a_terminal_nothing_of_a_line_reaches_it_but_text(asyncflow: Commands, recorded: CommandLine) -> None:
    with terminal("runs", "logs", asyncflow.run_id("nasty"), cwd=recorded.folder) as shown:
        text = shown()
    assert r"\x1b[2J" in text
    ours = re.compile(r"\x1b\[[\d;]*m")  # colours, and nothing else
    rest = ours.sub("", text)
    assert "\x1b" not in rest
    assert not set("\x07\x08\x00\u202e\u2028\x9b\x85") & set(rest)
    assert rest.count("\r\n") == rest.count("\n") == rest.count("\r") == len(NASTY) + 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        ("a\nb\r\n", r"a\nb\r\n"),
        ("\U000e0041", r"\U000e0041"),
        ("\ufeff\u00ad", r"\ufeff\xad"),
    ],
)
def test_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def formatted(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)).removesuffix("\n")


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (raised(ValueError("the reason")), "ValueError: the reason"),
        (raised(KeyError("k"), raised(ValueError("first"))), "KeyError: 'k'"),
        (raised(ValueError("one\n  two\nthree")), "ValueError: one"),
        (
            raised(ExceptionGroup("two", [raised(KeyError("a")), ValueError("b")])),
            "ExceptionGroup: two (2 sub-exceptions)",
        ),
        (raised(KeyError("k"), raised(ExceptionGroup("g", [ValueError("b")]))), "KeyError: 'k'"),
        (raised(ExceptionGroup("g", [ValueError("b")]), raised(KeyError("k"))), "ExceptionGroup: g (1 sub-exception)"),
    ],
)
def test_what_a_traceback_says_in_one_line(error: BaseException, summary: str) -> None:
    text, below = split_traceback(f"told\nin two lines\n{formatted(error)}")
    assert text == "told\nin two lines"
    assert below == formatted(error)
    assert summary_of(below).endswith(summary)


def test_a_text_without_a_traceback_is_not_split() -> None:
    assert split_traceback("no Traceback (most recent call last): here\nValueError") == (
        "no Traceback (most recent call last): here\nValueError",
        "",
    )


# --- following -----------------------------------------------------------------------------------


@contextmanager
def started(folder: Path, home: Path, *words: str) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *words, "--home", str(home)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def begun(home: Path) -> str:
    """The id of the run that another process has begun, when it has logged."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{home}/asyncflow.db?mode=ro", uri=True)) as database,
        ):
            for (found,) in database.execute("SELECT flow_run_id FROM logs"):
                return str(found)
        time.sleep(0.02)
    pytest.fail("no run has begun")


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_following_a_run_of_another_process_until_it_ends(
    asyncflow: Commands, recorded: CommandLine, tmp_path: Path
) -> None:
    home, go_on = tmp_path / "home", tmp_path / "go on"
    with started(recorded.folder, home, "run", "jobs.py:slow", "-p", f"go_on={go_on}") as running:
        run = begun(home)
        with (
            started(recorded.folder, home, "runs", "logs", "-f", run) as plain,
            started(recorded.folder, home, "runs", "logs", "--follow", "--json", "--level", "warning", run) as as_json,
            started(recorded.folder, home, "runs", "logs", "-f", "--tail", "0", run) as new_only,
        ):
            assert told(read_line(plain)) == [("INFO", "slow: begun")]
            go_on.touch()
            out, err = plain.communicate(timeout=40)
            assert (told(out), err, plain.returncode) == ([("WARNING", f"slow: line {n}") for n in range(3)], "", 0)
            lines = as_json.communicate(timeout=40)[0].splitlines()
            assert [json.loads(line)["message"] for line in lines] == ["line 0", "line 1", "line 2"]
            assert "begun" not in new_only.communicate(timeout=40)[0]
        running.communicate(timeout=40)
    again = asyncflow.ok("runs", "logs", "-f", run, "--home", str(home))
    assert len(told(again.out)) == 4


def test_ctrl_c_ends_following_without_a_word(recorded: CommandLine, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(recorded.folder, home, "run", "jobs.py:slow", "-p", f"go_on={tmp_path / 'never'}"):
        run = begun(home)
        with started(recorded.folder, home, "runs", "logs", "-f", run) as following:
            assert "begun" in read_line(following)
            following.send_signal(signal.SIGINT)
            out, err = following.communicate(timeout=40)
            assert (out, err, following.returncode) == ("", "", 130)


def test_following_a_run_whose_process_was_killed_ends(recorded: CommandLine, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(recorded.folder, home, "run", "jobs.py:slow", "-p", f"go_on={tmp_path / 'never'}") as running:
        run = begun(home)
        with started(recorded.folder, home, "runs", "logs", "-f", run) as following:
            assert "begun" in read_line(following)
            running.kill()
            running.wait()
            out, err = following.communicate(timeout=40)
            assert (out, following.returncode) == ("", 1)
            assert err == "asyncflow: the process of this run has died; `asyncflow runs reap` ends what it left open\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--level", "loud"], "--level='loud'"),
        (["--tail", "-1"], "--tail -1: it must be 0 or more"),
        (["--limit", "-1"], "--limit -1: it must be 0 or more"),
        (["--limit", "1", "--tail", "1"], "give one of them"),
        (["--limit", "1", "-f"], "give one of them"),
    ],
)
def test_misuse(asyncflow: Commands, words: list[str], message: str) -> None:
    done = asyncflow("runs", "logs", asyncflow.run_id("main"), *words)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
