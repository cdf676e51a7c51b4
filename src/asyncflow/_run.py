"""The live run: one private, mutable object per run, from its call to its record.

The runs of a call form a tree of their own, and the tree decides: a run knows its parent and its
open children, and the first cause of its cancelling. (The backends' scopes cannot: children under
`asyncio.gather` inherit none.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from asyncflow._backend.base import Host, RunScope, Signal
from asyncflow._causes import Cause
from asyncflow._limiter import Limiter
from asyncflow._past import Past
from asyncflow._places import Places
from asyncflow._recorded import ENDING, UNBORN, Recorded
from asyncflow._rows import FLOW, TASK, CachedRow
from asyncflow._services import Services
from asyncflow._spans import Spans
from asyncflow._specs import Spec
from asyncflow.ids import new_id
from asyncflow.states import ABSENT

__all__ = ["BESIDE", "Companion", "Enclosing", "Producer", "Run", "Waiter", "current_transaction", "detached_from"]


class Producer(Protocol):
    """What a generator's run does instead of calling its function."""

    async def produce(self, run: Run) -> None:
        """Hand over each item; returns when there are no more."""
        ...

    def stop(self) -> None:
        """Ask the body to stop."""
        ...


class Companion(Protocol):
    """Something of ours that serves a run's body in a task of its own, and ends with it."""

    def stop(self) -> None:
        """Ask it to end; it then leaves the run."""
        ...


class Enclosing(Protocol):
    """The transaction around a call: it decides when what the run leaves behind counts."""

    def begun(self, run: Run) -> None:
        """A run has been called inside it. Raises when it takes none any more."""
        ...

    def ended(self, run: Run) -> None:
        """The run has its final state. Plain code, on the run's host."""
        ...

    def stage(self, row: CachedRow) -> None:
        """Keep this value under its key when the transaction commits, and not before."""
        ...


current_transaction: ContextVar[Enclosing | None] = ContextVar("asyncflow_transaction", default=None)
detached_from: ContextVar[Run | None] = ContextVar("asyncflow_detached_from", default=None)
"""The run in whose body `detached()` is."""


class _Beside:
    """Around what hooks call: it belongs to no transaction, and is no part of what the body does.

    So it is done each time its hook is called, also when the run is run again, and its record is not
    taken for that of an equal call of the body.
    """

    def begun(self, run: Run) -> None:
        run.transaction = None
        run.is_beside = True

    def ended(self, run: Run) -> None: ...

    def stage(self, row: CachedRow) -> None: ...


BESIDE: Enclosing = _Beside()


class Waiter:
    """Somebody who waits for a run's outcome: `wake` is called when it is there, from any thread."""

    __slots__ = ("is_thread", "run", "wake")

    def __init__(self, wake: Callable[[], object], run: Run | None = None, *, is_thread: bool = False) -> None:
        self.wake = wake
        self.run = run
        """The run whose body waits, if one does."""
        self.is_thread = is_thread
        """Whether it blocks a thread, which no cancellation can reach: it is woken, and looks."""


