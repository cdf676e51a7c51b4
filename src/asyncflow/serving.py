"""`serve`: schedules deployments, and runs what is asked of them, in this process and on this loop.

A server holds nothing that another one does not find in the store. It claims runs that are due, begins
each outside of any other run, and looks again when something may have changed: a bell, a slot, one of its
runs that ended. A second passes at most until it looks by itself, so that nothing depends on a bell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast
from uuid import UUID

from asyncflow._alarm import Alarm
from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._deployments.complaints import Complaints
from asyncflow._deployments.run_ends import LOOK_SECONDS, listening
from asyncflow._engine.declared import Declared
from asyncflow._engine.deployed import start_claimed
from asyncflow._given import not_recorded
from asyncflow._rows import RunRow
from asyncflow._rule_rows import decided_at, followed_state
from asyncflow._services import Services
from asyncflow._serving.scheduling import Scheduler
from asyncflow._upkeep import end_runs_of_dead, microseconds_now
from asyncflow.clock import SystemClock
from asyncflow.deployments import Deployment
from asyncflow.exceptions import (
    DeploymentError,
    ForkedRuntimeError,
    MissingParametersError,
    NothingToServeError,
    OptionError,
    RuntimeClosedError,
    RuntimeStoppingError,
)
from asyncflow.futures import FlowRunFuture
from asyncflow.logs import library_logger
from asyncflow.runtime import HOME, Runtime

__all__ = ["Server", "serve"]

_MICRO = 1_000_000
_LATE = 15 * _MICRO
"""How long after it was due a run that waits is called Late."""
_MARK_EVERY = 5 * _MICRO
_REQUEUE_EVERY = 5 * _MICRO
"""How often interrupted runs are looked for; after a bell at the latest a second after the last time."""
_DEAD_EVERY = _MICRO // 2
"""How often dead processes are looked for while runs wait for a place: one of them may hold it."""
_BATCH = 100
"""Most runs that are begun in one turn: the loop's other tasks have theirs in between."""


async def serve(*deployments: Deployment, limit: int | None = None) -> None:
    """Make deployments known, and run them here: by their schedules and triggers, and for whoever asks.

    It ends when it is cancelled, or when its runtime is stopped. It begins no more runs then; those that
    go on are the runtime's, which waits for them and interrupts them as it does with any other. Without
    a runtime it opens one for its time. Any number of processes may serve the same deployments on one home:
    each run is begun by one of them, and what a killed one had claimed and not begun is taken up by another.

    A run that fails, a schedule that raises or a disk that is full for a while stops none of the others: it
    is logged once and tried again.

    Args:
        deployments: What `flow.to_deployment(...)` gives.
        limit: How many runs go on at once in this process; None for any number.
    """
    _check(deployments, limit)
    services = HOME.explicit()
    if services is not None:
        await Server(services, deployments, limit).run()
        return
    async with Runtime() as runtime:
        services = runtime.services
        assert services is not None
        await Server(services, deployments, limit).run()


def _check(deployments: Sequence[Deployment], limit: int | None) -> None:
    if not deployments:
        raise NothingToServeError
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise OptionError("limit", limit, "a whole number from 1, or None")
    for each in cast("Sequence[object]", deployments):  # a flow itself is the first thing that one tries
        if not isinstance(each, Deployment):
            raise OptionError("deployments", each, "what `my_flow.to_deployment(name)` gives; or `my_flow.serve(name)`")
    names = [each.full_name for each in deployments]
    for name in names:
        if names.count(name) > 1:
            raise DeploymentError(name, "it is to be served twice; give one of the two another name")


class _Claim(NamedTuple):
    row: RunRow
    children: list[RunRow]
    """The recorded runs below it, where it has run before."""


