"""What every test gets: all backends, a home of its own, and an event loop that nothing may block."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pydantic.fields  # noqa: F401  # here, because importing it reads files, which a test's loop must not wait for
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from asyncflow._backend.standstill import threads_stand_still
from asyncflow.runtime import HOME

try:
    import uvloop
except ImportError:  # not made for every platform
    uvloop = None  # type: ignore[assignment]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs like that, and every child inherits it: tests of Ctrl-C would wait in vain.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Backend = tuple[str, dict[str, Any]]

# Debug mode reports coroutines that nobody awaited and calls into a loop from a wrong thread.
ASYNCIO = {"debug": True}

# Calls of ours that block an event loop's thread on purpose: the blocking function, the file it is
# called from (the end of its path) and the function it is called in. Each is a decision with a
# reason, told where the call is.
ALLOWED_TO_BLOCK: list[tuple[str, str, str]] = [
    # A plain `with Runtime(...)` on a loop opens it there, which whoever writes that has asked for.
    (function, "asyncflow/_settings_sources.py", "_nearest_table")
    for function in ("os.getcwd", "os.stat", "io.BufferedReader.read")
]


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def uvloop_loop() -> asyncio.AbstractEventLoop:
    return uvloop.new_event_loop()


BACKENDS = [
    pytest.param(("asyncio", ASYNCIO), id="asyncio"),
    pytest.param(
        ("asyncio", {**ASYNCIO, "loop_factory": uvloop_loop}),
        id="uvloop",
        marks=pytest.mark.skipif(uvloop is None, reason="uvloop is not installed"),
    ),
    pytest.param(("trio", {}), id="trio"),
]
if sys.version_info >= (3, 12):  # CPython 3.11 has no eager tasks
    BACKENDS.insert(1, pytest.param(("asyncio", {**ASYNCIO, "loop_factory": eager_loop}), id="asyncio-eager"))


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of an async test. Function scope: each test has an event loop of its own."""
    backend: Backend = request.param
    return backend


@pytest.fixture(scope="session", autouse=True)
def quiet_slow_callbacks() -> None:
    """Keep debug mode's "Executing ... took 0.1 seconds", true on any busy machine, out of `caplog`."""
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of the test's default runtime, which is closed after the test; it does not exist yet."""
    for name in os.environ:
        if name.startswith("ASYNCFLOW_"):  # the developer's own settings
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    monkeypatch.setenv("ASYNCFLOW_HOME", str(path))
    yield path
    HOME.close_default()


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Makes a blocking call on an asyncio loop's thread raise, if asyncflow is among its callers."""
    with blockbuster_ctx("asyncflow") as blocker:
        for function, file, caller in ALLOWED_TO_BLOCK:
            blocker.functions[function].can_block_in(file, caller)
        yield blocker


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """A command that runs flows in this process has asyncflow's logger heard, for good."""
    logger = logging.getLogger("asyncflow")
    level, handlers, propagates = logger.level, logger.handlers[:], logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = handlers, propagates


@pytest.fixture(autouse=True)
def nothing_is_being_handled() -> Iterator[None]:
    """No test may leave an exception that becomes the context of every later one on its thread."""
    yield
    assert sys.exception() is None


class RunPython(Protocol):
    """Runs Python in a fresh process and gives what became of it."""

    def __call__(
        self,
        code: str | Path,
        *args: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 50,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_python(tmp_path: Path, home: Path) -> RunPython:
    """`run_python(code, *args)` runs a snippet, or a file, in a fresh process in the test's folder.

    `env` is added to the environment, which has the test's home. With `check`, an exit status
    other than 0 fails the test and shows what the process wrote to standard error.
    """

    def run(
        code: str | Path,
        *args: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 50,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        what = [str(code)] if isinstance(code, Path) else ["-c", code]
        done = subprocess.run(
            [sys.executable, "-W", "error", *what, *args],
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape half surrogates, which some tests log: xdist could not send the report, and would end the whole run."""
    report = yield
    report.sections = [(name, _sendable(text)) for name, text in report.sections]
    if report.longrepr is not None and (told := str(report.longrepr)) != _sendable(told):
        report.longrepr = _sendable(told)
    return report


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture
def quiet_process() -> None:
    """Wait until nothing of earlier tests works on in a thread or waits for its disk: virtual time stands still for it.

    A body that was given up, say, goes on in its thread until it ends. Where that takes too long the test says so
    and is left out, instead of waiting for time that does not pass.
    """
    until = time.monotonic() + 45
    while not threads_stand_still((), (threading.get_ident(),), 0):
        if time.monotonic() > until:
            at_work = ", ".join(sorted(thread.name for thread in threading.enumerate()))
            pytest.skip(f"something of an earlier test is at work, for which virtual time stands still: {at_work}")
        time.sleep(0.01)
