"""The FastAPI example under uvicorn with four worker processes on one home, for as long as `SECONDS` says."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.conftest import Backend
from tests.web_server import serving

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

SECONDS = float(os.environ.get("SECONDS", "3"))  # 60 for a release
WORKERS = 4
CLIENTS = 12
# The listening socket is the parent's of the workers, which leaves it to the end of the process.
QUIET = re.compile(
    r"^INFO: |ResourceWarning: unclosed <socket.*laddr=\('127|^ResourceWarning: Enable tracemalloc|^\s*$"
)


@pytest.fixture
def anyio_backend() -> Backend:
    """Of the client, which is not what is tested."""
    return ("asyncio", {})


@pytest.mark.timeout(SECONDS * 2 + 120)
async def test_four_workers_share_a_home(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output.txt"
    command = ["-m", "uvicorn", "--app-dir", "examples", "--no-access-log", "--port", "{port}"]
    command += ["--workers", str(WORKERS), "fastapi_app:app"]
    with serving(command, output, {"ASYNCFLOW_HOME": str(home)}) as server:
        load = Load(server.url)
        await load.run(SECONDS)
        await anyio.to_thread.run_sync(server.stop, signal.SIGTERM)
    complaints = [line for line in output.read_text().splitlines() if not QUIET.search(line)]
    assert complaints == []
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        states = dict(database.execute("SELECT id, state_name FROM flow_runs").fetchall())
    assert {run_id: states.get(run_id) for run_id in load.accepted} == dict.fromkeys(load.accepted, "Completed")
    assert load.refused == Counter()
    with capsys.disabled():
        print(f"\n{WORKERS} workers, {SECONDS:g} s, {CLIENTS} clients: {load}")


class Load:
    """Clients that start runs, one after the other each, and look at one another's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.accepted: list[str] = []
        self.refused: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = {"start": [], "status": [], "wait": []}

    async def run(self, seconds: float) -> None:
        """As many requests as there is time for."""
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(self._client, time.monotonic() + seconds)

    async def _client(self, until: float) -> None:
        # Each request on a connection of its own, so that the workers take turns.
        async with httpx.AsyncClient(base_url=self._url, timeout=60, headers={"Connection": "close"}) as client:
            while time.monotonic() < until:
                answer = await self._ask(client, "start", "POST", "/counts", {"pages": 2, "seconds": 0.001})
                if answer is not None:
                    self.accepted.append(answer["id"])
                    await self._ask(client, "status", "GET", f"/counts/{answer['id']}", {})  # most often another worker
                await self._ask(client, "wait", "GET", "/count", {"pages": 1, "seconds": 0.001})

    async def _ask(self, client: httpx.AsyncClient, what: str, method: str, path: str, params: dict[str, Any]) -> Any:
        began = time.monotonic()
        response = await client.request(method, path, params=params)
        self._seconds[what].append(time.monotonic() - began)
        if response.is_error:
            self.refused[f"{what}: {response.status_code} {response.text[:100]}"] += 1
            return None
        return response.json()

    def __str__(self) -> str:
        told = (f"{what} {_told(sorted(seconds))}" for what, seconds in self._seconds.items())
        return f"{len(self.accepted)} runs accepted; " + "; ".join(told)


def _told(seconds: list[float]) -> str:
    if not seconds:
        return "never"
    parts = {"median": 0.5, "99 %": 0.99, "worst": 1.0}
    return ", ".join(
        f"{name} {seconds[min(int(len(seconds) * part), len(seconds) - 1)] * 1000:.0f} ms"
        for name, part in parts.items()
    )
