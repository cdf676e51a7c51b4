"""`lifespan`, `cleanup_ctx` and `get_runtime`: what they open and close, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest

from asyncflow import Runtime, cleanup_ctx, flow, get_client, get_runtime, lifespan
from asyncflow.exceptions import NoRuntimeError, RuntimeStoppingError, StoreError
from asyncflow.stores.memory import MemoryStore
from tests.conftest import RunPython

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
from fastapi import Depends, FastAPI  # noqa: E402

CYCLES = int(os.environ.get("CYCLES", "20"))
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@flow
async def double(number: int) -> int:
    return number * 2


# --- what is open when --------------------------------------------------------------------------


async def test_the_runtime_is_open_around_the_application_s_own_lifespan(home: Path) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def inner(app: str) -> AsyncIterator[dict[str, int]]:
        seen.append(f"{app} {await double.submit(21)}")
        yield {"answer": 42}
        seen.append(f"{await double(2)}")

    async with lifespan(home, inner=inner)("app") as state:
        assert state == {"answer": 42}
        assert (await get_runtime()).home == home
    assert seen == ["app 42", "4"]
    with pytest.raises(NoRuntimeError, match=r"the application that the server runs"):
        await get_runtime()


async def test_an_application_may_be_started_again(home: Path) -> None:
    opened = lifespan(home)
    for _ in range(2):
        async with opened(None) as state:
            assert state is None
            await double(1)
    async with Runtime(home):
        assert len(await get_client().read_flow_runs()) == 2


async def test_a_lifespan_that_fails_closes_the_runtime(home: Path) -> None:
    async def fail() -> None:
        raise LookupError

    @asynccontextmanager
    async def inner(_app: None) -> AsyncIterator[None]:
        await fail()
        yield

    with pytest.raises(LookupError):
        async with lifespan(home, inner=inner)(None):
            raise AssertionError
    with pytest.raises(NoRuntimeError):
        await get_runtime()


async def test_all_that_a_runtime_takes_is_passed_on() -> None:
    store = MemoryStore()
    async with lifespan(store=store, grace_seconds=3.0)(None):
        runtime = await get_runtime()
        assert runtime.services is not None
        assert runtime.services.store is store
        assert runtime.settings.grace_seconds == 3.0


async def test_aiohttp_s_form_of_it(home: Path) -> None:
    context = cleanup_ctx(home)(None)
    await anext(context)
    assert await double.submit(3) == 6
    with pytest.raises(StopAsyncIteration):
        await anext(context)


async def test_a_framework_may_open_and_close_in_different_tasks(home: Path) -> None:
    """aiohttp does, where a test or a program of the user's drives its runner."""
    context = cleanup_ctx(home)(None)

    async def step() -> None:
        await anext(context, None)

    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(step)
    with pytest.raises(NoRuntimeError):
        await get_runtime()
    async with Runtime(home):  # the first one is closed
        await double(1)


