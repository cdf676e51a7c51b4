"""Recorded items: what is kept, following them from anywhere, going on behind any of them, and dying in between."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.from_thread
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from asyncflow import (
    SSE_HEADERS,
    ItemStream,
    Runtime,
    StreamItem,
    cancel_flow_run,
    flow,
    get_client,
    resume_flow_run,
    sse,
    task,
)
from asyncflow.exceptions import (
    FailedRunError,
    MissingResultError,
    NotJSONError,
    OptionError,
    RunCancelledError,
    RunNotFoundError,
)
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import Attempt, cancel_everywhere
from tests.conftest import BACKENDS, RunPython
from tests.test_sse import body_of, data_of, parse, serving, until_still

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
LONG = 30.0
SECOND_ATTEMPT = 2**32
"""What the numbers of a second attempt begin above."""


def values(items: list[StreamItem]) -> list[Any]:
    return [item.value for item in items]


async def all_of(stream: ItemStream) -> list[StreamItem]:
    return [item async for item in stream]


async def take(stream: ItemStream, count: int) -> list[StreamItem]:
    return [await anext(stream) for _ in range(count)]


@flow(persist_result=True)
async def count_to(last: int) -> AsyncIterator[int]:
    for number in range(1, last + 1):
        yield number


# --- what is recorded ----------------------------------------------------------------------


@pytest.mark.parametrize("declare", [flow, task])
async def test_a_submitted_generator_runs_without_a_consumer(declare: Any) -> None:
    async def body() -> AsyncIterator[Any]:
        yield "a"
        yield {"b": [1, None]}

    letters: Any = declare(persist_result=True)(body)
    async with Runtime() as runtime:
        future = letters.submit()
        assert await future is None
        run_id = getattr(future, "flow_run_id", None) or future.task_run_id
        client = get_client(runtime)
        assert await client.read_result(run_id) == ["a", {"b": [1, None]}]
        assert await all_of(client.stream(run_id)) == [StreamItem(1, 1, "a"), StreamItem(2, 1, {"b": [1, None]})]


async def test_a_sync_generator_that_is_submitted() -> None:
    threads: set[int] = set()

    @flow(persist_result=True)
    def numbers() -> Iterator[int]:
        for number in range(3):
            threads.add(threading.get_ident())
            yield number

    async with Runtime():
        future = numbers.submit()
        await future
        assert await get_client().read_result(future.flow_run_id) == [0, 1, 2]
    assert threading.get_ident() not in threads


async def test_what_a_consumer_takes_is_recorded_too() -> None:
    stream = count_to.stream(3)
    assert [item async for item in stream] == [1, 2, 3]
    assert stream.state is not None
    run_id: Any = stream.state.state_details.flow_run_id
    assert await get_client().read_result(run_id) == [1, 2, 3]


def test_a_sync_generator_in_a_script(home: Path) -> None:
    @flow(persist_result=True)
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    @task(persist_result=True)
    def letters() -> Iterator[str]:
        yield "a"

    @flow
    def outer() -> list[Any]:
        return [*numbers(), *letters()]

    assert outer() == [1, 2, "a"]

    async def read() -> tuple[Any, Any]:
        client = get_client()
        (nested,) = await client.read_flow_runs(flow_name="numbers")
        (called,) = [each for each in await client.read_task_runs() if each.task_name == "letters"]
        return await client.read_result(nested.id), await client.read_result(called.id)

    assert anyio.run(read) == ([1, 2], ["a"])


async def test_a_stream_without_items() -> None:
    async with Runtime():
        future = count_to.submit(0)
        await future
        assert await get_client().read_result(future.flow_run_id) == []
        assert await all_of(get_client().stream(future.flow_run_id)) == []


async def test_what_a_consumer_closed_early_stays() -> None:
    async with count_to.stream(9) as stream:
        assert [await anext(stream), await anext(stream)] == [1, 2]
        assert stream.state is not None
        run_id: Any = stream.state.state_details.flow_run_id
    recorded = get_client().stream(run_id)
    assert values(await take(recorded, 2)) == [1, 2]
    with pytest.raises(RunCancelledError, match="closed by its consumer"):
        await anext(recorded)
    with pytest.raises(StopAsyncIteration):
        await anext(recorded)
    with pytest.raises(MissingResultError):
        await get_client().read_result(run_id)


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_an_item_that_is_not_json_fails_the_run(colour: str) -> None:
    log: list[str] = []

    @flow(persist_result=True)
    async def things() -> AsyncIterator[Any]:
        try:
            yield 1
            yield {"a": [object()]}
        finally:
            log.append("finally")

    @flow(persist_result=True)
    def things_sync() -> Iterator[Any]:
        try:
            yield 1
            yield {"a": [object()]}
        finally:
            log.append("finally")

    async with Runtime():
        future = (things if colour == "async" else things_sync).submit()
        with pytest.raises(NotJSONError, match=r"items\[1\]\.a\[0\]"):
            await future
        assert log == ["finally"]
        stream = get_client().stream(future.flow_run_id)
        assert values(await take(stream, 1)) == [1]
        with pytest.raises(FailedRunError, match=r"items\[1\]\.a\[0\]"):
            await anext(stream)


async def test_without_persist_result_nothing_is_recorded() -> None:
    @flow
    async def plain() -> AsyncIterator[int]:
        yield 1

    stream = plain.stream()
    assert [item async for item in stream] == [1]
    assert stream.state is not None
    run_id: Any = stream.state.state_details.flow_run_id
    with pytest.raises(MissingResultError, match="persist_result=True"):
        await anext(get_client().stream(run_id))
    with pytest.raises(TypeError, match="persist_result=True"):
        plain.submit()


async def test_a_run_that_nobody_knows() -> None:
    with pytest.raises(RunNotFoundError):
        await anext(get_client().stream(uuid4()))
    with pytest.raises(RunNotFoundError):
        get_client().stream("no id")


@pytest.mark.parametrize("bad", [-1, 2**63, "x", "-1", "1.0", "\u0663", " 1", "9" * 30, True, 1.0])
def test_an_offset_that_is_none(bad: Any) -> None:
    with pytest.raises(OptionError, match="after"):
        get_client().stream(uuid4(), after=bad)


async def test_going_on_behind_an_item() -> None:
    async with Runtime():
        future = count_to.submit(3)
        await future
        offsets: dict[Any, int] = {None: 3, "": 3, 0: 3, "0": 3, 1: 2, "2": 1, 3: 0, 99: 0}
        for after, left in offsets.items():
            stream = get_client().stream(future.flow_run_id, after=after)
            assert values(await all_of(stream)) == [1, 2, 3][3 - left :]
            assert stream.state is not None
            assert stream.state.is_completed()


async def test_items_are_sealed_by_the_codec(tmp_path: Path) -> None:
    class Reversing:
        name = "reversing"

        def encode(self, data: bytes) -> bytes:
            return data[::-1]

        def decode(self, data: bytes) -> bytes:
            return data[::-1]

    @flow(persist_result=True)
    async def secrets() -> AsyncIterator[str]:
        yield "open sesame"

    async with Runtime(tmp_path / "sealed", codec=Reversing()) as runtime:
        future = secrets.submit()
        await future
        assert await get_client(runtime).read_result(future.flow_run_id) == ["open sesame"]
        assert values(await all_of(get_client(runtime).stream(future.flow_run_id))) == ["open sesame"]
    for file in (tmp_path / "sealed").rglob("*"):
        assert not file.is_file() or b"open sesame" not in file.read_bytes()


# --- attempts ------------------------------------------------------------------------------


async def test_the_items_of_another_attempt_are_others() -> None:
    @flow(persist_result=True, retries=1)
    async def second_time() -> AsyncIterator[str]:
        attempts.append(1)
        yield f"first of {len(attempts)}"
        if len(attempts) == 1:
            raise ValueError("again")
        yield "last"

    attempts: list[int] = []
    async with Runtime():
        future = second_time.submit()
        await future
        client = get_client()
        assert await client.read_result(future.flow_run_id) == ["first of 2", "last"]
        assert await all_of(client.stream(future.flow_run_id)) == [
            StreamItem(1, 1, "first of 1"),
            StreamItem(SECOND_ATTEMPT + 1, 2, "first of 2"),
            StreamItem(SECOND_ATTEMPT + 2, 2, "last"),
        ]
        whole = [event.get("event") for event in parse(await body_of(sse(client.stream(future.flow_run_id))))]
        assert whole == [None, "restarted", None, None, "end"]
        for seen in (1, SECOND_ATTEMPT + 1):  # the same, or its rest, for one that comes back
            again = parse(await body_of(sse(client.stream(future.flow_run_id, after=seen))))
            assert [event.get("event") for event in again] == whole[1 if seen == 1 else 3 :]


async def test_a_run_that_is_resumed_goes_on_in_its_stream() -> None:
    fails = True

    @flow(persist_result=True)
    async def steps() -> AsyncIterator[int]:
        yield 1
        if fails:
            raise ValueError("not now")
        yield 2

    async with Runtime():
        future = steps.submit()
        with pytest.raises(ValueError, match="not now"):
            await future
        fails = False
        assert await resume_flow_run(future.flow_run_id) is None
        client = get_client()
        assert await client.read_result(future.flow_run_id) == [1, 2]
        assert values(await all_of(client.stream(future.flow_run_id))) == [1, 1, 2]


async def test_a_completed_task_is_not_run_again_when_its_flow_is_resumed() -> None:
    made: list[int] = []
    fails = True

    @task(persist_result=True)
    async def produce() -> AsyncIterator[int]:
        made.append(1)
        yield 7

    @flow
    async def outer() -> list[Any]:
        future = produce.submit()
        await future
        if fails:
            raise ValueError("not now")
        return [item.value async for item in get_client().stream(future.task_run_id)]

    with pytest.raises(ValueError, match="not now"):
        await outer()
    fails = False
    (run,) = await get_client().read_flow_runs()
    assert await resume_flow_run(run.id) == [7]
    assert made == [1]


async def test_a_run_that_is_interrupted_and_resumed() -> None:
    goes_on = anyio.Event()

    @flow(persist_result=True, resume="auto")
    async def two() -> AsyncIterator[int]:
        yield 1
        await goes_on.wait()
        yield 2

    async with Runtime(drain_seconds=0.0):
        future = two.submit()
        assert (await anext(get_client().stream(future.flow_run_id))).number == 1
    goes_on.set()
    async with Runtime():
        events = parse(await body_of(sse(get_client().stream(future.flow_run_id, after=1))))
        assert [event.get("event", event["data"]) for event in events] == ["restarted", "1", "2", "end"]
        assert await get_client().read_result(future.flow_run_id) == [1, 2]


# --- following a run that goes on ----------------------------------------------------------


async def test_each_item_comes_when_it_is_made() -> None:
    asked = [anyio.Event() for _ in range(3)]

    @flow(persist_result=True)
    async def on_demand() -> AsyncIterator[int]:
        for number, event in enumerate(asked):
            await event.wait()
            yield number

    async with Runtime():
        future = on_demand.submit()
        streams = [get_client().stream(future.flow_run_id) for _ in range(3)]
        for number, event in enumerate(asked):
            event.set()
            with anyio.fail_after(LONG):
                assert [(await anext(stream)).value for stream in streams] == [number] * 3
        for stream in streams:
            assert await all_of(stream) == []


async def test_a_stream_of_a_run_that_has_not_begun() -> None:
    async with Runtime():
        future = count_to.submit(2)
        assert values(await all_of(get_client().stream(future.flow_run_id))) == [1, 2]


async def test_leaving_a_stream_changes_nothing_for_its_run() -> None:
    goes_on = anyio.Event()

    @flow(persist_result=True)
    async def two() -> AsyncIterator[int]:
        yield 1
        await goes_on.wait()
        yield 2

    async with Runtime():
        future = two.submit()
        async with get_client().stream(future.flow_run_id) as stream:
            assert (await anext(stream)).value == 1
        with anyio.move_on_after(0.02):
            await anext(get_client().stream(future.flow_run_id, after=1))
        events = sse(get_client().stream(future.flow_run_id))
        assert data_of(await anext(events)) == [1]
        await events.aclose()
        goes_on.set()
        await future
        assert values(await all_of(get_client().stream(future.flow_run_id))) == [1, 2]


async def test_a_cancelled_wait_loses_nothing() -> None:
    @flow(persist_result=True)
    async def paced() -> AsyncIterator[int]:
        for number in range(30):
            await anyio.sleep(0.002)
            yield number

    async with Runtime():
        future = paced.submit()
        stream = get_client().stream(future.flow_run_id)
        got: list[int] = []
        while len(got) < 30:
            with anyio.move_on_after(0.003):
                got.append((await anext(stream)).value)
        assert got == list(range(30))


async def test_one_reader_at_a_time() -> None:
    @flow(persist_result=True)
    async def endless() -> AsyncIterator[int]:
        await anyio.sleep(LONG)
        yield 1

    async with Runtime():
        future = endless.submit()
        stream = get_client().stream(future.flow_run_id)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="already waiting"):
                await anext(stream)
            group.cancel_scope.cancel()
        future.cancel()


async def test_the_end_of_a_run_that_is_cancelled() -> None:
    @flow(persist_result=True)
    async def endless() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(LONG)

    async with Runtime():
        future = endless.submit()
        events = sse(get_client().stream(future.flow_run_id))
        assert parse(await anext(events)) == [{"id": "1", "data": "1"}]
        await cancel_flow_run(future.flow_run_id)
        (end,) = parse(await body_of(events))
        assert (end["event"], json.loads(end["data"])["type"]) == ("end", "CANCELLED")


@pytest.mark.parametrize("how", ["scope", "native", "wait_for"])
async def test_cancelled_at_every_await(how: Any) -> None:
    @task(persist_result=True)
    async def produce() -> AsyncIterator[int]:
        for number in (1, 2, 3):
            await anyio.sleep(0)
            yield number

    @flow
    async def outer() -> list[int]:
        live = [number async for number in produce.stream()]
        future = produce.submit()
        followed = [item.value async for item in get_client().stream(future.task_run_id)]
        await future
        return live + followed

    def check(attempt: Attempt) -> None:
        assert attempt.value == [1, 2, 3, 1, 2, 3] or attempt.ending != "completed"

    async with Runtime(store=MemoryStore()):
        report = await cancel_everywhere(outer, how=how, check=check, limit=60)
    assert report.points >= 10
    assert report.endings["cancelled"] >= 0.7 * sum(report.endings.values())


async def test_the_body_waits_for_a_disk_that_is_behind(home: Path) -> None:
    made: list[int] = []

    @flow(persist_result=True)
    async def fast(last: int) -> AsyncIterator[int]:
        for number in range(last):
            made.append(number)
            yield number

    async with Runtime(queue_limit=50):
        await fast.submit(1)
        other = sqlite3.connect(home / "asyncflow.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # nobody else can write now
        future = fast.submit(20_000)
        await until_still(made)
        assert (
            len(made) < 15_000
        )  # it looks at the disk every 5 ms: what is made in that time comes on top of the limit
        other.close()
        await future
        assert await get_client().read_result(future.flow_run_id) == list(range(20_000))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_each_item_once_and_in_order_however_often_a_reader_comes_back(data: Any) -> None:
    """Readers that take some items, leave in any of the ways there are, and go on from the last number they had."""
    last = data.draw(st.integers(0, 400), label="items")
    visits = data.draw(st.lists(st.tuples(st.integers(0, 60), st.sampled_from(WAYS)), max_size=12), label="visits")
    paces = data.draw(st.integers(1, 50), label="pace")
    backend = data.draw(st.sampled_from(["asyncio", "trio"]))
    anyio.run(_visit, last, paces, visits, backend=backend)


WAYS = ["drop", "close", "cancel", "sse"]


async def _visit(last: int, pace: int, visits: list[tuple[int, str]]) -> None:
    @flow(persist_result=True)
    async def paced() -> AsyncIterator[int]:
        for number in range(last):
            if number % pace == 0:
                await anyio.sleep(0)
            yield number

    async with Runtime():
        future = paced.submit()
        got: list[int] = []
        after = 0
        for count, way in visits:
            count = min(count, last - len(got))
            stream = get_client().stream(future.flow_run_id, after=after)
            if way == "sse":
                async with sse(stream) as events:
                    for _ in range(count):
                        (event,) = parse(await anext(events))
                        got.append(json.loads(event["data"]))
                        after = int(event["id"])
                continue
            for item in await take(stream, count):
                got.append(item.value)
                after = item.number
            if way == "close":
                await stream.aclose()
            elif way == "cancel" and len(got) < last:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await anext(get_client().stream(future.flow_run_id, after=after))
        got.extend(values(await all_of(get_client().stream(future.flow_run_id, after=after))))
        assert got == list(range(last))


MANY = """
import resource
from collections.abc import AsyncIterator

