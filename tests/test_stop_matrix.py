"""SIGTERM to every kind of host, whatever its runs are at: it ends in time, and every run can be resumed.

With `STOPS=all` every host meets every load, and a table of the seconds is printed; else each host and each
load is there once or twice.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunPython
from tests.stop_programs.process import Program, checked_states, running
from tests.stop_programs.work import FEW
from tests.web_server import free_port

IS_ALL = os.environ.get("STOPS") == "all"
DRAIN = 0.3
GRACE = 0.3
STALL = 3.0
MARGIN = 2.0
TRIES = 3
"""A program that was late because the machine is busy gets another chance to be in time, and only for that."""
COMPLAINTS = re.compile(
    r"Task was destroyed|never retrieved|never awaited|ResourceWarning|Traceback|Exception ignored|Unhandled"
)
STRICT = ("-X", "dev", "-W", "error::ResourceWarning")


@dataclass(frozen=True, slots=True)
class Host:
    """A kind of program that runs flows, as the words after `python -m`."""

    name: str
    words: str
    status: int = 0
    backend: str = "asyncio"
    options: tuple[str, ...] = ()
    needs: str = "asyncflow"
    waits_for_deaf: bool = False
    """Whether its loop, as it ends, waits for what swallows every cancellation: until it is killed."""

    @property
    def is_command(self) -> bool:
        """Whether it loads the flows from their file."""
        return "FLOW" in self.words

    @property
    def is_server(self) -> bool:
        """Whether it is told over HTTP what to run."""
        return "PORT" in self.words


HOSTS = {
    host.name: host
    for host in (
        Host("program, asyncio", "tests.stop_programs.bare asyncio LOAD", options=STRICT, waits_for_deaf=True),
        Host(
            "program, trio",
            "tests.stop_programs.bare trio LOAD",
            backend="trio",
            options=STRICT,
            waits_for_deaf=True,
        ),
        Host("asyncflow run, asyncio", "asyncflow run FLOW --backend asyncio", 128 + signal.SIGTERM, options=STRICT),
        Host("asyncflow run, trio", "asyncflow run FLOW --backend trio", 128 + signal.SIGTERM, "trio", STRICT),
        Host("uvicorn", "uvicorn --port PORT tests.stop_programs.asgi:app", -signal.SIGTERM, needs="uvicorn"),
        Host(
            "gunicorn",
            "gunicorn -k uvicorn.workers.UvicornWorker -b 127.0.0.1:PORT tests.stop_programs.asgi:app",
            needs="gunicorn",
        ),
        Host("aiohttp", "tests.stop_programs.aiohttp_app PORT", needs="aiohttp", waits_for_deaf=True),
        Host(
            "hypercorn.trio.serve",
            "tests.stop_programs.hypercorn_app PORT",
            backend="trio",
            needs="hypercorn",
            waits_for_deaf=True,
        ),
        Host(
            "hypercorn -k trio",
            "hypercorn -k trio --graceful-timeout 1 -b 127.0.0.1:PORT tests.stop_programs.asgi:app",
            backend="trio",
            needs="hypercorn",
            waits_for_deaf=True,
        ),
    )
}
FLOWS = {
    "idle": "waits",  # with `asyncflow run` there is always one
    "1000 tasks": "many",
    "stuck thread": "stuck",
    "deaf body": "deaf",
    "open stream": "ticks",
    "stalled store": "few",
}
SHORT = [
    ("idle", "uvicorn"),
    ("1000 tasks", "program, asyncio"),
    ("1000 tasks", "hypercorn.trio.serve"),
    ("stuck thread", "program, trio"),
    ("stuck thread", "gunicorn"),
    ("deaf body", "asyncflow run, asyncio"),
    ("open stream", "aiohttp"),
    ("open stream", "hypercorn -k trio"),
    ("stalled store", "asyncflow run, trio"),
]
CELLS = [(load, host) for load in FLOWS for host in HOSTS if IS_ALL or (load, host) in SHORT]
MEASURED: dict[tuple[str, str], str] = {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("load", "host"), CELLS)
def test_sigterm_ends_it_in_time_and_its_runs_can_be_resumed(load: str, host: str, home: Path, tmp_path: Path) -> None:
    kind = HOSTS[host]
    pytest.importorskip(kind.needs)
    grace = STALL if load == "stalled store" else GRACE
    env = {
        "ASYNCFLOW_DRAIN_SECONDS": str(DRAIN),
        "ASYNCFLOW_GRACE_SECONDS": str(grace),
        "ASYNCFLOW_DURABILITY_SECONDS": "5",
    }
    seconds: list[float] = []
    while not seconds or (seconds[-1] > DRAIN + grace + MARGIN and len(seconds) < TRIES):
        seconds.append(stopped_on_a_free_port(kind, load, home, tmp_path, env))
        check_left_behind(kind, load, home, tmp_path, env)
    MEASURED[load, host] = f"{min(seconds):.2f}"
    assert min(seconds) <= DRAIN + grace + MARGIN


def stopped_on_a_free_port(host: Host, load: str, home: Path, folder: Path, env: dict[str, str]) -> float:
    """`stopped`, once more when somebody else was given the server's port meanwhile."""
    for _ in range(TRIES):
        try:
            return stopped(host, load, home, folder, env)
        except pytest.fail.Exception as failure:
            if not re.search("in use", str(failure), re.IGNORECASE):
                raise
    pytest.fail("no port stays free for as long as a server takes to start")


