"""`asyncflow deployments run`: a run of a deployment, begun by whichever process serves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated
from uuid import UUID

from cyclopts import Parameter
from rich.text import Text

from asyncflow._backend.inline import drive
from asyncflow._deployment_rows import DeploymentRow
from asyncflow._deployments.waiting_runs import facts_of, find_deployment, full_name
from asyncflow._rows import FLOW, STATE_CODES, state_of
from asyncflow._rules import RESTING
from asyncflow._services import Services
from asyncflow.abc import RunQuery, RunStore
from asyncflow.cli.arguments import given_words
from asyncflow.cli.home import Home, open_recorded
from asyncflow.cli.live import Watcher, make_view, state_style
from asyncflow.cli.output import UsageError, complain, error_console, json_text, one_line, write_data
from asyncflow.cli.records import run_json
from asyncflow.cli.watched import COMPLETED, INTERRUPTED, NOT_COMPLETED
from asyncflow.cli.words import AsJSON, length_of, time_of
from asyncflow.client import get_client
from asyncflow.exceptions import MissingResultError
from asyncflow.runs import FlowRun
from asyncflow.states import StateType

__all__ = ["run"]

_PATIENCE_SECONDS = 3.0
"""A run that is due and that nobody has begun after so long: most likely nobody serves its deployment."""
_BEGUN = frozenset({StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING})
_SCHEDULED = STATE_CODES[StateType.SCHEDULED]
_MICROSECOND = timedelta(microseconds=1)


def run(
    deployment: Annotated[str, Parameter(help="The deployment: flow/name, or its id.")],
    /,
    *,
    param: Annotated[
        list[str] | None,
        Parameter(
            name=["--param", "-p"],
            help="A parameter, name=value; the value is JSON, else text. Can be repeated.",
            negative="",
        ),
    ] = None,
    params: Annotated[
        str | None,
        Parameter(
            name="--params",
            help="A file with a JSON object of parameters; - is standard input.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    within: Annotated[str | None, Parameter(name="--in", help="To begin so much later: 90s, 15m, 2h, 7d.")] = None,
    at: Annotated[str | None, Parameter(help="To begin then: 2024-01-31T12:00, local unless it names a zone.")] = None,
    key: Annotated[
        str | None, Parameter(help="Where the deployment has a run with this key already, make none: it is that one.")
    ] = None,
    name: Annotated[str | None, Parameter(help="The run's name.")] = None,
    tag: Annotated[list[str] | None, Parameter(help="A tag of the run. Can be repeated.", negative="")] = None,
    watch: Annotated[
        bool, Parameter(help="Show it until it has ended, and print its value as JSON.", negative="")
    ] = False,
    plain: Annotated[bool, Parameter(help="Plain lines, also on a terminal.", negative="")] = False,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """Have a run of a deployment begun by whichever process serves it, and print its id.

    With --watch it is followed, and the exit status is 0 when it is Completed and 1 when it is anything else;
    Ctrl-C stops watching, and the run goes on.
    """
    if watch and json:
        raise UsageError("--watch prints the value of the run; --json is for the run that was made")
    due = _due(within, at)
    services = open_recorded(home)
    row = find_deployment(services.store, deployment)
    facts = facts_of(row)
    made: FlowRun = drive(
        get_client().create_flow_run_from_deployment(
            UUID(bytes=row.id),
            parameters=given_words(facts.get("schema", {}), param or (), params),
            scheduled_time=due,
            flow_run_name=name,
            tags=tag or (),
            idempotency_key=key,
        )
    )
    if watch:
        return _Watch(services, row, made, plain=plain).follow()
    write_data(json_text(run_json(made)) if json else f"{made.id}\n")
    return 0


def _due(within: str | None, at: str | None) -> datetime | None:
    if within is not None and at is not None:
        raise UsageError("--in and --at both say when the run is to begin; give one of them")
    length = length_of("--in", within)
    return time_of("--at", at) if length is None else datetime.now(UTC) + length * _MICROSECOND


# --- watching --------------------------------------------------------------------------------


class _Watch:
    """Shows a run of another process until it has ended."""

    def __init__(self, services: Services, deployment: DeploymentRow, run: FlowRun, *, plain: bool) -> None:
        self._services = services
        self._deployment = deployment
        self._id = run.id
        self._plain = plain

    def follow(self) -> int:
        """Show it, then its value; gives the exit status."""
        watcher = Watcher(self._services.store, make_view(error_console(), plain=self._plain))
        watcher.follow(self._id.bytes)
        watcher.start()
        is_left = False
        try:
            self._wait()
        except KeyboardInterrupt:
            is_left = True
        finally:
            watcher.close()
        run: FlowRun = drive(get_client().read_flow_run(self._id))
        if is_left and not run.state.is_final():
            complain(
                f"flow run {run.name} is {run.state.name}, and not stopped by this: asyncflow runs cancel {run.id}"
            )
            return INTERRUPTED
        return self._told(run)

    def _wait(self) -> None:
        """Until it has ended; on the way, say when nobody begins it."""
        read = partial(get_client().wait_for_flow_run, self._id)
        run: FlowRun = drive(read(timeout=0))
        complain(f"flow run {run.name} of {full_name(self._deployment)}: {run.id}")
        is_told = False
        while not run.state.is_final():
            run = drive(read(timeout=None if is_told else _PATIENCE_SECONDS))
            if not is_told and (why := self._why_not_begun()):
                complain(why)
                is_told = True

    def _told(self, run: FlowRun) -> int:
        """Its value on standard output, or what went wrong on standard error; gives the exit status."""
        if run.state.is_completed():
            try:
                write_data(json_text(drive(get_client().read_result(run.id))))
            except MissingResultError as error:
                complain(error)
            return COMPLETED
        mark, style = state_style(run.state.type)
        text = Text(f"{mark} flow {one_line(run.flow_name)} {one_line(run.name)}: {run.state.name}", style)
        text.append(f"\n  {one_line(run.state.message, 1000)}" if run.state.message else "", "")
        error_console().print(text.append(f"\n  asyncflow runs show {run.id}", "bold"), soft_wrap=True)
        return NOT_COMPLETED

    def _why_not_begun(self) -> str | None:
        """Why a run that is due has not been begun for a while; None where there is nothing to tell."""
        row = self._services.store.read_run(self._id.bytes)
        if row is None or row.state != _SCHEDULED or row.owner or row.scheduled is None:
            return None
        if self._services.clock.now() - row.scheduled / 1_000_000 < _PATIENCE_SECONDS:
            return None
        name, limit = full_name(self._deployment), self._deployment.concurrency_limit
        if limit is not None and _going(self._services.store, self._deployment.id, limit) >= limit:
            return f"it waits for its turn: {limit} runs of {name} go on, which is its limit"
        flow = self._deployment.entrypoint
        place = "" if flow is None else f" (its flow is {flow})"
        return f"no process has begun it yet; is one serving {name}?{place}"


def _going(store: RunStore, deployment_id: bytes, most: int) -> int:
    """How many runs of a deployment take one of its places, as far as that matters."""
    query = RunQuery(kinds=frozenset({FLOW}), states=_BEGUN, deployment_id=deployment_id, limit=2 * most)
    return sum(state_of(row).name not in RESTING for row in store.read_runs(query))