async def test_a_handler_finds_the_runtime_of_its_loop(home: Path) -> None:
    """Servers run the lifespan in a task of its own: what it sets in its context, no handler sees."""
    app = FastAPI(lifespan=lifespan(home))
    sub_app = FastAPI(lifespan=lifespan(home / "never"))  # its lifespan is never called
    app.mount("/sub", sub_app)

    @app.get("/double")
    async def doubled(number: int) -> int:
        return await double.submit(number)

    @sub_app.get("/home")
    @app.get("/home")
    async def which(runtime: Runtime = Depends(get_runtime)) -> str:  # noqa: B008  # FastAPI's way
        return str(runtime.home)

    async def live(started: anyio.Event, stopped: anyio.Event) -> None:
        async with app.router.lifespan_context(app):
            started.set()
            await stopped.wait()

    started, stopped = anyio.Event(), anyio.Event()
    transport = httpx.ASGITransport(app)
    async with (
        anyio.create_task_group() as group,
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        group.start_soon(live, started, stopped)
        await started.wait()
        assert (await client.get("/double", params={"number": 4})).json() == 8
        assert (await client.get("/home")).json() == str(home)
        assert (await client.get("/sub/home")).json() == str(home)
        stopped.set()


# --- accepted runs ------------------------------------------------------------------------------


def row(home: Path, run_id: object) -> tuple[str, str]:
    """The state and the parameters of a run, as any other process finds them."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        found = database.execute("SELECT state_name, parameters FROM flow_runs WHERE id = ?", [str(run_id)]).fetchone()
    assert found is not None
    state, parameters = found
    return state, parameters


@flow
async def add(number: int, other: int) -> int:
    await anyio.sleep(0.005)
    return number + other


async def test_a_recorded_run_is_on_disk(home: Path) -> None:
    async with Runtime(home):
        future = add.submit(1, 2)
        assert await future.recorded() is future
        state, parameters = row(home, future.flow_run_id)
        assert state in ("Running", "Completed")
        assert parameters == '{"number":1,"other":2}'
        assert await (await future.recorded()) == 3  # one that has ended, too


async def test_a_run_that_waits_for_another_is_recorded_when_it_begins(home: Path) -> None:
    async with Runtime(home):
        future = add.submit(add.submit(1, 2), 3)
        await future.recorded()
        assert row(home, future.flow_run_id)[1] == '{"number":3,"other":3}'
        assert await future == 6


async def test_a_run_that_the_disk_does_not_confirm(home: Path) -> None:
    async with Runtime(home, durability_seconds=0.05):
        await double(1)
        with closing(sqlite3.connect(home / "asyncflow.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            future = double.submit(2)
            with pytest.raises(StoreError, match="recording run"):
                await future.recorded()
            other.execute("ROLLBACK")
        await future.wait_async()
    assert row(home, future.flow_run_id)[0] == "Completed"


# --- signals ------------------------------------------------------------------------------------

HEARS = """
import os, signal, sys
import anyio, asyncflow

@asyncflow.flow
async def late(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "done"

async def main():
    heard = anyio.Event()
    async with asyncflow.lifespan(drain_seconds=0.1)(None):
        async def begin():
            run = late.submit(30)
            try:
                await late(30)
            except BaseException as error:
                print(type(error).__name__, late.name)
            print(run.state.name)

        async with anyio.create_task_group() as group:
            group.start_soon(begin)
            while len(await asyncflow.get_client().read_flow_runs(state="RUNNING")) < 2:
                await anyio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGTERM)
            while not told:
                await anyio.sleep(0.001)
            try:
                await late(0)
            except asyncflow.exceptions.RuntimeStoppingError:
                print("takes no more")

told = []
def handler(number, frame):
    told.append(number)
signal.signal(signal.SIGTERM, handler)
anyio.run(main, backend=sys.argv[1])
assert told == [signal.SIGTERM]
assert signal.getsignal(signal.SIGTERM) is handler
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_drain_window_begins_with_the_signal_that_stops_the_host(run_python: RunPython, backend: str) -> None:
    """Before the block is left: here it waits for the run, as a server waits for its requests."""
    done = run_python(HEARS, backend)
    assert done.stdout.splitlines() == ["takes no more", "RunInterruptedError late", "Interrupted"]


async def test_signals_that_nobody_handles_stay_as_they_are(home: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    async with lifespan(home)(None):
        assert signal.getsignal(signal.SIGTERM) is before[0] is signal.SIG_DFL
    assert [signal.getsignal(number) for number in SIGNALS] == before


async def test_signals_may_be_left_alone(home: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    async with lifespan(home, listen_to_signals=False)(None):
        assert [signal.getsignal(number) for number in SIGNALS] == before


async def test_a_stopped_runtime_takes_no_new_runs(home: Path) -> None:
    async with lifespan(home)(None):
        (await get_runtime()).stop()
        with pytest.raises(RuntimeStoppingError):
            await double(1)


# --- nothing is left ----------------------------------------------------------------------------

LEAVES_NOTHING = '''
"""Start and stop a runtime many times; tell what there is more of than after the first few times."""
import asyncio, contextvars, gc, os, signal, sys, tempfile, threading
from pathlib import Path
import anyio, asyncflow

cycles, backend, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
home = Path(sys.argv[4])
OURS = ("Runtime", "Services", "SQLiteStore", "Upkeep", "Run", "ThreadPool")
MOST_READERS = 8

@asyncflow.task
async def part(number: int) -> int:
    return number

@asyncflow.flow
async def whole() -> int:
    return sum([await part(number) for number in range(2)])

def tasks() -> int:
    if backend == "trio":
        import trio
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())

def there_is() -> dict[str, object]:
    gc.collect()
    return {
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        # Those that the loop's host keeps for its next calls are reused; how many it needs depends on the moment.
        "threads": {thread.name.rstrip("-0123456789") for thread in threading.enumerate()},
        "many threads": threading.active_count() > MOST_READERS + 1,
        "tasks": tasks(),
        "runtimes": sum(type(each).__name__ in OURS for each in gc.get_objects()),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "excepthooks": [threading.excepthook, sys.excepthook, sys.unraisablehook],
        "contextvars": dict(contextvars.copy_context()),
        "temporary files": sorted(os.listdir(tempfile.gettempdir())),
        "in the home": sorted(each.name for each in home.rglob("*") if each.is_file() and "results" not in each.parts),
        "garbage": list(gc.garbage),
    }

async def once() -> None:
    if kind == "runtime":
        async with asyncflow.Runtime(home):
            await whole()
    else:
        async with asyncflow.lifespan(home)(None):
            await whole.submit()

async def main() -> None:
    for _ in range(5):
        await once()
    before = there_is()
    for _ in range(cycles):
        await once()
    after = there_is()
    for what in before:
        if before[what] != after[what]:
            print(what, before[what], "->", after[what])

signal.signal(signal.SIGTERM, lambda *_: None)  # as a server has it
anyio.run(main, backend=backend)
'''


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["runtime", "lifespan"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_left_of_a_runtime(
    run_python: RunPython, home: Path, tmp_path: Path, backend: str, kind: str
) -> None:
    """As often as `CYCLES` says: 1,000 times for a release."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run_python(
        LEAVES_NOTHING, str(CYCLES), backend, kind, str(home), env={"TMPDIR": str(temporary)}, timeout=500
    )
    assert done.stdout == ""
