"""Serving deployments: what is due is run, once, within limits, whoever else serves and whatever goes wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncflow.runtime as runtimes
from asyncflow import (
    Client,
    Deployment,
    FlowRun,
    Runtime,
    StateType,
    emit_event,
    flow,
    get_client,
    run_deployment,
    serve,
    task,
)
from asyncflow._backend.detect import host_here
from asyncflow._queries import RunQuery
from asyncflow._rows import FLOW
from asyncflow._rule_rows import decided_at
from asyncflow._serving.scheduling import Scheduler
from asyncflow.clock import SystemClock
from asyncflow.exceptions import DeploymentError, NothingToServeError, OptionError, StoreError
from asyncflow.schedules import Cron, Interval
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import VirtualClock
from asyncflow.triggers import AbsenceTrigger, EventTrigger
from tests.conftest import ASYNCIO, Backend

BACKENDS = [pytest.param(("asyncio", ASYNCIO), id="asyncio"), pytest.param(("trio", {}), id="trio")]
LONG = 20.0
"""Seconds that nothing here takes, however busy the machine is."""
DAY = 86_400.0
asyncio_only = pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
"""For tests of several processes, of which the others have loops of their own."""
BEGIN = datetime(2027, 3, 1, 0, 30, tzinfo=UTC)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.param
    return backend


@pytest.fixture(params=["memory", "sqlite"])
async def runtime(request: pytest.FixtureRequest, home: Path) -> AsyncIterator[Runtime]:
    async with Runtime(home, store=MemoryStore() if request.param == "memory" else None) as runtime:
        yield runtime


@pytest.fixture
def clock(quiet_process: None) -> Iterator[VirtualClock]:
    """Virtual time, on which a runtime in memory is open."""
    with VirtualClock(start=BEGIN) as clock, Runtime(store=MemoryStore(), clock=clock):
        yield clock


@contextlib.asynccontextmanager
async def served(*deployments: Deployment, limit: int | None = None) -> AsyncIterator[Client]:
    """Serve around the block, which begins when the deployments are known."""
    async with anyio.create_task_group() as group:
        group.start_soon(partial(serve, *deployments, limit=limit))
        client = get_client()
        await until(lambda: are_known(client, deployments))
        yield client
        group.cancel_scope.cancel()


async def are_known(client: Client, deployments: tuple[Deployment, ...]) -> bool:
    known = {each.id for each in await client.read_deployments()}
    return known >= {each.id for each in deployments}


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = LONG) -> None:
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.sleep(0.01)


async def names_of(client: Client, run: FlowRun) -> list[str]:
    return [state.name for state in await client.read_states(run.id)]


@flow
async def double(n: int = 1) -> int:
    return n * 2


class Latch:
    """Keeps bodies waiting until it is opened; they come and go on whatever loop the test has."""

    def __init__(self) -> None:
        self.entered = 0
        self.most = 0
        self.going = 0
        self.is_open = False

    async def __call__(self) -> None:
        self.entered += 1
        self.going += 1
        self.most = max(self.most, self.going)
        try:
            while not self.is_open:
                await anyio.sleep(0.005)
        finally:
            self.going -= 1


# --- being asked ---------------------------------------------------------------------------


async def test_a_run_that_is_asked_for_is_run(runtime: Runtime) -> None:
    async with served(double.to_deployment("plain", tags=["b", "a"])) as client:
        made = await client.create_flow_run_from_deployment("double/plain", parameters={"n": "21"}, tags=["c"])
        assert made.state.is_scheduled()
        assert made.tags == ("a", "b", "c")
        run = await client.wait_for_flow_run(made.id, LONG)
        assert run.state.is_completed()
        assert run.deployment_id == (await client.read_deployment("double/plain")).id
        assert run.expected_start_time == made.expected_start_time == made.state.state_details.scheduled_time
        assert await client.read_result(run.id) == 42  # "21" was taken for the number that the hint asks for
        assert await names_of(client, run) == ["Scheduled", "Pending", "Running", "Completed"]
        assert (run.name, run.tags, run.run_count) == (made.name, made.tags, 1)


async def test_the_body_and_its_hooks_know_where_they_come_from(runtime: Runtime) -> None:
    known: list[tuple[object, object]] = []

    def tell(flow: object, run: FlowRun, state: object) -> None:
        known.append((run.deployment_id, run.expected_start_time))

    @task
    async def ask() -> None:
        known.append((runtimes.flow_run.deployment_id, runtimes.flow_run.scheduled_start_time))

    @flow(on_completion=[tell])
    async def asking() -> None:
        await ask()

    deployment = asking.to_deployment("x")
    async with served(deployment):
        run = await run_deployment("asking/x")
        assert known == [(deployment.id, run.expected_start_time)] * 2
    await asking.acall()
    assert known[2][0] is known[3][0] is known[3][1] is None


async def test_parameters_that_do_not_fit_fail_the_run_before_it_is_running(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(double.to_deployment("plain")) as client:
        run = await client.wait_for_flow_run(
            (await client.create_flow_run_from_deployment("double/plain", parameters={"n": "many"})).id, LONG
        )
        assert run.state.is_failed()
        assert "n: Input should be a valid integer" in (run.state.message or "")
        assert await names_of(client, run) == ["Scheduled", "Pending", "Failed"]
        assert run.run_count == 0
        await until(lambda: has_logged(caplog, run.name))  # and the next one is run
        assert (await run_deployment("double/plain", parameters={"n": 1})).state.is_completed()


async def has_logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in each.getMessage() and each.levelno == logging.WARNING for each in caplog.records)


async def test_runs_begin_in_the_order_in_which_they_are_due(clock: VirtualClock) -> None:
    order: list[int] = []

    @flow
    async def noted(n: int) -> None:
        order.append(n)

    deployment = noted.to_deployment("in-turn", concurrency_limit=1)
    async with served(deployment) as client:
        await client.pause_deployment("noted/in-turn")  # its rules: what is asked for runs all the same
        due = BEGIN + timedelta(days=1)
        last = await client.create_flow_run_from_deployment("noted/in-turn", parameters={"n": 9}, scheduled_time=due)
        for n in range(4):
            await client.create_flow_run_from_deployment("noted/in-turn", parameters={"n": n})
        assert (await client.wait_for_flow_run(last.id)).start_time == due
        assert order == [0, 1, 2, 3, 9]


async def test_a_key_is_one_run(runtime: Runtime) -> None:
    async with served(double.to_deployment("plain")) as client:
        ask = partial(client.create_flow_run_from_deployment, "double/plain", idempotency_key="order-7")
        first = await ask(parameters={"n": 1})
        assert (await ask(parameters={"n": 2})).id == first.id
        await client.wait_for_flow_run(first.id, LONG)
        again = await ask(parameters={"n": 3})
        assert (again.id, again.state.is_completed()) == (first.id, True)
        assert len(await client.read_flow_runs()) == 1


async def test_the_limit_of_a_deployment_holds_among_its_servers(runtime: Runtime) -> None:
    latch = Latch()

    @flow
    async def waiting() -> None:
        await latch()

    deployment = waiting.to_deployment("few", concurrency_limit=2)
    async with served(deployment), served(deployment) as client:
        made = [await client.create_flow_run_from_deployment("waiting/few") for _ in range(6)]
        await until(lambda: has_begun(latch, 2))
        latch.is_open = True
        ended = [await client.wait_for_flow_run(each.id, LONG) for each in made]
        assert all(each.state.is_completed() for each in ended)
        assert (latch.entered, latch.most) == (6, 2)


async def has_begun(latch: Latch, count: int) -> bool:
    return latch.entered >= count


async def test_a_run_for_which_there_is_no_room_may_be_cancelled(runtime: Runtime) -> None:
    latch = Latch()

    @flow
    async def waiting() -> None:
        await latch()

    async with served(waiting.to_deployment("one", concurrency_limit=1, collision="cancel_new")) as client:
        first = await client.create_flow_run_from_deployment("waiting/one")
        await until(lambda: has_begun(latch, 1))
        second = await client.wait_for_flow_run((await client.create_flow_run_from_deployment("waiting/one")).id, LONG)
        assert second.state.is_cancelled()
        assert "limit of 1" in (second.state.message or "")
        latch.is_open = True
        assert (await client.wait_for_flow_run(first.id, LONG)).state.is_completed()


async def test_a_run_that_waits_for_long_is_late(clock: VirtualClock) -> None:
    @flow
    async def long() -> None:
        await anyio.sleep(60)

    async with served(long.to_deployment("one", concurrency_limit=1)) as client:
        first = await client.create_flow_run_from_deployment("long/one")
        second = await client.create_flow_run_from_deployment("long/one")
        await anyio.sleep(14)
        assert (await client.read_flow_run(second.id)).state.name == "Scheduled"
        await anyio.sleep(2)
        assert (await client.read_flow_run(second.id)).state.name == "Late"
        third = await client.create_flow_run_from_deployment("long/one")
        await anyio.sleep(20)
        assert (await client.read_flow_run(third.id)).state.name == "Late"
        for run, names in ((first, []), (second, ["Late"]), (third, ["Late"])):
            ended = await client.wait_for_flow_run(run.id)
            assert await names_of(client, ended) == ["Scheduled", *names, "Pending", "Running", "Completed"]
            assert ended.expected_start_time == run.expected_start_time


async def test_the_limit_of_a_server_holds_over_its_deployments(runtime: Runtime) -> None:
    latch = Latch()

    @flow
    async def waiting() -> None:
        await latch()

    both = [waiting.to_deployment(name) for name in ("a", "b")]
    async with served(*both, limit=2) as client:
        made = [await client.create_flow_run_from_deployment(f"waiting/{name}") for name in "aabb"]
        await until(lambda: has_begun(latch, 2))
        latch.is_open = True
        for each in made:
            assert (await client.wait_for_flow_run(each.id, LONG)).state.is_completed()
        assert (latch.entered, latch.most) == (4, 2)


# --- schedules -----------------------------------------------------------------------------


async def test_a_month(clock: VirtualClock) -> None:
    begun = time.monotonic()
    deployment = double.to_deployment(
        "often", parameters={"n": 3}, schedules=[Cron("0 */3 * * *"), Cron("30 12 * * *", parameters={"n": 4})]
    )
    async with served(deployment) as client:
        await anyio.sleep(31 * DAY)
        runs = await client.read_flow_runs(limit=10_000)
    slots = [run.expected_start_time for run in reversed(runs)]
    hours = [BEGIN.replace(minute=0) + timedelta(hours=3 * n) for n in range(1, 31 * 8 + 1)]
    noons = [BEGIN + timedelta(hours=12) + timedelta(days=n) for n in range(31)]
    assert slots == sorted(hours + noons)
    assert all(run.state.is_completed() and run.start_time == run.expected_start_time for run in runs)
    assert {run.parameters["n"] for run in runs if run.expected_start_time in set(noons)} == {4}
    assert {run.parameters["n"] for run in runs if run.expected_start_time in set(hours)} == {3}
    assert time.monotonic() - begun < LONG


async def test_what_came_while_nobody_served_is_caught_up_with(clock: VirtualClock) -> None:
    schedules = [
        Interval(3600, slug="all", catch_up="all", catch_up_limit=5),
        Interval(3600, slug="latest", catch_up="latest"),
        Interval(3600, slug="skip", catch_up="skip"),
    ]
    deployment = double.to_deployment("often", schedules=schedules)
    async with served(deployment):
        await anyio.sleep(60)
    await anyio.sleep(10 * 3600)
    async with served(deployment) as client:
        await anyio.sleep(1)
        runs = await client.read_flow_runs()
    due = sorted(run.expected_start_time for run in runs if run.expected_start_time is not None)
    newest = BEGIN.replace(minute=0) + timedelta(hours=10)
    assert due == sorted([newest - timedelta(hours=n) for n in range(5)] + [newest])


async def test_a_schedule_that_does_not_overlap_leaves_slots_out(clock: VirtualClock) -> None:
    @flow
    async def long() -> None:
        await anyio.sleep(150)

    async with served(long.to_deployment("alone", schedules=[Interval(60, overlap="skip")])) as client:
        await anyio.sleep(9 * 60 + 1)
        runs = await client.read_flow_runs()
    begun = sorted(run.start_time for run in runs if run.start_time is not None)
    assert begun == [BEGIN + timedelta(minutes=n) for n in (1, 4, 7)]


async def test_a_paused_deployment_fires_nothing_and_goes_on_from_when_it_is_resumed(clock: VirtualClock) -> None:
    async with served(double.to_deployment("often", interval=3600, paused=True)) as client:
        await anyio.sleep(DAY)
        assert await client.read_flow_runs() == []
        await client.resume_deployment("double/often")
        await anyio.sleep(2 * 3600)
        assert len(await client.read_flow_runs()) == 2  # and nothing of the day before
        await client.pause_deployment("double/often")
        await anyio.sleep(DAY)
        assert len(await client.read_flow_runs()) == 2


async def test_jitter_moves_the_run_and_not_the_slot(clock: VirtualClock) -> None:
    async with served(double.to_deployment("often", schedules=[Interval(3600, jitter=600)])) as client:
        await anyio.sleep(DAY)
        runs = await client.read_flow_runs()
    assert len(runs) in (23, 24)  # the last one may be moved behind the day
    offsets = {
        run.expected_start_time.minute * 60 + run.expected_start_time.second for run in runs if run.expected_start_time
    }
    assert max(offsets) < 600
    assert len(offsets) > 12


async def test_each_slot_is_one_run_although_several_serve_it(runtime: Runtime) -> None:
    deployment = double.to_deployment("often", interval=0.05)
    async with served(deployment), served(deployment), served(deployment) as client:
        await until(lambda: has_runs(client, 10))
        runs = await client.read_flow_runs(limit=10_000)
    slots = [run.expected_start_time for run in runs]
    assert len(slots) == len(set(slots)) >= 10


async def has_runs(client: Client, count: int) -> bool:
    return len(await client.read_flow_runs(limit=10_000, state=StateType.COMPLETED)) >= count


async def test_a_deployment_that_was_deleted_is_served_no_more(clock: VirtualClock) -> None:
    async with served(double.to_deployment("often", interval=60)) as client:
        await anyio.sleep(90)
        waiting = await client.create_flow_run_from_deployment(
            "double/often", scheduled_time=BEGIN + timedelta(hours=1)
        )
        await client.delete_deployment("double/often")
        await anyio.sleep(DAY)
        assert (await client.read_flow_run(waiting.id)).state.is_cancelled()
        assert len(await client.read_flow_runs()) == 2


@pytest.mark.parametrize("seed", range(20))
def test_clocks_that_go_forth_and_back_make_no_slot_twice(seed: int) -> None:
    """Several schedulers, whose clocks differ by up to an hour and are set by as much, now and then."""
    chance, store = random.Random(seed), MemoryStore()
    with Runtime(store=store, clock=SystemClock()) as runtime:
        services = runtime.services
        assert services is not None
        deployment = double.to_deployment("often", schedules=[Interval(600, catch_up="all", catch_up_limit=10_000)])
        begin = 1_800_000_000 * 1_000_000
        store.write_deployment(deployment.row(begin), deployment.rules(decided_at(begin), ""))
        schedulers = [Scheduler(services, [deployment.id.bytes]) for _ in range(3)]
        clocks, latest = [begin] * 3, begin
        for _ in range(300):
            number = chance.randrange(3)
            clocks[number] += chance.choice([60, 300, 601, 3600, -3600]) * 1_000_000
            schedulers[number].turn(clocks[number])
            latest = max(latest, clocks[number])
        for scheduler in schedulers:  # whatever they had thought of it before, now all know the time
            scheduler.turn(latest)
        rows = store.read_runs(RunQuery(kinds=frozenset({FLOW}), limit=10_000))
        slots = sorted(row.scheduled for row in rows if row.scheduled is not None)
        assert slots == list(range(begin + 600_000_000, latest + 1, 600_000_000))


# --- triggers ------------------------------------------------------------------------------


async def test_events_start_runs(runtime: Runtime) -> None:
    seen: list[tuple[str, int]] = []

    @flow
    async def bill(order: str, amount: int) -> None:
        seen.append((order, amount))

    trigger = EventTrigger(
        "order.paid", parameters={"order": "{{ event.resource }}", "amount": "{{ event.payload.amount }}"}
    )
    async with served(bill.to_deployment("paid", triggers=[trigger])) as client:
        for n in range(3):
            emit_event("order.paid", f"order/{n}", {"amount": n})
            emit_event("order.placed", f"order/{n}")
        emit_event("order.paid", "order/none", {"other": 1})  # starts nothing: it does not tell the amount
        await until(lambda: has_runs(client, 3))
        assert sorted(seen) == [("order/0", 0), ("order/1", 1), ("order/2", 2)]
    emit_event("order.paid", "order/3", {"amount": 3})  # while nobody serves
    async with served(bill.to_deployment("paid", triggers=[trigger])) as client:
        await until(lambda: has_runs(client, 4))
        assert len(await client.read_flow_runs()) == len(seen) == 4


async def test_the_end_of_a_run_can_start_another(runtime: Runtime) -> None:
    @flow
    async def after() -> None: ...

    chain = after.to_deployment("chain", triggers=[EventTrigger("flow-run.Completed", threshold=2, within=60)])
    async with served(double.to_deployment("plain"), chain) as client:
        for _ in range(2):
            await run_deployment("double/plain")
        await until(lambda: has_runs(client, 3))
        assert (await client.read_flow_runs())[0].flow_name == "after"


async def test_what_does_not_happen_starts_a_run(clock: VirtualClock) -> None:
    trigger = AbsenceTrigger(after="order.placed", expect="order.paid", within=3600)
    async with served(double.to_deployment("remind", triggers=[trigger])) as client:
        emit_event("order.placed", "order/1")
        emit_event("order.placed", "order/2")
        await anyio.sleep(1800)
        emit_event("order.paid", "order/1")
        await anyio.sleep(DAY)
        (run,) = await client.read_flow_runs()
        assert run.start_time is not None
        assert timedelta(hours=1) <= run.start_time - BEGIN < timedelta(hours=1, seconds=5)


@pytest.mark.anyio
async def test_a_trigger_is_not_set_off_by_the_runs_it_starts(runtime: Runtime) -> None:
    begun: list[int] = []

    @flow
    async def notify() -> None:
        begun.append(1)
        raise ValueError("the mail server is down")

    @flow
    async def broken() -> None:
        raise ValueError("broken")

    async with served(notify.to_deployment("mail", triggers=[EventTrigger("flow-run.Failed")])) as client:
        await broken(return_state=True)
        await until(lambda: _has_failed(client, "notify", 1))
        await broken(return_state=True)
        await until(lambda: _has_failed(client, "notify", 2))
        await broken(return_state=True)
        await until(lambda: _has_failed(client, "notify", 3))
    assert len(begun) == 3


async def _has_failed(client: Client, flow_name: str, number: int) -> bool:
    return len(await client.read_flow_runs(flow_name=flow_name, state="failed")) >= number


async def test_a_trigger_whose_events_are_gone_goes_on_from_now(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = double.to_deployment("sold", triggers=[EventTrigger("sold")])
    async with served(deployment):
        pass
    services = runtime.services
    assert services is not None
    emit_event("sold")
    await services.ask(host_here(services.clock), partial(forget_all, runtime))
    async with served(deployment) as client:
        await until(lambda: has_logged(caplog, "goes on from now"))
        emit_event("sold")
        await until(lambda: has_runs(client, 1))
        assert len(await client.read_flow_runs()) == 1


def forget_all(runtime: Runtime) -> None:
    services = runtime.services
    assert services is not None
    while not services.store.read_journal(services.store.cursor_since(0), 1):
        time.sleep(0.001)  # the event is on its way to the disk
    while services.store.delete_journal(int(services.clock.now() * 1e6) + 1):
        pass


# --- what goes wrong -----------------------------------------------------------------------


async def test_one_bad_schedule_stops_no_other(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Interval, until: datetime) -> Iterator[datetime]:
        if self.every == 61:
            raise ArithmeticError("no such day")
        return slots_until(self, until)

    slots_until = Interval.slots_until
    monkeypatch.setattr(Interval, "slots_until", broken)
    bad = double.to_deployment("bad", interval=61)
    async with served(bad, double.to_deployment("good", interval=60)) as client:
        await anyio.sleep(3600)
        assert len(await client.read_flow_runs()) == 60
        told = [each for each in caplog.records if "no such day" in each.getMessage()]
        assert len(told) == 1  # once, and not in each turn
        monkeypatch.setattr(Interval, "slots_until", slots_until)
        await anyio.sleep(30)
        assert (await client.read_flow_runs())[0].deployment_id == bad.id  # it was tried again


async def test_a_store_that_fails_for_a_while_stops_nothing(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(double.to_deployment("often", interval=60)) as client:
        await anyio.sleep(90)
        failures = 5

        def claim_due(*args: Any) -> Any:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StoreError("claiming", "home", "the disk is full")
            return working(*args)

        working = MemoryStore.claim_due
        monkeypatch.setattr(MemoryStore, "claim_due", claim_due)
        await anyio.sleep(600)
        runs = await client.read_flow_runs()
    assert failures < 0
    assert len(runs) == 11
    assert all(run.state.is_completed() for run in runs)
    assert len([each for each in caplog.records if "the disk is full" in each.getMessage()]) == 1


async def test_a_run_that_fails_stops_no_other(clock: VirtualClock) -> None:
    count = 0

    @flow
    async def every_other_fails() -> None:
        nonlocal count
        count += 1
        if count % 2:
            raise ValueError("odd")

    async with served(every_other_fails.to_deployment("often", interval=60)) as client:
        await anyio.sleep(600)
        states = [run.state.type for run in await client.read_flow_runs()]
    assert states.count(StateType.FAILED) == states.count(StateType.COMPLETED) == 5


async def test_what_cannot_be_served_is_refused(runtime: Runtime) -> None:
    with pytest.raises(NothingToServeError):
        await serve()
    with pytest.raises(DeploymentError, match=r"double/twice.*served twice"):
        await serve(double.to_deployment("twice"), double.to_deployment("twice"))
    with pytest.raises(OptionError, match="limit=0"):
        await serve(double.to_deployment("once"), limit=0)


# --- its end -------------------------------------------------------------------------------


async def test_a_runtime_that_stops_ends_it_and_its_runs_are_waited_for(home: Path) -> None:
    latch = Latch()

    @flow
    async def waiting() -> None:
        await latch()

    runtime = Runtime(home, drain_seconds=LONG)
    async with runtime, anyio.create_task_group() as group:
        group.start_soon(serve, waiting.to_deployment("x"))
        client = get_client()
        await until(lambda: are_known(client, (waiting.to_deployment("x"),)))
        going = await client.create_flow_run_from_deployment("waiting/x")
        await until(lambda: has_begun(latch, 1))
        runtime.stop()
        group.start_soon(open_soon, latch)
    # Left by itself, because it was stopped; and the run was waited for.
    async with Runtime(home):
        assert (await get_client().read_flow_run(going.id)).state.is_completed()


async def open_soon(latch: Latch) -> None:
    latch.is_open = True


async def test_an_interrupted_run_is_taken_up_by_another_server(home: Path) -> None:
    latch, done = Latch(), 0

    @task
    async def once() -> int:
        nonlocal done
        done += 1
        return done

    @flow(resume="auto")
    async def waiting() -> int:
        number = await once()
        await latch()
        return number

    deployment = waiting.to_deployment("x")
    async with Runtime(home, drain_seconds=0), served(deployment) as client:
        going = await client.create_flow_run_from_deployment("waiting/x")
        await until(lambda: has_begun(latch, 1))
    latch.is_open = True
    async with Runtime(home, upkeep_seconds=0.2), served(deployment) as client:
        run = await client.wait_for_flow_run(going.id, LONG)
        assert run.state.is_completed()
        assert (latch.entered, done) == (2, 1)  # what it had completed was found


async def test_a_flow_serves_itself(home: Path) -> None:
    """With a runtime of its own, where none is open."""
    with anyio.move_on_after(LONG) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(double.serve, interval=0.05, limit=1))
            client = get_client()
            await until(lambda: has_runs(client, 2))
            group.cancel_scope.cancel()
    assert not scope.cancelled_caught
    async with Runtime(home):
        assert (await get_client().read_deployments())[0].full_name == "double/double"


# --- several processes ---------------------------------------------------------------------

SERVER = """
import asyncio, sys
from pathlib import Path
from asyncflow import Runtime, flow, serve

