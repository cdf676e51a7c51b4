"""The process's own loop thread: what survives there, in a forked child, and at the interpreter's exit."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow._backend.detect import host_here
from asyncflow._backend.inline import drive
from asyncflow._backend.portal import PortalCall, on_portal
from asyncflow.clock import SystemClock

SOON = 10.0
CLOCK = SystemClock()
variable = contextvars.ContextVar("variable", default="default")


def ask(fn: Callable[[], object]) -> object:
    """What `fn` gives on the loop thread."""
    answers, done = list[object](), threading.Event()

    def call() -> None:
        answers.append(fn())
        done.set()

    on_portal(call)
    assert done.wait(SOON)
    return answers[0]


def run(fn: Callable[[], Any]) -> Any:
    done = threading.Event()
    call = PortalCall(fn, done.set)
    assert done.wait(SOON)
    return call.result()


def test_there_is_one_and_a_loop_runs_on_it() -> None:
    async def where() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    there = ask(threading.get_ident)
    assert there != threading.get_ident()
    assert ask(threading.get_ident) == run(where) == drive(host_here(CLOCK).run_async(where)) == there
    assert ask(asyncio.get_running_loop) is ask(asyncio.get_running_loop)
    assert [each.daemon for each in threading.enumerate() if each.name == "asyncflow-loop"] == [True]


def test_each_call_has_a_copy_of_its_caller_s_context() -> None:
    async def change() -> str:
        before = variable.get()
        variable.set("changed")
        return before

    token = variable.set("caller")
    assert ask(variable.get) == "caller"
    assert run(change) == "caller"
    assert variable.get() == "caller"
    variable.reset(token)


@pytest.mark.parametrize("error", [LookupError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_it_survives_what_a_function_raises(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise error

    there = ask(threading.get_ident)
    with caplog.at_level(logging.ERROR, "asyncio"):
        on_portal(fail)
        assert ask(threading.get_ident) == there
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [type(error)]


@pytest.mark.parametrize("error", [LookupError("x"), SystemExit(3), KeyboardInterrupt()])
def test_it_survives_what_a_task_raises(error: BaseException) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    there = ask(threading.get_ident)
    with pytest.raises(type(error)) as caught:
        run(fail)
    assert caught.value is error
    with pytest.raises(type(error)):
        drive(host_here(CLOCK).run_async(fail))
    assert ask(threading.get_ident) == there


def test_it_survives_a_stop() -> None:
    there = ask(threading.get_ident)
    ask(lambda: asyncio.get_running_loop().stop())
    assert ask(threading.get_ident) == there


def test_a_call_cancelled_before_it_began_is_done() -> None:
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    busy, go = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        while not go.is_set():  # not `go.wait`: nothing of ours may block a loop in a test
            pass

    on_portal(block)
    assert busy.wait(SOON)
    done = threading.Event()
    call = PortalCall(work, done.set)
    call.cancel()
    go.set()
    assert done.wait(SOON)
    assert call.cancelled
    assert ran == []


# --- the interpreter's exit, and forks --------------------------------------------------------------


def run_dev(code: str, folder: Path, status: int = 0) -> str:
    """Run a script in development mode, with each warning an error; it may print nothing to standard error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=folder,
        env={**os.environ, "ASYNCFLOW_HOME": str(folder / "home")},
    )
    # Development mode also tells of what took 0.1 seconds, on any busy machine.
    assert [line for line in done.stderr.splitlines() if not line.startswith("Executing <")] == []
    assert done.returncode == status
    return done.stdout


HEAD = """
import asyncio, gc, os, sys, threading, time
from asyncflow._backend.portal import PortalCall, on_portal

def ask(fn):
    gc.collect()  # nothing of what is dropped may complain, now either
    answers, done = [], threading.Event()
    on_portal(lambda: (answers.append(fn()), done.set()))
    assert done.wait(10)
    return answers[0]

def start(fn):
    kept.append(ask(lambda: asyncio.get_running_loop().create_task(fn())))

kept = []
event = None
"""

USED = """
async def work():
    await asyncio.sleep(0)
    print("worked")
done = threading.Event()
call = PortalCall(work, done.set)
assert done.wait(10)
"""

PENDING = """
async def waits_for_ever():
    global event
    event = asyncio.Event()
    try:
        await event.wait()
    finally:
        await asyncio.sleep(0.01)
        print("cleaned up", flush=True)

async def sleeps():
    await asyncio.sleep(60)

async def gives():
    try:
        while True:
            yield 1
    finally:
        await asyncio.sleep(0)
        print("closed", flush=True)

async def holds_a_generator():
    global items
    items = gives()
    await anext(items)

start(waits_for_ever)
start(sleeps)
start(holds_a_generator)
"""

BUSY = """
ask(threading.get_ident)
stop = time.monotonic() + 0.05
def again():
    if time.monotonic() < stop:
        on_portal(again)
on_portal(again)
"""

DEAF = """
async def deaf():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
start(deaf)
ask(int)
print("last line", flush=True)
"""

STUCK = """
on_portal(lambda: time.sleep(60))
print("last line", flush=True)
"""

EXIT = """
start(lambda: asyncio.sleep(60))
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        (USED, 0, "worked\n"),
        (PENDING, 0, "cleaned up\nclosed\n"),
        (BUSY, 0, ""),
        (DEAF, 0, "last line\n"),
        (STUCK, 0, "last line\n"),
        (EXIT, 3, ""),
    ],
    ids=["used", "pending", "busy", "deaf", "stuck", "sys.exit"],
)
def test_the_interpreter_s_exit_is_clean(code: str, status: int, printed: str, tmp_path: Path) -> None:
    assert run_dev(HEAD + code, tmp_path, status) == printed


USED_BY_A_HOOK = """
import asyncio
from asyncflow import flow

async def hook(flow, run, state):
    await asyncio.sleep(0)
    print("hooked", flush=True)

@flow(on_completion=[hook])
def work():
    return 1

assert work() == 1
"""


def test_a_flow_with_an_async_hook_exits_cleanly(tmp_path: Path) -> None:
    assert run_dev(USED_BY_A_HOOK, tmp_path) == "hooked\n"


FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12 warns of any fork beside threads; this is about one

start(lambda: asyncio.sleep(60))
there = ask(asyncio.get_running_loop)
child = os.fork()
if child == 0:
    here = ask(asyncio.get_running_loop)
    assert here is not there
    start(lambda: asyncio.sleep(60))
    print("child", flush=True)
    {end}
assert os.waitpid(child, 0)[1] == 0
assert ask(asyncio.get_running_loop) is there  # and it still hears us
print("parent", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)", "gc.collect(); sys.exit()"])
def test_a_forked_child_starts_its_own(end: str, tmp_path: Path) -> None:
    assert run_dev(HEAD + FORK.replace("{end}", end), tmp_path) == "child\nparent\n"


FORK_OF_A_BUSY_PROCESS = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)

stop = threading.Event()
def hammer():
    while not stop.is_set():
        on_portal(int)
threads = [threading.Thread(target=hammer) for _ in range(3)]
for each in threads:
    each.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        ask(int)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for each in threads:
    each.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_fork_in_the_middle_of_things(tmp_path: Path) -> None:
    assert run_dev(HEAD + FORK_OF_A_BUSY_PROCESS, tmp_path) == "done\n"
