"""Stores that fail as a test wants them to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import Runtime, Settings, State, StateType, cancel_flow_run, flow, get_client, task
from asyncflow.abc import RunStore
from asyncflow.exceptions import DurabilityError, OptionError, StoreBusyError, StoreError
from asyncflow.results import FileResults
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore
from asyncflow.testing import Fault, FaultyStore, VirtualClock
from tests.conftest import ASYNCIO, Backend

LONGEST = 1.0
"""Seconds that a flow waits for the disk."""

BACKENDS = [pytest.param(("asyncio", ASYNCIO), id="asyncio"), pytest.param(("trio", {}), id="trio")]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.param
    return backend


@pytest.fixture
def clock(quiet_process: None) -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


@pytest.fixture(params=["memory", "sqlite"])
def inner(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path, Settings(), FileResults(tmp_path))


@task
async def double(number: int) -> int:
    return 2 * number


@flow
async def doubled(number: int) -> int:
    return await double(number)


def opened(store: RunStore, clock: VirtualClock) -> Runtime:
    # What a runtime does by itself would be operations of the store's, too.
    return Runtime(store=store, clock=clock, upkeep_seconds=0, durability_seconds=LONGEST)


async def test_without_faults_it_is_the_store_behind_it(inner: RunStore, clock: VirtualClock) -> None:
    store = FaultyStore(inner, clock=clock)
    async with opened(store, clock):
        assert await doubled(3) == 6
        (run,) = await get_client().read_flow_runs()
        assert run.state.is_completed()
        assert len(await get_client().read_task_runs()) == 1
    assert store.injected == []


async def test_a_disk_that_is_full_for_a_while(inner: RunStore, clock: VirtualClock) -> None:
    store = FaultyStore(inner, [Fault.fail("put", after=1, times=10)], clock=clock)
    began = clock.monotonic()
    async with opened(store, clock):
        assert await doubled(3) == 6
        assert (await get_client().read_flow_runs())[0].state.is_completed()
    assert store.injected == [("put", "fail")] * 10
    assert 0.4 < clock.monotonic() - began < LONGEST, "it was tried again, and the flow waited for that"


async def test_a_disk_that_stays_full(inner: RunStore, clock: VirtualClock) -> None:
    store = FaultyStore(inner, [Fault.fail("put", times=None)], clock=clock)
    async with opened(store, clock):
        began = clock.monotonic()
        with pytest.raises(DurabilityError, match="No space left on device") as caught:
            await doubled(3)
        assert clock.monotonic() - began == pytest.approx(LONGEST, abs=0.1)
        assert caught.value.state.is_completed()
        assert store.backlog
        assert await get_client().read_flow_runs() == []
        store.repair()
        await doubled(4)
        assert [run.state.type for run in await get_client().read_flow_runs()] == [StateType.COMPLETED] * 2


async def test_a_lost_acknowledgement(inner: RunStore, clock: VirtualClock) -> None:
    store = FaultyStore(inner, [Fault.lose()], clock=clock)
    async with opened(store, clock):
        with pytest.raises(DurabilityError, match="no word from the disk within 1 seconds"):
            await doubled(3)
        assert await doubled(4) == 8
        assert [run.state.type for run in await get_client().read_flow_runs()] == [StateType.COMPLETED] * 2


@pytest.mark.parametrize(("seconds", "is_late"), [(0.5, False), (1.5, True)])
async def test_a_slow_disk(inner: RunStore, clock: VirtualClock, seconds: float, is_late: bool) -> None:
    store = FaultyStore(inner, [Fault.delay(seconds)], clock=clock)
    async with opened(store, clock):
        began = clock.monotonic()
        if is_late:
            with pytest.raises(DurabilityError):
                await doubled(3)
        else:
            assert await doubled(3) == 6
        assert clock.monotonic() - began == pytest.approx(min(seconds, LONGEST), abs=0.1)


async def test_reads_that_fail(inner: RunStore, clock: VirtualClock) -> None:
    faults = [Fault.fail("read_runs", reason="broken"), Fault.busy("read_run"), Fault.delay(60, "read_tree")]
    store = FaultyStore(inner, faults, clock=clock)
    async with opened(store, clock):
        await doubled(3)
        with pytest.raises(StoreError, match="read_runs failed on 'the store': broken"):
            await get_client().read_flow_runs()
        (run,) = await get_client().read_flow_runs()
        with pytest.raises(StoreBusyError):
            await get_client().read_flow_run(run.id)
        began = clock.monotonic()
        await anyio.to_thread.run_sync(store.read_tree, run.id.bytes)
        assert clock.monotonic() - began == pytest.approx(60, abs=0.1)
    assert store.injected == [("read_runs", "fail"), ("read_run", "busy"), ("read_tree", "delay")]


async def test_cancelling_while_the_disk_is_slow(inner: RunStore, clock: VirtualClock) -> None:
    @flow
    async def month() -> None:
        await anyio.sleep(30 * 86_400)

    store = FaultyStore(inner, [Fault.delay(2, "put", times=3)], clock=clock)
    async with opened(store, clock):
        future = month.submit()
        await anyio.sleep(3600)
        await cancel_flow_run(future.flow_run_id)
        await future.wait_async()
        assert future.state.is_cancelled()


async def test_every_crash_of_a_flow(clock: VirtualClock) -> None:
    """Whatever write the process dies at: what is found then is ended, and nothing is there twice."""

    @flow(resume="auto")
    async def chain() -> int:
        return await double(await double(1))

    for writes in range(20):
        store = FaultyStore(MemoryStore(), [Fault.crash("put", after=writes)], clock=clock)
        async with opened(store, clock):
            crashed = True
            try:
                assert await chain() == 4
                crashed = False
            except DurabilityError:
                pass
        assert crashed == store.crashed
        if not crashed:
            break
        async with opened(store.restarted(), clock):
            while any(not state.is_final() for state in await all_states()):
                await anyio.sleep(0.1)
            assert all(state.is_completed() for state in await all_states())
    assert writes > 3


async def all_states() -> list[State[Any]]:
    client = get_client()
    return [run.state for run in (*await client.read_flow_runs(), *await client.read_task_runs())]


async def test_a_crashed_store_answers_nobody(clock: VirtualClock) -> None:
    store = FaultyStore(MemoryStore(), [Fault.crash("read_runs")], clock=clock)
    async with opened(store, clock):
        await doubled(1)
        with pytest.raises(StoreError, match="crashed"):
            await get_client().read_flow_runs()
        with pytest.raises(StoreError, match="crashed"):
            await get_client().read_flow_runs()
        with pytest.raises(DurabilityError):
            await doubled(2)


def test_a_seed_gives_the_same_faults_again() -> None:
    def injected(seed: int) -> list[bool]:
        store = FaultyStore(MemoryStore(), [Fault.fail("size", times=None, chance=0.3)], seed=seed)
        seen = []
        for _ in range(50):
            before = len(store.injected)
            with suppress(StoreError):
                store.size()
            seen.append(len(store.injected) > before)
        return seen

    assert injected(7) == injected(7)
    assert 3 < sum(injected(7)) < 35
    assert len({tuple(injected(seed)) for seed in range(10)}) == 10


def test_without_a_virtual_clock_time_is_real() -> None:
    @flow
    def plain() -> int:
        return 7

    store = FaultyStore(MemoryStore(), [Fault.delay(0.05), Fault.fail("put", times=2)])
    with Runtime(store=store, upkeep_seconds=0):
        assert plain() == 7
    assert store.injected == [("put", "fail"), ("put", "fail"), ("confirm", "delay")]


@pytest.mark.parametrize("options", [{"after": -1}, {"times": 0}, {"chance": 1.5}])
def test_plans_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Fault.fail(**options)


def test_only_a_store_in_memory_is_found_again_in_the_same_process(tmp_path: Path) -> None:
    store = FaultyStore(SQLiteStore(tmp_path, Settings(), FileResults(tmp_path)))
    with pytest.raises(OptionError, match="open a new store on the home"):
        store.restarted()
    store.close()
