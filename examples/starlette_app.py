"""Flows in a Starlette service: started, watched, cancelled over HTTP, and gone on with after a restart.

    pip install starlette uvicorn
    uvicorn starlette_app:app --app-dir examples

    curl -X POST 'localhost:8000/counts?pages=50'      202 and an id: the run goes on by itself
    curl localhost:8000/counts/ID                      how it stands, and its value in the end
    curl -N localhost:8000/counts/ID/progress          the same as server-sent events
    curl -X DELETE localhost:8000/counts/ID            cancel it
    curl 'localhost:8000/count?pages=50'               wait for the value; a client that leaves cancels the run

Stop the server in the middle (Ctrl-C, SIGTERM, a crash) and start it again: the runs go on where they were.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

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


def asked(request: Request) -> tuple[int, float]:
    return int(request.query_params.get("pages", 20)), float(request.query_params.get("seconds", 0.5))


async def start(request: Request) -> JSONResponse:
    """Start a run that belongs to the service: it goes on when this request is answered."""
    run = await count_pages.submit(*asked(request)).recorded()  # from here on nothing can lose it
    return JSONResponse({"id": str(run.flow_run_id)}, 202)


async def status(request: Request) -> JSONResponse:
    run_id = request.path_params["run_id"]
    run = await get_client().read_flow_run(run_id)
    value = await get_client().read_result(run_id) if run.state.is_completed() else None
    return JSONResponse({"state": run.state.name, "message": run.state.message, "value": value})


async def progress(request: Request) -> StreamingResponse:
    events = asyncflow.sse(counted(request.path_params["run_id"]))
    return StreamingResponse(events, headers=asyncflow.SSE_HEADERS)


async def counted(run_id: str) -> AsyncIterator[dict[str, Any]]:
    client = get_client()
    while True:
        run = await client.read_flow_run(run_id)
        done = await client.read_task_runs(flow_run_id=run_id, state="COMPLETED")
        yield {"state": run.state.name, "pages": len(done)}
        if run.state.is_final() or run.state.is_paused():
            return
        await anyio.sleep(0.2)


async def cancel(request: Request) -> JSONResponse:
    state = await asyncflow.cancel_flow_run(request.path_params["run_id"], reason="asked for over HTTP")
    return JSONResponse({"state": state.name})


async def count(request: Request) -> JSONResponse:
    """Run it for this request: a client that disconnects cancels the run, because of the middleware below."""
    return JSONResponse({"words": await count_pages(*asked(request))})


async def not_found(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 404)


async def stopping(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)


app = Starlette(
    lifespan=asyncflow.lifespan(),
    routes=[
        Route("/counts", start, methods=["POST"]),
        Route("/counts/{run_id}", status),
        Route("/counts/{run_id}", cancel, methods=["DELETE"]),
        Route("/counts/{run_id}/progress", progress),
        Route("/count", count, middleware=[Middleware(asyncflow.CancelOnDisconnect)]),
    ],
    exception_handlers={RunNotFoundError: not_found, RunInterruptedError: stopping, RuntimeStoppingError: stopping},
)
