"""The runs inside a transaction: those that go on, and what became of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from asyncflow._backend.base import Host
from asyncflow._cancellation import bury, cancel
from asyncflow._causes import Cause
from asyncflow._outcomes import wait_settled
from asyncflow._run import Run, Waiter
from asyncflow.context import current_run
from asyncflow.states import StateType

__all__ = ["Members", "was_committed"]


class Members:
    """Entered and left on any thread, without a lock: each change is a single step of a dict or list."""

    def __init__(self) -> None:
        self._open: dict[Run, None] = {}
        self._concluding: dict[Run, None] = {}
        """Those with a final state that something follows: hooks of theirs, and a value to be cached."""
        self._failed: list[Run] = []
        self.completed: list[bytes] = []

    def enter(self, run: Run) -> None:
        """A run begins; one that the run around it is about to refuse does not."""
        if run.parent is None or not run.parent.closing:
            self._open[run] = None

    def forget(self, run: Run) -> None:
        """A run that was refused."""
        self._open.pop(run, None)

    def __contains__(self, run: Run) -> bool:
        return run in self._open

    def leave(self, run: Run) -> None:
        """A run has ended, and all that it leaves behind is there: whoever waits for it may go on at once."""
        if run.status.type is StateType.COMPLETED:
            if not was_committed(run):  # what was committed in an earlier life stays so, whatever becomes of this one
                self.completed.append(run.id)
        elif run.is_hosted and run.status.type is not None:
            self._failed.append(run)
        if run.spec.has_aftermath:
            self._concluding[run] = None  # before it leaves: it is always in one of the two
            run.attend(Waiter(partial(self._concluding.pop, run, None)))
        self._open.pop(run, None)

    @property
    def are_gone(self) -> bool:
        """Whether none goes on."""
        return not self._open and not self._concluding

    async def wait(self, host: Host, ended: Callable[[Run], None]) -> None:
        """Wait until none goes on; `ended` is called for those that left no word of their end."""
        waiting = current_run.get()
        while not self.are_gone:
            for run in list(self._open):
                _end_what_nobody_drives(run, host)
                await wait_settled(run, host, waiting)
                if run in self._open:  # given up, or its loop is gone
                    ended(run)
            for run in list(self._concluding):
                await wait_settled(run, host, waiting)

    async def unseen_failure(self, host: Host) -> BaseException | None:
        """The exception of the first submitted one that did not complete and that nobody looked at."""
        waiting = current_run.get()
        for run in self._failed:
            await wait_settled(run, host, waiting)  # its record is there; its outcome may come a moment later
            if not run.looked_at and run.error is not None:
                run.look()  # it is told here, and not again at the end of the run around it
                return run.error
        return None

    async def stop(self, host: Host, seconds: float) -> BaseException | None:
        """Cancel those that go on, and wait at most `seconds`, undisturbed; gives what was held back."""
        above = set(_lineage(current_run.get()))
        left = [run for run in self._open if run not in above]
        for run in left:
            _end_what_nobody_drives(run, host)
        for run in left:
            if run.parent not in self._open:  # those below another are told with it
                cancel(run, Cause("cancelled because its transaction is rolled back"))
        return await host.protect(partial(_until_settled, left, host), seconds) if left else None


def was_committed(run: Run) -> bool:
    """Whether it is answered from a record that a transaction of an earlier life has committed."""
    return run.is_answered and "committed" in (run.facts or {})


async def _until_settled(runs: list[Run], host: Host) -> None:
    for run in runs:
        await wait_settled(run, host, None)


def _end_what_nobody_drives(run: Run, host: Host) -> None:
    """As a run does at the end of its body: a stream that is parked is closed, an abandoned call is recorded."""
    if run.stream is not None:
        if run.host.here():
            run.stream.stop()
        else:
            run.host.post(run.stream.stop)
    elif run.task is host.current_task() and run not in _lineage(current_run.get()):
        bury(run, "it was abandoned before it ended")


def _lineage(run: Run | None) -> list[Run]:
    found: list[Run] = []
    while run is not None:
        found.append(run)
        run = run.parent
    return found
