"""asyncflow's pytest plugin: each test has a runtime of its own, in memory.

A module outside of the package, so that pytest can load it without importing asyncflow: it costs a
test run that has nothing to do with flows nothing, and a measurement of coverage begins before
whatever a test imports. asyncflow finds it here when a flow is called (`HOME` in `asyncflow.runtime`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Generator
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from asyncflow.client import Client
    from asyncflow.runtime import Runtime
    from asyncflow.testing import CapturedEvents, CapturedLogs, VirtualClock

__all__ = ["runtime_of_test"]

_OPTION = "asyncflow_runtime"
_KINDS = ("memory", "default")


class _Test:
    """What a test has of asyncflow: made at its first use, and gone after the test."""

    def __init__(self) -> None:
        self.clock: VirtualClock | None = None
        self.made: Runtime | None = None
        self.left: list[Any] = []
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def runtime(self) -> Runtime:
        """Its runtime: the same for every thread; another one in a forked child."""
        with self._lock:
            if self.made is None or self._pid != os.getpid():
                # Imported already, where a flow is called: nothing is read from disk on the test's loop.
                from asyncflow.runtime import Runtime
                from asyncflow.stores.memory import MemoryStore

                self.made, self._pid = Runtime(store=MemoryStore(), clock=self.clock), os.getpid()
            return self.made

    def look_for_left_runs(self) -> None:
        """Note the runs that have not ended when the test's function has: its loop will be closed soon."""
        services = None if self.made is None else self.made.services
        if services is not None:
            self.left += [run for run in services.live() if not run.is_settled and run not in self.left]

    def end(self) -> None:
        """Close what was made; the test fails when runs went on after it."""
        clock, runtime = self.clock, self.made
        try:
            if runtime is not None:
                from asyncflow.testing._leftovers import told_of_leftovers

                self.look_for_left_runs()
                runtime.close()
                if told := told_of_leftovers(self.left):
                    pytest.fail(told, pytrace=False)
        finally:
            if clock is not None:
                clock.__exit__(None, None, None)


_running: list[_Test | None] = []
"""The test that goes on, None for one that has nothing of its own; a test of pytest itself may run others."""


def _current() -> _Test | None:
    return _running[-1] if _running else None


def runtime_of_test() -> Runtime | None:
    """The runtime of the test that goes on, made now if need be; None where tests have none."""
    test = _current()
    return None if test is None else test.runtime()


# --- hooks


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    told = "what flows called in a test record to: 'memory' (a runtime of its own for each test) or 'default'"
    parser.addini(_OPTION, told, default=_KINDS[0])


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest."""
    _checked(config.getini(_OPTION), f"the ini option {_OPTION}")
    told = "asyncflow_runtime(kind): like the ini option of that name, for one test; kind is 'memory' or 'default'"
    config.addinivalue_line("markers", told)


def _checked(kind: object, what: str) -> bool:
    """Whether a test is to have a runtime of its own."""
    if kind not in _KINDS:
        raise pytest.UsageError(f"{what} is {kind!r}; it must be one of {', '.join(map(repr, _KINDS))}")
    return kind == _KINDS[0]


def _has_its_own(item: pytest.Item) -> bool:
    marker = item.get_closest_marker(_OPTION)
    if marker is None:
        return _checked(item.config.getini(_OPTION), f"the ini option {_OPTION}")
    kind = marker.args[0] if marker.args else marker.kwargs.get("kind")
    return _checked(kind, f"the marker {_OPTION} of {item.nodeid}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Called by pytest, before the fixtures of a test are made."""
    _running.append(None)  # before what may raise: the teardown comes anyhow
    _running[-1] = test = _Test() if _has_its_own(item) else None
    if "virtual_clock" in getattr(item, "fixturenames", ()):
        _begin_virtual_time(test)
    yield


def _begin_virtual_time(test: _Test | None) -> VirtualClock:
    """Before the first fixture: one may call a flow, or start a loop."""
    if test is None or (test.clock is None and test.made is not None):
        raise pytest.UsageError(
            "virtual_clock is for tests that have a runtime of their own (asyncflow_runtime = memory) and must be "
            "among a test's arguments or fixtures, not asked for after a flow was called"
        )
    if test.clock is None:
        from asyncflow.testing import VirtualClock

        test.clock = VirtualClock()
        test.clock.__enter__()
    return test.clock


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Called by pytest, for the test's function."""
    test = _current()
    if test is None:
        yield
        return
    function = item.obj if isinstance(item, pytest.Function) else None
    is_async = iscoroutinefunction(function)
    if isinstance(item, pytest.Function) and is_async:
        item.obj = _noting_left_runs(test, item.obj)
    try:
        yield
    finally:
        if isinstance(item, pytest.Function) and is_async:
            item.obj = function
        test.look_for_left_runs()


def _noting_left_runs(test: _Test, function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """The function of a test that looks for runs itself: who runs it may close its loop before anybody else can."""

    @wraps(function)
    async def noting(*args: Any, **options: Any) -> None:
        __tracebackhide__ = True
        try:
            await function(*args, **options)
        finally:
            test.look_for_left_runs()

    return noting


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Called by pytest; goes on when the fixtures of the test have ended."""
    try:
        yield
    finally:
        test = _current()
        try:
            if test is not None:
                test.end()
        finally:
            del _running[-1:]


# --- fixtures


@pytest.fixture
def asyncflow_runtime() -> Runtime:
    """The runtime that the flows of this test are recorded in: in memory, and closed after the test."""
    runtime = runtime_of_test()
    if runtime is None:
        raise pytest.UsageError("this test has no runtime of its own: asyncflow_runtime is 'default' for it")
    runtime.open()
    return runtime


@pytest.fixture
def asyncflow_client(asyncflow_runtime: Runtime) -> Client:
    """A client over the runtime of this test."""
    from asyncflow.client import get_client

    return get_client(asyncflow_runtime)


@pytest.fixture
def asyncflow_logs(asyncflow_runtime: Runtime) -> CapturedLogs:
    """What the runs of this test have logged so far."""
    from asyncflow.testing import CapturedLogs

    return CapturedLogs(asyncflow_runtime)


@pytest.fixture
def asyncflow_events(asyncflow_runtime: Runtime) -> CapturedEvents:
    """What has happened so far in this test: each change of a run's state, and each event that was emitted."""
    from asyncflow.testing import CapturedEvents

    return CapturedEvents(asyncflow_runtime)


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """The time of this test: it jumps when everything waits. All of the test is on it, and its runtime too."""
    return _begin_virtual_time(_current())
