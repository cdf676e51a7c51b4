"""Processes wake each other: what one asks for the other begins at once, and neither does anything meanwhile.

How quick that is, `python -m benchmarks.deployments` measures. Here the limits are far above it and far below
the second after which everybody looks by himself: they show that bells ring, on however busy a machine.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from asyncflow import Runtime
from benchmarks.deployments import cancel_latencies, idle_share, run_latencies, server

RUNS = 20
LONGEST = 0.25
"""Seconds, the median: half of what it would be without bells."""
IDLE_SECONDS = 4.0
MOST_CPU = 0.02

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="bells are named pipes")


@pytest.fixture
def other_process(home: Path) -> Iterator[None]:
    with server(home) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield


def test_a_run_begins_in_the_other_process_at_once_and_its_caller_goes_on_at_its_end(
    other_process: None, home: Path
) -> None:
    async def measure() -> tuple[list[float], list[float]]:
        async with Runtime(home):
            return await run_latencies(RUNS)

    begins, wakes = anyio.run(measure)
    print(f"begin: {statistics.median(begins) * 1e3:.1f} ms, wake: {statistics.median(wakes) * 1e3:.1f} ms")
    assert statistics.median(begins) < LONGEST
    assert statistics.median(wakes) < LONGEST


def test_a_run_in_the_other_process_is_cancelled_at_once(other_process: None, home: Path) -> None:
    async def measure() -> list[float]:
        async with Runtime(home):
            return await cancel_latencies(RUNS)

    times = anyio.run(measure)
    print(f"cancel: {statistics.median(times) * 1e3:.1f} ms, at most {max(times) * 1e3:.1f} ms")
    assert statistics.median(times) < LONGEST


def test_a_server_of_twenty_deployments_that_has_nothing_to_do_costs_nothing(home: Path) -> None:
    assert idle_share(home, IDLE_SECONDS, "trio") < MOST_CPU  # on asyncio there is a closer look in `test_serve`