def stopped(host: Host, load: str, home: Path, folder: Path, env: dict[str, str]) -> float:
    """Start it, have it work, tell it to stop; gives the seconds from then to its end."""
    port = str(free_port())
    flow = f"tests/stop_programs/work.py:{FLOWS[load]}"
    words = [
        {"PORT": port, "FLOW": flow, "LOAD": load}.get(word, word.replace("PORT", port)) for word in host.words.split()
    ]
    # HOME is where Gunicorn puts a socket.
    env = {**env, "ASYNCFLOW_HOME": str(home), "HOME": str(folder)}
    with running([*host.options, "-m", *words], folder, env) as program, ExitStack() as stack:
        if host.is_server:
            stack.enter_context(asked(program, f"http://127.0.0.1:{port}", load))
        program.wait_until_ready()
        stack.enter_context(locked(home, STALL) if load == "stalled store" else nullcontext())
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        if load == "deaf body" and host.waits_for_deaf:
            program.wait_until(lambda: is_released(home))
            seconds = time.monotonic() - began
            program.kill()
        else:
            status = program.end()
            seconds = time.monotonic() - began
            assert status == host.status, program.output()
    output = program.output()
    assert not COMPLAINTS.search(output), output
    return seconds


@contextmanager
def asked(program: Program, url: str, load: str) -> Iterator[None]:
    """The server was asked to start the load; a stream is open for as long as the block lasts."""
    with httpx.Client(base_url=url, timeout=30) as client:

        def is_up() -> bool:
            try:
                client.get("/nothing")
            except httpx.TransportError:
                return False
            return True

        program.wait_until(is_up)
        if load != "open stream":
            assert client.get("/start", params={"load": load}).text == "started"
            yield
            return
        with client.stream("GET", "/stream") as response:
            reader = threading.Thread(target=lambda: read(response), daemon=True)
            reader.start()
            yield
            reader.join(30)
            assert not reader.is_alive()


def read(response: httpx.Response) -> None:
    """Take what comes until the server ends it, in whatever way."""
    try:
        for _ in response.iter_raw():
            pass
    except httpx.TransportError:
        pass


@contextmanager
def locked(home: Path, seconds: float) -> Iterator[None]:
    """From now on and for so long nothing can be written to the database of `home`."""
    with closing(sqlite3.connect(home / "asyncflow.db", isolation_level=None, check_same_thread=False)) as database:
        database.execute("PRAGMA busy_timeout = 30000")
        database.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(seconds, database.execute, ["ROLLBACK"])
        timer.start()
        yield
        timer.join()


def is_released(home: Path) -> bool:
    """Whether no program has the database open any more: SQLite removes this file with the last connection."""
    return not (home / "asyncflow.db-wal").exists()


