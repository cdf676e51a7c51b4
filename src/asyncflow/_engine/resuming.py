"""Running a recorded flow run again, under its own id: what it completed is found, the rest is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from asyncflow._backend.detect import host_here
from asyncflow._engine.calls import deliver, make_outermost, restore_context
from asyncflow._engine.declared import Declared, find_declared
from asyncflow._engine.endings import finish
from asyncflow._engine.execution import execute
from asyncflow._engine.preparation import join_parent
from asyncflow._engine.submission import begin_hosted
from asyncflow._moved import MovedRun
from asyncflow._past import Past
from asyncflow._recorded import ENDING
from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES, RunRow, details_of, moved, state_of
from asyncflow._rules import SUSPENDED, Ending
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._unseen import forsake
from asyncflow.context import current_run, detached
from asyncflow.exceptions import (
    CannotCancelNestedRunError,
    CannotResumeError,
    MissingParametersError,
    ParameterValidationError,
    RunNotFoundError,
)
from asyncflow.logs import library_logger
from asyncflow.states import StateType

__all__ = ["Claimed", "call_off", "claim_interrupted", "outermost_row", "run_again", "start_again", "take_over"]

_COMPLETED = STATE_CODES[StateType.COMPLETED]
_FAILED = STATE_CODES[StateType.FAILED]
_PAUSED = STATE_CODES[StateType.PAUSED]
_MICRO = 1_000_000


class Claimed(NamedTuple):
    """A run that nobody else runs any more, and what it takes to run it."""

    row: RunRow
    before: RunRow
    """As it was before it was claimed."""
    flow: Declared
    arguments: dict[str, Any]
    children: list[RunRow]


async def take_over(
    services: Services,
    run_id: bytes,
    flow: Declared | None,
    parameters: Mapping[str, Any],
    before: Callable[[RunRow], object] | None = None,
) -> Claimed:
    """`claimed`, where it blocks no loop. A caller that is cancelled meanwhile leaves the run Cancelled, not open."""
    host, taking = host_here(services.clock), _Taking(services)
    # What ended in this process a moment ago is on its way to the store.
    _, _, held_back = await host.confirm(services.store, services.settings.durability_seconds)
    if held_back is not None:
        raise held_back
    try:
        return await services.ask(host, partial(taking.take, run_id, flow, parameters, before))
    except BaseException:
        taking.abandon()
        raise


class _Taking:
    """One claim that a thread makes and a task waits for; the task may be gone before the thread is done."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._claim: Claimed | None = None
        self._is_wanted = True

    def take(
        self,
        run_id: bytes,
        flow: Declared | None,
        parameters: Mapping[str, Any],
        before: Callable[[RunRow], object] | None,
    ) -> Claimed:
        claim = claimed(self._services, run_id, flow, parameters, before)
        with ENDING:
            self._claim = claim
            is_wanted = self._is_wanted
        if not is_wanted:
            self._leave(claim)
        return claim

    def abandon(self) -> None:
        with ENDING:
            self._is_wanted = False
            claim = self._claim
        if claim is not None:
            self._leave(claim)

    def _leave(self, claim: Claimed) -> None:
        message = "cancelled by its caller before it went on"
        finish(_run_of(self._services, claim), Ending(type=StateType.CANCELLED, message=message))


def claimed(
    services: Services,
    run_id: bytes,
    flow: Declared | None,
    parameters: Mapping[str, Any],
    before: Callable[[RunRow], object] | None = None,
) -> Claimed:
    """Take over a run to run it again. Blocks. `before` is called when nothing else can keep it from that.

    Raises `CannotResumeError` or `ParameterValidationError`; then nothing has changed.
    """
    store = services.store
    row = _required(services, run_id)
    if row.state < FIRST_FINAL and row.state != _PAUSED:
        store.reap(_now(services))  # its process may have died a moment ago
        row = _required(services, run_id)
    _check(services, row)
    flow = flow or _declared(row)
    _check_name(row, flow)
    arguments = _arguments(row, flow, parameters)
    children = store.read_children(row.id)
    if before is not None:
        before(row)
    taken = store.claim(row.id, row.seq, _now(services))
    if taken is None:
        raise CannotResumeError(_text(row), "somebody else has just taken it", "Look at it again: it is running.")
    return Claimed(taken, row, flow, arguments, children)


def call_off(services: Services, run_id: bytes, message: str) -> None:
    """Make an outermost run Cancelled that was interrupted and that nobody runs, with everything below it. Blocks.

    Raises `CannotResumeError` when somebody has just taken it, to run it, and `CannotCancelNestedRunError`.
    """
    store, now = services.store, _now(services)
    row, *below = store.read_tree(run_id)
    if row.parent_id is not None:
        raise CannotCancelNestedRunError(_text(row), _text(outermost_row(services, row)))
    taken = store.claim(row.id, row.seq, now)
    if taken is None:
        raise CannotResumeError(_text(row), "somebody else has just taken it", "Look at it again: it is running.")
    for each in reversed([taken, *below]):  # children first, as always
        if each.state < FIRST_FINAL:
            ended = moved(each, StateType.CANCELLED, now, message=message)
            store.put(MovedRun(row.id, ended._replace(owner=store.owner)))


