"""Server-sent events: their bytes, every way in which a body ends, and real HTTP with uvicorn and Starlette."""

from __future__ import annotations

import contextvars
import gc
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from asyncflow import (
    SSE_HEADERS,
    EventStream,
    Runtime,
    ServerSentEvent,
    cancel_flow_run,
    flow,
    get_client,
    sse,
    task,
)
from asyncflow.exceptions import NotJSONError, OptionError
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import cancel_everywhere
from tests.conftest import BACKENDS

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
LONG = 30.0
CLOSED = ("CANCELLED", "closed by its consumer")


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(LONG):
        while not condition():
            await anyio.sleep(0.005)


async def newest() -> tuple[str, str | None]:
    """How the run that was made last has ended."""
    with anyio.fail_after(LONG):
        while True:
            runs = await get_client().read_flow_runs(limit=1)
            if runs and runs[0].state.is_final():
                return runs[0].state.type.value, runs[0].state.message
            await anyio.sleep(0.005)


def parse(body: bytes) -> list[dict[str, Any]]:
    """The events of a body as a client reads them, by the WHATWG's rules; comments are left out."""
    events: list[dict[str, Any]] = []
    event: dict[str, Any] = {}
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n")[:-1]:
        if not line:
            if "data" in event:
                events.append(event)
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name == "data" and "data" in event else value
    return events


def data_of(body: bytes) -> list[Any]:
    return [json.loads(event["data"]) for event in parse(body) if "event" not in event]


def counting(log: list[str], last: int = 3, pause: float = 0.0) -> Any:
    @flow
    async def count() -> AsyncIterator[int]:
        try:
            for number in range(1, last + 1):
                await anyio.sleep(pause)
                log.append(f"make {number}")
                yield number
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            log.append("finally")

    return count


# --- the format ----------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    )
)
@settings(deadline=None)
def test_any_data_arrives_as_it_is(data: Any) -> None:
    (event,) = parse(ServerSentEvent(data=data, event="thing", id="7").encode())
    assert json.loads(event["data"]) == data
    assert (event["event"], event["id"]) == ("thing", "7")


@pytest.mark.parametrize(
    "text", ["one\ntwo", "one\r\ntwo", "one\rtwo", "\n", "", " led", "one\u2028two\x85three", "a: b"]
)
def test_text_of_several_lines_stays_one_event(text: str) -> None:
    (event,) = parse(ServerSentEvent(data=None).with_json(text))
    assert event["data"] == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "\n"])
@pytest.mark.parametrize("field", ["event", "id"])
def test_what_would_end_a_field_is_refused(field: str, bad: str) -> None:
    fields: dict[str, Any] = {field: bad}
    with pytest.raises(OptionError, match=field):
        ServerSentEvent(data=1, **fields)


