"""The composition root: `Runtime` builds the services, and calls without one share a default.

`asyncflow.runtime.flow_run` and `asyncflow.runtime.task_run` tell a body about the run it is in.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._backend.threads import ThreadPool
from asyncflow._cancellation import bury
from asyncflow._engine.resuming import claim_interrupted, start_again
from asyncflow._key_locks import KeyLocks
from asyncflow._limiter import Limiter
from asyncflow._otel import span_source
from asyncflow._services import Services
from asyncflow._shutdown import shut_down
from asyncflow._upkeep import Upkeep
from asyncflow._watchdog import WATCHDOG
from asyncflow.abc import Clock, RunStore
from asyncflow.clock import SystemClock
from asyncflow.codecs import Codec
from asyncflow.context import FlowRunContext, TaskRunContext
from asyncflow.exceptions import OptionError, RuntimeClosedError, SeveralRuntimesError
from asyncflow.logs import library_logger
from asyncflow.results import FileResults, Storage
from asyncflow.settings import Settings
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore

__all__ = ["HOME", "Runtime", "flow_run", "task_run"]

flow_run: FlowRunContext = FlowRunContext()
"""The flow run whose body executes here: `.id`, `.name`, `.parameters`, ...; `None` or empty outside of any."""
task_run: TaskRunContext = TaskRunContext()
"""The task run whose body executes here, likewise."""

_open: WeakSet[Runtime] = WeakSet()
_entered: list[Runtime] = []
"""Those whose blocks somebody is in, in the order they were entered."""
_CLOSING_SECONDS = 6.0
"""A little more than a store takes at most to close."""
_in_force: ContextVar[Runtime | None] = ContextVar("asyncflow_runtime", default=None)


class Runtime:
    """A store, its result files, and the limits of the runs recorded there.

    `async with asyncflow.Runtime("path/of/home"):` (or `with`, in a script) makes it the one that
    calls inside use. Several can be open in one process. Without any, the first call opens a
    default one for the process, in `.asyncflow/` under the working folder or at `ASYNCFLOW_HOME`.
    On entering the block, interrupted runs of flows declared with `resume="auto"` go on.

    Where nothing is known of the block, as in a request handler, calls use the runtime that was
    entered on their event loop (on a thread without a loop: in the process).

    Leaving the block waits at most `drain_seconds` for the runs that go on (not at all when it is left
    by an exception), then interrupts them: they have `grace_seconds` for their clean-up, their callers
    get `RunInterruptedError`, and they can be resumed.

    `codec` writes and reads the values that are recorded (to encrypt them, say), `storage` keeps
    the large and the cached ones, `store` is a store of the caller's own in place of the home's.
    Each field of `Settings` is a keyword as well. Those that are not given come from the environment,
    from `pyproject.toml`, or are the defaults; with `settings` they come from there alone.

    Opening raises `HomeError` when the home cannot be used, and `UnsupportedSchemaError` when it
    was written by a newer asyncflow.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        store: RunStore | None = None,
        codec: Codec | None = None,
        storage: Storage | None = None,
        clock: Clock | None = None,
        settings: Settings | None = None,
        **fields: Any,
    ) -> None:
        given: dict[str, Any] = {"home": home, **fields}
        self._fields = {name: value for name, value in given.items() if value is not None}
        self._settings = _settings_of(settings, self._fields)
        self._clock = clock or SystemClock()
        for option, value in (("codec", codec), ("storage", storage)):
            if store is not None and value is not None:
                raise OptionError(option, value, "none beside store=, whose results it would not reach")
        self._given_store = store
        self._storage = storage
        self._codec = codec
        self._services: Services | None = None
        self._upkeep: Upkeep | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._token: Token[Runtime | None] | None = None
        self._host: Host | None = None

    @property
    def settings(self) -> Settings:
        """How it behaves. What is written in the environment and in files is read when it opens, or at the first look.

        (That look blocks for about a millisecond: a file is looked for.)
        """
        if self._settings is None:
            self._settings = Settings.load(**self._fields)
        return self._settings

    @property
    def home(self) -> Path:
        """The folder of the database and the result files."""
        return self.settings.home

    @property
    def services(self) -> Services | None:
        """For the engine: what its runs share, while it is open."""
        return self._services

    def open(self, *, upkeep: bool = True) -> Services:
        """Open the store and end the runs of processes that have died. Blocks; a second call gives the same services.

        With `upkeep=False` nothing is ended or deleted, now or later: for those who only look.
        """
        if self._closed:
            raise RuntimeClosedError(self.home)
        if self._services is not None:
            return self._services
        with self._lock:  # several readers may be its first users
            if self._closed:
                raise RuntimeClosedError(self.home)
            if self._services is None:
                services = self._make_services()
                if upkeep and not isinstance(services.store, MemoryStore):
                    self._upkeep = Upkeep(services)
                    self._upkeep.open()  # before the first run
                self._services = services
                _open.add(self)
                if services.settings.blocked_loop_seconds:
                    WATCHDOG.watch(services)
            return self._services

    def _make_services(self) -> Services:
        store, results, key_locks = self._given_store, None, KeyLocks()
        if store is None:
            key_locks = KeyLocks(self.home / "locks")
            results = FileResults(self.home, codec=self._codec, storage=self._storage)
            store = SQLiteStore(self.home, self.settings, results)
        return Services(
            store=store,
            results=results,
            settings=self.settings,
            clock=self._clock,
            spans=span_source(self.settings.otel),
            threads=ThreadPool(self.settings.max_threads),
            key_locks=key_locks,
            tag_limits={tag: Limiter(limit) for tag, limit in self.settings.tag_limits.items()},
        )

    def stop(self) -> None:
        """Take no more outermost runs from now on; from any thread, or a signal handler.

        It is what leaving the block begins with. A run whose caller is cancelled from now on is
        interrupted, not cancelled.
        """
        if self._services is not None:
            self._services.intake.is_open = False

    @contextmanager
    def as_current(self) -> Generator[Self]:
        """Have the calls inside use this runtime, where several are open."""
        token = _in_force.set(self)
        try:
            yield self
        finally:
            _in_force.reset(token)

    def close(self) -> None:
        """Write what waits and release everything. Blocks; a second call does nothing."""
        with self._lock:  # one that is being opened, by a thread whose caller was cancelled, is there when that is done
            self._closed = True
            _open.discard(self)
            services, self._services = self._services, None
            upkeep, self._upkeep = self._upkeep, None
        if upkeep is not None:
            upkeep.stop()
        if services is not None:
            WATCHDOG.forget(services)
            for run in services.live():  # of a loop that was stopped in the middle: nothing can end it now
                bury(run, "its runtime was closed before it ended")
            services.store.close()
        if upkeep is not None:
            upkeep.join()

    def __enter__(self) -> Self:
        try:
            services = self.open()
            self._enter(host_here(self._clock))
            start_again(services, claim_interrupted(services))
        except BaseException:  # a block that is not entered is not left
            self._leave()
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._services is not None and not loop_is_running_here():  # there it would wait for itself
                drive(shut_down(self._services, host_here(self._clock), drain=exc is None))
        finally:
            self._leave()
            self.close()

    async def __aenter__(self) -> Self:
        host = host_here(self._clock)
        try:
            services = await host.run_blocking(self.open)
            self._enter(host)
            start_again(services, await services.ask(host, partial(claim_interrupted, services)))
        except BaseException as error:  # as in `__enter__`
            self._leave()
            await self._close_undisturbed(host, error)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        host = host_here(self._clock)
        try:
            if self._services is not None:
                await shut_down(self._services, host, drain=exc is None)
        finally:
            self._leave()
            await self._close_undisturbed(host, exc)

    async def _close_undisturbed(self, host: Host, exc: BaseException | None) -> None:
        # Undisturbed: a cancelled program still writes what it has recorded.
        is_closed = False

        async def close() -> None:
            nonlocal is_closed
            await host.run_blocking(self.close)
            is_closed = True

        held_back = await host.protect(close, max(self.settings.durability_seconds * 2, _CLOSING_SECONDS))
        if not is_closed:
            library_logger().error(
                "the runtime on %r was left before everything was written: the disk did not answer", str(self.home)
            )
        if held_back is not None and exc is None:
            raise held_back

    def _enter(self, host: Host) -> None:
        self._host = host
        _entered.append(self)
        self._token = _in_force.set(self)

    @property
    def is_of_this_loop(self) -> bool:
        """For the library: whether its block was entered on the event loop that runs here."""
        return self._host is not None and not self._host.is_inline and self._host.here()

    @property
    def is_of_no_loop(self) -> bool:
        """For the library: whether its block was entered on a thread without an event loop."""
        return self._host is not None and self._host.is_inline

    def _leave(self) -> None:
        if self in _entered:
            _entered.remove(self)
        token, self._token = self._token, None
        if token is not None:
            with suppress(ValueError):  # left in another task than it was entered in: its context goes with that one
                _in_force.reset(token)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._services else "not open"
        known = self._fields.get("home", "(home not read yet)") if self._settings is None else self._settings.home
        return f"<asyncflow.Runtime {str(known)!r} {state}>"


