"""`asyncflow run` on a real pseudo-terminal: the live tree, and a real Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-W", "error", "-m", "asyncflow")  # debug mode would tell of a slow machine

FLOWS = """
import logging, os, sys
import anyio
from asyncflow import flow, get_run_logger, task

async def until(path):
    while not await anyio.Path(path).exists():
        await anyio.sleep(0.01)

@task
async def fetch(number: int) -> int:
    return number

@task(task_run_name="wait-for-{path}")
async def wait_for(path: str) -> None:
    await until(path)

@task
async def refuse() -> None:
    raise ValueError("no luck")

@flow(flow_run_name="inner-1")
async def inner(path: str) -> None:
    await wait_for(path)

@flow(flow_run_name="outer-1")
async def outer(path: str) -> str:
    print("a print")
    for number in range(12):
        await fetch(number)
    get_run_logger().warning("a warning")
    try:
        await refuse()
    except ValueError:
        pass
    await inner(path)
    return "done"

@flow(flow_run_name="many-1")
async def many(path: str) -> None:
    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(wait_for.with_options(name=f"task{number}", task_run_name=None), path)
"""


class Screen:
    """What a terminal shows of what was written to it: as much of one as rich writes for."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = 0
        self.column = 0
        self.written = ""
        self._rest = ""

    def feed(self, text: str) -> None:
        self.written += text
        text, self._rest = self._rest + text, ""
        if (cut := re.search(r"\x1b(\[[0-9;?]*)?$", text)) is not None:  # half a sequence
            text, self._rest = text[: cut.start()], text[cut.start() :]
        for sequence, final, plain in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|([^\x1b])", text):
            if plain:
                self._write(plain)
            elif final == "A":
                self.row = max(self.row - int(sequence or 1), 0)
            elif final == "K":
                self.lines[self.row] = ""
            else:
                assert final in "mhl", f"a sequence this screen does not know: {sequence}{final}"

    def _write(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            self.column = 0
            if self.row == len(self.lines):
                self.lines.append("")
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def text(self) -> str:
        # Times are the only thing here that is never the same.
        shown = re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "<time>", "\n".join(line.rstrip() for line in self.lines))
        return re.sub(r"\d+(\.\d)? m?s\b", "<took>", shown)


class Terminal:
    """A command on a pseudo-terminal, its standard output apart."""

    def __init__(self, folder: Path, *words: str, rows: int = 24, columns: int = 100) -> None:
        self.screen = Screen()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        with (folder / "stdout").open("wb") as out:
            self.process = subprocess.Popen(
                [*COMMAND, *words],
                cwd=folder,
                env=dict(os.environ),  # not as the process has it: readline puts LINES there behind Python's back
                stdin=slave,
                stdout=out,
                stderr=slave,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        os.close(slave)

    def read_until(self, is_enough: Callable[[str], bool] = lambda _: False, seconds: float = 20) -> None:
        """Read until the screen is as wanted, or the command has closed the terminal."""
        deadline = time.monotonic() + seconds
        while not is_enough(self.screen.text()):
            ready = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"waited in vain; the screen is\n{self.screen.text()}"
            try:
                data = os.read(self._master, 65_536)
            except OSError:  # how Linux tells that nobody has the other side open
                return
            if not data:
                return
            self.screen.feed(data.decode())

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)  # rich heeds them
    (tmp_path / "jobs.py").write_text(FLOWS)
    return tmp_path


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_tree_shows_states_while_it_runs_and_stays_at_the_end(folder: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(folder, "run", "jobs.py:outer", "-p", "path=go")
    terminals.append(terminal)
    terminal.read_until(lambda text: "wait-for-go" in text)
    assert "● outer  outer-1  Running  <took>" in terminal.screen.text()
    (folder / "go").touch()
    terminal.read_until()
    assert terminal.wait() == 0
    assert (folder / "stdout").read_text() == '"done"\n'
    refused = re.search(r"refuse-\w+", terminal.screen.text())
    assert refused
    assert terminal.screen.text().splitlines() == [
        "a print",
        "<time>  Warning       outer-1: a warning",
        "✓ outer  outer-1  Completed  <took>",
        "├─ ✓ fetch \N{MULTIPLICATION SIGN} 12  <took>",
        f"├─ ✗ refuse  {refused[0]}  Failed  <took>  ValueError: no luck",
        "└─ ✓ inner  inner-1  <took>",
        "   └─ ✓ wait_for  wait-for-go  <took>",
        "2 flow runs and 14 task runs: 15 Completed, 1 Failed",
    ]
    assert "\x1b[?25h" in terminal.screen.written, "the cursor is shown again"


def test_big_tree_stays_within_the_terminal(folder: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(folder, "run", "jobs.py:many", "-p", "path=go", rows=12)
    terminals.append(terminal)
    terminal.read_until(lambda text: "100 task runs: 101 Running" in text)
    assert len(terminal.screen.text().splitlines()) <= 12
    assert "more lines" in terminal.screen.text()
    terminal.type("\x03")
    terminal.read_until()
    assert terminal.wait() == 130


def test_ctrl_c_interrupts_the_runs_and_shows_that(folder: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(folder, "run", "jobs.py:outer", "-p", "path=never")
    terminals.append(terminal)
    terminal.read_until(lambda text: "wait-for-never" in text)
    terminal.type("\x03")
    terminal.read_until()
    assert terminal.wait() == 130
    shown = terminal.screen.text()
    assert "outer  outer-1  Interrupted  <took>  interrupted because its runtime is stopping" in shown
    assert "wait_for  wait-for-never  Interrupted" in shown
    assert "12 Completed, 3 Interrupted, 1 Failed" in shown
    assert "flow outer outer-1: Interrupted, interrupted by Ctrl-C" in shown
    assert "\x1b[?25h" in terminal.screen.written
    assert "Traceback" not in shown


@pytest.mark.parametrize(("words", "term"), [(["--plain"], "xterm-256color"), ([], "dumb")])
def test_plain_lines_on_a_terminal(
    folder: Path, terminals: list[Terminal], words: list[str], term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    (folder / "go").touch()
    terminal = Terminal(folder, "run", "jobs.py:outer", "-p", "path=go", *words)
    terminals.append(terminal)
    terminal.read_until()
    assert terminal.wait() == 0
    assert "└─" not in terminal.screen.written
    assert "<time>  Completed     flow outer outer-1 in <took>" in terminal.screen.text()
