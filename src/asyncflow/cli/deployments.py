"""`asyncflow deployments`: what can be run by name, when it will be, and what has become of it."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from asyncflow._backend.inline import drive
from asyncflow._deployments.waiting_runs import find_deployment, full_name
from asyncflow.cli.deployment_run import run
from asyncflow.cli.deployment_views import deployment_json, deployment_lines, known_of, print_deployments, show_json
from asyncflow.cli.home import Home, open_recorded
from asyncflow.cli.output import json_text, table_console, write_data
from asyncflow.cli.words import AsJSON
from asyncflow.client import get_client

__all__ = ["app"]

app = App(name="deployments", help="List deployments, run them, pause, resume and remove them.")
app.command(run)

Name = Annotated[str, Parameter(help="The deployment: flow/name, or its id.")]


@app.command
def ls(
    *,
    flow: Annotated[str | None, Parameter(help="Only deployments of this flow.")] = None,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """List deployments, by name, with the next slot of their schedules and their newest run."""
    services = open_recorded(home)
    known = known_of(services.store, services.store.read_deployments(flow=flow))
    if json:
        write_data(json_text([deployment_json(each) for each in known]))
    else:
        print_deployments(table_console(), known)
    return 0


@app.command
def show(deployment: Name, /, *, json: AsJSON = False, home: Home = None) -> int:
    """Show a deployment: its schedules with their next slots, its parameters, its limits, its newest runs."""
    services = open_recorded(home)
    known = known_of(services.store, [find_deployment(services.store, deployment)], runs=10)[0]
    if json:
        write_data(json_text(show_json(known)))
        return 0
    console = table_console()
    for part in deployment_lines(known, console):
        console.print(part, soft_wrap=True)
    return 0


@app.command
def pause(deployment: Name, /, *, home: Home = None) -> int:
    """Have its schedules and triggers make no more runs. What waits and what goes on is not touched."""
    store = open_recorded(home).store
    name = full_name(find_deployment(store, deployment))
    drive(get_client().pause_deployment(name))
    write_data(f"{name} is paused\n")
    return 0


@app.command
def resume(deployment: Name, /, *, home: Home = None) -> int:
    """Have its schedules and triggers make runs again, from now on: slots that went by are not made up for."""
    store = open_recorded(home).store
    name = full_name(find_deployment(store, deployment))
    drive(get_client().resume_deployment(name))
    write_data(f"{name} is active\n")
    return 0


@app.command
def rm(
    *deployments: Annotated[str, Parameter(help="Deployments: flow/name, or their ids.")],
    home: Home = None,
) -> int:
    """Remove deployments with their schedules. Asks nothing.

    Runs that wait become Cancelled, others stay. A process that serves it makes it anew when it starts again.
    When one of the names is unknown, none is removed.
    """
    store = open_recorded(home).store
    names = [full_name(find_deployment(store, each)) for each in deployments]
    for name in names:
        drive(get_client().delete_deployment(name))
        write_data(f"{name} is removed\n")
    return 0
