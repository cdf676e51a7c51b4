"""Runs that were asked for somewhere else and begin here: claimed from those that wait in the store."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any
from uuid import UUID

import orjson

from asyncflow._engine.calls import make_outermost
from asyncflow._engine.declared import Declared
from asyncflow._engine.preparation import join_parent
from asyncflow._engine.submission import begin_hosted
from asyncflow._given import without_secrets
from asyncflow._past import Past
from asyncflow._rows import RunRow
from asyncflow._services import Services
from asyncflow.context import detached
from asyncflow.exceptions import MissingParametersError
from asyncflow.futures import FlowRunFuture
from asyncflow.serializers import decode
from asyncflow.states import StateType

__all__ = ["start_claimed"]


def start_claimed(services: Services, row: RunRow, flow: Declared, children: list[RunRow]) -> FlowRunFuture[Any]:
    """Have a run begin here, on this loop and outside of any run, that this store has claimed; gives its future.

    Its parameters are checked by the flow before it is Running: one that does not fit them fails it. `children`
    are the recorded runs below it, where it ran before. Raises `RuntimeStoppingError` when no run may begin.
    """
    arguments, error = _arguments(row, flow)
    with detached():
        run = make_outermost(services, flow, flow.spec, arguments)
        run.adopt(row)
        run.error = error
        if error is not None:  # it ends, and its record is to tell no secret
            run.parameters_json = without_secrets(row).parameters
        run.is_special = error is not None
        run.tags = frozenset(orjson.loads(row.tags or "[]")) | run.tags
        run.status = run.status._replace(type=StateType.PENDING, name=row.state_name)
        if children:
            run.past = Past(children)
        run.is_hosted = True
        join_parent(run)
        begin_hosted(run, copy_context())
        return FlowRunFuture(run)


def _arguments(row: RunRow, flow: Declared) -> tuple[dict[str, Any], Exception | None]:
    """What the run was given, by name; and what is wrong with that, which the run then fails with."""
    model, coerces = flow.spec.model, flow.spec.options.validate_parameters
    assert model is not None  # a flow's
    try:
        if not row.run_count:
            return model.validate_keywords(decode(row.parameters or "{}"), coerce=coerces), None
        arguments, missing = model.restore(row.parameters or "{}", {})
        if missing:
            return {}, MissingParametersError(UUID(bytes=row.id), missing)
        return arguments, None
    except Exception as error:  # noqa: BLE001  # also what a validator of the user's raises: the run's failure, not ours
        return {}, error
