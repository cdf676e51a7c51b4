"""Sync flows wherever they run: on the main thread, and in a worker thread of each loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import pytest

from asyncflow import flow
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import BACKENDS, Backend

__all__ = ["everywhere", "in_sync_flow"]

T = TypeVar("T")

everywhere = pytest.mark.parametrize("place", [pytest.param(None, id="inline"), *BACKENDS])
"""For sync tests: `place` is where their sync flows run."""


def in_sync_flow(place: Backend | None, body: Callable[[], T], *, workers: int | None = None) -> T:
    """Run `body` as that of a sync flow."""
    main = flow(body, persist_result=False, task_runner=ConcurrentTaskRunner(workers))
    if place is None:
        return main()
    backend, options = place

    async def call() -> Any:
        with anyio.fail_after(20):
            return await main.acall()

    value: T = anyio.run(call, backend=backend, backend_options=options)
    return value
