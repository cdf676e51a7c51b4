"""What a client can ask about deployments, and have them do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._deployment_rows import SCHEDULE, DeploymentRow
from asyncflow._deployments.run_ends import wait_for_end
from asyncflow._deployments.waiting_runs import (
    Asked,
    checked_key,
    checked_tags,
    due_at,
    find_deployment,
    full_name,
    waiting_row,
)
from asyncflow._outcomes import time_to_wait
from asyncflow._queries import RunQuery
from asyncflow._rows import flow_run_of
from asyncflow._rule_rows import decided_at, followed_state
from asyncflow._services import Services
from asyncflow._upkeep import microseconds_now
from asyncflow.context import current_run
from asyncflow.deployment_records import DeploymentRecord, deployment_of
from asyncflow.exceptions import DeploymentNotFoundError, RunNotFoundError
from asyncflow.ids import parse_id
from asyncflow.retries import Seconds
from asyncflow.runs import FlowRun

__all__ = ["DeploymentQueries", "of_deployment"]

T = TypeVar("T")


class DeploymentQueries:
    """The part of `Client` that is about deployments and their runs."""

    async def services(self) -> Services:
        """For the engine: what the runs of the runtime share."""
        raise NotImplementedError

    def _host(self) -> Host:
        raise NotImplementedError

    async def read_deployment(self, deployment: UUID | str) -> DeploymentRecord:
        """One deployment, by "flow/name" or id. `DeploymentNotFoundError` names those that are called nearly so."""

        def read(services: Services) -> DeploymentRecord:
            row = find_deployment(services.store, deployment)
            return deployment_of(row, services.store.read_rules([row.id]))

        return await self._do(read)

    async def read_deployments(self, *, flow_name: str | None = None) -> list[DeploymentRecord]:
        """The deployments that are known on the home, or those of one flow, by name."""

        def read(services: Services) -> list[DeploymentRecord]:
            rows = services.store.read_deployments(flow=flow_name)
            rules = services.store.read_rules([row.id for row in rows])
            return [deployment_of(row, rules) for row in rows]

        return await self._do(read)

    async def create_flow_run_from_deployment(
        self,
        deployment: UUID | str,
        *,
        parameters: Mapping[str, Any] | None = None,
        scheduled_time: datetime | None = None,
        flow_run_name: str | None = None,
        tags: Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> FlowRun:
        """Ask for a run of a deployment; gives it as it waits to be started. Whoever serves the deployment begins it.

        It belongs to no other run and nothing waits for it; see `asyncflow.run_deployment` for one that
        does. The run is on disk when this returns.

        Args:
            deployment: "flow/name", or its id.
            parameters: Values by name, over those of the deployment. Only JSON.
            scheduled_time: When it is to begin (aware); now, if not given.
            flow_run_name: The run's name.
            tags: Beside those of the deployment.
            idempotency_key: Where the deployment has a run with this key already, that one is given.
        """

        given_tags, key = checked_tags(tags), checked_key(idempotency_key)

        def create(services: Services) -> FlowRun:
            row, now = find_deployment(services.store, deployment), microseconds_now(services)
            due = due_at("scheduled_time", scheduled_time, now)
            asked = Asked(parameters or {}, due, flow_run_name, given_tags, key)
            (made,) = services.store.enqueue([waiting_row(row, asked, now)])
            services.store.ring()
            return flow_run_of(made)

        return await self._do(create)

    async def wait_for_flow_run(self, flow_run_id: UUID | str, timeout: Seconds | None = None) -> FlowRun:
        """Wait until a flow run has ended, in whichever process; gives it as it is then, however it ended.

        At most `timeout` seconds, if given: then the run may still go on. A paused run has not ended.
        Raises `RunNotFoundError`.
        """
        try:
            run_id = parse_id(flow_run_id)
        except (ValueError, AttributeError, TypeError):
            raise RunNotFoundError(flow_run_id) from None
        services, seconds = await self.services(), time_to_wait(timeout)
        return flow_run_of(await wait_for_end(services, self._host(), run_id, seconds, waiting=current_run.get()))

    async def pause_deployment(self, deployment: UUID | str) -> None:
        """Have its schedules and triggers begin no runs, until it is resumed. What is asked for runs all the same."""

        def pause(services: Services) -> None:
            row = find_deployment(services.store, deployment)
            _require(services.store.pause_deployment(row.id, True, {}), row)
            services.store.ring()

        await self._do(pause)

    async def resume_deployment(self, deployment: UUID | str) -> None:
        """Have its schedules and triggers begin runs again, from now on: what was due meanwhile is not made up for."""

        def resume(services: Services) -> None:
            store = services.store
            row = find_deployment(store, deployment)
            slots, events = decided_at(microseconds_now(services)), followed_state(store.newest_cursor())
            rules = store.read_rules([row.id]) if row.paused else []  # one that was not paused goes on where it is
            states = {rule.id: slots if rule.kind == SCHEDULE else events for rule in rules}
            _require(store.pause_deployment(row.id, False, states), row)
            store.ring()

        await self._do(resume)

    async def delete_deployment(self, deployment: UUID | str) -> None:
        """Delete it. Its runs that wait to be started are Cancelled; those that go on do so, and records stay.

        Who serves it goes on without it; served from the beginning again it is new.
        """

        def delete(services: Services) -> None:
            row = find_deployment(services.store, deployment)
            _require(services.store.delete_deployment(row.id, microseconds_now(services)), row)
            services.store.ring()

        await self._do(delete)

    async def _do(self, act: Callable[[Services], T]) -> T:
        services = await self.services()
        return await services.ask(self._host(), lambda: act(services))


def of_deployment(query: RunQuery, services: Services, deployment: UUID | str | None) -> RunQuery:
    """The query for those of the runs that a deployment made, if one is given. Blocks.

    By its id also the runs of one that was deleted are found.
    """
    if deployment is None:
        return query
    try:
        return replace(query, deployment_id=parse_id(deployment))
    except (ValueError, AttributeError, TypeError):
        return replace(query, deployment_id=find_deployment(services.store, deployment).id)


def _require(is_there: bool, row: DeploymentRow) -> None:
    if not is_there:  # deleted by somebody a moment ago
        raise DeploymentNotFoundError(full_name(row))
