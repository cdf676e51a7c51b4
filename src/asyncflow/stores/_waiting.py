"""What is decided about deployments and the runs that wait for them: pure, so that both stores do the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from asyncflow._deployment_rows import CANCEL_NEW, NOBODY, DeploymentRow, RuleRow
from asyncflow._given import without_secrets
from asyncflow._rows import FIRST_FINAL, RunRow, moved
from asyncflow._rules import RESUMING
from asyncflow.states import StateType
from asyncflow.stores._orphans import facts_of_waiting, waits

__all__ = [
    "BATCH", "DELETED", "LATE", "Queue", "admitted", "brought_up_to_date", "cancelled", "chosen", "claimed",
    "has_place", "is_of_rule", "kept_rule", "late", "may_fire", "prefix_of", "turned_away", "was_due",
]  # fmt: skip

LATE = "Late"
"""The name of the Scheduled state of a run that should have been started."""
DELETED = "its deployment was deleted"
BATCH = 1000
"""Most runs that are turned away, or named Late, in one commit."""


# --- deployments and rules -----------------------------------------------------------------


def brought_up_to_date(known: DeploymentRow | None, row: DeploymentRow, *, keep_paused: bool) -> DeploymentRow:
    """`row` as it is to be recorded."""
    if known is None:
        return row
    return row._replace(created=known.created, paused=known.paused if keep_paused else row.paused)


def kept_rule(known: RuleRow | None, row: RuleRow) -> RuleRow:
    """`row` as it is to be recorded: what was decided by the same rule counts."""
    if known is None or known.data != row.data:
        return row
    return row._replace(active=known.active, state=known.state)


def may_fire(rule: RuleRow | None, deployment: DeploymentRow | None, before: str) -> bool:
    """Whether a rule is where who fires it believes it to be, and may fire."""
    if rule is None or deployment is None or deployment.paused:
        return False
    return bool(rule.active) and rule.state == before


def prefix_of(rule: RuleRow) -> str:
    """What the idempotency keys of a rule's runs begin with."""
    return f"{rule.slug}@"


def is_of_rule(row: RunRow, rule: RuleRow) -> bool:
    """Whether a run came of a rule."""
    return row.deployment_id == rule.deployment_id and (row.idempotency_key or "").startswith(prefix_of(rule))


# --- runs that wait ------------------------------------------------------------------------


def admitted(
    rows: Iterable[RunRow], known: Sequence[RunRow], deployments: Collection[bytes], owner: int
) -> tuple[list[RunRow], list[RunRow]]:
    """Which rows are to be recorded, and for each of `rows` the run there is then.

    `known` are the runs on record with one of their ids or idempotency keys, `deployments` those there are.
    """
    ids = {row.id: row for row in known}
    keys: dict[tuple[bytes | None, str | None], RunRow] = {
        (row.deployment_id, row.idempotency_key): row for row in known if row.idempotency_key is not None
    }
    new: list[RunRow] = []
    given: list[RunRow] = []
    for row in rows:
        key = row.deployment_id, row.idempotency_key
        found = ids.get(row.id) or keys.get(key)
        if found is None:
            found = row._replace(owner=NOBODY, scheduled=row.created if row.scheduled is None else row.scheduled)
            if row.deployment_id not in deployments:
                found = cancelled(found, row.created, owner, DELETED)
            new.append(found)
            ids[found.id] = found
            if row.idempotency_key is not None:
                keys[key] = found
        given.append(found)
    return new, given


def has_place(row: RunRow) -> bool:
    """Whether a deployment's run counts to its concurrency limit: somebody runs it, or is about to."""
    return row.state < FIRST_FINAL and row.owner != NOBODY and not waits(row)


class Queue(NamedTuple):
    """What there is to decide by of one deployment."""

    deployment: DeploymentRow
    running: int
    """How many of its runs have a place; any number where it has no limit."""
    due: Sequence[tuple[int, bytes]] = ()
    """When its runs were due that wait, and their ids, in order: the first ones, as many as `most` says."""

    def room(self, limit: int) -> int:
        """How many of its runs may be begun, where at most `limit` are wanted."""
        most = self.deployment.concurrency_limit
        return limit if most is None else max(0, min(limit, most - self.running))

    def most(self, limit: int) -> int:
        """How many due runs have to be looked at."""
        return self.room(limit) if not self._turns_away else self.room(_ANY) + BATCH

    @property
    def turned_away(self) -> Sequence[bytes]:
        """The due runs that there is no room for, where such a run does not wait."""
        return [run_id for _, run_id in self.due[self.room(_ANY) :]] if self._turns_away else ()

    @property
    def _turns_away(self) -> bool:
        return self.deployment.collision == CANCEL_NEW and self.deployment.concurrency_limit is not None


_ANY = 2**31


def chosen(queues: Iterable[Queue], limit: int) -> list[bytes]:
    """The ids of the runs to begin: of all that there is room for, those due first, then those created first."""
    return [run_id for _, run_id in sorted(chain.from_iterable(each.due[: each.room(limit)] for each in queues))][
        :limit
    ]


def claimed(row: RunRow, now: int, owner: int) -> RunRow:
    """`row`, which waited, as the `owner` records it who will begin it."""
    return moved(row, StateType.PENDING, now, name=RESUMING if row.run_count else None)._replace(owner=owner)


def cancelled(row: RunRow, now: int, owner: int, message: str) -> RunRow:
    """`row`, which waited, and is not to be begun any more."""
    return moved(without_secrets(row), StateType.CANCELLED, now, message=message)._replace(owner=owner)


def turned_away(row: RunRow, now: int, owner: int, limits: Mapping[bytes, int | None]) -> RunRow:
    """`row`, for which there was no room when it was due."""
    limit = limits.get(row.deployment_id or b"")
    what = "run" if limit == 1 else "runs"
    return cancelled(row, now, owner, f"the limit of {limit} {what} of its deployment was reached")


def was_due(row: RunRow) -> bool:
    """Whether `row`, which waits, was due already when it was written; then it is, whatever a clock says that was set
    back since. One in a later state than its first was claimed before, or is Late: it has been due too.
    """
    return row.seq > 1 or row.scheduled is None or row.scheduled <= row.created


def late(row: RunRow, now: int) -> RunRow:
    """`row`, which waits and should have been started."""
    due = row.created if row.scheduled is None else row.scheduled
    return moved(row, StateType.SCHEDULED, now, name=LATE, facts=facts_of_waiting(row, due))
