"""The examples in other people's frameworks, over real HTTP, with real servers and real signals.

All offer the same addresses, so that each test runs against each of them.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.web_server import PROJECT, WebServer, serving

for package in ("fastapi", "uvicorn", "litestar", "aiohttp", "quart_trio", "hypercorn"):
    pytest.importorskip(package)

ASGI = ["-m", "uvicorn", "--app-dir", "examples", "--port", "{port}", "--no-access-log"]
FRAMEWORKS = {
    "fastapi": [*ASGI, "fastapi_app:app"],
    "starlette": [*ASGI, "starlette_app:app"],
    "litestar": [*ASGI, "litestar_app:app"],
    "aiohttp": ["examples/aiohttp_app.py"],
    "trio": ["examples/trio_service.py"],
}
# What servers say of themselves, and of the requests they answered.
CHATTER = re.compile(
    r"INFO: |\[INFO\]|======== Running on|\(Press CTRL\+C to quit\)"
    r'|127\.0\.0\.1 \[.*"(GET|POST|DELETE) [^"]*" [245]\d\d |\d+ runs? (are|is) interrupted|that have died|^\s*$'
)
DRAIN = 0.3
GRACE = 5.0
WAIT = 20.0
PAGES = 60


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def service(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that several tests share; each looks at runs of its own."""
    with Service(framework, tmp_path_factory.mktemp(framework)).running() as service:
        yield service


class Service:
    """An example, and what it has recorded."""

    def __init__(self, framework: str, folder: Path) -> None:
        self.home = folder / "home"
        self._command = FRAMEWORKS[framework]
        self._output = folder / "output.txt"
        self._environment = {
            "ASYNCFLOW_HOME": str(self.home),
            "ASYNCFLOW_DRAIN_SECONDS": str(DRAIN),
            "ASYNCFLOW_GRACE_SECONDS": str(GRACE),
        }
        self.server: WebServer

    @contextmanager
    def running(self, **environment: str) -> Iterator[Service]:
        """Start it, and see to it that it has ended in the end."""
        with serving(self._command, self._output, self._environment | environment) as self.server:
            yield self

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "asyncflow.db")) as database:
            return database.execute(sql, values).fetchall()

    def state(self, run_id: str) -> tuple[str, str | None]:
        """The name and the message of a flow run's state."""
        ((name, message),) = self.rows("SELECT state_name, state_message FROM flow_runs WHERE id = ?", run_id)
        return name, message

    def complaints(self) -> list[str]:
        """What the server has written that is not its usual talk."""
        return [line for line in self._output.read_text().splitlines() if not CHATTER.search(line)]


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something true, and give it."""
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)
    return found


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The name and the data of server-sent events."""
    name = "message"
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
        elif not line:
            name = "message"


# --- one server for all of these ------------------------------------------------------------------


def test_a_run_is_started_and_watched_to_its_end(service: Service) -> None:
    answer = service.server.client.post("/counts", params={"pages": 4, "seconds": 0.05})
    assert answer.status_code == 202
    run_id = answer.json()["id"]
    assert service.server.get(f"/counts/{run_id}")["state"] == "Running"
    with service.server.client.stream("GET", f"/counts/{run_id}/progress") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = list(events(stream.iter_lines()))
    assert told[-2:] == [("message", {"state": "Completed", "pages": 4}), ("end", None)]
    assert [each["pages"] for _, each in told[:-1]] == sorted(each["pages"] for _, each in told[:-1])
    assert service.server.get(f"/counts/{run_id}") == {"state": "Completed", "message": None, "value": 406}
    assert service.complaints() == []


def test_a_run_is_cancelled(service: Service) -> None:
    run_id = service.server.post("/counts", pages=1000, seconds=0.05)["id"]
    answer = service.server.client.delete(f"/counts/{run_id}")
    assert answer.json() == {"state": "Cancelled"}
    assert service.server.get(f"/counts/{run_id}")["message"].endswith("asked for over HTTP")
    assert service.complaints() == []


def test_nobody_knows_a_run_that_is_not_there(service: Service) -> None:
    answer = service.server.client.get("/counts/01900000-0000-7000-8000-000000000000")
    assert answer.status_code == 404
    assert "no run has the id" in answer.json()["detail"]
    assert service.complaints() == []


