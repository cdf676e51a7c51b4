"""Futures: handles of submitted runs, awaited in async code, waited for on worker threads.

One makes nothing of a loop until somebody waits, so 20,000 of them cost little, and any number of
tasks, threads and loops may wait for the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, Literal, Self, TypeVar, cast, overload
from uuid import UUID

from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._cancellation import cancel, end_tree
from asyncflow._causes import Cause
from asyncflow._outcomes import time_to_wait, wait_settled
from asyncflow._rows import maybe_uuid
from asyncflow._rules import one_error
from asyncflow._run import Run, Waiter
from asyncflow._unseen import forsake
from asyncflow.context import current_run
from asyncflow.exceptions import StoreError, WaitOnEventLoopError, WaitTimeoutError
from asyncflow.logs import library_logger
from asyncflow.placeholders import Awaited
from asyncflow.retries import Seconds
from asyncflow.states import State

__all__ = ["FlowRunFuture", "FutureList", "RunFuture", "TaskFuture"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class RunFuture(Awaited, Generic[T_co]):
    """A submitted run, as whoever submitted it holds it.

    `await future` gives the run's value or raises its exception, as often as it is asked.
    Cancelling such a wait does not cancel the run; `future.cancel()` does.
    """

    __slots__ = ("_run", "_traceback")

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._traceback: Any = None

    def __await__(self) -> Generator[Any, Any, T_co]:
        if not self._run.is_settled:  # most often it is, where many are awaited one after the other
            host = host_here(self._run.services.clock)
            yield from wait_settled(self._run, host, current_run.get()).__await__()
        try:
            return self._outcome()
        finally:
            del self  # as there

    @overload
    def result(self, timeout: Seconds | None = None, raise_on_failure: Literal[True] = True) -> T_co: ...
    @overload
    def result(self, timeout: Seconds | None = None, *, raise_on_failure: bool) -> T_co | BaseException: ...
    def result(self, timeout: Seconds | None = None, raise_on_failure: bool = True) -> T_co | BaseException:
        """The value, for sync code; waits for it, at most `timeout` seconds.

        A run that ended otherwise raises its exception, or gives it when `raise_on_failure` is
        false. Raises `WaitTimeoutError` (a `TimeoutError`) when the time is over, and on the
        thread of an event loop, which it would block, `WaitOnEventLoopError` unless it is done.
        """
        if not self._block(timeout, "result", "await future"):
            raise WaitTimeoutError(self._run.display_name, time_to_wait(timeout) or 0)
        if raise_on_failure or self._run.error is None:
            return self._outcome()
        self._run.look()
        return self._run.error

    def wait(self, timeout: Seconds | None = None) -> bool:
        """Block until it is done, at most `timeout` seconds; gives whether it is. Raises as `result` does."""
        return self._block(timeout, "wait", f"await future.wait_async({'' if timeout is None else timeout})")

    def _block(self, timeout: Seconds | None, called: str, instead: str) -> bool:
        run, seconds = self._run, time_to_wait(timeout)
        if not run.is_settled:
            if loop_is_running_here():
                raise WaitOnEventLoopError(f"future.{called}()", instead)
            drive(wait_settled(run, host_here(run.services.clock), current_run.get(), seconds))
        return run.is_settled

    async def wait_async(self, timeout: Seconds | None = None) -> bool:  # gives whether, raises nothing
        """Wait until it is done, at most `timeout` seconds, without taking the value; gives whether it is."""
        run, seconds = self._run, time_to_wait(timeout)
        if not run.is_settled:
            await wait_settled(run, host_here(run.services.clock), current_run.get(), seconds)
        return run.is_settled

    def _outcome(self) -> T_co:
        run = self._run
        if not run.looked_at:
            run.look()
        error = run.error
        if error is None:
            return cast("T_co", run.value)
        # With the traceback it came with: each raise would add its own frames to it for good.
        self._traceback = self._traceback or error.__traceback__
        try:
            raise error.with_traceback(self._traceback)
        finally:
            del run, error, self  # its traceback holds this frame: nothing here may hold the exception

    @property
    def state(self) -> State[T_co]:
        """The run's newest state."""
        run = self._run
        if run.is_settled:
            run.look()
        return run.state()

    def done(self) -> bool:
        """Whether the run has its final state and its outcome can be had at once."""
        return self._run.is_settled

    def cancel(self) -> bool:
        """Cancel the run and everything below it, at once, from any task or thread; false when it has ended.

        It is recorded Cancelled when its `finally` blocks are done; who awaits it gets `RunCancelledError`.
        """
        run = self._run
        run.look()
        by = current_run.get()
        who = "" if by is None else f" by {by.spec.kind.value} run {by.display_name!r}"
        return cancel(run, Cause(f"cancelled through its future{who}"))

    def add_done_callback(self, fn: Callable[[Self], object]) -> None:
        """Call `fn(future)` once when it is done, or at once if it is; what it raises is logged.

        It is called in the task or thread that ended the run, so it must be short.
        """

        def call() -> None:
            try:
                fn(self)
            except BaseException as error:  # noqa: BLE001  # theirs, whatever it is: the run has ended
                library_logger().exception("a done callback of run %r raised", self._run.display_name)
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    end_tree(self._run, "a done callback of {run} raised {error}", error)

        self._run.attend(Waiter(call))

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.parent is None and not run.looked_at:
            forsake(run)  # no run around it will tell of a failure that nobody looked at

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run.display_name

    @property
    def run(self) -> Run:
        """For the engine: the live run."""
        return self._run

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run.display_name!r} {self._run.state().name}>"


