"""What is recorded of a run beside its states: frozen records for who looks, and its parameters."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

from asyncflow._rows import FLOW, TASK, maybe_moment, maybe_uuid, moment
from asyncflow._run import Run
from asyncflow.parameters import encode_parameters
from asyncflow.runs import FlowRun, TaskRun

__all__ = ["keep_given", "keep_parameters", "record_of"]


def keep_parameters(run: Run, *, checked: bool) -> None:
    """Record what a flow run was given, secrets apart; `checked` is whether its values have the types of its hints.

    Raises `ParametersTooLargeError`.
    """
    model = run.spec.model
    if model is not None:
        limit = run.services.settings.parameters_limit
        hidden = model.secrets_in(run.arguments, checked=checked)
        run.parameters_json = encode_parameters(run.arguments, flow=run.spec.name, limit=limit, hidden=hidden)


def keep_given(run: Run) -> None:
    """The same for a run that ends before it has begun: it may be resumed."""
    if run.parameters_json is None:
        with suppress(Exception):  # it is ending for a reason of its own
            keep_parameters(run, checked=False)


def record_of(run: Run) -> FlowRun | TaskRun:
    """`run` as a frozen record, as of now: what hooks and conditions get."""
    common: dict[str, Any] = {
        "id": UUID(bytes=run.id),
        "name": run.display_name,
        "state": run.state(),
        "run_count": run.run_count,
        "tags": tuple(sorted(run.tags)),
        "created": moment(run.created),
        "start_time": maybe_moment(run.started),
        "end_time": maybe_moment(run.ended),
    }
    if run.kind == FLOW:
        return FlowRun(
            **common,
            flow_name=run.spec.name,
            flow_version=run.spec.options.version,
            parameters=dict(run.arguments),
            parent_flow_run_id=maybe_uuid(run.flow_run_id),
            parent_task_run_id=maybe_uuid(run.stand_in_id),
            deployment_id=None if run.origin is None else UUID(bytes=run.origin[0]),
            expected_start_time=None if run.origin is None else maybe_moment(run.origin[1]),
        )
    parent = run.parent
    return TaskRun(
        **common,
        task_name=run.spec.name,
        task_key=run.spec.key,
        flow_run_id=maybe_uuid(run.flow_run_id),
        parent_task_run_id=UUID(bytes=parent.id) if parent is not None and parent.kind == TASK else None,
    )
