"""An aiohttp application: `python -m tests.stop_programs.aiohttp_app PORT`."""

from __future__ import annotations

import sys

from aiohttp import web

from asyncflow import SSE_HEADERS, cleanup_ctx, sse
from tests.stop_programs.work import FLOWS, ready, ticks


async def start(request: web.Request) -> web.Response:
    load = request.query["load"]
    if load == "idle":
        ready()
    else:
        await FLOWS[load].submit().recorded()
    return web.Response(text="started")


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=SSE_HEADERS)
    await response.prepare(request)
    async for event in sse(ticks.stream()):
        await response.write(event)
    return response


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get("/start", start), web.get("/stream", stream)])
    app.cleanup_ctx.append(cleanup_ctx())
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
