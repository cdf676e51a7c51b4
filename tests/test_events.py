"""Events: what is told, to whom, and that nobody misses anything or meets it twice."""

from __future__ import annotations

import gc
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pydantic import SecretStr

import asyncflow
from asyncflow import Event, EventFilter, Runtime, emit_event, flow, get_client, task
from asyncflow.abc import RunQuery
from asyncflow.exceptions import EventPayloadError, EventsGoneError, NoRuntimeError, OptionError
from asyncflow.stores.memory import MemoryStore

PROJECT = Path(__file__).parent.parent


@task
async def double(number: int) -> int:
    emit_event("number.doubled", f"number/{number}", {"result": 2 * number})
    return 2 * number


@task
def sync_task() -> None:
    emit_event("sync")


@flow
async def inner(number: int) -> int:
    return await double(number)


@flow
async def outer() -> int:
    emit_event("outer.begun")
    total = await inner(1) + await double(2)
    await sync_task.acall()
    return total


async def newest_flow_run(name: str) -> asyncflow.FlowRun:
    (run,) = await get_client().read_flow_runs(flow_name=name, limit=1)
    return run


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


# --- what is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True], ids=["sqlite", "memory"])
@pytest.mark.anyio
async def test_all_that_happens_in_a_flow_run_is_told_in_order(home: Path, in_memory: bool) -> None:
    async with Runtime(home, store=MemoryStore() if in_memory else None) as runtime:
        client = get_client(runtime)
        assert await outer() == 6
        events = await client.read_events(limit=1000)
        run = (await client.read_flow_runs(flow_name="outer"))[0]
        nested = (await client.read_flow_runs(flow_name="inner"))[0]
    assert names(events)[:2] == ["flow-run.Pending", "flow-run.Running"]
    assert names(events)[-1] == "flow-run.Completed"
    assert names(events).count("number.doubled") == 2
    assert {"outer.begun", "sync"} <= set(names(events))
    assert len(events) == 3 * 6 + 4  # two flow runs, a stand-in, three task runs

    last = events[-1]
    assert (last.flow_run_id, last.task_run_id, last.resource) == (run.id, None, f"flow-run/{run.id}")
    assert last.payload == {"name": run.name, "flow_name": "outer"}
    assert last.state is not None
    assert last.state == run.state
    assert last.occurred == run.end_time

    of_task = next(event for event in events if event.name == "number.doubled")
    assert of_task.payload == {"result": 2}
    assert of_task.resource == "number/1"
    assert of_task.state is None
    assert of_task.flow_run_id == nested.id
    assert of_task.task_run_id is not None
    place = events.index(of_task)
    states = [(n, event.name) for n, event in enumerate(events) if event.resource == f"task-run/{of_task.task_run_id}"]
    assert [name for _, name in states] == ["task-run.Pending", "task-run.Running", "task-run.Completed"]
    assert states[1][0] < place < states[2][0]


@pytest.mark.anyio
async def test_states_have_the_names_and_the_facts_of_the_record(home: Path) -> None:
    attempts = itertools.count()

    @task(retries=1, retry_delay_seconds=0.001)
    async def shaky() -> None:
        if next(attempts) == 0:
            raise ValueError

    async with Runtime(home) as runtime:
        await shaky()
        events = await get_client(runtime).read_events()
        run = (await get_client(runtime).read_task_runs())[0]
        states = await get_client(runtime).read_states(run.id)
    assert [event.state for event in events] == states
    assert names(events) == [
        f"task-run.{each}" for each in ("Pending", "Running", "AwaitingRetry", "Retrying", "Completed")
    ]
    assert events[-1].flow_run_id is None
    assert events[-1].task_run_id == run.id


