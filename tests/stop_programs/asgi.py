"""An ASGI application: for uvicorn, for gunicorn, and for hypercorn on trio."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from asyncflow import SSE_HEADERS, lifespan, sse
from tests.stop_programs.work import FLOWS, ready, ticks


async def start(request: Request) -> PlainTextResponse:
    load = request.query_params["load"]
    if load == "idle":
        ready()
    else:
        await FLOWS[load].submit().recorded()
    return PlainTextResponse("started")


async def stream(_request: Request) -> StreamingResponse:
    return StreamingResponse(sse(ticks.stream()), headers=dict(SSE_HEADERS))


app = Starlette(lifespan=lifespan(), routes=[Route("/start", start), Route("/stream", stream)])
