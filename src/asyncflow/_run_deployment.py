"""`run_deployment`: asking for a run of a deployment by name, and waiting for it, whichever process runs it.

Inside of a flow a task run stands for it, as one does for a nested flow: it is there to be seen, its states
follow the run's, and it carries the run's idempotency key, so that a flow that is run again finds the run that
it has asked for already. Apart from that the run is one of its own, and can be cancelled alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._cancellation import outermost_of
from asyncflow._control.run_control import RunControl
from asyncflow._deployment_rows import DeploymentRow
from asyncflow._deployments.run_ends import wait_for_end
from asyncflow._deployments.waiting_runs import (
    Asked,
    Parent,
    checked_key,
    checked_tags,
    due_at,
    find_deployment,
    full_name,
    waiting_row,
)
from asyncflow._engine.calls import deliver, restore_context, tags_for
from asyncflow._engine.checkpoints import check_call
from asyncflow._engine.endings import resting_name
from asyncflow._engine.execution import execute
from asyncflow._operation import Operation
from asyncflow._outcomes import time_to_wait
from asyncflow._recorded import ENDING
from asyncflow._rows import FIRST_FINAL, STATE_CODES, STATE_TYPES, RunRow, flow_run_of, json_of, state_of
from asyncflow._rules import TRANSITIONS
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._specs import Kind, Options, Spec, make_spec
from asyncflow._upkeep import microseconds_now
from asyncflow.client import Client
from asyncflow.context import current_run, detached
from asyncflow.exceptions import DeploymentError, OptionError, RunNotFoundError
from asyncflow.retries import Seconds
from asyncflow.runs import FlowRun
from asyncflow.states import ABSENT, State, StateDetails, StateType

__all__ = ["run_deployment"]

_COMPLETED = STATE_CODES[StateType.COMPLETED]
_FOLLOWED = frozenset({StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING})
"""The states on the way to the end that are followed. Paused is not: nobody could resume what stands for it."""
_GRACE_SHARE = 0.8
"""How much of its own grace time a run that is cancelled gives to the one it has asked for."""


def run_deployment(
    deployment: UUID | str,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout: Seconds | None = None,
    scheduled_time: datetime | None = None,
    flow_run_name: str | None = None,
    tags: Iterable[str] = (),
    idempotency_key: str | None = None,
    as_subflow: bool = True,
) -> Operation[FlowRun]:
    """Have a deployment run, by whoever serves it, and wait until it has; gives the run, however it ended.

    `await` it in async code; on a thread without an event loop, `run_deployment("flow/name").result()`.

    A cancelled wait leaves the run alone, unless it stands in a flow as a part of that (`as_subflow`):
    there the run is cancelled with the one that asked for it, and can be cancelled alone too, which the
    caller sees by the run's state. When the flow is run again, the same call finds the run that it asked
    for before, if that is going on or Completed.

    Args:
        deployment: "flow/name", or its id.
        parameters: Values by name, over those of the deployment. Only JSON.
        timeout: Seconds to wait at most; the run as it is then is given, and goes on. 0: not at all.
        scheduled_time: When it is to begin (aware); now, if not given.
        flow_run_name: The run's name.
        tags: Beside those of the deployment.
        idempotency_key: Where the deployment has a run with this key already, it is that one.
        as_subflow: Whether a run that goes on here has it as a part of itself.

    Raises `DeploymentNotFoundError`, and `DeploymentParametersError` for names that the flow does not have.
    Values that do not fit the flow fail the run. `OptionError` for a `timeout` that is negative or no number.
    """
    wanted = _Wanted(
        dict(parameters or {}), scheduled_time, flow_run_name, checked_tags(tags), checked_key(idempotency_key)
    )
    seconds = time_to_wait(timeout)
    if timeout is not None and (timeout < timedelta() if isinstance(timeout, timedelta) else timeout < 0):
        raise OptionError("timeout", timeout, "seconds from 0, a timedelta, or None for no limit")
    return Operation("run_deployment", _run_deployment(deployment, wanted, seconds, as_subflow=as_subflow))


class _Wanted(NamedTuple):
    parameters: dict[str, Any]
    scheduled_time: datetime | None
    name: str | None
    tags: tuple[str, ...]
    key: str | None

    def row(self, deployment: DeploymentRow, now: int, key: str | None = None, parent: Parent | None = None) -> RunRow:
        """A run as it is asked for."""
        due = due_at("scheduled_time", self.scheduled_time, now)
        return waiting_row(deployment, Asked(self.parameters, due, self.name, self.tags, self.key or key, parent), now)


async def _run_deployment(
    deployment: UUID | str, wanted: _Wanted, seconds: float | None, *, as_subflow: bool
) -> FlowRun:
    parent = current_run.get()
    if parent is None or not as_subflow:
        services = await Client().services() if parent is None else parent.services
        host = host_here(services.clock)
        made = await services.ask(host, partial(_enqueue, services, deployment, wanted))
        if seconds == 0:
            return flow_run_of(made)
        return flow_run_of(await wait_for_end(services, host, made.id, seconds, waiting=parent))
    check_call(parent)
    host = parent.host if parent.host.here() else host_here(parent.services.clock)
    row = await parent.services.ask(host, partial(find_deployment, parent.services.store, deployment))
    if seconds != 0:
        _refuse_deadlock(parent, row)
    return await _as_part(StandIn(parent, host, row, wanted, seconds), parent)


def _refuse_deadlock(parent: Run, row: DeploymentRow) -> None:
    """Raise where the run that asks has the only place that there is for the one it would wait for."""
    origin = outermost_of(parent).origin
    if row.concurrency_limit == 1 and origin is not None and origin[0] == row.id:
        problem = (
            f"run {parent.display_name!r} would wait for ever for another run of it, as it has the only place there "
            "is itself (concurrency_limit=1): allow more, or do not wait (timeout=0)"
        )
        raise DeploymentError(full_name(row), problem)


def _enqueue(services: Services, deployment: UUID | str, wanted: _Wanted) -> RunRow:
    row = find_deployment(services.store, deployment)
    made: RunRow
    (made,) = services.store.enqueue([wanted.row(row, microseconds_now(services))])
    services.store.ring()
    return made


async def _as_part(run: StandIn, parent: Run) -> FlowRun:
    try:
        await execute(run)
        if run.is_answered:
            return await _found_again(run)
        found = run.found
        if found is not None and run.error is not None and not run.host.is_cancellation(run.error):
            run.error = None  # however that run has ended, to be told of it is no failure
        deliver(run, return_state=False)
        assert found is not None
        return found
    except BaseException:
        restore_context(parent, run)
        raise


async def _found_again(run: StandIn) -> FlowRun:
    """The run that had been waited for already when the parent ran before."""
    row = await run.services.ask(run.host, partial(run.services.store.read_run, UUID(run.value).bytes))
    if row is None:
        raise RunNotFoundError(run.value)
    return flow_run_of(row)


# --- what stands for it in its parent ------------------------------------------------------


class StandIn(Run):
    """A task run whose body waits for a run of a deployment."""

    __slots__ = ("child", "deployment", "found", "seconds", "wanted")

    def __init__(
        self, parent: Run, host: Host, deployment: DeploymentRow, wanted: _Wanted, seconds: float | None
    ) -> None:
        spec = _spec_of(full_name(deployment))
        # What it is known by when its parent runs again: not the time it is to begin at, which will be another.
        arguments = {"parameters": wanted.parameters, "name": wanted.name, "key": wanted.key}
        super().__init__(
            spec, arguments, parent=parent, host=host, services=parent.services, owner=None, tags=tags_for(spec)
        )
        self.deployment = deployment
        self.wanted = wanted
        self.seconds = seconds
        self.child: RunRow | None = None
        """The run that it stands for, as it was when it was asked for."""
        self.found: FlowRun | None = None
        """What its caller gets."""

    def ask(self) -> None:
        """Ask for the run, or find the one that was asked for when the parent ran before. Blocks."""
        store = self.services.store
        parent, own = Parent(self.flow_run_id, self.id), f"task-run/{UUID(bytes=self.id)}"
        for attempt in count(1):
            key = own if attempt == 1 else f"{own}#{attempt}"
            row = self.wanted.row(self.deployment, microseconds_now(self.services), key, parent)
            (self.child,) = store.enqueue([row])
            is_spent = FIRST_FINAL <= self.child.state != _COMPLETED
            if self.child.id == row.id or self.wanted.key is not None or not is_spent:
                break  # one that failed in an earlier life of this flow is not to fail it again
        store.ring()

    def follow(self, row: RunRow) -> None:
        """Come to the state that the run is in, unless it is an end."""
        type_ = STATE_TYPES[row.state]
        with ENDING:
            known = self.status
            is_new = (type_, row.state_name) != (known.type, known.name) and type_ in TRANSITIONS[known.type]
            if type_ in _FOLLOWED and is_new and not self.is_over and self.cause is None:
                facts = {"scheduled_time": row.scheduled} if type_ is StateType.SCHEDULED else None
                now = self.services.clock.now()
                self.enter(type_, now, name=row.state_name, message=row.message, facts=facts)

    def ending(self, row: RunRow) -> State[Any]:
        """The state that it ends in: the run's own; or that it is waited for no longer."""
        run_id = str(UUID(bytes=row.id))
        if row.state < FIRST_FINAL:
            told = f"flow run {run_id} goes on, and is not waited for any longer: it was {state_of(row)}"
            ending: State[Any] = State(type=StateType.COMPLETED, name="Detached", message=told, data=run_id)
        else:
            type_ = STATE_TYPES[row.state]
            data = run_id if type_ is StateType.COMPLETED else ABSENT
            ending = State(type=type_, name=row.state_name or "", message=row.message, data=data)
        with ENDING:
            if ending.is_completed() and self.status.type is not StateType.RUNNING and not self.is_over:
                self.enter(StateType.RUNNING, self.services.clock.now())
        return ending

    def details(self) -> StateDetails:
        """The ids and times that its states carry."""
        child = None if self.child is None else UUID(bytes=self.child.id)
        return replace(super().details(), child_flow_run_id=child)

    def _details_json(self) -> str | None:
        if self.child is None:
            return super()._details_json()
        return json_of({"child_flow_run_id": str(UUID(bytes=self.child.id))})