def check_left_behind(host: Host, load: str, home: Path, folder: Path, env: dict[str, str]) -> None:
    """Every run is to be resumed or has ended, and the next start resumes what asks for it."""
    states = checked_states(home)
    before = states.copy()
    assert not states.keys() - {"Interrupted", "Completed", "Cancelled"}, states
    has_flows = load != "idle" or host.is_command
    if has_flows and load != "open stream":
        assert states["Interrupted"] > 0, states
    with running(
        ["-m", "tests.stop_programs.again", host.backend, "file" if host.is_command else "module"],
        folder,
        {**env, "ASYNCFLOW_DRAIN_SECONDS": "60", "RESUMED": "1", "ASYNCFLOW_HOME": str(home)},
    ) as program:
        assert program.end() == 0, program.output()
    states = checked_states(home)
    assert not states.keys() - {"Completed", "Cancelled", *(["Interrupted"] if load == "open stream" else [])}, (
        before,
        states,
    )


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print what was measured, as the table of docs/shutdown.md."""
    yield
    if IS_ALL:
        lines = ["| | " + " | ".join(HOSTS) + " |", "| --- |" + " --- |" * len(HOSTS)]
        lines += [
            f"| {load} | " + " | ".join(MEASURED.get((load, host), "-") for host in HOSTS) + " |" for load in FLOWS
        ]
        Path(os.environ["STOPS_TABLE"]).write_text("\n".join(lines) + "\n")


def test_a_second_ctrl_c_ends_the_drain_window_under_uvicorn(home: Path, tmp_path: Path) -> None:
    """It comes when the server waits for the lifespan to end, and has nothing to do for it but that."""
    pytest.importorskip("uvicorn")
    port = str(free_port())
    env = {"ASYNCFLOW_DRAIN_SECONDS": "600", "ASYNCFLOW_GRACE_SECONDS": "1", "ASYNCFLOW_HOME": str(home)}
    words = ["-m", "uvicorn", "--port", port, "tests.stop_programs.asgi:app"]
    with running(words, tmp_path, env) as program, asked(program, f"http://127.0.0.1:{port}", "stalled store"):
        program.wait_until_ready()
        program.process.send_signal(signal.SIGINT)
        program.wait_until(lambda: "Waiting for application shutdown" in program.output())
        program.process.send_signal(signal.SIGINT)
        program.end()
    assert checked_states(home) == {"Interrupted": FEW + 1}
    assert not COMPLAINTS.search(program.output()), program.output()


# --- what else may keep a process ---------------------------------------------------------------------

SCRIPT = """
import threading, time
from asyncflow import Runtime, flow, task

inside = threading.Event()

@task
def stuck() -> None:
    inside.set()
    time.sleep(3600)

@task
async def waits() -> None:
    stuck.submit()

@flow
def script() -> None:
    waits.submit().wait()

with Runtime(drain_seconds=0.1, grace_seconds=0.1, blocked_loop_seconds=5):
    script.submit()
    assert inside.wait(30)
    print([thread.name for thread in threading.enumerate() if not thread.daemon])
print("left")
"""


def test_no_thread_of_ours_keeps_a_process(run_python: RunPython, home: Path) -> None:
    """Those of asyncio and anyio do: their `to_thread` is not ours to end."""
    done = run_python(SCRIPT)
    assert done.stdout == "['MainThread']\nleft\n"
    assert "Traceback" not in done.stderr
    assert checked_states(home) == {"Interrupted": 3}


@pytest.mark.skipif(not IS_ALL, reason="takes long: STOPS=all")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_database_that_stays_locked_keeps_no_process(backend: str, home: Path, tmp_path: Path) -> None:
    """Nothing of the stop can be recorded; the next start finds what was going on, and resumes it."""
    env = {"ASYNCFLOW_DRAIN_SECONDS": str(DRAIN), "ASYNCFLOW_GRACE_SECONDS": str(GRACE), "ASYNCFLOW_HOME": str(home)}
    words = ["-m", "tests.stop_programs.bare", backend, "stalled store"]
    with running(words, tmp_path, env) as program:
        program.wait_until_ready()
        program.wait_until(lambda: checked_states(home)["Running"] > FEW)
        with locked(home, 20):
            program.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            program.end()
            assert time.monotonic() - began < 18
    assert "not everything was written" in program.output()
    assert checked_states(home)["Running"] == FEW + 1
    again = {**env, "ASYNCFLOW_DRAIN_SECONDS": "60", "RESUMED": "1"}
    with running(["-m", "tests.stop_programs.again", backend, "module"], tmp_path, again) as program:
        assert program.end() == 0, program.output()
    assert checked_states(home) == {"Completed": FEW + 1}
