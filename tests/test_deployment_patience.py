"""Waiting for the run of a deployment outlasts a disk that fails for a while, and a clock that is set back."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import anyio
import pytest

from asyncflow import Runtime, flow, get_client, run_deployment, serve
from asyncflow._deployments.complaints import Complaints
from asyncflow.clock import SystemClock
from asyncflow.exceptions import StoreError
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import Fault, FaultyStore

LONG = 20.0
"""Seconds that nothing here takes, however busy the machine is."""
LOOKING = "looking whether"


@flow
async def double(number: int = 1) -> int:
    return 2 * number


@flow
async def asks() -> str:
    return str((await run_deployment("double/own")).state.type)


async def served() -> None:
    while not await get_client().read_deployments():
        await anyio.sleep(0.01)


# --- a disk that fails -----------------------------------------------------------------------------


@pytest.mark.parametrize("as_part", [False, True])
async def test_a_wait_goes_on_when_looking_fails(as_part: bool, caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore(MemoryStore(), [Fault.fail("read_run", times=2)])
    with anyio.fail_after(LONG):
        async with Runtime(store=store), anyio.create_task_group() as group:
            group.start_soon(serve, double.to_deployment("own"))
            await served()
            ended = await asks() if as_part else str((await run_deployment("double/own")).state.type)
            group.cancel_scope.cancel()
    assert ended == "COMPLETED"
    assert [operation for operation, _ in store.injected].count("read_run") == 2
    assert sum(LOOKING in record.getMessage() for record in caplog.records) == 1


async def test_a_wait_with_a_limit_says_what_failed_when_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore(MemoryStore(), [Fault.fail("read_run", times=None)])
    async with Runtime(store=store):
        await get_client().read_deployments()
        with anyio.fail_after(LONG):
            began = time.monotonic()
            with pytest.raises(StoreError, match="read_run"):
                await get_client().wait_for_flow_run("0190a0a0-0000-7000-8000-000000000000", timeout=0.2)
    assert time.monotonic() - began >= 0.2
    assert sum(LOOKING in record.getMessage() for record in caplog.records) == 1


def test_what_comes_and_goes_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    complaints = Complaints(lambda: now[0])
    errors = OSError("full"), OSError("slow")

    def told() -> int:
        count = len(caplog.records)
        caplog.clear()
        return count

    with caplog.at_level(logging.WARNING, "asyncflow"):
        for second in range(59):
            now[0] = second
            for error in errors:
                complaints.report("disk", "it failed", error)
            complaints.settle("disk")
        assert told() == 2
        now[0] = 60.0
        complaints.report("disk", "it failed", errors[0])
        assert told() == 1
        now[0] = 600.0
        complaints.report("disk", "it failed", errors[0])  # it has not gone since
        assert told() == 0
        complaints.report("disk", "it failed", errors[1])
        complaints.report("another", "it failed", errors[1])
        assert told() == 2


# --- a clock that is set back ----------------------------------------------------------------------


class Settable(SystemClock):
    """The machine's clock, as an administrator or NTP sets it."""

    offset = 0.0

    def now(self) -> float:
        return time.time() + self.offset


@pytest.mark.parametrize("on_disk", [False, True])
async def test_runs_that_wait_when_the_clock_is_set_back_run(on_disk: bool, home: Path) -> None:
    clock, began, go_on = Settable(), list[int](), anyio.Event()

    @flow
    async def waits(number: int) -> None:
        began.append(number)
        await go_on.wait()

    async with Runtime(home, store=None if on_disk else MemoryStore(), clock=clock), anyio.create_task_group() as group:
        group.start_soon(serve, waits.to_deployment("own", concurrency_limit=1))
        with anyio.fail_after(LONG):
            await served()
            asked = [await run_deployment("waits/own", parameters={"number": n}, timeout=0) for n in range(3)]
            while not began:
                await anyio.sleep(0.01)
            clock.offset = -3600.0
            go_on.set()
            for run in asked:
                assert (await get_client().wait_for_flow_run(run.id)).state.is_completed()
        group.cancel_scope.cancel()
    assert began == [0, 1, 2]