import anyio

from asyncflow import Runtime, flow, get_client

@flow(persist_result=True)
async def many(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number

def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def follow(count: int) -> None:
    future = many.submit(count)
    expected = 0
    async for item in get_client().stream(future.flow_run_id):
        expected += 1
        assert item.number == expected
    assert expected == count

async def main() -> None:
    async with Runtime():
        await follow(20_000)
        before = peak()
        await follow(200_000)
        print(peak() - before)

anyio.run(main)
"""


def test_many_items_take_no_memory(run_python: RunPython) -> None:
    done = run_python(MANY)
    assert int(done.stdout) < 20  # MiB; in memory they would take ten times that


# --- other processes -----------------------------------------------------------------------

SERVER = """
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from asyncflow import Runtime, SSE_HEADERS, flow, get_client, sse

@flow(persist_result=True, resume="auto")
async def steps(last: int) -> AsyncIterator[int]:
    for number in range(1, last + 1):
        await anyio.sleep(0.004)
        while number > last / 2 and not os.path.exists(sys.argv[2]):
            await anyio.sleep(0.01)  # however slow the client is: not done before the last kill
        yield number

@asynccontextmanager
async def lifespan(app):
    async with Runtime() as app.state.runtime:
        yield

async def start(request):
    return JSONResponse(str(steps.submit(int(request.query_params["last"])).flow_run_id))

async def follow(request):
    after = request.headers.get("last-event-id")
    items = get_client(request.app.state.runtime).stream(request.path_params["id"], after=after)
    return StreamingResponse(sse(items), headers=dict(SSE_HEADERS))

routes = [Route("/", start, methods=["POST"]), Route("/{id}", follow)]
config = uvicorn.Config(Starlette(routes=routes, lifespan=lifespan), fd=int(sys.argv[1]), log_level="error", ws="none")
uvicorn.Server(config).run()
"""


class Server:
    """The application in a process of its own, always at one address: the socket is the test's."""

    def __init__(self, home: Path) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.home = home
        self.may_end = home.with_name("may end")
        self.start()

    def start(self) -> None:
        fd = self.socket.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(fd), str(self.may_end)],
            pass_fds=[fd],
            env={**os.environ, "ASYNCFLOW_HOME": str(self.home)},
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.socket.close()