def test_retry_is_in_milliseconds() -> None:
    assert ServerSentEvent(data=1, retry_seconds=1.5).encode() == b"retry: 1500\ndata: 1\n\n"
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(OptionError):
            ServerSentEvent(data=1, retry_seconds=bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
async def test_a_heartbeat_that_cannot_be(bad: float) -> None:
    with pytest.raises(OptionError, match="heartbeat_seconds"):
        sse(counting([]).stream(), heartbeat_seconds=bad)


def test_what_is_no_async_iterator_is_refused() -> None:
    items: Any = [1, 2]
    with pytest.raises(TypeError, match="async iterator"):
        sse(items)


# --- bodies --------------------------------------------------------------------------------


async def body_of(events: EventStream) -> bytes:
    return b"".join([chunk async for chunk in events])


@pytest.mark.parametrize("declare", [flow, task])
async def test_the_events_of_a_run(declare: Any) -> None:
    async def letters() -> AsyncIterator[Any]:
        yield {"letter": "a"}
        yield "b\n"

    stream = declare(letters).stream()
    body = await body_of(sse(stream, retry_seconds=2))
    assert body.startswith(b'retry: 2000\n\ndata: {"letter":"a"}\n\ndata: "b\\n"\n\nevent: end\ndata: ')
    end = json.loads(parse(body)[-1]["data"])
    details = stream.state.state_details
    assert end == {
        "type": "COMPLETED",
        "name": "Completed",
        "message": None,
        "run_id": str(details.task_run_id or details.flow_run_id),
    }


async def test_sync_generators_and_events_of_ones_own() -> None:
    @flow
    def steps() -> Iterator[Any]:
        yield ServerSentEvent(data=[1], event="step", id="x1")
        yield 2

    assert parse(await body_of(sse(steps.stream())))[:2] == [
        {"event": "step", "id": "x1", "data": "[1]"},
        {"data": "2"},
    ]


async def test_a_failure_is_told_without_its_traceback() -> None:
    @flow
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no more\nthan this")

    body = await body_of(sse(fails.stream()))
    first, error, end = parse(body)
    assert first == {"data": "1"}
    assert (error["event"], json.loads(error["data"])) == ("error", {"message": "ValueError: no more\nthan this"})
    assert (end["event"], json.loads(end["data"])["type"]) == ("end", "FAILED")
    assert b"Traceback" not in body
    assert b".py" not in body


async def test_a_cancelled_run_has_an_end_and_no_error() -> None:
    waits = anyio.Event()

    @flow
    async def endless() -> AsyncIterator[str]:
        yield "first"
        waits.set()
        await anyio.sleep(LONG)

    stream: Any = endless.stream()
    events = sse(stream)
    assert await anext(events) == b'data: "first"\n\n'

    async def cancel() -> None:
        await waits.wait()
        await cancel_flow_run(stream.state.state_details.flow_run_id)

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        rest = parse(await body_of(events))
    assert [event["event"] for event in rest] == ["end"]
    assert json.loads(rest[0]["data"])["type"] == "CANCELLED"


async def test_an_iterator_of_ones_own_that_fails_is_told_and_raised() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise LookupError("gone")

    events = sse(items())
    assert parse(await anext(events)) == [{"data": "1"}]
    assert parse(await anext(events)) == [{"event": "error", "data": '{"message":"LookupError: gone"}'}]
    with pytest.raises(LookupError, match="gone"):
        await anext(events)


async def test_an_iterator_of_ones_own_ends() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1

    assert parse(await body_of(sse(items()))) == [{"data": "1"}, {"event": "end", "data": "null"}]


async def test_an_item_that_is_not_json_closes_the_stream() -> None:
    log: list[str] = []

    @flow
    async def things() -> AsyncIterator[Any]:
        try:
            yield {"fn": print}
        finally:
            log.append("finally")

    events = sse(things.stream())
    (error,) = parse(await anext(events))
    assert error["event"] == "error"
    assert "item.fn" in error["data"]
    assert log == ["finally"]
    with pytest.raises(NotJSONError):
        await anext(events)
    assert await newest() == CLOSED
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_heartbeat_loses_nothing() -> None:
    goes_on = anyio.Event()
    log: list[str] = []

    async def items() -> AsyncIterator[int]:
        with anyio.CancelScope():  # its scope, its own context: entered and left by one task
            for number in (1, 2):
                log.append(f"begin {number}")
                await goes_on.wait()
                yield number

    events = sse(items(), heartbeat_seconds=0.01)
    for _ in range(5):
        assert await anext(events) == b":\n\n"
    goes_on.set()
    assert data_of(await body_of(events)) == [1, 2]
    assert log == ["begin 1", "begin 2"]


async def test_the_body_does_not_run_ahead() -> None:
    log: list[str] = []
    async with sse(counting(log).stream()) as events:
        for number in (1, 2):
            assert await anext(events) == b"data: %d\n\n" % number
            await anyio.wait_all_tasks_blocked()
            assert log[-1] == f"make {number}"


async def test_one_reader_at_a_time() -> None:
    async with sse(counting([], pause=LONG).stream()) as events, anyio.create_task_group() as group:
        group.start_soon(anext, events)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="already waiting"):
            await anext(events)
        group.cancel_scope.cancel()


# --- consumers that leave ------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 2])
async def test_closing_returns_after_the_bodys_finally(taken: int) -> None:
    log: list[str] = []
    events = sse(counting(log).stream())
    for _ in range(taken):
        await anext(events)
    await events.aclose()
    assert log == (["make 1", "make 2", "finally"] if taken else [])
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    if taken:
        assert await newest() == CLOSED


