"""Many pages over one connection pool, a few at a time: `map_stream`, a task runner, a rate limit.

    pip install httpx
    asyncflow run examples/fan_out.py:fan_out
    asyncflow run examples/fan_out.py:fan_out -p pages=2000 -p per_second=50

The web site is a small server that the flow starts itself, on a free port of this machine. Every
fortieth page answers "503 Service Unavailable" the first time it is asked for, and is fetched again;
the thirteenth is gone for good, and the flow says so in its summary instead of failing.

Press Ctrl-C in the middle: what was being fetched is recorded Cancelled, then the flow.
`asyncflow runs ls` and `asyncflow runs show ID` tell what became of each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import anyio
import httpx
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import BaseModel, Field, PositiveFloat

from asyncflow import State, TaskRun, flow, rate_limit, task
from asyncflow.task_runners import ConcurrentTaskRunner

GONE = 13
BUSY_EVERY = 40
SECONDS_PER_PAGE = 0.02
PAGES_PER_REPORT = 50


class Page(BaseModel):
    number: int
    words: int


class Summary(BaseModel):
    pages: int
    words: int
    missing: list[str]
    """Why, for each page that could not be had."""


# --- the web site ------------------------------------------------------------------------------


@asynccontextmanager
async def web_site() -> AsyncIterator[str]:
    """Serve the pages for as long as the block lasts; gives the address."""
    asked: set[int] = set()

    async def answer(stream: SocketStream) -> None:
        requests = BufferedByteReceiveStream(stream)
        async with stream:
            with suppress(anyio.IncompleteRead, anyio.BrokenResourceError):  # the client has gone
                while True:
                    request = await requests.receive_until(b"\r\n\r\n", max_bytes=65_536)
                    number = int(request.split()[1].rpartition(b"/")[2])
                    status, text = page(number, is_first_time=number not in asked)
                    asked.add(number)
                    await anyio.sleep(SECONDS_PER_PAGE)
                    await stream.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        yield f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


def page(number: int, *, is_first_time: bool) -> tuple[str, str]:
    """The status line and the text of a page."""
    if number == GONE:
        return "410 Gone", ""
    if number % BUSY_EVERY == 0 and is_first_time:
        return "503 Service Unavailable", ""
    return "200 OK", "word " * number


# --- the flow ----------------------------------------------------------------------------------


class PageError(Exception):
    """The server refused a page."""

    def __init__(self, number: int, response: httpx.Response) -> None:
        self.is_temporary = response.is_server_error
        super().__init__(f"page {number}: {response.status_code} {response.reason_phrase}")


def is_temporary(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether it is worth another try: a page that is gone will not come back."""
    error = state.result(raise_on_failure=False)
    return error.is_temporary if isinstance(error, PageError) else isinstance(error, httpx.TransportError)


@task(
    task_run_name="page-{number}",
    timeout_seconds=10,
    retries=3,
    retry_delay_seconds=0.1,
    retry_condition_fn=is_temporary,
)
async def fetch(number: int, client: httpx.AsyncClient, per_second: float) -> Page:
    async with rate_limit("web site", per_second):
        response = await client.get(f"/pages/{number}")
    if response.is_error:
        raise PageError(number, response)
    return Page(number=number, words=len(response.text.split()))


@flow(task_runner=ConcurrentTaskRunner(max_workers=8), log_prints=True)
async def fan_out(pages: Annotated[int, Field(ge=1)] = 200, per_second: PositiveFloat = 150) -> Summary:
    """Fetch that many pages, eight at once, and count their words."""
    summary = Summary(pages=0, words=0, missing=[])
    async with web_site() as address, httpx.AsyncClient(base_url=address) as client:
        numbers = range(1, pages + 1)
        # All tasks use the one client: their bodies run on the loop of the flow. At most 20 are
        # begun or waiting to be taken, however many pages there are.
        found = fetch.map_stream(
            numbers, limit=20, ordered=False, return_state=True, client=client, per_second=per_second
        )
        async with found:
            done = 0
            async for state in found:
                done += 1
                if state.is_completed():
                    summary.pages += 1
                    summary.words += state.result().words
                else:
                    summary.missing.append(state.message or state.name)
                if done % PAGES_PER_REPORT == 0:
                    print(f"{done} of {pages} pages")
    return summary
