"""Flows in a FastAPI service: started, watched, cancelled over HTTP, and gone on with after a restart.

    pip install fastapi uvicorn
    uvicorn fastapi_app:app --app-dir examples

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
from uuid import UUID

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

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


app = FastAPI(lifespan=asyncflow.lifespan())


@app.post("/counts", status_code=202)
async def start(pages: int = 20, seconds: float = 0.5) -> dict[str, str]:
    """Start a run that belongs to the service: it goes on when this request is answered."""
    run = await count_pages.submit(pages, seconds).recorded()  # from here on nothing can lose it
    return {"id": str(run.flow_run_id)}


@app.get("/counts/{run_id}")
async def status(run_id: UUID) -> dict[str, Any]:
    run = await get_client().read_flow_run(run_id)
    value = await get_client().read_result(run_id) if run.state.is_completed() else None
    return {"state": run.state.name, "message": run.state.message, "value": value}


@app.get("/counts/{run_id}/progress")
async def progress(run_id: UUID) -> StreamingResponse:
    return StreamingResponse(asyncflow.sse(counted(run_id)), headers=asyncflow.SSE_HEADERS)


async def counted(run_id: UUID) -> AsyncIterator[dict[str, Any]]:
    client = get_client()
    while True:
        run = await client.read_flow_run(run_id)
        done = await client.read_task_runs(flow_run_id=run_id, state="COMPLETED")
        yield {"state": run.state.name, "pages": len(done)}
        if run.state.is_final() or run.state.is_paused():
            return
        await anyio.sleep(0.2)


@app.delete("/counts/{run_id}")
async def cancel(run_id: UUID) -> dict[str, str]:
    state = await asyncflow.cancel_flow_run(run_id, reason="asked for over HTTP")
    return {"state": state.name}


@app.get("/count", response_model=None)
async def count(request: Request, pages: int = 5, seconds: float = 0.5) -> dict[str, int] | Response:
    """Run it for this request: a client that disconnects cancels the run."""
    async with asyncflow.cancel_on_disconnect(request.receive):
        return {"words": await count_pages(pages, seconds)}
    return Response(status_code=499)  # nobody reads it


@app.exception_handler(RunNotFoundError)
async def not_found(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(RunInterruptedError)
@app.exception_handler(RuntimeStoppingError)
async def stopping(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)
