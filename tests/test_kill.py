"""SIGKILL at random moments: nothing that was acknowledged is lost, nothing is torn.

`KILLS=200 pytest tests/test_kill.py` (nox -s crash) is as often as a release wants.
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
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Template, check_home, template

EXAMPLE = Path(__file__).parent.parent / "examples" / "weather.py"
KILLS = int(os.environ.get("KILLS", "40"))
JOB_KILLS = max(4, KILLS // 8)
LONGEST = 1.5
KILLS_OF_ONE_HOME = 6

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")


# --- flows, nested flows and tasks of every durability ---------------------------------------------


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with template(tmp_path_factory.mktemp("template")) as made:
        yield made


@pytest.mark.parametrize("backend", ["asyncio", "trio", "sync"])
@pytest.mark.timeout(60 + KILLS * 4)
def test_whatever_was_acknowledged_before_a_kill_is_on_disk(children: Template, tmp_path: Path, backend: str) -> None:
    """The same homes are used again after a kill, so what earlier processes acknowledged is looked for as well."""
    acknowledged: dict[str, str] = {}
    total = 0
    for number in range(-(-KILLS // 3)):
        home = tmp_path / f"home-{number // KILLS_OF_ONE_HOME}"
        if not home.exists():
            acknowledged = {}
        child = children.start("run_without_end", home, backend)
        # As often within what opening takes as after it.
        child.hear("never", within=random.choice([random.uniform(0, 0.03), random.uniform(0.03, 0.4)]))
        child.kill()
        assert child.end() == -signal.SIGKILL
        acknowledged |= child.acknowledged
        total += len(child.acknowledged)
        check_home(home, acknowledged)
    assert total > KILLS


# --- the main job, as its user starts it ------------------------------------------------------------


def start(home: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "asyncflow", "run", f"{EXAMPLE}:weather", "-p", f"output={folder / 'summary.json'}"],
        cwd=folder,
        env={**os.environ, "ASYNCFLOW_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.timeout(60 + JOB_KILLS * 10)
def test_a_killed_main_job_loses_nothing_acknowledged_and_tears_nothing(tmp_path: Path, home: Path) -> None:
    acknowledged = 0
    for number in range(JOB_KILLS):
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