def read_some(url: str, last_id: str | None, most: int) -> tuple[list[dict[str, Any]], bool]:
    """Connect, as a browser that comes back does; the events until there are `most` of them, or the connection ends."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    body = b""
    try:
        with httpx.stream("GET", url, headers=headers, timeout=LONG, trust_env=False) as response:
            assert response.status_code == 200
            for part in response.iter_bytes():
                body += part
                if len(parse(body)) >= most:
                    break
    except httpx.TransportError:
        pass  # killed
    events = parse(body)[:most]
    return events, any(event.get("event") == "end" for event in events)


def test_no_item_is_lost_or_doubled_when_the_server_is_killed(home: Path) -> None:
    last, kills = 120, 3
    server = Server(home)
    try:
        run_id = httpx.post(server.url, params={"last": last}, timeout=LONG, trust_env=False).json()
        got: list[dict[str, Any]] = []
        ended = False
        while not ended:
            last_id = next((event["id"] for event in reversed(got) if "id" in event), None)
            events, ended = read_some(f"{server.url}/{run_id}", last_id, 25)
            got += events
            if not kills:
                server.may_end.touch()
            elif events:
                kills -= 1
                server.kill()
                server.start()
    finally:
        server.stop()

    assert [event.get("event") for event in got if "event" in event] == ["restarted"] * 3 + ["end"]
    taken = [(int(event["id"]), json.loads(event["data"])) for event in got if "id" in event]

    async def recorded() -> list[StreamItem]:
        return await all_of(get_client().stream(run_id))

    on_disk = anyio.run(recorded)
    assert taken == [(item.number, item.value) for item in on_disk]
    for attempt in (1, 2, 3, 4):  # from its start, without a gap
        mine = [item for item in on_disk if item.attempt == attempt]
        assert [item.number - (attempt - 1) * SECOND_ATTEMPT for item in mine] == values(mine)
        assert values(mine) == list(range(1, len(mine) + 1))
        assert len(mine) == last or attempt < 4


FOLLOWER = """
import sys