async def test_a_cancelled_consumer_waits_for_the_bodys_finally() -> None:
    log: list[str] = []

    @flow
    async def stuck() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            log.append("finally")

    events = sse(stuck.stream(), heartbeat_seconds=LONG)
    assert await anext(events) == b"data: 1\n\n"
    async with anyio.create_task_group() as group:
        group.start_soon(anext, events)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert log == ["finally"]  # already
    assert await newest() == CLOSED


async def test_a_dropped_body_closes_its_stream() -> None:
    log: list[str] = []
    events = sse(counting(log).stream())
    assert await anext(events) == b"data: 1\n\n"
    gc.disable()  # nothing but its own references may keep it
    try:
        del events
        await until(lambda: log == ["make 1", "finally"])
    finally:
        gc.enable()
    assert await newest() == CLOSED


async def test_a_body_dropped_between_heartbeats_closes_its_stream() -> None:
    log: list[str] = []

    @flow
    async def stuck() -> AsyncIterator[int]:
        log.append("begin")
        try:
            await anyio.sleep(LONG)
            yield 1
        finally:
            log.append("finally")

    events = sse(stuck.stream(), heartbeat_seconds=0.01)
    while not log:
        assert await anext(events) == b":\n\n"
    del events
    await until(lambda: log == ["begin", "finally"])
    assert await newest() == CLOSED


async def test_a_body_dropped_while_its_run_is_opened_leaves_nothing() -> None:
    log: list[str] = []
    events = sse(counting(log).stream(), heartbeat_seconds=1e-6)
    assert await anext(events) == b":\n\n"  # the default runtime is being opened, in a thread
    del events
    assert [item async for item in counting([]).stream()] == [1, 2, 3]
    await anyio.wait_all_tasks_blocked()
    assert log == []
    assert len(await get_client().read_flow_runs()) == 1


async def test_an_iterator_of_ones_own_is_closed_where_it_ran() -> None:
    mark = contextvars.ContextVar("mark", default="outside")
    log: list[str] = []

    async def items() -> AsyncIterator[int]:
        with anyio.CancelScope():
            token = mark.set("inside")
            try:
                yield 1
                yield 2
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0)
                mark.reset(token)  # raises in another context
                log.append("finally")

    events = sse(items())
    await anext(events)
    await events.aclose()
    assert log == ["finally"]
    dropped = sse(items())
    await anext(dropped)
    del dropped
    await until(lambda: log == ["finally", "finally"])
    assert mark.get() == "outside"


async def test_what_closing_an_iterator_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    async with sse(items()) as events:
        await anext(events)
    assert "raised while it was closed" in caplog.text
    assert "cannot close" in caplog.text


@pytest.mark.parametrize("how", ["scope", "native", "wait_for"])
async def test_a_body_cancelled_at_every_await(how: Any) -> None:
    async def items() -> AsyncIterator[int]:
        for number in (1, 2):
            await anyio.sleep(0)
            yield number

    async def script() -> list[int]:
        read = [chunk async for chunk in sse(flow(items).stream())]
        async with sse(items()) as events:
            read += [chunk async for chunk in events]
        return data_of(b"".join(read))

    async with Runtime(store=MemoryStore()):
        report = await cancel_everywhere(script, how=how)
    assert report.points >= 15
    assert report.endings["cancelled"] >= 0.7 * report.points


async def test_a_plain_asgi_application() -> None:
    """As trio's servers call it: the disconnect cancels what sends."""
    log: list[str] = []
    count = counting(log, last=1000)
    sent: list[bytes] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                assert (await receive())["type"] == "http.disconnect"
                group.cancel_scope.cancel()

            group.start_soon(watch)
            headers = [(name.encode(), value.encode()) for name, value in SSE_HEADERS.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with sse(count.stream()) as events:
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})

    gone = anyio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 4:
            gone.set()
            await anyio.sleep(LONG)  # a slow client: its disconnect comes while something is sent

    await application({}, receive, send)
    assert data_of(b"".join(sent)) == [1, 2, 3]
    assert log == ["make 1", "make 2", "make 3", "finally"]
    assert await newest() == CLOSED


