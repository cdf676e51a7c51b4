"""The composition root: `Runtime` builds the services, and calls without one share a default.

`asyncflow.runtime.flow_run` and `asyncflow.runtime.task_run` tell a body about the run it is in.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextvars import ContextVar, Token
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._backend.threads import ThreadPool
from asyncflow._cancellation import bury, cancel
from asyncflow._engine.resuming import claim_interrupted, start_again
from asyncflow._key_locks import KeyLocks
from asyncflow._limiter import Limiter
from asyncflow._outcomes import wait_settled
from asyncflow._run import Cause, Run
from asyncflow._services import Services
from asyncflow._upkeep import Upkeep
from asyncflow.abc import Clock, RunStore
from asyncflow.clock import SystemClock
from asyncflow.codecs import Codec
from asyncflow.context import FlowRunContext, TaskRunContext
from asyncflow.exceptions import OptionError, RuntimeClosedError
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
_in_force: ContextVar[Runtime | None] = ContextVar("asyncflow_runtime", default=None)


class Runtime:
    """A store, its result files, and the limits of the runs recorded there.

    `async with asyncflow.Runtime("path/of/home"):` (or `with`, in a script) makes it the one that
    calls inside use. Several can be open in one process. Without any, the first call opens a
    default one for the process, in `.asyncflow/` under the working folder or at `ASYNCFLOW_HOME`.
    On entering the block, interrupted runs of flows declared with `resume="auto"` go on.

    `codec` writes and reads the values that are recorded (to encrypt them, say), `storage` keeps
    the large and the cached ones, `store` is a store of the caller's own in place of the home's.

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
        **settings: Any,
    ) -> None:
        self.settings: Settings = Settings.load(home=home, **settings)
        self._clock = clock or SystemClock()
        for option, value in (("codec", codec), ("storage", storage)):
            if store is not None and value is not None:
                raise OptionError(option, value, "none beside store=, whose results it would not reach")
        self._given_store = store
        self._storage = storage
        self._codec = codec
        self._codec = codec
        self._storage = storage
        self._services: Services | None = None
        self._upkeep: Upkeep | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._token: Token[Runtime | None] | None = None

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
            threads=ThreadPool(self.settings.max_threads),
            key_locks=key_locks,
            tag_limits={tag: Limiter(limit) for tag, limit in self.settings.tag_limits.items()},
        )

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
            for run in services.live():  # of a loop that was stopped in the middle: nothing can end it now
                bury(run, "its runtime was closed before it ended")
            services.store.close()
        if upkeep is not None:
            upkeep.join()

    def __enter__(self) -> Self:
        try:
            services = self.open()
            self._token = _in_force.set(self)
            start_again(services, claim_interrupted(services))
        except BaseException:  # a block that is not entered is not left
            self._leave()
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not loop_is_running_here():  # it would wait for itself
            drive(self._finish_submitted(failed=exc is not None))
        self._leave()
        self.close()

    async def __aenter__(self) -> Self:
        host = host_here(self._clock)
        try:
            services = await host.run_blocking(self.open)
            self._token = _in_force.set(self)
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
            await self._finish_submitted(failed=exc is not None)
        finally:
            self._leave()
            await self._close_undisturbed(host, exc)

    async def _close_undisturbed(self, host: Host, exc: BaseException | None) -> None:
        # Undisturbed: a cancelled program still writes what it has recorded.
        held_back = await host.protect(lambda: host.run_blocking(self.close), self.settings.durability_seconds * 2)
        if held_back is not None and exc is None:
            raise held_back

    async def _finish_submitted(self, *, failed: bool) -> None:
        """Wait for the runs that were submitted outside of any run; a block that failed cancels them."""
        host = host_here(self._clock)
        try:
            while not failed and (left := self._submitted()):
                await _wait_for_all(left, host)
        finally:
            left = self._submitted()
            for run in left:
                cancel(run, Cause("cancelled because its runtime was closed"))
            if left:
                await host.protect(partial(_wait_for_all, left, host), self.settings.grace_seconds + 1)

    def _submitted(self) -> list[Run]:
        services = self._services
        return [] if services is None else [run for run in services.live() if run.is_hosted]

    def _leave(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            _in_force.reset(token)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._services else "not open"
        return f"<asyncflow.Runtime {str(self.home)!r} {state}>"


async def _wait_for_all(runs: list[Run], host: Host) -> None:
    for run in runs:
        await wait_settled(run, host, None)


class _Home:
    """Which runtime outermost calls use: the one in force, else the process's default."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._default: Runtime | None = None

    def in_force(self) -> Services | None:
        """The services to use here, or None when the default runtime is not open yet."""
        runtime = _in_force.get() or self._default
        return None if runtime is None else runtime.open()

    def explicit(self) -> Services | None:
        """The services of the runtime opened by hand that is in force here, or None."""
        runtime = _in_force.get()
        return None if runtime is None else runtime.open()

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
