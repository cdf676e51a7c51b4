"""`cancel_on_disconnect` and its middleware, fed with ASGI messages by hand: on every loop, at every moment."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncflow
from asyncflow import CancelOnDisconnect, cancel_on_disconnect, flow, get_client
from tests.web_server import WebServer, serving

LONG = 30.0
GONE = {"type": "http.disconnect"}


class Client:
    """What a server's `receive` gives: the messages put in, in order."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._send, self.receive = anyio.create_memory_object_stream[dict[str, Any]](100)
        self.taken = 0
        for message in messages:
            self.say(message)

    def say(self, message: dict[str, Any]) -> None:
        self._send.send_nowait(message)

    async def __call__(self) -> dict[str, Any]:
        message = await self.receive.receive()
        self.taken += 1
        return message

    def close(self) -> None:
        self._send.close()
        self.receive.close()


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.fixture
def client() -> Any:
    made: list[Client] = []

    def make(*messages: dict[str, Any]) -> Client:
        made.append(Client(*messages))
        return made[-1]

    yield make
    for each in made:
        each.close()


MakeClient = Callable[..., Client]


async def settled() -> None:
    """Nothing is left that somebody asked for: no stray cancellation comes with the next awaits."""
    for _ in range(3):
        await anyio.sleep(0)
    if "asyncio" in sys.modules and asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_a_block_is_left_when_the_client_goes(client: MakeClient, home: Path) -> None:
    gone = client(body(b""))
    cleaned_up: list[str] = []

    @flow
    async def patient() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            cleaned_up.append("all")

    async with asyncflow.Runtime(home), anyio.create_task_group() as group:

        async def leave() -> None:
            while not await get_client().read_flow_runs(state="RUNNING"):
                await anyio.sleep(0.001)
            gone.say(GONE)

        group.start_soon(leave)
        with anyio.fail_after(10):
            async with cancel_on_disconnect(gone) as watch:
                await patient()
                raise AssertionError
            assert watch.disconnected
            await settled()
        (run,) = await get_client().read_flow_runs()
    assert (run.state.name, run.state.message) == ("Cancelled", "cancelled by its caller")
    assert cleaned_up == ["all"]


async def test_a_block_whose_client_stays(client: MakeClient) -> None:
    there = client(body(b""))
    async with cancel_on_disconnect(there) as watch:
        await anyio.sleep(0.01)
    assert not watch.disconnected
    await settled()
    there.say(GONE)  # the next one who receives gets it, not a watch that is left behind
    await settled()
    assert there.receive.statistics().current_buffer_used == 1


async def test_a_client_that_has_gone_before(client: MakeClient) -> None:
    async with cancel_on_disconnect(client(GONE)) as watch:
        pass  # it awaits nothing, so that nothing of it can be cancelled
    await settled()
    async with cancel_on_disconnect(client(GONE)) as watch:
        await anyio.sleep(LONG)
        raise AssertionError
    assert watch.disconnected
    await settled()


async def test_what_a_block_raises_goes_on(client: MakeClient) -> None:
    with pytest.raises(LookupError):
        async with cancel_on_disconnect(client()):
            raise LookupError
    await settled()


async def test_a_cancellation_from_outside_goes_on(client: MakeClient) -> None:
    with anyio.move_on_after(0.01) as scope:
        async with cancel_on_disconnect(client()) as watch:
            await anyio.sleep(LONG)
    assert scope.cancelled_caught
    assert not watch.disconnected
    await settled()


async def test_a_failure_while_the_client_goes_is_told(client: MakeClient) -> None:
    async def fail() -> None:
        async with cancel_on_disconnect(client(GONE)):
            try:
                await anyio.sleep(LONG)
            finally:
                raise LookupError

    with pytest.raises(LookupError):
        await fail()
    await settled()


async def test_children_of_a_gather_are_cancelled_once(client: MakeClient) -> None:
    """The scope of an anyio task group would hit them again in each turn of the loop."""
    hits: list[int] = []

    async def child() -> None:
        for _ in range(100):
            try:
                await anyio.sleep(0.05 if hits else LONG)
            except BaseException as error:
                if not isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
                hits.append(1)
                if "asyncio" not in sys.modules or asyncio._get_running_loop() is None:
                    raise  # trio: a cancelled scope stays cancelled
            else:
                return

    async with cancel_on_disconnect(client(GONE)):
        if "asyncio" in sys.modules and asyncio._get_running_loop() is not None:
            await asyncio.gather(child())
        else:
            await child()
    assert hits == [1]
    await settled()