def test_a_run_that_its_request_waits_for(service: Service) -> None:
    assert service.server.get("/count", pages=2, seconds=0.01) == {"words": 201}
    assert service.complaints() == []


def test_a_client_that_leaves_cancels_its_own_run_and_no_other(service: Service) -> None:
    mine = "SELECT id, state_name FROM flow_runs WHERE json_extract(parameters, '$.pages') = ?"
    other = service.server.post("/counts", pages=8, seconds=0.05)["id"]
    with service.server.asking("/count", pages=977, seconds=0.05):
        ((tied, _),) = until(lambda: service.rows(f"{mine} AND state_name = 'Running'", 977))
    left = time.monotonic()
    until(lambda: service.state(tied) == ("Cancelled", "cancelled by its caller"))
    assert time.monotonic() - left < 5  # of the 50 seconds that it would have taken
    tasks = service.rows("SELECT state_name, count(*) FROM task_runs WHERE flow_run_id = ? GROUP BY 1", tied)
    assert set(dict(tasks)) <= {"Completed", "Cancelled"}
    until(lambda: service.state(other) == ("Completed", None))
    assert service.complaints() == []


def test_a_client_that_leaves_a_stream(service: Service) -> None:
    run_id = service.server.post("/counts", pages=8, seconds=0.05)["id"]
    with service.server.asking(f"/counts/{run_id}/progress") as connection:
        assert b"200" in connection.recv(1000)
    until(lambda: service.state(run_id) == ("Completed", None))
    assert service.complaints() == []


# --- one of its own for each of these -------------------------------------------------------------


def test_a_stopped_service_goes_on_where_it_was(framework: str, tmp_path: Path) -> None:
    """Runs that requests wait for included: the server by itself would wait for those requests first."""
    service = Service(framework, tmp_path)
    states = "SELECT state_name, count(*) FROM flow_runs GROUP BY 1"
    finished = "SELECT id, name, start_time, end_time, run_count FROM task_runs WHERE state_name = 'Completed'"
    with service.running():
        run_id = service.server.post("/counts", pages=PAGES, seconds=0.05)["id"]
        with (
            service.server.asking("/count", pages=PAGES, seconds=0.05),
            service.server.asking("/count", pages=PAGES, seconds=0.05),
            service.server.asking(f"/counts/{run_id}/progress") as stream,
        ):
            stream.recv(1000)
            until(lambda: service.rows(states) == [("Running", 3)] and len(service.rows(finished)) >= 3)
            told = time.monotonic()
            assert service.server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)  # uvicorn passes the signal on
            assert time.monotonic() - told < DRAIN + GRACE + 2
    assert service.rows(states) == [("Interrupted", 3)]
    assert service.state(run_id)[1] == "interrupted because its runtime is stopping"
    assert service.rows("SELECT DISTINCT state_type FROM task_runs ORDER BY 1") == [("COMPLETED",), ("PAUSED",)]
    before = set(service.rows(finished))
    with service.running():
        until(lambda: service.rows(states) == [("Completed", 3)])
        assert service.server.get(f"/counts/{run_id}")["value"] == sum(range(100, 100 + PAGES))
        after = set(service.rows(finished))
        assert len(after) == 3 * PAGES
        assert before < after  # those were not run again
    assert service.complaints() == []


@pytest.mark.parametrize("name", ["fastapi", "trio"])
def test_a_killed_service_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    """Killed as soon as it has said that it accepted the run."""
    service = Service(name, tmp_path)
    with service.running():
        run_id = service.server.post("/counts", pages=10, seconds=0.05)["id"]
        assert service.server.stop(signal.SIGKILL) == -signal.SIGKILL
    with service.running():
        until(lambda: service.server.get(f"/counts/{run_id}")["state"] == "Completed")
    assert service.complaints() == []


# --- the page about them --------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["fastapi_app", "starlette_app", "litestar_app", "aiohttp_app", "trio_service"])
def test_the_documentation_shows_the_example_as_it_is(file: str) -> None:
    page = (PROJECT / "docs" / "frameworks.md").read_text()
    found = re.findall(rf"<!-- not run: it is examples/{file}\.py -->\n```python\n(.*?)```\n", page, re.DOTALL)
    assert found == [(PROJECT / "examples" / f"{file}.py").read_text()]