class Server:
    """Some deployments, served on one loop."""

    def __init__(
        self,
        services: Services,
        deployments: Sequence[Deployment],
        limit: int | None = None,
        *,
        begun: Callable[[FlowRunFuture[Any]], object] | None = None,
    ) -> None:
        """`begun` is called with each run that begins here, on the loop."""
        self._services = services
        self._begun = begun
        self._deployments = deployments
        self._flows: dict[bytes, Declared] = {each.id.bytes: each.flow for each in deployments}
        self._limit = limit
        self._running: set[FlowRunFuture[Any]] = set()
        self._complaints = Complaints(services.clock.monotonic)
        self._scheduler = Scheduler(services, self._flows, self._complaints)
        self._host: Host = host_here(services.clock)
        self._alarm = Alarm()
        self._has_rung = self._has_ended = False
        self._mark_at = self._requeue_at = self._requeued_at = self._dead_at = 0
        self._cancels = any(each.collision == "cancel_new" for each in deployments)
        self._taken: list[RunRow] = []
        """Claimed, and not begun yet."""

    async def run(self) -> None:
        """Serve until it is cancelled or the runtime is stopped."""
        services = self._services
        await services.ask(self._host, self.register)
        stop_listening = listening(services, self._hear)
        services.intake.attend(self._alarm.wake)
        try:
            while services.intake.is_open:
                signal = self._alarm.renew(self._host)
                pause = await self._attempt_turn()
                if services.store.is_instant:
                    await self._host.sleep(0)  # where nothing is waited for, others have their turn all the same
                if pause is None:
                    await signal.wait()
                else:
                    await self._host.wait_for(signal, pause)
        except RuntimeClosedError:
            return
        finally:
            services.intake.desert(self._alarm.wake)
            stop_listening()

    def register(self) -> None:
        """Write the deployments into the store. Blocks. Raises `StoreError`."""
        store, now = self._services.store, microseconds_now(self._services)
        schedules, triggers = decided_at(now), followed_state(store.newest_cursor())
        for each in self._deployments:
            row, rules = each.row(now), each.rules(schedules, triggers)
            store.write_deployment(row, rules, keep_paused=not each.paused)
        store.ring()

    def _hear(self) -> None:
        self._has_rung = True
        self._alarm.wake()

    # --- one turn

    async def _attempt_turn(self) -> float | None:
        """Do what there is to do; gives how long nothing else is, as far as one can know."""
        try:
            pause = await self._turn()
        except (RuntimeClosedError, ForkedRuntimeError):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, tomorrow's runs are not to miss their slots for it
            home = str(self._services.settings.home)
            self._complaints.report(self, f"serving the deployments on {home!r} failed", error)
            return LOOK_SECONDS
        self._complaints.settle(self)
        return pause

    async def _turn(self) -> float | None:
        services, room = self._services, self._room()
        claims: list[_Claim] = []
        try:
            next_at = await services.ask(self._host, partial(self._look, room, claims))
        finally:
            # Also when this is cancelled meanwhile: what a thread has claimed is ours, and nobody else's.
            for claim in claims:
                self._begin(claim)
        if claims and len(claims) == room and self._room():
            next_at = 0  # there may be more; without room, the end of a run wakes us
        return self._pause(next_at)

    def _room(self) -> int:
        left = _BATCH if self._limit is None else min(self._limit - len(self._running), _BATCH)
        return left if self._services.intake.is_open else 0

    def _pause(self, next_at: int | None) -> float | None:
        clock = self._services.clock
        left = None if next_at is None else max(next_at / _MICRO - clock.now(), 0)
        # On a clock that is not the system's nobody sets the time, and within one process no bell can be lost.
        if self._services.store.is_instant and not isinstance(clock, SystemClock):
            return left
        return LOOK_SECONDS if left is None else min(left, LOOK_SECONDS)

    def _look(self, room: int, claims: list[_Claim]) -> int | None:
        """What a turn does in the store, all in one thread; gives when something is due that is not yet."""
        services, store = self._services, self._services.store
        if self._has_ended:
            self._has_ended = False  # before it is told: another one that ends meanwhile is told in the next turn
            store.ring()
        now = microseconds_now(services)
        if self._has_rung:
            self._has_rung = False
            self._scheduler.look_again()
            self._requeue_at = min(self._requeue_at, self._requeued_at + _MICRO)
        next_slot = self._scheduler.turn(now)
        self._requeue_interrupted(now)
        ids = list(self._flows)
        first, late_at, dead_at = store.next_due(ids, now=now), None, None
        if first is not None and first <= now and room:
            self._taken += store.claim_due(ids, now, room)
            before, first = first, store.next_due(ids, now=now)
            if self._cancels and (self._taken or first != before):  # else nothing has changed: who rang would ring on
                store.ring()  # one may have been Cancelled for want of room, and somebody waits for it
        if first is not None and first <= now:  # it waits for room
            late_at = self._mark_late(first, now)
            if room:
                dead_at = self._look_for_dead(now)
            first = store.next_due(ids, now)
        while self._taken:  # what was taken and could not be read is read in the next turn
            row = self._taken[0]
            claims.append(_Claim(row, store.read_children(row.id) if row.run_count else []))
            del self._taken[0]
        return min((at for at in (next_slot, first, late_at, dead_at) if at is not None), default=None)

    def _requeue_interrupted(self, now: int) -> None:
        """Have interrupted runs wait again, for us or another server: those that never were Running, and those whose
        flow says that they go on by themselves.
        """
        if now < self._requeue_at <= now + _REQUEUE_EVERY:  # else it is time, or the clock was set back
            return
        self._requeued_at, self._requeue_at = now, now + _REQUEUE_EVERY
        for row in self._services.store.read_interrupted():
            flow = None if row.deployment_id is None else self._flows.get(row.deployment_id)
            if flow is None or (flow.spec.options.resume != "auto" and row.run_count):
                continue
            if missing := not_recorded(row):
                error = MissingParametersError(UUID(bytes=row.id), missing)
                self._complaints.report(row.id, "an interrupted run is not taken up", error)
                continue
            self._services.store.requeue(row.id, row.seq, now)

    def _look_for_dead(self, now: int) -> int | None:
        """End the runs of dead processes, whose places others may wait for; gives when to look again, if ever."""
        if self._services.store.is_instant or not self._services.settings.upkeep_seconds:
            return None
        if not now < self._dead_at <= now + _DEAD_EVERY:
            end_runs_of_dead(self._services)
            self._dead_at = now + _DEAD_EVERY
        return self._dead_at

    def _mark_late(self, first: int, now: int) -> int:
        """Call those Late that have waited too long, the `first` of them being due then; gives when to look again."""
        if self._mark_at > now + _MARK_EVERY:  # the clock was set back
            self._mark_at = 0
        at = max(first + _LATE, self._mark_at)
        if at <= now:
            self._services.store.mark_late(now - _LATE, now)
            at = self._mark_at = now + _MARK_EVERY
        return at

    # --- runs

    def _begin(self, claim: _Claim) -> None:
        deployment_id = claim.row.deployment_id
        assert deployment_id is not None
        try:
            future = start_claimed(self._services, claim.row, self._flows[deployment_id], claim.children)
        except RuntimeStoppingError:
            return  # stopped in this very moment: when its store is closed, the run waits again
        except Exception:  # noqa: BLE001  # of one run alone
            library_logger().exception("the run %r could not be begun", claim.row.name)
            return
        self._running.add(future)
        if self._begun is not None:
            self._begun(future)
        future.add_done_callback(self._end)

    def _end(self, future: FlowRunFuture[Any]) -> None:
        self._running.discard(future)
        self._has_ended = True  # it is on disk: those who wait for it in other processes are told in the next turn
        self._alarm.wake()
        state = future.state
        if self._begun is None and (state.is_failed() or state.is_crashed()):  # else whoever looks on tells of it
            flow = future.run.spec.name
            library_logger().warning("run %r of flow %r, served here, is %s", future.name, flow, state)
