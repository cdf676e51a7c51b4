"""The record of a deployment, as a reader of the store sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from asyncflow._deployment_rows import SCHEDULE, DeploymentRow, RuleRow
from asyncflow._rows import moment
from asyncflow._rule_rows import schedule_of_rule, trigger_of_rule
from asyncflow.schedules import Schedule
from asyncflow.serializers import decode
from asyncflow.triggers import Trigger

__all__ = ["DeploymentRecord", "deployment_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    """A deployment that is known on a home, served at the moment or not."""

    id: UUID
    name: str
    flow_name: str
    entrypoint: str | None
    """`path/of/file.py:name` of its flow; None of one that is only in the process that serves it."""
    parameters: dict[str, Any]
    """What its runs are given unless others are asked for."""
    parameter_schema: dict[str, Any]
    """The JSON schema of the flow's parameters."""
    schedules: tuple[Schedule, ...]
    triggers: tuple[Trigger, ...]
    tags: tuple[str, ...]
    description: str | None
    version: str | None
    concurrency_limit: int | None
    """How many of its runs go on at once, in all processes together; None for any number."""
    collision: str
    """What becomes of a run for which there is no room: "enqueue" or "cancel_new"."""
    paused: bool
    """Whether its schedules and triggers begin no runs. What is asked for runs all the same."""
    created: datetime
    updated: datetime
    """When it was last served from the beginning; aware UTC."""

    @property
    def full_name(self) -> str:
        """The name it is called by: "flow/name"."""
        return f"{self.flow_name}/{self.name}"


def deployment_of(row: DeploymentRow, rules: Sequence[RuleRow]) -> DeploymentRecord:
    """The record of a row; `rules` may be those of several deployments."""
    facts: dict[str, Any] = decode(row.data)
    own = [rule for rule in rules if rule.deployment_id == row.id]
    return DeploymentRecord(
        id=UUID(bytes=row.id),
        name=row.name,
        flow_name=row.flow,
        entrypoint=row.entrypoint,
        parameters=facts.get("parameters", {}),
        parameter_schema=facts.get("schema", {}),
        schedules=tuple(schedule_of_rule(rule) for rule in own if rule.kind == SCHEDULE),
        triggers=tuple(trigger_of_rule(rule) for rule in own if rule.kind != SCHEDULE),
        tags=tuple(facts.get("tags", ())),
        description=facts.get("description"),
        version=facts.get("version"),
        concurrency_limit=row.concurrency_limit,
        collision=row.collision,
        paused=bool(row.paused),
        created=moment(row.created),
        updated=moment(row.updated),
    )
