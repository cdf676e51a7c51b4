"""One turn of triggers: what they make of the events that were committed since the last one.

A trigger reads the journal from the place that is in its state, and moves on in memory. Its state is
written with the runs of a firing, in one commit, by compare-and-swap; and now and then, so that after
a restart little is read again. What is read again comes to the same firings, which are made already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from asyncflow._deployment_rows import DeploymentRow, RuleRow
from asyncflow._deployments.complaints import Complaints
from asyncflow._deployments.waiting_runs import Asked, full_name, waiting_row
from asyncflow._event_pages import PAGE
from asyncflow._event_rows import name_of, payload_of, resource_of
from asyncflow._journal import Cursor, EventRow, cursor_text
from asyncflow._rows import RunRow
from asyncflow._rule_rows import followed_of, followed_state, trigger_of_rule
from asyncflow._services import Services
from asyncflow.error_records import error_summary
from asyncflow.exceptions import (
    DeploymentParametersError,
    EventsGoneError,
    ForkedRuntimeError,
    RuntimeClosedError,
    StoreError,
    TemplateError,
)
from asyncflow.logs import library_logger
from asyncflow.triggers import EventFact, Firing, Trigger, advance, firing_parameters, next_look

__all__ = ["TriggerTurn"]

_MICRO = 1_000_000
_KEEP_MEMORY = 1 * _MICRO
_KEEP_PLACE = 10 * _MICRO
"""How often a state is written in which a trigger remembers something new, or has only read on."""
_TRY_AGAIN = 10 * _MICRO


class _Followed:
    """A trigger, and how far it has read."""

    def __init__(self, row: RuleRow, deployment: DeploymentRow) -> None:
        self.row = row
        self.deployment = deployment
        self.cursor, self.memory = followed_of(row.state)
        self.kept: tuple[Cursor, dict[str, Any]] = (self.cursor, self.memory)
        self.kept_at = 0
        self.look_at: int | None = 0
        """When it is to be looked at although nothing happens; None for never."""
        self.sleeps_until = 0
        """After an error."""
        self._trigger: Trigger | None = None

    @property
    def trigger(self) -> Trigger:
        """What the row holds. Raises what its own checks raise."""
        self._trigger = self._trigger or trigger_of_rule(self.row)
        return self._trigger

    def facts_of(self, rows: Iterable[EventRow]) -> list[EventFact]:
        """What happened, without the states of the deployment's own runs: else one that fails could start the next."""
        own = self.deployment.id
        return [_fact_of(row) for row in rows if row.run is None or row.run.deployment_id != own]

    def wants_to_keep(self, now: int) -> bool:
        """Whether its state is to be written although nothing was fired."""
        cursor, memory = self.kept
        seconds = _KEEP_PLACE if memory == self.memory else _KEEP_MEMORY
        return (cursor, memory) != (self.cursor, self.memory) and not now < self.kept_at + seconds <= now + seconds

    def __str__(self) -> str:
        return f"the trigger {self.row.slug!r} of deployment {full_name(self.deployment)!r}"


class _Page(NamedTuple):
    """What happened after a place in the journal."""

    rows: list[EventRow]
    cursor: Cursor
    """How far it goes."""
    is_last: bool


class TriggerTurn:
    """Follows the journal for the triggers of some deployments. Blocks; used by one thread at a time."""

    def __init__(self, services: Services, complaints: Complaints) -> None:
        self._services = services
        self._complaints = complaints
        self._followed: list[_Followed] = []

    def set_rules(self, rules: Iterable[tuple[RuleRow, DeploymentRow]]) -> None:
        """The triggers as they are now in the store."""
        known = {(each.row, each.deployment): each for each in self._followed}
        self._followed = [known.get(rule) or _Followed(*rule) for rule in rules]

    @property
    def has_rules(self) -> bool:
        """Whether there is anything to follow."""
        return bool(self._followed)

    @property
    def look_at(self) -> int | None:
        """When something is to be decided although nothing happens; microseconds since 1970 UTC."""
        moments = [each.look_at for each in self._followed]
        return min((at for at in moments if at is not None), default=None)

    def turn(self, now: int) -> bool:
        """Read on, and make the runs of what has fired; false when a trigger is not as it was read any more."""
        is_done = True
        if self._followed:
            newest = self._services.store.newest_cursor()
            for each in self._followed:
                is_quiet = each.cursor >= newest and (each.look_at is None or each.look_at > now)
                if now >= each.sleeps_until and not (is_quiet and not each.wants_to_keep(now)):
                    is_done = self._attempt(each, now, newest) and is_done
        return is_done

    def _attempt(self, each: _Followed, now: int, newest: Cursor) -> bool:
        try:
            is_done = self._follow(each, now, newest)
        except (StoreError, RuntimeClosedError, ForkedRuntimeError):
            raise  # of all of them
        except Exception as error:  # noqa: BLE001  # of this one alone
            each.sleeps_until = each.look_at = now + _TRY_AGAIN
            self._complaints.report(each.row.id, f"{each} failed", error)
            return True
        self._complaints.settle(each.row.id)
        return is_done

    def _follow(self, each: _Followed, now: int, newest: Cursor) -> bool:
        page = _Page([], each.cursor, is_last=False)
        while not page.is_last:
            page = self._read(each, newest)
            until = now if page.is_last else page.rows[-1].at
            memory, firings = advance(each.trigger, each.memory, each.facts_of(page.rows), until)
            if firings:
                runs = [row for firing in firings if (row := self._run_of(each, firing, now)) is not None]
                if not self._write(each, page.cursor, memory, now, runs):
                    return False
            each.cursor, each.memory = page.cursor, memory
        each.look_at = next_look(each.trigger, each.memory)
        return self._write(each, each.cursor, each.memory, now) if each.wants_to_keep(now) else True

    def _read(self, each: _Followed, newest: Cursor) -> _Page:
        try:
            rows = self._services.store.read_journal(each.cursor, PAGE)
        except EventsGoneError:
            # Nobody was here for so long that it is not kept any more: what happened meanwhile starts nothing.
            library_logger().warning("%s goes on from now: what happened before is not kept any more", each)
            return _Page([], newest, is_last=True)
        if len(rows) == PAGE:
            return _Page(rows, rows[-1].cursor, is_last=False)
        return _Page(rows, max(each.cursor, newest, *(row.cursor for row in rows[-1:])), is_last=True)

    def _write(
        self, each: _Followed, cursor: Cursor, memory: dict[str, Any], now: int, runs: Sequence[RunRow] = ()
    ) -> bool:
        after = followed_state(cursor, memory)
        if not self._services.store.fire(each.row.id, each.row.state, after, runs).done:
            return False
        each.row = each.row._replace(state=after)
        each.kept, each.kept_at = (cursor, memory), now
        return True

    def _run_of(self, each: _Followed, firing: Firing, now: int) -> RunRow | None:
        """The run of a firing; None where the events do not tell what its parameters ask for."""
        try:
            parameters = firing_parameters(each.trigger, firing)
            asked = Asked(parameters, now, key=f"{each.row.slug}@{firing.key}")
            return waiting_row(each.deployment, asked, now)
        except (TemplateError, DeploymentParametersError) as error:  # no later look would change that
            library_logger().warning("%s starts no run for an event: %s", each, error_summary(error))
            return None


def _fact_of(row: EventRow) -> EventFact:
    return EventFact(cursor_text(row.cursor), row.at, name_of(row), resource_of(row), payload_of(row))
