"""SIGKILL of the main job at random moments: nothing that was acknowledged is lost, nothing is torn.

`KILLS=50 pytest tests/test_kill.py` runs it as often as a release wants.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "weather.py"
KILLS = int(os.environ.get("KILLS", "4"))
LONGEST = 1.5

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")


def start(home: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "asyncflow", "run", f"{EXAMPLE}:weather", "-p", f"output={folder / 'summary.json'}"],
        cwd=folder,
        env={**os.environ, "ASYNCFLOW_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.timeout(60 + KILLS * 10)
def test_a_killed_main_job_loses_nothing_acknowledged_and_tears_nothing(tmp_path: Path, home: Path) -> None:
    acknowledged = 0
    for number in range(KILLS):
        process = start(home, tmp_path)
        if number:  # the first one ends by itself
            time.sleep(random.uniform(0.1, LONGEST))
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        if output.endswith(b"}\n"):
            acknowledged += 1
        check(home, acknowledged)
    assert acknowledged > 0


def check(home: Path, acknowledged: int) -> None:
    path = home / "asyncflow.db"
    if not path.exists():  # killed before its first write
        assert acknowledged == 0
        return
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        completed = {
            row[0]
            for row in connection.execute(
                "SELECT id FROM flow_runs WHERE state_type = 'COMPLETED' AND parent_flow_run_id IS NULL"
            )
        }
    finally:
        connection.close()
    assert len(completed) >= acknowledged
    # A killed process may leave a row without its copy, never a torn copy or one without its row.
    for file in home.glob("results/*/result.json"):
        assert json.loads(file.read_bytes())
        assert file.parent.name in completed