# --- real HTTP -----------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    handler: Callable[[Request], Any], **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, uvicorn.Server]]:
    """A Starlette application under uvicorn, on this loop; leaving the block stops the server."""
    config = uvicorn.Config(
        Starlette(routes=[Route("/", handler)]), port=0, ws="none", lifespan="off", log_config=None, **options
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            small = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)])
            async with httpx.AsyncClient(
                transport=small, base_url=f"http://127.0.0.1:{port}", timeout=LONG, trust_env=False
            ) as client:
                yield client, server
        finally:
            server.should_exit = True


@asyncio_only
async def test_a_handler_in_five_lines() -> None:
    @flow
    async def progress(steps: int) -> AsyncIterator[dict[str, int]]:
        for step in range(steps):
            yield {"step": step}

    async def handler(request: Request) -> Response:
        steps = int(request.query_params["steps"])
        return StreamingResponse(sse(progress.stream(steps)), headers=dict(SSE_HEADERS))

    async with serving(handler) as (client, _):
        response = await client.get("/", params={"steps": 3})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert data_of(response.content) == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert parse(response.content)[-1]["event"] == "end"


@asyncio_only
async def test_a_client_that_leaves_after_three_items() -> None:
    log: list[str] = []
    count = counting(log, last=1000, pause=0.005)

    async def handler(_: Request) -> Response:
        return StreamingResponse(sse(count.stream()), headers=dict(SSE_HEADERS))

    async with serving(handler) as (client, _):
        async with client.stream("GET", "/") as response:
            got = b""
            async for part in response.aiter_bytes():
                got += part
                if len(parse(got)) >= 3:
                    break
        assert data_of(got)[:3] == [1, 2, 3]
        await until(lambda: log[-1] == "finally")
        assert await newest() == CLOSED


SIZE = 64 * 1024
MANY = 250


def wide(log: list[str], made: list[int]) -> Any:
    @flow
    async def wide() -> AsyncIterator[str]:
        try:
            for number in range(MANY):
                made.append(number)
                yield f"{number:05}{'x' * SIZE}"
        finally:
            log.append("finally")

    return wide


async def until_still(made: list[int]) -> None:
    """Wait until the body has made something and then nothing for a while: the buffers are full."""
    before, same = -1, 0
    while same < 20:
        await anyio.sleep(0.01)
        before, same = len(made), same + 1 if made and len(made) == before else 0


@asyncio_only
async def test_a_slow_reader_slows_the_body() -> None:
    made: list[int] = []
    flow_of_many = wide([], made)

    async def handler(_: Request) -> Response:
        return StreamingResponse(sse(flow_of_many.stream()), headers=dict(SSE_HEADERS))

    async with serving(handler) as (client, _), client.stream("GET", "/") as response:
        await until_still(made)
        assert len(made) < MANY  # the rest would have to be in the server's memory
        body = b"".join([part async for part in response.aiter_bytes()])
    assert [int(text[:5]) for text in data_of(body)] == list(range(MANY))


@asyncio_only
async def test_a_slow_reader_that_leaves() -> None:
    """The framework is sending when it hears of the disconnect, and just drops the body."""
    made: list[int] = []
    log: list[str] = []
    flow_of_many = wide(log, made)

    async def handler(_: Request) -> Response:
        return StreamingResponse(sse(flow_of_many.stream()), headers=dict(SSE_HEADERS))

    async with serving(handler) as (client, _):
        async with client.stream("GET", "/"):
            await until_still(made)
        await until(lambda: log == ["finally"])
        assert len(made) < MANY
        assert await newest() == CLOSED


@asyncio_only
async def test_a_server_that_stops_with_an_open_stream() -> None:
    log: list[str] = []
    count = counting(log, last=1000, pause=0.005)

    async def handler(_: Request) -> Response:
        return StreamingResponse(sse(count.stream()), headers=dict(SSE_HEADERS))

    async with serving(handler, timeout_graceful_shutdown=1) as (client, server), client.stream("GET", "/") as response:
        await until(lambda: "make 3" in log)
        server.should_exit = True  # it waits for its connections, and this one is never done
        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
    assert log[-1] == "finally"
    assert await newest() == CLOSED
