"""Deployments of the store in memory: see `asyncflow._deployment_port`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncflow._deployment_port import DeploymentStore
from asyncflow._deployment_rows import DeploymentRow, Fired, RuleRow
from asyncflow._journal import Change
from asyncflow._rows import FIRST_FINAL, RunRow, storable
from asyncflow.stores._memory_rows import MemoryRows
from asyncflow.stores._orphans import enqueued_again, is_enqueued, waits
from asyncflow.stores._waiting import (
    BATCH,
    DELETED,
    Queue,
    admitted,
    brought_up_to_date,
    cancelled,
    chosen,
    claimed,
    has_place,
    is_of_rule,
    kept_rule,
    late,
    may_fire,
    turned_away,
    was_due,
)

__all__ = ["MemoryDeployments"]


class MemoryDeployments(MemoryRows, DeploymentStore):
    """Walks over all runs for each question: there are few here."""

    def __init__(self) -> None:
        super().__init__()
        self._deployments: dict[bytes, DeploymentRow] = {}
        self._rules: dict[bytes, RuleRow] = {}

    # --- what is served

    def write_deployment(
        self, row: DeploymentRow, rules: Sequence[RuleRow], *, keep_paused: bool = True
    ) -> DeploymentRow:
        self._check()
        with self._lock:
            given = DeploymentRow._make(map(storable, row))
            kept = brought_up_to_date(self._deployments.get(given.id), given, keep_paused=keep_paused)
            self._deployments[kept.id] = kept
            former = {each.id: each for each in self._rules_of([kept.id])}
            wanted = [RuleRow._make(map(storable, each)) for each in rules]
            for each in wanted:
                self._rules[each.id] = kept_rule(former.get(each.id), each)
            for gone in former.keys() - {each.id for each in wanted}:
                del self._rules[gone]
            return kept

    def read_deployments(
        self, *, ids: Sequence[bytes] | None = None, flow: str | None = None, name: str | None = None
    ) -> list[DeploymentRow]:
        self._check()
        with self._lock:
            known = sorted(self._deployments.values(), key=lambda row: (row.flow, row.name))
        return [
            row
            for row in known
            if (ids is None or row.id in ids) and flow in (None, row.flow) and name in (None, row.name)
        ]

    def read_rules(self, deployment_ids: Sequence[bytes]) -> list[RuleRow]:
        self._check()
        with self._lock:
            return self._rules_of(deployment_ids)

    def _rules_of(self, deployment_ids: Sequence[bytes]) -> list[RuleRow]:
        found = [row for row in self._rules.values() if row.deployment_id in deployment_ids]
        return sorted(found, key=lambda row: (row.deployment_id, row.kind, row.slug))

    def pause_deployment(self, deployment_id: bytes, paused: bool, states: Mapping[bytes, str]) -> bool:
        self._check()
        with self._lock:
            row = self._deployments.get(deployment_id)
            if row is None:
                return False
            self._deployments[row.id] = row._replace(paused=int(paused))
            for rule in self._rules_of([deployment_id]):
                if rule.id in states:
                    self._rules[rule.id] = rule._replace(state=str(storable(states[rule.id])))
            return True

    def delete_deployment(self, deployment_id: bytes, now: int) -> bool:
        self._check()
        with self._lock:
            if self._deployments.pop(deployment_id, None) is None:
                return False
            for rule in self._rules_of([deployment_id]):
                del self._rules[rule.id]
            self._move([cancelled(row, now, self.owner, DELETED) for row in self._enqueued({deployment_id})], now)
            return True

    # --- runs that wait

    def _enqueued(self, deployment_ids: set[bytes] | None = None) -> list[RunRow]:
        """The runs that wait, those due first in front."""
        found = [
            row
            for row in self._rows.values()
            if is_enqueued(row) and (deployment_ids is None or row.deployment_id in deployment_ids)
        ]
        return sorted(found, key=_when)

    def enqueue(self, rows: Sequence[RunRow]) -> list[RunRow]:
        self._check()
        with self._lock:
            return self._admit(rows)

    def _admit(self, rows: Sequence[RunRow]) -> list[RunRow]:
        wanted = [RunRow._make(map(storable, row)) for row in rows]
        new, given = admitted(wanted, list(self._rows.values()), self._deployments.keys(), self.owner)
        self._keep(new)
        self._tell([Change(row.id, 0, row.seq) for row in new])
        return given

    def fire(
        self, rule_id: bytes, before: str, after: str, rows: Sequence[RunRow], *, unless_running: bool = False
    ) -> Fired:
        self._check()
        with self._lock:
            rule = self._rules.get(rule_id)
            deployment = None if rule is None else self._deployments.get(rule.deployment_id)
            if rule is None or not may_fire(rule, deployment, str(storable(before))):
                return Fired(done=False, runs=[])
            self._rules[rule_id] = rule._replace(state=str(storable(after)))
            if unless_running and any(row.state < FIRST_FINAL and is_of_rule(row, rule) for row in self._rows.values()):
                return Fired(done=True, runs=[])
            return Fired(done=True, runs=self._admit(rows))

    def claim_due(self, deployment_ids: Sequence[bytes], now: int, limit: int) -> list[RunRow]:
        self._check()
        with self._lock:
            forward = [row for row in self._enqueued(self._known(deployment_ids)) if _due(row, now) < _when(row)[0]]
            self._keep(row._replace(scheduled=now) for row in forward)
            queues = [self._queue(self._deployments[each], now) for each in self._known(deployment_ids)]
            away = [run_id for queue in queues for run_id in queue.turned_away[:BATCH]]
            limits = {each.deployment.id: each.deployment.concurrency_limit for each in queues}
            taken = [claimed(self._rows[each], now, self.owner) for each in chosen(queues, limit)]
            moved = [*taken, *(turned_away(self._rows[each], now, self.owner, limits) for each in away)]
            for row in taken:
                if row.run_count:
                    moved += self._take_over(row.id, now)
            self._move(moved, now)
            return taken

    def _known(self, deployment_ids: Sequence[bytes]) -> set[bytes]:
        return self._deployments.keys() & set(deployment_ids)

    def _queue(self, deployment: DeploymentRow, now: int) -> Queue:
        running = sum(has_place(row) for row in self._rows.values() if row.deployment_id == deployment.id)
        due = [_when(row) for row in self._enqueued({deployment.id}) if _when(row)[0] <= now]
        return Queue(deployment, running, due)

    def next_due(
        self, deployment_ids: Sequence[bytes], after: int | None = None, *, now: int | None = None
    ) -> int | None:
        self._check()
        with self._lock:
            due = [_due(row, now) for row in self._enqueued(self._known(deployment_ids))]
        return min((at for at in due if after is None or at > after), default=None)

    def requeue(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        self._check()
        with self._lock:
            row = self._rows.get(run_id)
            if row is None or row.seq != seq or not waits(row) or row.deployment_id not in self._deployments:
                return None
            waiting = enqueued_again(row, now, now)
            self._move([waiting], now)
            return waiting

    def cancel_waiting(self, run_id: bytes, seq: int, now: int, message: str) -> RunRow | None:
        self._check()
        with self._lock:
            row = self._rows.get(run_id)
            if row is None or row.seq != seq or not is_enqueued(row):
                return None
            ended = cancelled(row, now, self.owner, str(storable(message)))
            self._move([ended], now)
            return ended

    def mark_late(self, before: int, now: int) -> int:
        self._check()
        with self._lock:
            found = [row for row in self._enqueued() if row.state_name is None and _when(row)[0] <= before][:BATCH]
            self._move([late(row, now) for row in found], now)
            return len(found)


def _when(row: RunRow) -> tuple[int, bytes]:
    return row.created if row.scheduled is None else row.scheduled, row.id


def _due(row: RunRow, now: int | None) -> int:
    due, _ = _when(row)
    return due if now is None or not was_due(row) else min(due, now)