@pytest.mark.anyio
async def test_a_resumed_run_goes_on_where_it_was(home: Path) -> None:
    broken = True

    @flow
    async def resumable() -> int:
        total = await inner(1)
        if broken:
            raise ValueError("not yet")
        return total + await inner(2)

    async with Runtime(home) as runtime:
        client = get_client(runtime)
        with pytest.raises(ValueError, match="not yet"):
            await resumable()
        run = (await client.read_flow_runs(flow_name="resumable"))[0]
        broken = False
        assert await client.resume_flow_run(run.id, flow=resumable) == 6
        told: dict[str | None, list[Any]] = defaultdict(list)
        for event in await client.read_events(limit=1000):
            if event.state is not None:
                told[event.resource].append(event.state)
        runs = await client.read_tree(run.id)
        assert len(told) == len(runs)
        for each in runs:
            kind = "flow-run" if isinstance(each, asyncflow.FlowRun) else "task-run"
            assert told[f"{kind}/{each.id}"] == await client.read_states(each.id)


def test_an_event_in_a_script_and_outside_of_runs(home: Path) -> None:
    with pytest.raises(NoRuntimeError):
        emit_event("nobody.hears")

    @flow
    def script() -> None:
        emit_event("in.script")
        sync_task()

    with Runtime(home) as runtime:
        emit_event("outside", payload=[1, {"two": None}])
        script()
        events = anyio.run(get_client(runtime).read_events)
    emitted = [event for event in events if event.state is None]
    assert [(event.name, event.payload) for event in emitted] == [
        ("outside", [1, {"two": None}]), ("in.script", None), ("sync", None)
    ]  # fmt: skip
    assert (emitted[0].flow_run_id, emitted[0].task_run_id) == (None, None)


@dataclass
class Order:
    number: int


def test_a_payload_is_json_and_shows_no_secret(home: Path) -> None:
    with Runtime(home, store=MemoryStore()) as runtime:
        secret = SecretStr("hunter2")
        emit_event("e", payload={"password": secret, "all": [secret, (secret, 1)], "order": Order(7)})
        (event,) = anyio.run(get_client(runtime).read_events)
    stars = "**********"
    assert event.payload == {"password": stars, "all": [stars, [stars, 1]], "order": {"number": 7}}


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"order": [1, {"file": sys.stdout}]}, r"payload\.order\[1\]\.file is not JSON"),
        (endless(), "nested too deep"),
        ("x" * 70_000, "70,002 characters"),
    ],
)
def test_a_payload_that_cannot_be_kept_is_refused_where_it_is_emitted(home: Path, payload: Any, problem: str) -> None:
    with Runtime(home, store=MemoryStore()) as runtime:
        with pytest.raises(EventPayloadError, match=problem) as refused:
            emit_event("order.placed", payload=payload)
        assert "'order.placed'" in str(refused.value)
        assert anyio.run(get_client(runtime).read_events) == []


@pytest.mark.parametrize("arguments", [("",), ("flow-run.Completed",), ("task-run.x",), (7,), ("e", 7), ("e", "")])
def test_a_name_and_a_resource_are_texts_of_the_programs_own(home: Path, arguments: Any) -> None:
    with Runtime(home, store=MemoryStore()), pytest.raises(OptionError):
        emit_event(*arguments)


# --- filters -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_filter_gives_what_it_says(home: Path) -> None:
    async with Runtime(home) as runtime:
        client = get_client(runtime)
        await outer()
        await outer()
        await double(5)
        everything = await client.read_events(limit=1000)

        async def found(**conditions: Any) -> list[Event]:
            return await client.read_events(EventFilter(**conditions), limit=1000)

        first = next(
            event
            for event in everything
            if event.name == "flow-run.Completed" and event.payload["flow_name"] == "outer"
        )
        inside = await found(flow_run_id=first.flow_run_id)
        assert len(inside) == 3 * 6 + 4
        assert inside == [event for event in everything if event in inside]
        assert inside[-1] == first
        assert await found(flow_run_id=str(first.flow_run_id)) == inside
        nested = next(event for event in inside if event.payload and event.payload.get("flow_name") == "inner")
        assert len(await found(flow_run_id=nested.flow_run_id)) == 3 * 2 + 1
        assert await found(flow_run_id=first.task_run_id or asyncflow.ids.state_id(bytes(16), 1)) == []

        assert set(names(await found(names="flow-run.*"))) == {
            f"flow-run.{name}" for name in ("Pending", "Running", "Completed")
        }
        assert len(await found(names=["outer.begun", "sync"])) == 4
        assert len(await found(names="number.*", resource="number/1")) == 2
        assert len(await found(resource="number/*")) == 5
        assert await found(names="*") == everything
        assert await found(names="number") == []
        assert {event.state for event in await found(kinds="emitted")} == {None}
        states = await found(kinds=["flow-run", "task-run"])
        assert len(states) + len(await found(kinds="emitted")) == len(everything)
        assert names(await client.read_events(EventFilter(names="sync"), limit=1)) == ["sync"]
        assert await client.read_events(limit=0) == []
        assert await client.read_events(after=everything[3], limit=5) == everything[4:9]
        assert await client.read_events(after=everything[3].id, limit=5) == everything[4:9]


