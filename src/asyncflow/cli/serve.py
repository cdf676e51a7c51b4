"""`asyncflow serve`: deployments of files, scheduled and run by this process until a signal ends it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from cyclopts import Parameter

from asyncflow._backend.detect import host_here
from asyncflow._services import Services
from asyncflow._shutdown import shut_down
from asyncflow.cli.arguments import given_words
from asyncflow.cli.home import Home, use_home
from asyncflow.cli.interrupts import Stopper
from asyncflow.cli.live import listen
from asyncflow.cli.load import load_served, stem_of
from asyncflow.cli.output import UsageError, complain, error_console, only_data_on_stdout
from asyncflow.cli.serve_views import Showing, make_serve_view
from asyncflow.cli.watched import Backend
from asyncflow.cli.words import length_of
from asyncflow.deployments import Collision, Deployment, make_deployment
from asyncflow.exceptions import DeploymentParametersError
from asyncflow.flows import Flow
from asyncflow.runtime import HOME
from asyncflow.schedules import Cron, Interval, RRule, Schedule
from asyncflow.serving import Server

__all__ = ["serve"]

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the options say of the deployment that is made of a flow; empty ones say nothing."""

    name: str | None
    cron: Sequence[str]
    interval: Sequence[str]
    rrule: Sequence[str]
    timezone: str | None
    param: Sequence[str]
    tag: Sequence[str]
    concurrency_limit: int | None
    collision: Collision | None
    paused: bool

    def given(self) -> list[str]:
        """The options that were given."""
        names = (
            "name",
            "cron",
            "interval",
            "rrule",
            "timezone",
            "param",
            "tag",
            "concurrency_limit",
            "collision",
            "paused",
        )
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]


def serve(
    *entrypoints: Annotated[
        str, Parameter(help="path/to/file.py:flow or package.module:flow; or a file that makes deployments.")
    ],
    name: Annotated[str | None, Parameter(help="The deployment's name; else the file's.")] = None,
    cron: Annotated[
        list[str] | None, Parameter(help="Run by this cron expression, such as '0 9 * * MON-FRI'.", negative="")
    ] = None,
    interval: Annotated[
        list[str] | None, Parameter(help="Run every so many seconds, or every 15m, 2h, 1d.", negative="")
    ] = None,
    rrule: Annotated[
        list[str] | None, Parameter(help="Run by this rule, such as 'FREQ=MONTHLY;BYDAY=-1FR'.", negative="")
    ] = None,
    timezone: Annotated[str | None, Parameter(help="The zone of these schedules, such as Europe/Berlin.")] = None,
    param: Annotated[
        list[str] | None,
        Parameter(
            name=["--param", "-p"],
            help="A parameter of its runs, name=value; the value is JSON, else text. Can be repeated.",
            negative="",
        ),
    ] = None,
    tag: Annotated[list[str] | None, Parameter(help="A tag of its runs. Can be repeated.", negative="")] = None,
    limit: Annotated[int | None, Parameter(help="At most so many runs at once in this process.")] = None,
    concurrency_limit: Annotated[
        int | None, Parameter(help="At most so many runs of the deployment at once, in all processes together.")
    ] = None,
    collision: Annotated[
        Collision | None, Parameter(help="What becomes of a run beyond that: it waits, or it is Cancelled.")
    ] = None,
    paused: Annotated[bool, Parameter(help="Begin with its schedules paused.", negative="")] = False,
    backend: Annotated[Backend, Parameter(help="The event loop that the runs share.")] = "asyncio",
    plain: Annotated[bool, Parameter(help="Plain lines, also on a terminal.", negative="")] = False,
    home: Home = None,
) -> int:
    """Serve deployments: run them by their schedules and triggers, and for whoever asks, until Ctrl-C.

    Of a file that makes deployments (`my_flow.to_deployment(...)`) those are served. Of any other one its flow is,
    as the deployment that the options describe.

    Ctrl-C, and SIGTERM, begin no more runs and wait for those that go on; again, they are interrupted.
    The exit status is then 130, or 143.
    """
    wishes = _Wishes(
        name,
        cron or (),
        interval or (),
        rrule or (),
        timezone,
        param or (),
        tag or (),
        concurrency_limit,
        collision,
        paused,
    )
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: it must be 1 or more")
    use_home(home)
    with only_data_on_stdout():
        return _serve_watched(_deployments(entrypoints, wishes), limit, backend, plain=plain)