def _spec_of(name: str) -> Spec:
    spec = make_spec(Kind.TASK, _stand_in, Options(name=name, persist_result=True))
    # Which of two equal calls finds which run does not matter: they have asked for the same.
    spec.said.update(("exchangeable", "exchanged"))
    return spec


async def _stand_in(parameters: dict[str, Any], name: str | None, key: str | None) -> State[Any]:
    """The body of all that stand for runs of deployments; what it is given identifies the call."""
    run = current_run.get()
    assert isinstance(run, StandIn)
    services, host = run.services, run.host
    # On disk before the run is asked for: were this process killed in between, its flow, run again, would ask twice.
    _, _, held_back = await host.confirm(services.store, services.settings.durability_seconds)
    if held_back is not None:
        raise held_back
    try:
        await services.ask(host, run.ask)
        assert run.child is not None
        run.follow(run.child)
        row = await wait_for_end(services, host, run.child.id, run.seconds, waiting=run, seen=run.follow)
    except BaseException as error:
        is_cancelled = not isinstance(error, Exception) and resting_name(run) is None  # and not only interrupted
        if run.child is not None and is_cancelled:
            grace = services.settings.grace_seconds * _GRACE_SHARE
            await host.protect(partial(_call_off, services, UUID(bytes=run.child.id)), grace)
        raise
    run.found = flow_run_of(row)
    return run.ending(row)


class _Control(RunControl):
    """The control of the runs of a runtime that need not be the one in force."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def services(self) -> Services:
        return self._services


async def _call_off(services: Services, run_id: UUID) -> None:
    with detached():  # the run around is being cancelled: no wait in it would last
        await _Control(services).cancel_flow_run(run_id, reason="the run that asked for it was cancelled")