class Run(Recorded):
    """One call of a flow or task while it lasts. Touched on its host only, except where said."""

    __slots__ = (
        "cause", "children", "closing", "companions", "depth", "drained", "host", "interrupted", "is_abandoned",
        "is_beside", "is_durable", "is_forsaken", "is_hosted", "is_settled", "is_special", "is_stopped",
        "limiters", "looked_at", "owner", "parent", "past", "places", "run_key", "scope", "span", "spans", "spent",
        "stream", "task", "timers", "told", "transaction", "unseen", "wait_for", "waiters", "waits", "workers",
    )  # fmt: skip

    owner: object
    """The `Flow` or `Task` that was called; hooks get it."""
    parent: Run | None
    host: Host
    depth: int
    task: object
    """The backend's task its body runs in; None until it has begun."""

    # the tree
    children: dict[Run, None] | None
    """Open runs called under this one, in the order they began; made with the first."""
    companions: dict[Companion, None] | None
    stream: Producer | None
    closing: bool
    """Set when the body has ended: nothing may begin under it any more."""
    drained: Signal | None
    interrupted: list[Run] | None
    """Those called under this one that were interrupted, while it may still end in another way."""

    # cancelling
    cause: Cause | None
    told: bool
    """Whether its cancellation was delivered, or is held back until the body can take it."""
    timers: list[Callable[[], None]] | None
    """What cancels the timers of the grace time that began with this run."""
    scope: RunScope | None
    is_stopped: bool
    """Whether its sync body was told, in its own thread, that it is to stop."""
    is_abandoned: bool
    """Whether its thread goes on although it was given up."""

    # submitting
    is_hosted: bool
    """Whether the library hosts it, in a task of its own: it was submitted."""
    is_special: bool
    """Whether there is more to look at before it begins than for a plain call."""
    wait_for: Any
    """Futures that it waits for beside those in its arguments."""
    limiters: Sequence[Limiter] | None
    """The limits that its body needs a place of."""
    places: Places | None
    """Those that it has."""
    workers: Limiter | None
    """Of a flow run: the places of its task runner."""

    # running again
    is_beside: bool
    """Whether a hook has called it, and not the body of its parent."""
    past: Past | None
    """What is recorded of its children, when it runs again."""
    spent: int
    """Attempts that do not count any more: those of a run that had failed for good before it was run again."""
    run_key: str | None
    """What tells it from equal calls."""

    # what it leaves behind
    is_durable: bool
    """Whether its caller waits until its final state is on disk, although it is not outermost."""
    transaction: Enclosing | None

    # what traces it
    spans: Spans | None
    """What makes its span, where its tree is traced."""
    span: Any

    # its outcome
    is_settled: bool
    """Whether whoever waits for its outcome may have it."""
    waiters: dict[Waiter, None] | None
    """Who waits for its outcome."""
    waits: dict[Waiter, Run | None] | None
    """What its body waits for."""
    looked_at: bool
    """Whether anybody took its outcome, or will."""
    is_forsaken: bool
    """Whether nobody holds its future any more."""
    unseen: dict[bytes, str] | None
    """Submitted children that failed and that nobody looked at: what to tell of each, and no more of it."""

    def __init__(
        self,
        spec: Spec,
        arguments: dict[str, Any],
        *,
        parent: Run | None,
        host: Host,
        services: Services,
        owner: object,
        tags: frozenset[str],
    ) -> None:
        self.spec = spec
        self.owner = owner
        self.arguments = arguments
        self.parent = parent
        self.host = host
        self.services = services
        self.kind = FLOW if spec.is_flow else TASK
        self.stand_in_id = None
        if parent is None:
            self.id = self.root_id = new_id()
            self.parent_id = self.flow_run_id = None
            self.depth = 1
            self.is_special = False
            self.is_durable = spec.options.durability == "task"
            self.spans = None if services.spans is None else services.spans()
        else:
            if spec.is_flow:  # before its own id: the task run that stands for it comes first
                self.stand_in_id = new_id()
            self.id = new_id()
            self.root_id = parent.root_id
            self.parent_id = parent.id
            self.flow_run_id = parent.id if parent.kind == FLOW else parent.flow_run_id
            self.depth = parent.depth + 1
            self.is_special = parent.past is not None or self.depth > services.settings.nesting_limit
            self.is_durable = parent.is_durable or spec.options.durability == "task"
            self.spans = parent.spans
        self.tags = tags
        self.transaction = current_transaction.get()
        self.status = UNBORN
        self.value = ABSENT
        self.created = self.latest = self.run_count = self.spent = self.journalled = 0
        self.queued = self.closing = self.told = self.is_abandoned = self.is_stopped = False
        self.is_hosted = self.is_forsaken = self.is_settled = self.looked_at = self.is_answered = self.is_beside = False
        self.name = self.parameters_json = self.started = self.ended = self.facts = self.history = None
        self.error = self.result = self.error_json = self.not_kept = self.task = self.children = None
        self.companions = self.stream = self.drained = self.cause = self.timers = self.scope = None
        self.digest = self.origin = self.past = self.run_key = None
        self.interrupted = self.wait_for = self.limiters = self.places = self.workers = None
        self.waiters = self.waits = self.unseen = self.span = None

    # --- the tree

    def link(self) -> bool:
        """Join the parent's open children; false when the parent takes none any more.

        Safe on any thread without a lock: the child enters *before* it looks at `closing`, and
        the parent closes before it looks at its children, so at least one sees the other.
        """
        if self.transaction is not None:
            self.transaction.begun(self)
        parent = self.parent
        if parent is None:
            self.services.outermost.add(self)
            if self.services.intake.is_open or self._may_follow():  # looked at after it was entered, as below
                return True
            self.services.outermost.discard(self)
            return False
        if parent.children is None:
            with ENDING:  # two threads may bring a first child each
                if parent.children is None:
                    parent.children = {}
        parent.children[self] = None
        if parent.closing:
            self.unlink()
            if self.transaction is not None:
                self.transaction.ended(self)
            return False
        return True

    def _may_follow(self) -> bool:
        """Whether a run that goes on has detached it from itself, in a runtime that is drained."""
        origin = detached_from.get()
        if origin is None or origin.is_over or origin.services is not self.services:
            return False
        return self.services.intake.is_draining

    def unlink(self) -> None:
        """Leave the parent's open children, and wake the parent if it waits for its last one."""
        if self.timers is not None:
            self.stop_timers()
        parent = self.parent
        if parent is None:
            self.services.outermost.discard(self)
            if self.services.held:
                self.services.held.pop(self.id, None)
            return
        if parent.children is None:
            return
        parent.children.pop(self, None)
        drained = parent.drained
        if drained is not None and parent.is_alone:
            drained.set()

    @property
    def is_alone(self) -> bool:
        """Whether nothing that this run started is left."""
        return not self.children and not self.companions

    def leave(self, companion: Companion) -> None:
        """A companion has ended; on this run's host."""
        if self.companions is not None:
            self.companions.pop(companion, None)
        if self.drained is not None and self.is_alone:
            self.drained.set()

    def mark(self, cause: Cause) -> None:
        """Give this run and everything open below it a cause, where there is none yet."""
        pending: list[Run] = [self]
        while pending:
            run = pending.pop()
            if run.cause is None:
                run.cause = cause
            run.wake_threads()
            pending.extend(run.children or ())

    def wake_threads(self) -> None:
        """Wake the threads that wait for a run in this one's body, to look whether they are to stop."""
        for waiter in list(self.waits or ()):
            if waiter.is_thread:
                waiter.wake()

    def stop_timers(self) -> None:
        """The grace time that began with this run is over, or nobody needs it any more."""
        timers, self.timers = self.timers, None
        for stop in timers or ():
            stop()

    def leave_places(self) -> None:
        """The body has ended: what is left of the run needs no place."""
        places, self.places = self.places, None
        if places is not None:
            places.leave()

    # --- its outcome

    def attend(self, waiter: Waiter) -> None:
        """Have `waiter` woken when the outcome is there, or now if it is. From any thread."""
        if self.waiters is None:
            with ENDING:  # as for the first child
                if self.waiters is None:
                    self.waiters = {}
        self.waiters[waiter] = None
        # It enters before it looks, and `settle` says so before it looks: one of them wakes it,
        # and `pop` lets only one.
        if self.is_settled and self.waiters.pop(waiter, self) is None:
            waiter.wake()

    def desert(self, waiter: Waiter) -> None:
        """Wait no longer. From any thread."""
        if self.waiters is not None:
            self.waiters.pop(waiter, None)

    def look(self) -> None:
        """Somebody took its outcome, or will."""
        self.looked_at = True
        if self.parent is not None and self.parent.unseen:
            self.parent.unseen.pop(self.id, None)

    def settle(self) -> None:
        """Say that the outcome is there, and wake everybody who waits for it, in the order they came."""
        self.is_settled = True
        waiters = self.waiters
        while waiters:
            try:
                waiter = next(iter(waiters))
            except (StopIteration, RuntimeError):  # somebody else was quicker
                continue
            if waiters.pop(waiter, self) is None:
                try:
                    waiter.wake()
                except BaseException:  # a Ctrl-C: the others have to be woken all the same
                    self.settle()
                    raise
