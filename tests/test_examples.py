"""The examples that no command of the README runs: what they give, and what Ctrl-C leaves of them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.command_line import CommandLine, Serving, until
from tests.conftest import RunPython

FAN_OUT = f"{Path(__file__).parent.parent / 'examples' / 'fan_out.py'}:fan_out"

pytest.importorskip("httpx")


def counted(home: Path, view: str) -> dict[str, int]:
    """How many runs are in each state."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        return dict(database.execute(f"SELECT state_type, count(*) FROM {view} GROUP BY state_type").fetchall())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_fan_out_counts_all_pages_but_the_one_that_is_gone(tmp_path: Path, home: Path, backend: str) -> None:
    done = CommandLine(tmp_path, home).ok(
        "run", FAN_OUT, "-p", "pages=100", "-p", "per_second=1000", "--backend", backend
    )
    words = sum(range(1, 101)) - 13
    assert done.json == {"pages": 99, "words": words, "missing": ["PageError: page 13: 410 Gone"]}
    assert "50 of 100 pages" in done.err
    assert "100 of 100 pages" in done.err
    assert counted(home, "task_runs") == {"COMPLETED": 99, "FAILED": 1}
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        tries = dict(database.execute("SELECT name, run_count FROM task_runs WHERE run_count > 1").fetchall())
    assert tries == {"page-40": 2, "page-80": 2}  # a page that is gone is asked for once


def test_ctrl_c_leaves_no_run_of_fan_out_open(tmp_path: Path, home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncflow", "run", FAN_OUT, "-p", "pages=100000", "-p", "per_second=100"],
        cwd=tmp_path,
        env={**os.environ, "ASYNCFLOW_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "50 of 100000 pages" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert counted(home, "flow_runs") == {"PAUSED": 1}
    tasks = counted(home, "task_runs")
    assert set(tasks) == {"COMPLETED", "FAILED", "PAUSED"}
    assert 1 <= tasks["PAUSED"] <= 20  # those in flight, no more


def test_the_power_cut_bills_nobody_twice_but_who_it_hit(run_python: RunPython, home: Path) -> None:
    example = Path(FAN_OUT).parent / "power_cut.py"
    first = run_python(example, check=False)
    assert first.returncode == -signal.SIGKILL
    second = run_python(example)
    assert second.stdout == "billed Dora 12.00\nbilled Eden 12.00\nbilled Finn 12.00\nall are billed\n"
    assert counted(home, "task_runs") == {"COMPLETED": 6}
    third = run_python(example)  # there is nothing left to do
    assert third.stdout == "all are billed\n"


def test_the_shop_waits_for_a_person_and_thanks_by_itself(tmp_path: Path, home: Path) -> None:
    asyncflow = CommandLine(tmp_path, home)
    server = Serving(asyncflow, str(Path(FAN_OUT).parent / "deployments.py"))
    try:
        server.wait_for("Serving +count-orders/hourly  cron '0 \\* \\* \\* \\*' Europe/Berlin, next ")
        small = ["deployments", "run", "place-order/shop", "-p", "number=1", "-p", "total=20", "--watch"]
        assert until(lambda: asyncflow(*small).out, lambda: server.text) == '"parcel-1"\n'
        server.wait_for("thank you for order 1\n")
        large = asyncflow.ok("deployments", "run", "place-order/shop", "-p", "number=2", "-p", "total=5000").out.strip()
        until(lambda: asyncflow.state_of(large) == "Suspended", lambda: server.text)
        asyncflow.ok("runs", "resume", large, "--input", json.dumps({"approved": True, "by": "Ann"}))
        server.wait_for("order 2: approved by Ann\n(.*\n)*.*thank you for order 2\n")
        until(lambda: asyncflow.state_of(large) == "Completed", lambda: server.text)
        assert server.stop(signal.SIGINT) == 130
    finally:
        server.kill()