class TaskFuture(RunFuture[T_co]):
    """A submitted task run."""

    __slots__ = ()

    @property
    def task_run_id(self) -> UUID:
        """The task run's id."""
        return UUID(bytes=self._run.id)


class FlowRunFuture(RunFuture[T_co]):
    """A submitted flow run."""

    __slots__ = ()

    @property
    def flow_run_id(self) -> UUID:
        """The flow run's id."""
        return UUID(bytes=self._run.id)

    @property
    def task_run_id(self) -> UUID | None:
        """The id of the task run that stands for it in the run it is nested in; None for an outermost one."""
        return maybe_uuid(self._run.stand_in_id)

    async def recorded(self) -> Self:
        """Wait until the run is on disk, with its parameters; gives the future itself.

        Whoever is told its id from then on finds it, from any process and whatever happens to this
        one: what a handler waits for before it answers "202 Accepted". Raises `StoreError` when the
        disk does not confirm it within `durability_seconds`.
        """
        run, pause = self._run, 0.0
        services = run.services
        host = host_here(services.clock)
        while not run.is_settled and (not run.status.seq or run.parameters_json is None):
            await host.sleep(pause)  # for its task to begin; one that waits for other futures takes longer
            pause = min(pause * 2 or 0.001, 0.05)
        seconds = services.settings.durability_seconds
        on_disk, problem, held_back = await host.confirm(services.store, seconds)
        if held_back is not None:
            raise held_back
        if not on_disk:
            reason = problem or services.store.last_error or f"no word from the disk within {seconds:g} seconds"
            raise StoreError(f"recording run {run.display_name!r}", services.settings.home, reason) from problem
        return self


class FutureList(list[RunFuture[T]]):
    """What `map` gives: the futures, in the order of the items, awaitable as a whole."""

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._values().__await__()

    async def _values(self) -> list[T]:
        for future in self:
            await future.wait_async()
        return self.result()

    def result(self, timeout: Seconds | None = None, raise_on_failure: bool = True) -> list[T]:
        """The values in order, for sync code; waits for all of them, at most `timeout` seconds together.

        When one failed, raises its exception; when several did, an `ExceptionGroup` of them. With
        `raise_on_failure=False` the exceptions stand in the list.
        """
        self._block(timeout, "result", "await futures")
        outcomes: list[Any] = [each.result(raise_on_failure=False) for each in self]
        failed = [each.run.error for each in self if each.run.error is not None]
        if failed and raise_on_failure:
            raise one_error(failed)
        return outcomes

    def wait(self, timeout: Seconds | None = None) -> bool:
        """Block until all are done, at most `timeout` seconds; gives whether they are."""
        try:
            self._block(timeout, "wait", "await asyncflow.wait(futures)")
        except WaitTimeoutError:
            return False
        return True

    def _block(self, timeout: Seconds | None, called: str, instead: str) -> None:
        if not self:
            return
        if loop_is_running_here() and not all(future.done() for future in self):
            raise WaitOnEventLoopError(f"futures.{called}()", instead)
        clock = self[0].run.services.clock
        seconds = time_to_wait(timeout)
        until = None if seconds is None else clock.monotonic() + seconds
        for future in self:
            if not future.wait(None if until is None else until - clock.monotonic()):
                raise WaitTimeoutError(future.name, seconds or 0)