def _settings_of(settings: Any, fields: dict[str, Any]) -> Settings | None:
    """What the arguments of a runtime say, if that is everything; None when the rest is still to be read."""
    if settings is None:
        Settings(**fields)  # so that a wrong argument is told where it was written
        return None
    if not isinstance(settings, Settings):
        raise OptionError("settings", settings, "an asyncflow.Settings; single fields go by keyword")
    return replace(settings, **fields)


class _Home:
    """Which runtime outermost calls use: the one in force, else the process's default."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._default: Runtime | None = None

    def in_force(self) -> Services | None:
        """The services to use here, or None when the default runtime is not open yet."""
        runtime = self.entered() or self._default
        return None if runtime is None else runtime.open()

    def explicit(self) -> Services | None:
        """The services of the runtime opened by hand that is in force here, or None."""
        runtime = self.entered()
        return None if runtime is None else runtime.open()

    def entered(self) -> Runtime | None:
        """The runtime opened by hand that calls here belong to, or None.

        A request handler runs in a task that knows nothing of the block around the server: it is the one
        entered on its loop. Raises `SeveralRuntimesError` when there are several.
        """
        runtime = _in_force.get()
        if runtime is not None or not _entered:
            return runtime or self._of_test()
        here = [each for each in list(_entered) if each.is_of_this_loop] if loop_is_running_here() else list(_entered)
        here = here or [each for each in list(_entered) if each.is_of_no_loop]
        if len(here) > 1:
            raise SeveralRuntimesError([each.home for each in here])
        return here[0] if here else self._of_test()

    def _of_test(self) -> Runtime | None:
        """The runtime of the pytest test that goes on here, which takes the place of one opened by hand."""
        # Looked up and not registered with us: pytest's plugin is there first, and imports nothing of asyncflow's.
        plugin = sys.modules.get("_asyncflow_pytest")
        return None if plugin is None else plugin.runtime_of_test()

    def every_open(self) -> list[Services]:
        """The services of all runtimes of this process that are open."""
        return [services for runtime in list(_open) if (services := runtime.services) is not None]

    def open_default(self, *, upkeep: bool = True) -> Services:
        """Open the default runtime, once per process; `upkeep` is as for `Runtime.open`. Blocks."""
        with self._lock:
            if self._default is None:
                runtime = Runtime()
                services = runtime.open(upkeep=upkeep)
                self._default = runtime
                # What was recorded and waits is written; threads of ours are daemons by then.
                atexit.register(runtime.close)
                return services
            return self._default.open()

    def close_default(self) -> None:
        """Close the default runtime, so that the next call opens a new one. Blocks."""
        with self._lock:
            runtime, self._default = self._default, None
        if runtime is not None:
            atexit.unregister(runtime.close)
            runtime.close()

    def forget_default(self) -> None:
        """In a new child process: the parent's runtime is not ours to close."""
        self._lock = threading.Lock()
        self._default = None


HOME = _Home()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=HOME.forget_default)
