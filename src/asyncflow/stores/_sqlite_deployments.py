"""The SQLite store's deployments: see `asyncflow._deployment_port`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncflow._deployment_port import DeploymentStore
from asyncflow._deployment_rows import DeploymentRow, Fired, RuleRow
from asyncflow._rows import RunRow
from asyncflow.stores import _deployment_jobs as jobs
from asyncflow.stores import _deployment_queries as queries
from asyncflow.stores._access import Access

__all__ = ["SQLiteDeployments"]

_FIRST = -(2**63)
_LOOKING = "looking for runs that are due"


class SQLiteDeployments(Access, DeploymentStore):
    """Reads with a connection of its own, writes by the writer's thread; looks before it takes the write lock."""

    def write_deployment(
        self, row: DeploymentRow, rules: Sequence[RuleRow], *, keep_paused: bool = True
    ) -> DeploymentRow:
        return self._call(
            "recording a deployment",
            lambda connection: jobs.write_deployment(connection, row, rules, keep_paused=keep_paused),
        )

    def read_deployments(
        self, *, ids: Sequence[bytes] | None = None, flow: str | None = None, name: str | None = None
    ) -> list[DeploymentRow]:
        rows = self._read("reading deployments", *queries.read_deployments(ids, flow, name))
        return [DeploymentRow._make(row) for row in rows]

    def read_rules(self, deployment_ids: Sequence[bytes]) -> list[RuleRow]:
        return [RuleRow._make(row) for row in self._read("reading rules", *queries.read_rules(deployment_ids))]

    def pause_deployment(self, deployment_id: bytes, paused: bool, states: Mapping[bytes, str]) -> bool:
        return self._call(
            "pausing a deployment",
            lambda connection: jobs.pause_deployment(connection, deployment_id, paused, states),
        )

    def delete_deployment(self, deployment_id: bytes, now: int) -> bool:
        return self._call(
            "deleting a deployment",
            lambda connection: jobs.delete_deployment(connection, deployment_id, self.owner, now),
        )

    def enqueue(self, rows: Sequence[RunRow]) -> list[RunRow]:
        return self._call("recording runs to be started", lambda connection: jobs.enqueue(connection, rows, self.owner))

    def fire(
        self, rule_id: bytes, before: str, after: str, rows: Sequence[RunRow], *, unless_running: bool = False
    ) -> Fired:
        return self._call(
            "firing a rule",
            lambda connection: jobs.fire(
                connection, rule_id, (before, after), rows, self.owner, unless_running=unless_running
            ),
        )

    def claim_due(self, deployment_ids: Sequence[bytes], now: int, limit: int) -> list[RunRow]:
        due = self.next_due(deployment_ids, now=now)
        if due is None or due > now:
            return []
        return self._call(
            "claiming runs that are due",
            lambda connection: jobs.claim_due(connection, deployment_ids, now, limit, self.owner),
        )

    def next_due(
        self, deployment_ids: Sequence[bytes], after: int | None = None, *, now: int | None = None
    ) -> int | None:
        sql, values = queries.next_due(deployment_ids, _FIRST if after is None else after)
        ((due,),) = self._read(_LOOKING, sql, values)
        if due is None or now is None or due <= now:
            return None if due is None else int(due)
        return now if self._read(_LOOKING, *queries.is_any_set_forward(deployment_ids, now)) else int(due)

    def requeue(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        return self._call(
            "having a run started again", lambda connection: jobs.requeue(connection, run_id, seq, self.owner, now)
        )

    def cancel_waiting(self, run_id: bytes, seq: int, now: int, message: str) -> RunRow | None:
        return self._call(
            "cancelling a run that waits",
            lambda connection: jobs.cancel_waiting(connection, run_id, seq, self.owner, now, message),
        )

    def mark_late(self, before: int, now: int) -> int:
        if not self._read("looking for runs that are late", queries.IS_ANY_LATE, [before]):
            return 0
        return self._call("naming runs late", lambda connection: jobs.mark_late(connection, before, self.owner, now))
