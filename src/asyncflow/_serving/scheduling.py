"""One turn of scheduling: which slots of which schedules are due, and the runs that come of them.

Each slot is decided by a compare-and-swap in the store, so any number of schedulers may look at the same
schedules at the same time, with clocks that differ: one of them makes the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from asyncflow._deployment_rows import SCHEDULE, DeploymentRow, RuleRow
from asyncflow._deployments.complaints import Complaints
from asyncflow._deployments.waiting_runs import Asked, full_name, waiting_row
from asyncflow._rows import RunRow, microseconds, moment
from asyncflow._rule_rows import decided_of, decided_state, schedule_of_rule
from asyncflow._services import Services
from asyncflow._serving.triggering import TriggerTurn
from asyncflow.exceptions import ForkedRuntimeError, RuntimeClosedError, StoreError
from asyncflow.schedules import Schedule, due, moment_of, next_slot

__all__ = ["Scheduler"]

_MICRO = 1_000_000
_READ_EVERY = 5 * _MICRO
"""How often rules are read again although nobody rang: somebody may have paused one, or served other ones."""
_TRY_AGAIN = 10 * _MICRO
"""When a schedule that raised is tried again."""


class _Planned:
    """A schedule, how far it is decided, and when there is something to decide about it."""

    def __init__(self, row: RuleRow, deployment: DeploymentRow) -> None:
        self.row = row
        self.deployment = deployment
        self.look_at: int | None = 0
        """In microseconds since 1970 UTC; None for never."""
        self._schedule: Schedule | None = None

    @property
    def schedule(self) -> Schedule:
        """What the row holds. Raises what its own checks raise."""
        self._schedule = self._schedule or schedule_of_rule(self.row)
        return self._schedule

    def __str__(self) -> str:
        return f"the schedule {self.row.slug!r} of deployment {full_name(self.deployment)!r}"


class Scheduler:
    """Decides the schedules and triggers of some deployments. Blocks; used by one thread at a time.

    What it goes by is in the store: other processes may serve the same deployments with other rules.
    """

    def __init__(self, services: Services, deployments: Iterable[bytes], complaints: Complaints | None = None) -> None:
        self._services = services
        self._ids = list(deployments)
        self._complaints = complaints or Complaints(services.clock.monotonic)
        self._planned: list[_Planned] = []
        self._read_at: int | None = None
        self.triggers = TriggerTurn(services, self._complaints)

    def look_again(self) -> None:
        """Somebody may have changed the rules: they are read in the next turn."""
        self._read_at = None

    def turn(self, now: int) -> int | None:
        """Make the runs of all slots and events that are due; gives the moment of the next slot, None for none.

        Moments are in microseconds since 1970 UTC. Raises `StoreError`; what goes wrong with one rule is
        logged once, and does not keep others from theirs.
        """
        if self._read_at is None or not self._read_at <= now < self._read_at + _READ_EVERY:
            self._read(now)
        if not (self._decide(now) and self.triggers.turn(now)):
            self._read(now)  # somebody else was first with one, or has changed it: as they are now
            self._decide(now)
            self.triggers.turn(now)
        moments = [self.triggers.look_at, *(each.look_at for each in self._planned)]
        return min((at for at in moments if at is not None), default=None)

    def _read(self, now: int) -> None:
        store = self._services.store
        deployments = {row.id: row for row in store.read_deployments(ids=self._ids)}
        rules = [row for row in store.read_rules(list(deployments)) if row.active]
        active = [(row, deployments[row.deployment_id]) for row in rules if not deployments[row.deployment_id].paused]
        known = {(each.row, each.deployment): each for each in self._planned}
        self._planned = [known.get(each) or _Planned(*each) for each in active if each[0].kind == SCHEDULE]
        self.triggers.set_rules([each for each in active if each[0].kind != SCHEDULE])
        self._read_at = now

    def _decide(self, now: int) -> bool:
        """Decide the slots that are due; false when a schedule is not as it was read any more."""
        is_done = True
        for each in self._planned:
            if each.look_at is None or each.look_at > now:
                continue
            try:
                is_fired = self._fire(each, now)
            except (StoreError, RuntimeClosedError, ForkedRuntimeError):
                raise  # of all of them
            except Exception as error:  # noqa: BLE001  # of arithmetic with dates, of parameters: of this one alone
                each.look_at = now + _TRY_AGAIN
                self._complaints.report(each.row.id, f"{each} failed", error)
                continue
            self._complaints.settle(each.row.id)
            if not is_fired:
                each.look_at = now + _TRY_AGAIN
                is_done = False
        return is_done

    def _fire(self, planned: _Planned, now: int) -> bool:
        row, schedule = planned.row, planned.schedule
        decided = decided_of(row.state)
        found = due(schedule, decided, moment(now))
        if found.decided != decided:
            after = decided_state(found.decided)
            rows = [self._run_of(planned, slot, now) for slot in found.slots]
            is_alone = schedule.overlap == "skip"
            if not self._services.store.fire(row.id, row.state, after, rows, unless_running=is_alone).done:
                return False
            planned.row = row._replace(state=after)
        slot = next_slot(schedule, found.decided)
        planned.look_at = None if slot is None else max(microseconds(slot), now + 1)
        return True

    def _run_of(self, planned: _Planned, slot: datetime, now: int) -> RunRow:
        """The run of a slot: all that look at it make the same one, under the same key."""
        at = moment_of(planned.schedule, slot, planned.row.id)
        key = f"{planned.row.slug}@{slot.isoformat()}"
        asked = Asked(planned.schedule.parameters or {}, microseconds(at), key=key)
        return waiting_row(planned.deployment, asked, now)