@pytest.mark.parametrize(
    "conditions",
    [
        {"names": "a*b"}, {"names": ["ok", ""]}, {"names": [7]}, {"resource": "**x"}, {"kinds": "state"},
        {"flow_run_id": "7"},
    ],
)  # fmt: skip
def test_a_filter_that_means_nothing_is_refused(conditions: Any) -> None:
    with pytest.raises(OptionError):
        EventFilter(**conditions)


@pytest.mark.anyio
async def test_an_after_that_is_no_event_is_refused() -> None:
    with pytest.raises(OptionError):
        get_client().subscribe(after="yesterday")
    with pytest.raises(OptionError):
        await get_client().read_events(after="7")


# --- following ---------------------------------------------------------------------------------


async def take(subscription: asyncflow.Subscription, is_last: Callable[[Event], bool]) -> list[Event]:
    """Events up to the one that is asked for."""
    found: list[Event] = []
    with anyio.fail_after(60):
        async for event in subscription:
            found.append(event)
            if is_last(event):
                break
    return found


def ends(flow_name: str) -> Callable[[Event], bool]:
    def is_last(event: Event) -> bool:
        return event.name == "flow-run.Completed" and event.payload["flow_name"] == flow_name

    return is_last


@pytest.mark.parametrize("in_memory", [False, True], ids=["sqlite", "memory"])
@pytest.mark.anyio
async def test_each_of_several_subscribers_gets_everything(home: Path, anyio_backend: Any, in_memory: bool) -> None:
    async with Runtime(home, store=MemoryStore() if in_memory else None) as runtime:
        client = get_client(runtime)
        await double(0)
        got: list[list[Event]] = []

        async def follow(subscription: asyncflow.Subscription) -> None:
            got.append(await take(subscription, ends("outer")))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(follow, await client.subscribe().__aenter__())
            await outer()
        recorded = await client.read_events(limit=1000)
    assert got == [recorded[4:]] * 3