async def test_a_server_that_breaks_the_connection_its_own_way() -> None:
    async def receive() -> Any:
        raise ConnectionResetError

    async with cancel_on_disconnect(receive) as watch:
        await anyio.sleep(LONG)
    assert watch.disconnected


# --- the middleware -------------------------------------------------------------------------------


async def nowhere(_message: Any) -> None:
    raise AssertionError


async def test_the_middleware_ends_an_application_whose_client_goes(client: MakeClient) -> None:
    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        assert await receive() == body(b"all")
        await anyio.sleep(LONG)

    with anyio.fail_after(10):
        await CancelOnDisconnect(app)({"type": "http"}, client(body(b"all"), GONE), nowhere)
    await settled()


async def test_the_middleware_sees_the_disconnect_of_a_request_nobody_reads(client: MakeClient) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await anyio.sleep(LONG)

    with anyio.fail_after(10):
        await CancelOnDisconnect(app)({"type": "http"}, client(body(b""), GONE), nowhere)


async def test_the_middleware_passes_a_body_on_as_it_is_read(client: MakeClient) -> None:
    parts = [body(b"%d" % number, more=number < 9) for number in range(10)]
    there = client(*parts)
    seen: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        for part in parts:
            for _ in range(5):
                await anyio.sleep(0)
            assert there.taken <= len(seen) + 2  # not the whole body into memory
            message = await receive()
            assert message == part
            seen.append(message)
        await send({"type": "http.response.start"})
        there.say(GONE)
        assert await receive() == GONE  # an application that waits for it is told, as the server would
        assert await receive() == GONE

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await CancelOnDisconnect(app)({"type": "http"}, there, send)
    assert len(seen) == 10
    assert len(sent) == 1
    await settled()


async def test_the_middleware_leaves_other_connections_alone() -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.extend(given)

    scope: dict[str, Any] = {"type": "websocket"}
    await CancelOnDisconnect(app)(scope, nowhere, nowhere)  # type: ignore[arg-type]
    assert seen == [scope, nowhere, nowhere]


async def test_what_an_application_raises_goes_through_the_middleware(client: MakeClient) -> None:
    async def app(*_given: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await CancelOnDisconnect(app)({"type": "http"}, client(), nowhere)


# --- with a server ----------------------------------------------------------------------------------

UNDER_MIDDLEWARE = """
import anyio
from fastapi import FastAPI, Request, Response
import asyncflow

app = FastAPI()

@app.middleware("http")
async def do_nothing(request, call_next):
    return await call_next(request)

async def work():
    try:
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        print("cancelled", flush=True)
        raise

@app.get("/in-a-block")
async def in_a_block(request: Request):
    print("asked", flush=True)
    async with asyncflow.cancel_on_disconnect(request.receive):
        await work()
    return Response(status_code=499)

@app.get("/around")
async def around():
    print("asked", flush=True)
    await work()

around_all = asyncflow.CancelOnDisconnect(app)
"""


@pytest.mark.parametrize(("app", "path"), [("app", "/in-a-block"), ("around_all", "/around")])
def test_under_middleware_that_runs_the_handler_in_another_task(app: str, path: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    (tmp_path / "service.py").write_text(UNDER_MIDDLEWARE)
    command = ["-m", "uvicorn", "--app-dir", str(tmp_path), "--no-access-log", "--port", "{port}", f"service:{app}"]
    with serving(command, tmp_path / "output.txt", {}) as server:
        with server.asking(path):
            wait_for("asked", server)
        wait_for("cancelled", server)
        server.stop()
        assert [line for line in server.output().splitlines() if "INFO: " not in line] == ["asked", "cancelled"]


def wait_for(word: str, server: WebServer) -> None:
    end = time.monotonic() + LONG
    while word not in server.output():
        assert time.monotonic() < end, server.output()
        time.sleep(0.01)