# --- what is served --------------------------------------------------------------------------


def _deployments(entrypoints: Sequence[str], wishes: _Wishes) -> list[Deployment]:
    if not entrypoints:
        raise UsageError("there is nothing to serve: name a file, asyncflow serve path/to/file.py")
    made: list[Deployment] = []
    flows: list[tuple[str, Flow[..., Any]]] = []
    for entrypoint in entrypoints:
        found = load_served(entrypoint)
        if isinstance(found, Flow):
            flows.append((entrypoint, found))
        else:
            made += found
    given = wishes.given()
    if made and given:
        raise UsageError(f"{', '.join(given)}: {made[0].full_name!r} and the like say that themselves, in their file")
    if len(flows) > 1 and given:
        raise UsageError(f"{', '.join(given)}: that is for one flow, and there are {len(flows)} to serve")
    return [*made, *(_deployment_of(entrypoint, flow, wishes) for entrypoint, flow in flows)]


def _deployment_of(entrypoint: str, flow: Flow[..., Any], wishes: _Wishes) -> Deployment:
    try:
        return make_deployment(
            flow,
            stem_of(entrypoint) if wishes.name is None else wishes.name,
            schedules=_schedules(wishes),
            parameters=given_words(flow.parameters.model_dump(), wishes.param, None),
            tags=wishes.tag,
            concurrency_limit=wishes.concurrency_limit,
            collision=wishes.collision or "enqueue",
            paused=wishes.paused,
        )
    except DeploymentParametersError as error:
        raise UsageError(f"{error}\nasyncflow schema {entrypoint} shows the parameters there are") from None


def _schedules(wishes: _Wishes) -> list[Schedule]:
    zone: dict[str, Any] = {} if wishes.timezone is None else {"timezone": wishes.timezone}
    made: list[Schedule] = [Cron(each, **zone) for each in wishes.cron]
    made += [Interval(_seconds(each), **zone) for each in wishes.interval]
    made += [RRule(each, **zone) for each in wishes.rrule]
    if zone and not made:
        raise UsageError(f"--timezone {wishes.timezone!r}: it is of --cron, --interval or --rrule, and there is none")
    return made


def _seconds(text: str) -> float:
    """`5`, `0.5`, or `15m`, `2h`, `7d`."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        length = length_of("--interval", text)
        assert length is not None  # there is a text
        return length / _MICRO
    except UsageError:
        raise UsageError(f"--interval {text!r}: write seconds, such as 5 or 0.5, or 15m, 2h, 7d") from None


# --- serving ---------------------------------------------------------------------------------


def _serve_watched(deployments: Sequence[Deployment], limit: int | None, backend: Backend, *, plain: bool) -> int:
    """Serve and show it until a signal ends it; gives the exit status."""
    services = HOME.open_default()
    title = f"asyncflow serve · pid {os.getpid()} · {services.settings.home}"
    showing = Showing(make_serve_view(error_console(), deployments, services.store, title, plain=plain))

    def leave(message: str, status: int) -> None:
        showing.abandon()
        complain(message)
        os._exit(status)

    def drain(is_first: bool) -> None:
        if is_first:
            services.intake.is_open = False
            showing.view.stop("Stopping", f"{stopper.cause}: no more runs begin{_left(services, stopper)}")
        elif left := len(services.live()):
            seconds = services.settings.grace_seconds
            showing.view.stop("Interrupting", f"{left} run{'' if left == 1 else 's'}, with {seconds:g} s to clean up")

    stopper = Stopper(services, showing.going, leave, drain=drain)

    async def work() -> None:
        server = Server(services, deployments, limit, begun=lambda future: showing.begin(future.run))
        try:
            await server.run()
        finally:
            await shut_down(services, host_here(services.clock), drain=True)

    showing.start()
    try:
        with stopper.answering():
            listen(showing.view.log)
            with stopper.in_loop():
                anyio.run(work, backend=backend)
    except KeyboardInterrupt:
        if stopper.status is None:
            raise
    finally:
        showing.close()
    return stopper.status or 0


def _left(services: Services, stopper: Stopper) -> str:
    left, seconds = len(services.live()), services.settings.drain_seconds
    if not left:
        return ""
    runs = "the run that goes on has" if left == 1 else f"the {left} runs that go on have"
    return f"; {runs} {seconds:g} s to end, or until the next {stopper.cause}"
