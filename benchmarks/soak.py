"""`python -m benchmarks.soak [--seconds 600] [--rate 200] [--json FILE]`: the FastAPI example under load for a while.

Runs are started over HTTP at a steady rate, whether or not the service keeps up. Printed are the
memory, file descriptors, threads and tasks of its process and the worst gap of its event loop:
idle, while it works, and idle again. The exit status is 1 when a run was lost or something grew.

`uvicorn benchmarks.soak:app` is the same service: the example, and one more route that tells all this.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from examples.fastapi_app import app

PROJECT = Path(__file__).parent.parent
TICK = 0.001
WARM_UP = 3.0
IDLE = 2.0
STEPS = 10
MOST_MEGABYTES = 20.0
"""More memory than that at the end than after the warm-up is a leak (P22 of RELIABILITY)."""
MOST_FILES = 4
MOST_THREADS = 8
"""Threads that read the store are kept; how many there are depends on how many reads came at once."""
CONNECTIONS = 32


# --- in the service -------------------------------------------------------------------------------


class Gauge:
    """Watches the event loop from the first look on."""

    def __init__(self) -> None:
        self._ticker: asyncio.Task[None] | None = None
        self._worst = 0.0
        self._is_own = False
        """Whether the gap that goes on is that of a look."""

    async def _tick(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            if not self._is_own:
                self._worst = max(self._worst, time.perf_counter() - began - TICK)
            self._is_own = False

    def read(self) -> dict[str, float]:
        """How much there is of everything, and the worst gap since the last look."""
        self._ticker = self._ticker or asyncio.get_running_loop().create_task(self._tick())
        worst, self._worst = self._worst, 0.0
        self._is_own = True
        open_files = list(open_now())
        return {
            "megabytes": resident() / 1e6,
            "files": sum(not each.startswith("socket:") for each in open_files),
            "sockets": sum(each.startswith("socket:") for each in open_files),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "worst gap (ms)": worst * 1e3,
        }


def open_now() -> Iterator[str]:
    """What the file descriptors of this process stand for."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # of the folder that is being listed
            yield str(descriptor.readlink())


def resident() -> int:
    """The bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


GAUGE = Gauge()


@app.get("/gauge")
async def gauge() -> dict[str, float]:
    return GAUGE.read()


# --- the load -------------------------------------------------------------------------------------


class Load:
    """Starts runs at a rate; remembers what it was told of them.

    It speaks HTTP itself, over connections that are kept: with a general client, half of the machine's
    work would be the client's, and a queue in its pool would be taken for the service's.
    """

    def __init__(self, url: httpx.URL, rate: float) -> None:
        self._url = url
        self._rate = rate
        self._due: asyncio.Queue[float] = asyncio.Queue()
        """When each request was to be sent."""
        self.accepted: list[str] = []
        self.errors: list[str] = []
        self.milliseconds: list[float] = []

    async def run(self, seconds: float) -> None:
        """For so long. The rate is kept whether or not the answers come."""
        connections = [asyncio.create_task(self._connection()) for _ in range(CONNECTIONS)]
        began = time.perf_counter()
        for number in range(round(seconds * self._rate)):
            due = began + number / self._rate
            await asyncio.sleep(due - time.perf_counter())
            self._due.put_nowait(due)
        await self._due.join()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection(self._url.host, self._url.port)
        try:
            while True:
                due = await self._due.get()
                try:
                    self.accepted.append(await self._start(reader, writer))
                except (OSError, EOFError, ValueError) as error:
                    self.errors.append(repr(error))
                    reader, writer = await asyncio.open_connection(self._url.host, self._url.port)
                self.milliseconds.append((time.perf_counter() - due) * 1e3)
                self._due.task_done()
        finally:
            writer.close()

    async def _start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Start a run; gives its id."""
        writer.write(b"POST /counts?pages=1&seconds=0.001 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
        if " 202 " not in head:
            raise ValueError(body)
        run_id: str = json.loads(body)["id"]
        return run_id

    def latency(self) -> dict[str, float]:
        """In milliseconds, of the answers since the last look."""
        ordered, self.milliseconds = sorted(self.milliseconds) or [0.0], []
        parts = {"median (ms)": 0.5, "99 % (ms)": 0.99, "worst (ms)": 1.0}
        return {name: ordered[min(int(len(ordered) * part), len(ordered) - 1)] for name, part in parts.items()}


async def soak(url: str, seconds: float, rate: float) -> tuple[list[dict[str, Any]], Load]:
    """The rows of the table, first and last those of an idle service."""
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        load = Load(client.base_url, rate)

        async def note(when: str, **more: float) -> None:
            rows.append({"when": when, **(await client.get("/gauge")).json(), **more})
            print(line(rows[-1]), flush=True)

        print(line({"when": "", **dict.fromkeys(COLUMNS, None)}), flush=True)
        await load.run(WARM_UP)
        load.latency()
        await client.get("/gauge")
        await asyncio.sleep(IDLE)
        await note("idle, before")
        began, accepted = time.monotonic(), len(load.accepted)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(seconds))
            for step in range(1, STEPS + 1):
                await asyncio.sleep(began + seconds / STEPS * step - time.monotonic())
                before, accepted = accepted, len(load.accepted)
                await note(f"after {seconds / STEPS * step:g} s", runs=accepted - before, **load.latency())
        await asyncio.sleep(IDLE)
        await client.get("/gauge")
        await asyncio.sleep(IDLE)
        await note("idle, after")
    return rows, load


