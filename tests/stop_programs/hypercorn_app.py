"""A trio program that serves with hypercorn: `python -m tests.stop_programs.hypercorn_app PORT`."""

from __future__ import annotations

import signal
import sys
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from tests.stop_programs.asgi import app


async def main(port: str) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = 1  # a connection whose answer ends while it stops is kept open for so long
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def told() -> None:
            await anext(signals)

        await serve(cast("Any", app), config, shutdown_trigger=told)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