@pytest.mark.anyio
async def test_an_event_of_this_process_wakes_its_subscribers_without_a_look(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow._subscriptions._LOOK_SECONDS", 1000.0)
    async with Runtime(home) as runtime, get_client(runtime).subscribe(EventFilter(kinds="emitted")) as events:
        for number in range(20):
            async with anyio.create_task_group() as group:

                async def get(number: int = number) -> None:
                    event = await anext(events)
                    assert event.name == f"e{number}"

                group.start_soon(get)
                with anyio.fail_after(60):
                    await anyio.sleep(0.005 if number % 2 else 0)
                    emit_event(f"e{number}")


@pytest.mark.anyio
async def test_leaving_the_loop_leaves_nothing_behind(home: Path) -> None:
    async with Runtime(home) as runtime:
        client = get_client(runtime)
        await double(1)
        start = (await client.read_events(limit=1))[0]
        store = runtime.open().store
        watchers = store._writer.watchers  # type: ignore[attr-defined]
        before = len(watchers._wakes)

        async for event in client.subscribe(after=start):
            assert event.name == "task-run.Running"
            break
        gc.collect()
        assert len(watchers._wakes) == before

        async with aclosing(client.subscribe(after=start)) as events:
            await anext(events)
            assert len(watchers._wakes) == before + 1
        assert len(watchers._wakes) == before
        with pytest.raises(StopAsyncIteration):
            await anext(events)

        async with client.subscribe() as events:
            with anyio.move_on_after(0.05) as scope:
                await anext(events)
            assert scope.cancelled_caught
            emit_event("after.cancel")  # a wait that was cancelled loses nothing
            with anyio.fail_after(30):
                assert (await anext(events)).name == "after.cancel"
        assert len(watchers._wakes) == before


@pytest.mark.parametrize("in_memory", [False, True], ids=["sqlite", "memory"])
@pytest.mark.anyio
async def test_a_subscription_ends_with_its_runtime(home: Path, in_memory: bool) -> None:
    got: list[str] = []
    begun = anyio.Event()
    runtime = Runtime(home, store=MemoryStore() if in_memory else None)

    async def follow() -> None:
        async with get_client(runtime).subscribe() as events:
            begun.set()
            got.extend([event.name async for event in events])

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group, runtime:
            group.start_soon(follow)
            await begun.wait()
            emit_event("one")
            while not got and await anyio.to_thread.run_sync(lambda: not runtime.open().store.read_journal(None, 1)):
                await anyio.sleep(0.001)
            await anyio.sleep(0.2)
    assert got == ["one"]


@pytest.mark.anyio
async def test_a_reader_that_begins_where_another_one_stopped(home: Path) -> None:
    """At any place: the two together have everything once."""
    async with Runtime(home) as runtime:
        client = get_client(runtime)
        await outer()
        everything = await client.read_events(limit=1000)
        for event in everything[:-1]:
            rest = await take(client.subscribe(after=event), lambda event: event == everything[-1])
            assert rest == everything[everything.index(event) + 1 :]


@pytest.mark.parametrize(("backend", "number"), [("asyncio", 17_000), ("trio", 3_000)])
def test_a_slow_subscriber_loses_nothing_and_takes_no_memory(home: Path, backend: str, number: int) -> None:
    """50,000 states, while the subscriber is stuck with the first one."""

    @task
    async def nothing() -> None:
        pass

    @flow
    async def many() -> None:
        for _ in range(number):
            await nothing()

    async def main() -> tuple[int, int]:
        async with Runtime(home, synchronous="normal") as runtime, get_client(runtime).subscribe() as events:
            await many()
            first = await anext(events)
            assert first.name == "flow-run.Pending"
            seen: dict[Any, int] = defaultdict(int)
            count = peak = 0
            last = first.id
            while True:
                event = await anext(events)
                count += 1
                assert event.id != last
                last = event.id
                if event.task_run_id is not None:
                    seen[event.task_run_id.int & 0xFFF] += 1
                if count == 2000:
                    gc.collect()
                    tracemalloc.start()
                if count == 6000:
                    peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                if ends("many")(event):
                    assert sum(seen.values()) == 3 * number
                    return count, peak

    count, peak = anyio.run(main, backend=backend)
    assert count == 3 * number + 2
    assert peak < 4_000_000, f"{peak:,} bytes"


# --- what is not kept any more -----------------------------------------------------------------


@pytest.mark.anyio
async def test_who_comes_too_late_is_told_and_can_go_on(home: Path) -> None:
    async with Runtime(home) as runtime:
        client, store = get_client(runtime), runtime.open().store
        for number in range(4):
            emit_event(f"e{number}")
            await client.read_events()  # each in a commit of its own
            while len(await client.read_events()) <= number:
                await anyio.sleep(0.001)
        first, second, *_ = await client.read_events()
        idle = await client.subscribe().__aenter__()
        with anyio.move_on_after(0.02):
            await anext(idle)
        late = client.subscribe(after=first)
        assert (await anext(late)).name == "e1"
        assert await anyio.to_thread.run_sync(store.delete_journal, None) == 4
        with pytest.raises(EventsGoneError) as gone:
            await client.read_events(after=second)
        assert gone.value.commits >= 3
        emit_event("new")
        with anyio.fail_after(30):
            assert (await anext(idle)).name == "new"  # it had everything
            assert (await anext(client.subscribe(after=gone.value.oldest))).name == "new"
        with pytest.raises(EventsGoneError):
            await anext(client.subscribe(after=first))


def test_old_events_are_deleted_with_the_runs_of_their_time(home: Path) -> None:
    from asyncflow._retention import Retention
    from asyncflow._upkeep import Sweeper

    with Runtime(home, upkeep_seconds=0) as runtime:
        services = runtime.open()
        emit_event("before")
        anyio.run(outer)
        keep = Sweeper(services, Retention(age=10**12))
        while keep.sweep().has_more:
            pass
        assert len(anyio.run(lambda: get_client(runtime).read_events(limit=1000))) == 1 + 22
        drop = Sweeper(services, Retention(age=1))
        while drop.sweep().has_more:
            pass
        assert anyio.run(get_client(runtime).read_events) == []
        emit_event("after")
        assert names(anyio.run(get_client(runtime).read_events)) in ([], ["after"])


def test_a_home_that_is_full_lets_go_of_events_too(home: Path) -> None:
    from asyncflow._retention import Retention
    from asyncflow._upkeep import Sweeper

    with Runtime(home, upkeep_seconds=0, synchronous="normal") as runtime:
        services = runtime.open()
        for _ in range(300):
            emit_event("large", payload="x" * 10_000)
        anyio.run(outer)
        assert services.store.size() > 3_000_000
        sweeper = Sweeper(services, Retention(size=1_000_000))
        for _ in range(1000):
            if not sweeper.sweep().has_more:
                break
        assert services.store.size() <= 1_000_000


# --- several processes ---------------------------------------------------------------------------

WRITER = """
import sys, os
from pathlib import Path
import anyio
from asyncflow import Runtime, emit_event, flow, task

@task
async def step(n):
    emit_event("step", str(os.getpid()), n)
    return n

@flow
async def many(n):
    for each in range(n):
        await step(each)
        if each % 7 == 0:
            await anyio.sleep(0.001)

async def main():
    async with Runtime(Path(sys.argv[1]), synchronous="normal", upkeep_seconds=0.2):
        for _ in range(int(sys.argv[2])):
            await many(40)

anyio.run(main)
print("done")
"""


def test_writers_that_live_and_die_and_a_reader_that_misses_nothing(home: Path) -> None:
    """What a subscriber saw is, run by run, every state on record, in order, once; also of a writer that was killed."""
    chance = random.Random(5)

    async def main() -> None:
        async with Runtime(home, synchronous="normal", upkeep_seconds=0.2) as runtime:
            client = get_client(runtime)
            async with client.subscribe() as events:
                seen: list[Event] = []
                begin = partial(subprocess.Popen, stdout=subprocess.DEVNULL)
                writers = [
                    await anyio.to_thread.run_sync(begin, [sys.executable, "-c", WRITER, str(home), rounds])
                    for rounds in ("8", "8", "100000")
                ]
                *others, victim = writers
                kill_at = 400 + chance.randrange(300)
                is_killed = is_over = False
                with anyio.fail_after(120):
                    while not is_over:
                        with anyio.move_on_after(0.5) as idle:
                            seen.append(await anext(events))
                        if not is_killed and len(seen) > kill_at and any(e.resource == str(victim.pid) for e in seen):
                            victim.send_signal(signal.SIGKILL)
                            is_killed = True
                        gone = all(each.poll() is not None for each in writers)
                        is_over = idle.cancelled_caught and gone and is_killed
                for each in others:
                    assert each.wait() == 0
                victim.wait()
                while True:  # the runs of the one that died are ended by our upkeep
                    with anyio.move_on_after(1.5) as idle:
                        seen.append(await anext(events))
                    if idle.cancelled_caught:
                        break
            store = runtime.open().store
            query = RunQuery(kinds=frozenset({0, 1, 2}), limit=10**6)
            rows = await anyio.to_thread.run_sync(store.read_runs, query)
            check(seen, {row.id: row.seq for row in rows})
            open_ones = [row for row in rows if row.state < 5]
            assert open_ones == []

    anyio.run(main)


def check(seen: list[Event], recorded: dict[bytes, int]) -> None:
    assert len({event.id for event in seen}) == len(seen)
    by_run: dict[bytes, list[Any]] = defaultdict(list)
    steps: dict[str, list[int]] = defaultdict(list)
    for event in seen:
        if event.state is not None:
            run_id = event.task_run_id or event.flow_run_id
            assert run_id is not None
            by_run[run_id.bytes].append(event.state)
        elif event.name == "step":
            assert event.resource is not None
            steps[event.resource].append(event.payload)
    assert {run_id: len(states) for run_id, states in by_run.items()} == recorded
    for states in by_run.values():
        assert [state.timestamp for state in states] == sorted(state.timestamp for state in states)
        assert [state.is_final() for state in states] == [False] * (len(states) - 1) + [True]
    for payloads in steps.values():
        assert payloads == [n % 40 for n in range(len(payloads))]


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def told(home: Path) -> Path:
    """A home in which a flow run has ended."""
    with Runtime(home):
        emit_event("line\nbreak", "order/7")
        anyio.run(outer)
    return home


def test_the_command_prints_a_line_for_each_event(told: Path) -> None:
    done = asyncflow_command("events", "--home", str(told))
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 22
    assert "  line\\nbreak  order/7" in lines[0]
    assert "  flow-run.Completed  " in lines[-1]
    chosen = asyncflow_command("events", "--home", str(told), "--name", "number.*", "--name", "sync", "--limit", "2")
    assert [line.split("  ")[1:] for line in chosen.stdout.splitlines()] == [
        ["number.doubled", "number/1", '{"result": 2}'], ["number.doubled", "number/2", '{"result": 4}']
    ]  # fmt: skip


def test_the_commands_document_can_be_gone_on_from(told: Path) -> None:
    found = json.loads(asyncflow_command("events", "--home", str(told), "--json").stdout)
    assert len(found) == 1 + 22
    assert found[-1]["state"]["type"] == "COMPLETED"
    assert "state" not in found[0]
    home, place = str(told), found[5]["id"]
    assert json.loads(asyncflow_command("events", "--home", home, "--json", "--after", place).stdout) == found[6:]
    nested = next(
        each for each in found if each["name"].startswith("flow-run") and each["payload"]["flow_name"] == "inner"
    )
    below = asyncflow_command("events", "--home", home, "--json", "--flow-run", nested["flow_run_id"])
    assert len(json.loads(below.stdout)) == 7
    followed = asyncflow_command("events", "--home", home, "--json", "-f", "--after", place, "--limit", "4")
    assert [json.loads(line) for line in followed.stdout.splitlines()] == found[6:10]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--name", "a*b"], "only at its end"),
        (["--after", "7"], "the id of one"),
        (["--flow-run", "task"], "that is a task run"),
        (["--limit", "-1"], "0 or more"),
    ],
)
def test_what_the_command_cannot_do_it_says(told: Path, arguments: list[str], problem: str) -> None:
    with Runtime(told) as runtime:
        task_run = runtime.open().store.read_runs(RunQuery(kinds=frozenset({1}), limit=1))[0].id.hex()
    words = [task_run if word == "task" else word for word in arguments]
    done = asyncflow_command("events", "--home", str(told), *words, status=2)
    assert problem in done.stderr


def test_following_shows_what_another_process_does_until_ctrl_c(home: Path) -> None:
    with Runtime(home):
        emit_event("before")
    command = [sys.executable, "-m", "asyncflow", "events", "-f", "--home", str(home), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        lines: list[str] = []
        with Runtime(home):
            reader = threading.Thread(target=lambda: lines.extend(iter(follower.stdout.readline, "")))  # type: ignore[union-attr]
            reader.start()
            for number in itertools.count():  # until it has begun to look
                emit_event(f"e{number}")
                reader.join(0.05)
                if lines:
                    break
                assert number < 1000
            emit_event("last")
            while not any('"last"' in line for line in lines):
                assert reader.is_alive()
                reader.join(0.02)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 130
        reader.join(20)
    found = [json.loads(line)["name"] for line in lines]
    first = int(found[0][1:])
    assert found == [f"e{n}" for n in range(first, first + len(found) - 1)] + ["last"]
    assert "before" not in found


def asyncflow_command(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "asyncflow", *words],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done
