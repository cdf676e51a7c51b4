"""`asyncflow runs`: what was recorded of runs, as tables or as JSON."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from asyncflow._backend.inline import drive
from asyncflow._deployments.waiting_runs import find_deployment, full_name
from asyncflow._rows import FLOW, TASK, RunRow, flow_run_of, task_run_of
from asyncflow.abc import RunQuery, RunStore
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.output import UsageError, json_text, table_console, write_data
from asyncflow.cli.records import run_json, show_json
from asyncflow.cli.run_table import print_runs
from asyncflow.cli.show import print_run
from asyncflow.cli.words import AsJSON, RunId, count_of, id_of, moment_of, states_of
from asyncflow.client import get_client
from asyncflow.exceptions import RunNotFoundError

__all__ = ["app"]

app = App(name="runs", help="List runs, look at what was recorded of them, resume and delete them.")


@app.command
def ls(
    *,
    state: Annotated[
        list[str] | None, Parameter(help="Only runs in this state, such as failed. Can be repeated.", negative="")
    ] = None,
    flow: Annotated[str | None, Parameter(help="Only runs of this flow.")] = None,
    deployment: Annotated[str | None, Parameter(help="Only runs of this deployment, flow/name.")] = None,
    task: Annotated[str | None, Parameter(help="Task runs, of this task.")] = None,
    tasks: Annotated[bool, Parameter(help="Task runs instead of flow runs.", negative="")] = False,
    name: Annotated[str | None, Parameter(help="Only runs of this name.")] = None,
    tag: Annotated[
        list[str] | None, Parameter(help="Only runs with this tag. Repeated: with all of them.", negative="")
    ] = None,
    within: Annotated[str | None, Parameter(name="--in", help="Only what this flow run called (its id).")] = None,
    since: Annotated[
        str | None, Parameter(help="Only runs created since: 2024-01-31, 2024-01-31T12:00, or 90s, 15m, 2h, 7d ago.")
    ] = None,
    limit: Annotated[int, Parameter(help="At most so many.")] = 50,
    offset: Annotated[int, Parameter(help="Without so many of the newest.")] = 0,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """List runs, newest first: flow runs, or with --tasks task runs."""
    if task is not None and flow is not None:
        raise UsageError("--flow lists flow runs and --task lists task runs; give one of them")
    services = open_recorded(home)
    query = RunQuery(
        kinds=frozenset({TASK} if tasks or task is not None else {FLOW}),
        states=states_of(state),
        name=name,
        function=task if task is not None else flow,
        tags=frozenset(tag) if tag else None,
        deployment_id=None if deployment is None else find_deployment(services.store, deployment).id,
        flow_run_id=None if within is None else id_of(within),
        since=moment_of("--since", since),
        limit=count_of("--limit", limit),
        offset=count_of("--offset", offset),
    )
    rows = services.store.read_runs(query)
    if json:
        write_data(json_text([run_json(flow_run_of(row) if row.kind == FLOW else task_run_of(row)) for row in rows]))
    else:
        print_runs(table_console(), rows)
    return 0


@app.command
def show(run_id: RunId, /, *, json: AsJSON = False, home: Home = None) -> int:
    """Show a run: its states, parameters, result or error, and the runs it called."""
    services = open_recorded(home)
    rows = services.store.read_tree(id_of(run_id))
    if not rows:
        raise RunNotFoundError(run_id, services.settings.home)
    states = drive(get_client().read_states(run_id))
    if json:
        write_data(json_text(show_json(rows, states)))
    else:
        print_run(table_console(), rows, states, _deployment_of(services.store, rows[0]))
    return 0


def _deployment_of(store: RunStore, row: RunRow) -> str | None:
    """The name of the deployment that it is a run of, if that is still there."""
    found = [] if row.deployment_id is None else store.read_deployments(ids=[row.deployment_id])
    return full_name(found[0]) if found else None


@app.command
def result(run_id: RunId, /, *, home: Home = None) -> int:
    """Print the recorded value of a completed run, as JSON."""
    services = open_recorded(home)
    row_of(services, run_id)
    write_data(json_text(drive(get_client().read_result(run_id))))
    return 0