def _now(services: Services) -> int:
    return int(services.clock.now() * _MICRO)


def _text(row: RunRow) -> UUID:
    return UUID(bytes=row.id)


def _required(services: Services, run_id: bytes) -> RunRow:
    row = services.store.read_run(run_id)
    if row is None:
        raise RunNotFoundError(UUID(bytes=run_id))
    return row


def outermost_row(services: Services, row: RunRow) -> RunRow:
    """The record of the outermost run above one. Blocks."""
    while row.parent_id is not None and (above := services.store.read_run(row.parent_id)) is not None:
        row = above
    return row


def _check(services: Services, row: RunRow) -> None:
    if row.kind != FLOW or row.parent_id is not None:
        root = outermost_row(services, row)
        what = "it is a part of another run"
        if root.kind == FLOW:
            raise CannotResumeError(_text(row), what, f"Resume that one: {_text(root)}")
        raise CannotResumeError(_text(row), "it is a task's, not a flow's", "Call the task again.")
    if row.state == _COMPLETED:
        raise CannotResumeError(
            _text(row), f"it is {state_of(row)}", "Its value is there: client.read_result(...) gives it."
        )
    if row.state < FIRST_FINAL and row.state != _PAUSED:
        raise CannotResumeError(
            _text(row), f"it is {state_of(row)}, in a process that lives", "Wait for it, or cancel it there."
        )


def _declared(row: RunRow) -> Declared:
    entrypoint = _entrypoint(row)
    found = find_declared(row.function, entrypoint)
    if len(found) == 1:
        return found[0]
    where = "" if entrypoint is None else f" (it was {entrypoint})"
    what = f"no flow named {row.function!r}" if not found else f"{len(found)} flows named {row.function!r}"
    raise CannotResumeError(
        _text(row), f"this process has declared {what}{where}", "Pass it: resume_flow_run(id, flow=my_flow)"
    )


def _entrypoint(row: RunRow) -> str | None:
    return details_of(row).get("entrypoint")


def _check_name(row: RunRow, flow: Declared) -> None:
    if flow.spec.name != row.function or not flow.spec.is_flow:
        raise CannotResumeError(
            _text(row),
            f"it is a run of the flow {row.function!r}, not of the {flow.spec.kind.value} {flow.spec.name!r}",
            f'A flow that was renamed keeps its runs with @flow(name="{row.function}").',
        )


def _arguments(row: RunRow, flow: Declared, parameters: Mapping[str, Any]) -> dict[str, Any]:
    model = flow.spec.model
    assert model is not None  # a flow's
    unknown = parameters.keys() - model.hints.keys()
    arguments, missing = model.restore(row.parameters or "{}", parameters)
    if unknown:
        raise CannotResumeError(
            _text(row), f"the flow has no parameter {sorted(unknown)[0]!r}", f"It has: {', '.join(model.hints)}"
        )
    if missing:
        raise MissingParametersError(_text(row), missing)
    # Checked before the run is taken: one that is refused leaves the record as it is.
    return model.validate(arguments) if flow.spec.options.validate_parameters else arguments


def _run_of(services: Services, claim: Claimed) -> Run:
    spec = claim.flow.spec
    run = make_outermost(services, claim.flow, spec, claim.arguments)
    run.adopt(claim.row)
    run.past = Past(claim.children)
    run.tags = frozenset(orjson.loads(claim.row.tags or "[]")) | run.tags
    run.status = run.status._replace(type=StateType.PENDING, name=claim.row.state_name)
    if claim.before.state == _FAILED or claim.before.state_name == SUSPENDED:
        run.spent = claim.row.run_count  # it had its attempts to the end, or ended this one by its own will
    return run


async def run_again(services: Services, claim: Claimed, return_state: bool) -> Any:
    """Run a claimed run in this task, as if it had been called here."""
    before = current_run.get()
    with detached():
        run = _run_of(services, claim)
        try:
            await execute(run)
            return deliver(run, return_state)
        except BaseException:
            restore_context(before, run)  # as each call does
            raise


def claim_interrupted(services: Services) -> list[Claimed]:
    """Take over the runs that wait for it and whose flow is declared here to be resumed by itself. Blocks."""
    claims: list[Claimed] = []
    for row in services.store.read_interrupted():
        if row.deployment_id is not None:
            continue  # whoever serves its deployment takes it up; not whoever has imported its flow to ask for runs
        found = find_declared(row.function, _entrypoint(row))
        if len(found) != 1 or found[0].spec.options.resume != "auto":
            continue
        try:
            claims.append(claimed(services, row.id, found[0], {}))
        except (CannotResumeError, ParameterValidationError) as error:
            library_logger().warning("an interrupted run is not resumed: %s", error)
    return claims


def start_again(services: Services, claims: Iterable[Claimed]) -> None:
    """Have claimed runs begin as if they had been submitted here, outside of any run."""
    with detached():
        for claim in claims:
            run = _run_of(services, claim)
            run.is_hosted = True
            forsake(run)  # nobody holds a future of it: if it fails, that is told
            join_parent(run)
            begin_hosted(run, copy_context())
