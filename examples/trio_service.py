"""Flows in a trio service (Quart-Trio on Hypercorn): started, watched, cancelled over HTTP, resumed.

    pip install quart-trio hypercorn
    python examples/trio_service.py

    curl -X POST 'localhost:8000/counts?pages=50'      202 and an id: the run goes on by itself
    curl localhost:8000/counts/ID                      how it stands, and its value in the end
    curl -N localhost:8000/counts/ID/progress          the same as server-sent events
    curl -X DELETE localhost:8000/counts/ID            cancel it
    curl 'localhost:8000/count?pages=50'               wait for the value; a client that leaves cancels the run

Stop the server in the middle (Ctrl-C, SIGTERM, a crash) and start it again: the runs go on where they were.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, ResponseReturnValue, request
from quart_trio import QuartTrio

import asyncflow
from asyncflow import Runtime, flow, get_client, task
from asyncflow.exceptions import RunInterruptedError, RunNotFoundError, RuntimeStoppingError


@task(task_run_name="page-{number}")
async def count_words(number: int, seconds: float) -> int:
    await trio.sleep(seconds)  # stands for fetching the page
    return 100 + number


@flow(resume="auto")
async def count_pages(pages: int, seconds: float) -> int:
    return sum([await count_words(number, seconds) for number in range(pages)])


app = QuartTrio(__name__)


def asked() -> tuple[int, float]:
    return request.args.get("pages", 20, int), request.args.get("seconds", 0.5, float)


@app.post("/counts")
async def start() -> ResponseReturnValue:
    """Start a run that belongs to the service: it goes on when this request is answered."""
    run = await count_pages.submit(*asked()).recorded()  # from here on nothing can lose it
    return {"id": str(run.flow_run_id)}, 202


@app.get("/counts/<uuid:run_id>")
async def status(run_id: UUID) -> ResponseReturnValue:
    run = await get_client().read_flow_run(run_id)
    value = await get_client().read_result(run_id) if run.state.is_completed() else None
    return {"state": run.state.name, "message": run.state.message, "value": value}


@app.get("/counts/<uuid:run_id>/progress")
async def progress(run_id: UUID) -> ResponseReturnValue:
    response = Response(asyncflow.sse(counted(run_id)), headers=dict(asyncflow.SSE_HEADERS))
    response.timeout = None  # Quart ends a response after a minute else
    return response


async def counted(run_id: UUID) -> AsyncIterator[dict[str, Any]]:
    client = get_client()
    while True:
        run = await client.read_flow_run(run_id)
        done = await client.read_task_runs(flow_run_id=run_id, state="COMPLETED")
        yield {"state": run.state.name, "pages": len(done)}
        if run.state.is_final() or run.state.is_paused():
            return
        await trio.sleep(0.2)


@app.delete("/counts/<uuid:run_id>")
async def cancel(run_id: UUID) -> ResponseReturnValue:
    state = await asyncflow.cancel_flow_run(run_id, reason="asked for over HTTP")
    return {"state": state.name}


@app.get("/count")
async def count() -> ResponseReturnValue:
    """Run it for this request: Quart cancels a request whose client disconnects, and so the run."""
    return {"words": await count_pages(*asked())}


@app.errorhandler(RunNotFoundError)
async def not_found(error: RunNotFoundError) -> ResponseReturnValue:
    return {"detail": str(error)}, 404


@app.errorhandler(RunInterruptedError)
@app.errorhandler(RuntimeStoppingError)
async def stopping(error: Exception) -> ResponseReturnValue:
    return {"detail": str(error)}, 503


async def main() -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{os.environ.get('PORT', '8000')}"]
    config.graceful_timeout = 1  # second for the requests that go on; then they are cancelled, and with them their runs
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as told_to_stop:
        async with Runtime() as runtime:

            async def stop() -> None:
                await anext(told_to_stop)
                runtime.stop()  # from now on a run whose request is cancelled is interrupted: it can be resumed

            await serve(app, config, shutdown_trigger=stop)


if __name__ == "__main__":
    trio.run(main)
