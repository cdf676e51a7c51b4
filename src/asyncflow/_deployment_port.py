"""The part of the store that deployments need: who may run what, when, and who begins it.

Everything that decides is one transaction, and what it decides by is read in the same one. So any number
of processes may serve the same deployments, and may be killed at any moment, without a count that could be
wrong afterwards: how many runs go on is how many rows say so.

A run that *waits to be started* is a row of kind FLOW that has a deployment, is Scheduled, and is nobody's
(`owner` 0). To which deployment a run belongs, when it is due and its idempotency key are written by these
methods alone: `RunStore.put` leaves them as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from asyncflow._deployment_rows import DeploymentRow, Fired, RuleRow
from asyncflow._rows import RunRow

__all__ = ["DeploymentStore"]


class DeploymentStore(ABC):
    """Deployments, their rules, and the runs that wait to be started.

    All of it blocks until what it did is on disk, and raises `StoreError` when it could not be done; then
    nothing of it was done (or, after a disk's error, all of it: each call may be repeated). Every state
    that it gives a run is in the journal. It wakes nobody: who has made something for others rings.
    Moments are in microseconds since 1970 UTC.
    """

    # --- what is served

    @abstractmethod
    def write_deployment(
        self, row: DeploymentRow, rules: Sequence[RuleRow], *, keep_paused: bool = True
    ) -> DeploymentRow:
        """Make a deployment, or bring the one of that id up to date; gives it as it is recorded.

        `created` stays, and with `keep_paused` so does `paused`. Its rules become these: one that is
        recorded with the same data keeps its `state` and `active`, one whose data is new takes what is
        given, and those that are not given are deleted.
        """

    @abstractmethod
    def read_deployments(
        self, *, ids: Sequence[bytes] | None = None, flow: str | None = None, name: str | None = None
    ) -> list[DeploymentRow]:
        """Deployments, by flow and name; those that all given conditions hold for."""

    @abstractmethod
    def read_rules(self, deployment_ids: Sequence[bytes]) -> list[RuleRow]:
        """The rules of deployments, by deployment (in the order of the ids), kind and slug."""

    @abstractmethod
    def pause_deployment(self, deployment_id: bytes, paused: bool, states: Mapping[bytes, str]) -> bool:
        """Have its rules fire nothing, or fire again; false when there is no such deployment.

        `states` are new ones for some of its rules, by their ids: who goes on begins from now.
        """

    @abstractmethod
    def delete_deployment(self, deployment_id: bytes, now: int) -> bool:
        """Delete a deployment and its rules; false when there was none.

        Its runs that wait to be started become Cancelled; all others stay as they are.
        """

    # --- runs that wait to be started

    @abstractmethod
    def enqueue(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """Record runs that wait to be started; gives each as it is recorded, in order.

        A row whose (deployment, idempotency key), or whose id, is recorded already is not recorded again:
        the run that is there is given in its place, whatever has become of it. One whose deployment
        is gone is recorded as Cancelled, as if it had been there when the deployment was deleted.
        """

    @abstractmethod
    def fire(
        self, rule_id: bytes, before: str, after: str, rows: Sequence[RunRow], *, unless_running: bool = False
    ) -> Fired:
        """Bring a rule from one state to the next and record the runs that come of it, in one commit.

        Of several who fire a rule in the same state one does so, and for the others nothing is done. Nor is
        it when the rule is gone or not active, or its deployment is paused. Rows are recorded as by
        `enqueue`. With `unless_running` none is when a run of this rule (one of the same deployment whose
        idempotency key begins with the rule's slug and an @) has not ended; the rule's state is
        changed all the same.
        """

    @abstractmethod
    def claim_due(self, deployment_ids: Sequence[bytes], now: int, limit: int) -> list[RunRow]:
        """Take at most `limit` runs of these deployments that wait and are due, to begin them here.

        Gives each as it is recorded from then on: Pending, and owned by this store; named Resuming where it
        has run before (what is left of it below is then taken over, as by `RunStore.claim`). First come the
        ones that were due first, then those created first, among the deployments that have room. Room is
        what the deployment's `concurrency_limit` leaves beside its runs that somebody owns and that have
        neither ended nor rest (Interrupted, Suspended). Of several processes that claim at once each run
        is given to one, and never are there more than the limit.

        What was due when it was written (asked for now, requeued, or claimed before) stays due when the
        clock is set back: if it is due later than `now` by its row, it is due now from then on.

        Where the deployment's `collision` says CANCEL_NEW, due runs that there is no room for become Cancelled.
        """

    @abstractmethod
    def next_due(
        self, deployment_ids: Sequence[bytes], after: int | None = None, *, now: int | None = None
    ) -> int | None:
        """When the first of those is due that wait (of those due after a moment); None when none does.

        It may be due already, and wait for room. With `now` (and without `after`) that is also said of those that
        were due when they were written, by a clock that was set back since: `claim_due` takes them.
        """

    @abstractmethod
    def requeue(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        """Have a run that rests (Interrupted, Suspended) started again by whoever serves its deployment.

        Gives it as it is then: Scheduled, nobody's, due now. None when it is not in its state number `seq`
        any more, does not rest, or has no deployment, or that one is gone: then it can be claimed.
        """

    @abstractmethod
    def cancel_waiting(self, run_id: bytes, seq: int, now: int, message: str) -> RunRow | None:
        """Make a run that waits to be started Cancelled; gives it as it is then.

        None when it is not in its state number `seq` any more, or does not wait: somebody has begun it.
        """

    @abstractmethod
    def mark_late(self, before: int, now: int) -> int:
        """Name the state of runs Late that wait to be started since a moment or longer; gives how many.

        A batch at a time: there may be more.
        """
