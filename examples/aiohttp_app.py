"""Flows in an aiohttp service: started, watched, cancelled over HTTP, and gone on with after a restart.

    pip install aiohttp
    python examples/aiohttp_app.py

    curl -X POST 'localhost:8000/counts?pages=50'      202 and an id: the run goes on by itself
    curl localhost:8000/counts/ID                      how it stands, and its value in the end
    curl -N localhost:8000/counts/ID/progress          the same as server-sent events
    curl -X DELETE localhost:8000/counts/ID            cancel it
    curl 'localhost:8000/count?pages=50'               wait for the value; a client that leaves cancels the run

Stop the server in the middle (Ctrl-C, SIGTERM, a crash) and start it again: the runs go on where they were.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
from aiohttp import web
from aiohttp.typedefs import Handler

import asyncflow
from asyncflow import flow, get_client, task
from asyncflow.exceptions import RunInterruptedError, RunNotFoundError, RuntimeStoppingError


@task(task_run_name="page-{number}")
async def count_words(number: int, seconds: float) -> int:
    await anyio.sleep(seconds)  # stands for fetching the page
    return 100 + number


@flow(resume="auto")
async def count_pages(pages: int, seconds: float) -> int:
    return sum([await count_words(number, seconds) for number in range(pages)])


def asked(request: web.Request) -> tuple[int, float]:
    return int(request.query.get("pages", 20)), float(request.query.get("seconds", 0.5))


routes = web.RouteTableDef()


@routes.post("/counts")
async def start(request: web.Request) -> web.Response:
    """Start a run that belongs to the service: it goes on when this request is answered."""
    run = await count_pages.submit(*asked(request)).recorded()  # from here on nothing can lose it
    return web.json_response({"id": str(run.flow_run_id)}, status=202)


@routes.get("/counts/{run_id}")
async def status(request: web.Request) -> web.Response:
    run_id = request.match_info["run_id"]
    run = await get_client().read_flow_run(run_id)
    value = await get_client().read_result(run_id) if run.state.is_completed() else None
    return web.json_response({"state": run.state.name, "message": run.state.message, "value": value})


@routes.get("/counts/{run_id}/progress")
async def progress(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=asyncflow.SSE_HEADERS)
    await response.prepare(request)
    async with asyncflow.sse(counted(request.match_info["run_id"])) as events:
        async for event in events:
            await response.write(event)
    return response


async def counted(run_id: str) -> AsyncIterator[dict[str, Any]]:
    client = get_client()
    while True:
        run = await client.read_flow_run(run_id)
        done = await client.read_task_runs(flow_run_id=run_id, state="COMPLETED")
        yield {"state": run.state.name, "pages": len(done)}
        if run.state.is_final() or run.state.is_paused():
            return
        await anyio.sleep(0.2)


@routes.delete("/counts/{run_id}")
async def cancel(request: web.Request) -> web.Response:
    state = await asyncflow.cancel_flow_run(request.match_info["run_id"], reason="asked for over HTTP")
    return web.json_response({"state": state.name})


@routes.get("/count")
async def count(request: web.Request) -> web.Response:
    """Run it for this request: a client that disconnects cancels the run, because of `handler_cancellation` below."""
    return web.json_response({"words": await count_pages(*asked(request))})


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RunNotFoundError as error:
        return web.json_response({"detail": str(error)}, status=404)
    except (RunInterruptedError, RuntimeStoppingError) as error:
        return web.json_response({"detail": str(error)}, status=503)


app = web.Application(middlewares=[errors])
app.add_routes(routes)
app.cleanup_ctx.append(asyncflow.cleanup_ctx())

if __name__ == "__main__":
    web.run_app(app, port=int(os.environ.get("PORT", "8000")), handler_cancellation=True)