COLUMNS = (
    "megabytes",
    "files",
    "sockets",
    "threads",
    "tasks",
    "worst gap (ms)",
    "runs",
    "median (ms)",
    "99 % (ms)",
    "worst (ms)",
)


def line(row: dict[str, Any]) -> str:
    """A row of the table; one of nothing but None is its head."""
    cells = [f"{row['when']:<14}"]
    for name in COLUMNS:
        value = row.get(name, "")
        text = name if value is None else f"{value:,.1f}" if isinstance(value, float) and value % 1 else str(value)
        cells.append(f"{text:>{max(len(name), 9)}}")
    return "  ".join(cells)


# --- all of it ------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run the service and the load; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="The FastAPI example under load.")
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=200, help="flow runs a second (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    asked = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="asyncflow-soak-") as folder:
        home, output = Path(folder) / "home", Path(folder) / "output.txt"
        process, url = start(home, output)
        try:
            rows, load = asyncio.run(soak(url, asked.seconds, asked.rate))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        problems = [*look(home, load), *grown(rows), *said(output)]
        size = sum(each.stat().st_size for each in home.rglob("*") if each.is_file())
    print(f"{len(load.accepted):,} runs accepted, {size / max(len(load.accepted), 1):,.0f} bytes on disk for each")
    print("\n".join(problems) or "nothing lost, nothing grown, nothing in the server's log")
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows, "problems": problems}, indent=2))
    return 1 if problems else 0


def start(home: Path, output: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The service, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--port", str(port), "benchmarks.soak:app"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**os.environ, "ASYNCFLOW_HOME": str(home)}, stdout=file, stderr=file
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            httpx.get(f"{url}/openapi.json")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return process, url
    raise SystemExit(f"the service does not start:\n{output.read_text()}")


def look(home: Path, load: Load) -> list[str]:
    """What became of the runs that were accepted."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        states = dict(database.execute("SELECT id, state_name FROM flow_runs").fetchall())
    bad = [run_id for run_id in load.accepted if states.get(run_id) != "Completed"]
    found = [f"{len(bad)} accepted runs are not Completed, such as {bad[0]}: {states.get(bad[0])}"] if bad else []
    if load.errors:
        found.append(f"{len(load.errors)} requests failed, such as {load.errors[0]}")
    return found


def grown(rows: list[dict[str, Any]]) -> list[str]:
    """What there is more of than before, when the service is idle again."""
    before, after = rows[0], rows[-1]
    most = {"megabytes": MOST_MEGABYTES, "files": MOST_FILES, "threads": MOST_THREADS, "tasks": 0}
    return [
        f"{name}: {before[name]:,.1f} before, {after[name]:,.1f} after"
        for name, limit in most.items()
        if after[name] - before[name] > limit
    ]


def said(output: Path) -> list[str]:
    """The lines of the server's log that are no news of its start and stop."""
    return [f"the server said: {text}" for text in output.read_text().splitlines() if text and "INFO: " not in text]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
