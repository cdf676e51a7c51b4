"""What is opened in a flow serves everything it starts: async bodies run on the flow's own loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
import trio

from asyncflow import flow, quote, task
from tests.conftest import BACKENDS, Backend

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)


class Server:
    """As little of HTTP as a client needs that keeps its connections."""

    def __init__(self) -> None:
        self.requests = 0
        self.connections = 0
        self.port = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        async with stream:
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    try:
                        received += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                head, received = received.split(b"\r\n\r\n", 1)
                self.requests += 1
                path = head.split()[1]
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        yield server
        group.cancel_scope.cancel()


@task
async def warm() -> None:
    await anyio.lowlevel.checkpoint()


@flow
async def warm_up() -> None:
    """Start the threads of the store, and whatever the loop itself keeps."""
    await warm.submit()


@asyncio_only
async def test_one_http_client_serves_all_tasks_and_nested_flows() -> None:
    @task(persist_result=False)
    async def get(client: Any, number: int) -> str:
        response = await client.get(f"/{number}")
        return str(response.text)

    @flow(persist_result=False, validate_parameters=False)
    async def inner(client: Any, first: int) -> list[str]:
        return await get.map(quote(client), range(first, first + 10))

    @flow(persist_result=False, validate_parameters=False)
    async def main(port: int) -> list[str]:
        limits = httpx.Limits(max_connections=10)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, trust_env=False) as client:
            flows = [inner.submit(client, first) for first in (1_000, 2_000, 3_000)]
            values = await get.map(quote(client), range(200))
            for nested in flows:
                values += await nested
            return values

    await warm_up()
    async with serving() as server:
        before = threading.active_count()
        values = await main(server.port)
        assert threading.active_count() <= before
        assert server.requests == 230
        assert server.connections <= 10
    expected = [*range(200), *(first + step for first in (1_000, 2_000, 3_000) for step in range(10))]
    assert values == [f"/{number}" for number in expected]


async def test_a_lock_and_an_event_of_the_flow_serve_its_tasks_and_nested_flows(anyio_backend: Backend) -> None:
    inside = most = 0

    @task
    async def enter(lock: Any, go: anyio.Event) -> None:
        nonlocal inside, most
        await go.wait()
        async with lock:
            inside += 1
            most = max(most, inside)
            await anyio.lowlevel.checkpoint()
            inside -= 1

    @flow(validate_parameters=False)
    async def inner(lock: Any, go: anyio.Event) -> None:
        futures = [enter.submit(lock, go) for _ in range(5)]
        await enter(lock, go)
        for future in futures:
            await future

    @flow
    async def main() -> None:
        lock: Any = trio.Lock() if anyio_backend[0] == "trio" else asyncio.Lock()
        go = anyio.Event()
        futures: list[Any] = [enter.submit(lock, go) for _ in range(200)]
        futures += [inner.submit(lock, go) for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        go.set()
        for future in futures:
            await future
        assert not lock.locked()

    await warm_up()
    before = threading.active_count()
    await main()
    assert most == 1
    assert threading.active_count() <= before


async def test_a_stream_of_the_flow_connects_its_tasks() -> None:
    @task
    async def produce(sender: Any, number: int) -> None:
        async with sender:
            await sender.send(number)

    @task
    async def consume(receiver: Any) -> list[int]:
        async with receiver:
            return sorted([item async for item in receiver])

    @flow
    async def main() -> list[int]:
        sender, receiver = anyio.create_memory_object_stream[int](0)
        consumer = consume.submit(receiver)
        for number in range(50):
            produce.submit(sender.clone(), number)
        sender.close()
        return await consumer

    assert await main() == list(range(50))
