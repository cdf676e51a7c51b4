"""The session in docs/deployments.md is what its commands print, each in a process of its own.

    ASYNCFLOW_WRITE_TRANSCRIPT=1 python -m pytest tests/test_deployments_transcript.py

writes it into the page; without that it is compared with the page. What is never the same is replaced: ids
and names of runs, times, lengths of time. What ends at the same time is told in the order of its text.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "asyncflow")  # debug mode would tell of a slow machine
PROJECT = Path(__file__).parent.parent
PAGE = PROJECT / "docs" / "deployments.md"
WRITE = "ASYNCFLOW_WRITE_TRANSCRIPT"
IS_WRITTEN = WRITE in os.environ  # tests are run without such variables
BLOCK = re.compile(r"(?<= -->\n```console\n).*?(?=^```$)", re.M | re.S)
SERVE = "asyncflow serve examples/weather.py --interval 5"
RUN = "asyncflow deployments run weather/weather -p years='[2014]'"
NAMES = ("brave-otter", "quiet-heron", "eager-lynx")
LIMIT_SECONDS = 60.0


def until(is_so: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


class Session:
    """One server, and the commands that are typed in another terminal meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        self.typed: list[str] = []
        self.told: list[str] = []
        """The ids of the runs that the page tells of, oldest first."""

    @contextmanager
    def server(self) -> Generator[None]:
        with self._log.open("wb") as log:
            words = [*COMMAND, *shlex.split(SERVE)[1:]]
            process = subprocess.Popen(words, cwd=self._folder, stdin=subprocess.DEVNULL, stderr=log)
        try:
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT_SECONDS) == 130, self._log.read_text()
        finally:
            process.kill()
            process.wait()

    def wait_for(self, text: str) -> None:
        until(lambda: text in self._log.read_text(), f"{text!r} in the server's output")

    def type(self, line: str) -> str:
        """Run a command of the page; gives what it prints."""
        words = [*COMMAND, *shlex.split(line)[1:]]
        done = subprocess.run(
            words, cwd=self._folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        self.typed.append(f"$ {line}\n{done.stdout}")
        return done.stdout

    def begun(self) -> dict[str, str]:
        """The names of all runs that the server has begun, by their ids."""
        lines = re.findall(r"Running +weather/weather (\S+)  (\S{36})$", self._log.read_text(), re.M)
        return {run_id: name for name, run_id in lines}

    def has_ended(self) -> bool:
        text = self._log.read_text()
        ended = re.findall(r"(?:Completed|Cancelled) +weather/weather (\S+) in", text)
        return set(ended) == set(self.begun().values())

    def served(self) -> str:
        """What the server has printed of the runs that are told of. (On a slow machine the schedule makes more.)"""
        names = self.begun()
        told, others = {names[run_id] for run_id in self.told}, names.items() - {(i, names[i]) for i in self.told}
        kept, going = [f"$ {SERVE}"], ""
        seen: set[str] = set()
        for line in self._log.read_text().splitlines():
            if found := next((name for name in told if name in line), None):
                if found != going:
                    seen.clear()
                going = found
                going = "" if re.search("  (Completed|Cancelled)  ", line) else going
            elif any(name in line for _, name in others):
                continue
            elif kind_of(line) == "nested":  # it does not say which run it is of
                if not going or line[14:] in seen:
                    continue
                seen.add(line[14:])
            kept.append(line)
        return "\n".join([*kept, ""])


def record(session: Session) -> None:
    with session.server():
        session.wait_for("Running")
        session.type("asyncflow deployments ls")
        session.type("asyncflow deployments pause weather/weather")
        until(session.has_ended, "the end of what the schedule has begun")
        session.told.append(next(iter(session.begun())))

        long = session.type(f"{RUN} -p read_seconds=600").strip()
        session.told.append(long)
        session.wait_for(f"{long}\n")  # the line that says that it is Running
        session.type("asyncflow runs ls --deployment weather/weather --limit 1")
        session.type(f"asyncflow runs pause {long}")
        session.type("asyncflow runs ls --state paused")
        session.type(f"asyncflow runs resume {long}")
        session.type(f"asyncflow runs cancel {long}")

        short = session.type(RUN).strip()
        session.told.append(short)
        session.wait_for(f"{short}\n")
        until(session.has_ended, "the end of the last run")
        session.type("asyncflow runs ls --deployment weather/weather --limit 2")


# --- what is never the same ------------------------------------------------------------------


def settled(session: Session, text: str) -> str:
    """A transcript with the same stand-ins each time."""
    names = session.begun()
    for n, run_id in enumerate(session.told):
        text = text.replace(run_id, f"01a206db-b701-726b-a76f-35f36e46c5a{n}").replace(names[run_id], NAMES[n])
    replacements = (
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-23 09:00:05"),
        (r"\d\d:\d\d:\d\d\.\d{3}", "09:00:05.000"),
        (r"in \d\.\d s( |$)", r"in 1.2 s\1"),
        (r"(?m)in \d+(\.\d)? (ms|s)\b|in \d+ min \d\d s\b", "in 1.2 s"),
        (r"(?m)\s+\d+[smh] +(\d+(\.\d)? (ms|s)|\d+ min \d\d s) *$", "  1s  1.2 s"),
        (r"(?m)[●✓↻○] \w+  \d+[smh] *$", "✓ Completed  1s"),  # the first slot may have come, or not
        (r"\d+ runs: \d+ Completed", "3 runs: 2 Completed"),  # as may have the second
    )
    for pattern, stand_in in replacements:
        text = re.sub(pattern, stand_in, text)
    lines = [line.rstrip() for line in text.splitlines()]
    return "".join(f"{line}\n" for block in blocks(lines) for line in block)


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """The lines, with tables aligned again, and what nested flows print at the same time in the order of its text."""
    for kind, group in groupby(lines, key=kind_of):
        found = list(group)
        yield sorted(set(found)) if kind == "nested" else aligned(found) if kind == "table" else found


def kind_of(line: str) -> str:
    if re.search(r"  Info +\d{4}: ", line):
        return "nested"
    return "table" if re.match(r"ID  |DEPLOYMENT  |[0-9a-f-]{36}  |weather/weather  ", line) else ""


def aligned(lines: list[str]) -> list[str]:
    rows = [re.split(r" {2,}", line) for line in lines]
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(max(map(len, rows)))]
    return ["  ".join(cell.ljust(widths[n]) for n, cell in enumerate(row)).rstrip() for row in rows]


# --- the page --------------------------------------------------------------------------------


@pytest.mark.usefixtures("home")
def test_the_session_of_the_page_is_what_the_commands_print(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(PROJECT / "examples" / "weather.py", tmp_path / "examples")
    shutil.copytree(PROJECT / "examples" / "data", tmp_path / "examples" / "data")
    session = Session(tmp_path)
    record(session)
    made = [settled(session, session.served()), settled(session, "\n".join(session.typed))]
    page = PAGE.read_text()
    assert len(BLOCK.findall(page)) == len(made)
    if IS_WRITTEN:
        texts = iter(made)
        PAGE.write_text(BLOCK.sub(lambda _: next(texts), page))
    for shown, printed in zip(BLOCK.findall(PAGE.read_text()), made, strict=True):
        assert shown.splitlines() == printed.splitlines(), f"if that is meant: {WRITE}=1 writes it into the page"