@flow
async def noted(n: int, seconds: float = 0) -> int:
    with open(sys.argv[2], "a") as file:
        file.write(f"{n}\\n")
    await asyncio.sleep(seconds)
    return n

async def main():
    async with Runtime(sys.argv[1], upkeep_seconds=0.2):
        await serve(noted.to_deployment("x", interval=0.1 if sys.argv[3:] else None, concurrency_limit=None,
                                        parameters={"n": -1}))

asyncio.run(main())
"""


@contextlib.contextmanager
def server(home: Path, notes: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(home), str(notes), *more])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asyncio_only
async def test_what_a_killed_server_had_not_begun_is_run_by_another(home: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with Runtime(home, upkeep_seconds=0.2):
        client = get_client()
        with server(home, notes) as first:
            await until(lambda: serves(client, "noted/x"))
            os.kill(first.pid, signal.SIGSTOP)  # it is alive, and claims nothing any more
            made = [await client.create_flow_run_from_deployment("noted/x", parameters={"n": n}) for n in range(20)]
            with server(home, notes):
                os.kill(first.pid, signal.SIGKILL)
                ended = [await client.wait_for_flow_run(each.id, LONG) for each in made]
        assert all(each.state.is_completed() for each in ended)
        assert sorted(map(int, notes.read_text().split())) == list(range(20))


async def serves(client: Client, name: str) -> bool:
    return any(each.full_name == name for each in await client.read_deployments())


CLAIMER = """
import sys, time
from asyncflow import Runtime
with Runtime(sys.argv[1]) as runtime:
    store = runtime.services.store
    ids = [row.id for row in store.read_deployments()]
    print(len(store.claim_due(ids, int(time.time() * 1e6), 100)), flush=True)
    sys.stdin.read()