import anyio

from asyncflow import get_client

async def main() -> None:
    async for item in get_client().stream(sys.argv[1]):
        print(item.value, flush=True)

anyio.run(main)
"""


async def test_another_process_follows(home: Path) -> None:
    goes_on = anyio.Event()

    @flow(persist_result=True)
    async def two() -> AsyncIterator[int]:
        yield 1
        await goes_on.wait()
        yield 2

    async with Runtime():
        future = two.submit()
        assert (await anext(get_client().stream(future.flow_run_id))).value == 1
        process = await anyio.open_process([sys.executable, "-c", FOLLOWER, str(future.flow_run_id)], stderr=None)
        assert process.stdout is not None
        try:
            with anyio.fail_after(LONG):
                told = b""
                async for part in process.stdout:
                    told += part
                    if told == b"1\n":
                        goes_on.set()
                assert told == b"1\n2\n"
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.aclose()


# --- real HTTP -----------------------------------------------------------------------------


@asyncio_only
async def test_coming_back_with_the_last_id() -> None:
    @flow(persist_result=True)
    async def paced(last: int) -> AsyncIterator[int]:
        for number in range(1, last + 1):
            await anyio.sleep(0.002)
            yield number

    async with Runtime() as runtime:
        future = paced.submit(100)

        async def handler(request: Request) -> Response:
            after = request.headers.get("last-event-id")
            return StreamingResponse(
                sse(get_client(runtime).stream(future.flow_run_id, after=after)), headers=dict(SSE_HEADERS)
            )

        got: list[int] = []
        async with serving(handler) as (client, _):
            headers: dict[str, str] = {}
            while True:
                body = b""
                async with client.stream("GET", "/", headers=headers) as response:
                    async for part in response.aiter_bytes():
                        body += part
                        if len(parse(body)) >= 30:
                            break
                events = parse(body)
                got += data_of(body)
                if events[-1].get("event") == "end":
                    break
                headers = {"Last-Event-ID": events[-1]["id"]}
        assert got == list(range(1, 101))
        assert future.state.is_completed()  # it was nobody's


async def test_a_body_ends_when_its_runtime_begins_to_stop() -> None:
    goes_on = anyio.Event()

    @flow(persist_result=True)
    async def two() -> AsyncIterator[int]:
        yield 1
        await goes_on.wait()
        yield 2

    async with Runtime() as runtime:
        future = two.submit()
        events = sse(get_client().stream(future.flow_run_id))
        assert parse(await anext(events)) == [{"id": "1", "data": "1"}]
        runtime.stop()
        with anyio.fail_after(LONG):
            assert await body_of(events) == b""
        assert not future.done()
        goes_on.set()
        await future
        assert values(await all_of(get_client().stream(future.flow_run_id))) == [1, 2]  # one of another kind does not


@asyncio_only
async def test_a_server_that_stops_leaves_the_run_to_its_runtime() -> None:
    goes_on = anyio.Event()

    @flow(persist_result=True)
    async def two() -> AsyncIterator[int]:
        yield 1
        await goes_on.wait()
        yield 2

    async with Runtime() as runtime:
        future = two.submit()

        async def handler(_: Request) -> Response:
            return StreamingResponse(sse(get_client(runtime).stream(future.flow_run_id)), headers=dict(SSE_HEADERS))

        async with serving(handler, timeout_graceful_shutdown=1) as (client, server), client.stream("GET", "/") as got:
            parts = got.aiter_bytes()
            assert data_of(await anext(parts)) == [1]
            server.should_exit = True
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(parts)
        goes_on.set()
        await future
        assert await get_client().read_result(future.flow_run_id) == [1, 2]