"""


@asyncio_only
async def test_what_was_claimed_and_not_begun_is_run_when_its_claimer_was_killed(home: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with Runtime(home, upkeep_seconds=0.2):
        client = get_client()
        with server(home, notes):
            await until(lambda: serves(client, "noted/x"))
        made = [await client.create_flow_run_from_deployment("noted/x", parameters={"n": n}) for n in range(20)]
        await anyio.to_thread.run_sync(claim_and_be_killed, home)
        assert (await client.read_flow_run(made[0].id)).state.is_pending()
        with server(home, notes):
            ended = [await client.wait_for_flow_run(each.id, LONG) for each in made]
        assert all(each.state.is_completed() for each in ended)
        assert sorted(map(int, notes.read_text().split())) == list(range(20))
        assert (await names_of(client, ended[0]))[:4] == ["Scheduled", "Pending", "Scheduled", "Pending"]


def claim_and_be_killed(home: Path) -> None:
    claimer = subprocess.Popen(
        [sys.executable, "-c", CLAIMER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with claimer:
        assert claimer.stdout is not None
        assert claimer.stdout.readline() == b"20\n"
        claimer.kill()


@asyncio_only
async def test_two_processes_make_one_run_of_each_slot(home: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with Runtime(home):
        client = get_client()
        with server(home, notes, "often"), server(home, notes, "often"):
            await until(lambda: has_runs(client, 15))
        runs = await client.read_flow_runs(limit=10_000)
    slots = [run.expected_start_time for run in runs]
    assert len(slots) == len(set(slots)) >= 15


IDLE = """
import asyncio, sys, time
from asyncflow import Runtime, flow, serve
from asyncflow.schedules import Cron
from asyncflow.triggers import EventTrigger

@flow
async def noted(n: int = 1): ...

async def main():
    async with Runtime(sys.argv[1]):
        serving = asyncio.create_task(serve(*(
            noted.to_deployment(f"d{n}", schedules=[Cron("0 0 1 1 *")], triggers=[EventTrigger("never")])
            for n in range(10)
        )))
        await asyncio.sleep(1)
        before, began = time.process_time(), time.monotonic()
        await asyncio.sleep(2)
        print((time.process_time() - before) / (time.monotonic() - began))
        serving.cancel()

asyncio.run(main())
"""


def test_a_server_that_has_nothing_to_do_costs_nothing(run_python: Any, home: Path) -> None:
    assert float(run_python(IDLE, str(home)).stdout) < 0.005
