"""Reading what a runtime has recorded, running it again, deleting it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._control.run_control import RunControl
from asyncflow._deployments.queries import DeploymentQueries, of_deployment
from asyncflow._event_pages import read_events
from asyncflow._event_rows import cursor_of, event_of
from asyncflow._log_following import LogStream
from asyncflow._rows import FLOW, STAND_IN, TASK, RunRow, flow_run_of, log_record_of, states_of, task_run_of
from asyncflow._services import Services
from asyncflow._snapshots import await_tree_of
from asyncflow._subscriptions import Subscription
from asyncflow._waits import AwaitTree
from asyncflow.abc import LogQuery, RunQuery
from asyncflow.clock import SystemClock
from asyncflow.events import Event, EventFilter
from asyncflow.exceptions import CannotDeleteRunError, MissingResultError, OptionError, RunNotFoundError
from asyncflow.ids import parse_id
from asyncflow.item_streams import ItemStream, is_stream, items_of_result, position_of
from asyncflow.runs import FlowRun, LogRecord, TaskRun
from asyncflow.runtime import HOME, Runtime
from asyncflow.serializers import decode
from asyncflow.states import State, StateType

__all__ = ["Client", "get_client"]

T = TypeVar("T")
_FLOWS = frozenset({FLOW})
_TASKS = frozenset({TASK, STAND_IN})
_MICRO = 1_000_000

States = StateType | str | Iterable[StateType | str]


def get_client(runtime: Runtime | None = None) -> Client:
    """A client over `runtime`, or over the one in force. Usable with or without `async with`."""
    return Client(runtime)


class Client(DeploymentQueries, RunControl):
    """Queries and control over a runtime's store.

    Ids are accepted as `UUID` or text; an unknown one is `RunNotFoundError`.

    Every method reads in a worker thread. What an awaited outermost run recorded is there to be
    read; runs that go on are shown as of a few milliseconds ago.
    """

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime = runtime
        self._clock = SystemClock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return

    async def read_flow_run(self, flow_run_id: UUID | str) -> FlowRun:
        """One flow run."""
        return flow_run_of(await self._row(flow_run_id, _FLOWS))

    async def read_task_run(self, task_run_id: UUID | str) -> TaskRun:
        """One task run, or the task run that stands for a nested flow."""
        return task_run_of(await self._row(task_run_id, _TASKS))

    async def read_flow_runs(
        self,
        *,
        state: States | None = None,
        name: str | None = None,
        flow_name: str | None = None,
        tags: Iterable[str] | None = None,
        parent: UUID | str | None = None,
        deployment: UUID | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 200,
        offset: int = 0,
    ) -> list[FlowRun]:
        """Flow runs, newest first.

        Args:
            state: A type of state, its name, or several of them.
            name: The run's name.
            flow_name: The flow's name.
            tags: Tags that a run must all have.
            parent: A flow run: those nested in it.
            deployment: A deployment, "flow/name" or its id: those that it made.
            since: Created at or after this moment (aware).
            until: Created before this moment (aware).
            limit: At most so many.
            offset: Leaving out so many of the newest.
        """
        query = RunQuery(
            kinds=_FLOWS,
            states=_states(state),
            name=name,
            function=flow_name,
            tags=None if tags is None else frozenset(tags),
            flow_run_id=_id(parent),
            since=_micro("since", since),
            until=_micro("until", until),
            limit=_count("limit", limit),
            offset=_count("offset", offset),
        )
        rows = await self._read(lambda services: services.store.read_runs(of_deployment(query, services, deployment)))
        return [flow_run_of(row) for row in rows]

    async def read_task_runs(
        self,
        *,
        flow_run_id: UUID | str | None = None,
        state: States | None = None,
        name: str | None = None,
        limit: int = 200,
        offset: int = 0,
    ) -> list[TaskRun]:
        """Task runs, newest first; those that stand for nested flows are among them.

        Args:
            flow_run_id: The flow run they belong to.
            state: A type of state, its name, or several of them.
            name: The run's name.
            limit: At most so many.
            offset: Leaving out so many of the newest.
        """
        query = RunQuery(
            kinds=_TASKS,
            states=_states(state),
            name=name,
            flow_run_id=_id(flow_run_id),
            limit=_count("limit", limit),
            offset=_count("offset", offset),
        )
        rows = await self._read(lambda services: services.store.read_runs(query))
        return [task_run_of(row) for row in rows]

    async def read_tree(self, run_id: UUID | str) -> list[FlowRun | TaskRun]:
        """A run and every run below it, in the order they began."""
        rows = await self._read(lambda services: services.store.read_tree(_required_id(run_id)))
        if not rows:
            raise RunNotFoundError(run_id)
        return [flow_run_of(row) if row.kind == FLOW else task_run_of(row) for row in rows]

    async def await_tree(self, run_id: UUID | str | None = None) -> AwaitTree:
        """The runs that are live in this process and runtime, and what each waits for; as text with `str()`.

        With `run_id` that run and all below it; none where it is not live here. `asyncflow runs tree`
        asks the other processes on the home as well, and `asyncflow.await_tree.snapshot()` needs no
        event loop.
        """
        services = await self.services()
        top = _id(run_id)
        return await services.ask(self._host(), lambda: await_tree_of([services], top))

    async def read_states(self, run_id: UUID | str) -> list[State[Any]]:
        """The states of a flow or task run, oldest first."""
        return states_of(await self._row(run_id, _FLOWS | _TASKS))

    async def read_logs(
        self,
        run_id: UUID | str,
        *,
        level: int | str | None = None,
        after: datetime | None = None,
        limit: int = 200,
    ) -> list[LogRecord]:
        """Log records, oldest first: of a flow run with its tasks, or of a task run.

        Args:
            run_id: The run.
            level: This level and above (`logging.WARNING` or "WARNING").
            after: Logged after this moment (aware).
            limit: At most so many.
        """
        row = await self._row(run_id, _FLOWS | _TASKS)
        query = LogQuery(run_id=row.id, level=_level(level), after=_micro("after", after), limit=_count("limit", limit))
        rows = await self._read(lambda services: services.store.read_logs(query))
        return [log_record_of(row) for row in rows]

    def follow_logs(self, run_id: UUID | str, *, level: int | str | None = None) -> AsyncIterator[LogRecord]:
        """Every log record of a run, first to last, as they are written, until the run has ended.

        What `read_logs` gives, in the order it was written: `async for record in client.follow_logs(id)`.
        A slow reader misses nothing, and holds nobody back; what other processes write is looked for
        every 100 ms. A run that was interrupted has not ended. Ends early when the runtime is closed.
        An unknown run is `RunNotFoundError`, when the first record is asked for.
        """
        return LogStream(self.services, self._host, LogQuery(run_id=_required_id(run_id), level=_level(level)))

    @property
    def dropped_logs(self) -> int:
        """How many log lines were dropped, since the runtime was opened, because the disk was behind.

        Where they are missing, the log of their run says so. 0 while no runtime is open.
        """
        services = HOME.in_force() if self._runtime is None else self._runtime.services
        return 0 if services is None else services.store.dropped_logs

    async def read_events(
        self, filter: EventFilter | None = None, *, after: Event | str | None = None, limit: int = 200
    ) -> list[Event]:
        """What happened, oldest first: changes of states, and emitted events.

        Args:
            filter: Which events; all of them without.
            after: An event, or the id of one: what came after it. `EventsGoneError` when that is not kept any more.
            limit: At most so many.
        """
        wanted, cursor, most = filter or EventFilter(), cursor_of(after), _count("limit", limit)
        rows = await self._read(lambda services: read_events(services.store, wanted, cursor, most))
        return [event_of(row) for row in rows]

    def subscribe(self, filter: EventFilter | None = None, *, after: Event | str | None = None) -> Subscription:
        """What happens from now on, or happened after an event, as it comes: `async for event in client.subscribe()`.

        "Now" is when the first event is asked for, or when `async with` is entered. A slow reader loses
        nothing and holds nobody back; what this process commits arrives within milliseconds, what
        others commit within 100. Ends when the runtime is closed. `EventsGoneError` as for `read_events`.
        """
        return Subscription(self.services, self._host, filter, after)

    @property
    def dropped_events(self) -> int:
        """How many emitted events were dropped since the runtime was opened, because the disk was behind."""
        services = HOME.in_force() if self._runtime is None else self._runtime.services
        return 0 if services is None else services.store.dropped_events

    async def read_result(self, run_id: UUID | str) -> Any:
        """The recorded value of a completed run, as plain JSON data.

        Raises `MissingResultError` when there is none: the run is not Completed, or its value was
        not persisted. That of a generator with `persist_result=True` is the list of its items.
        """
        row = await self._row(run_id, _FLOWS | _TASKS)
        services = await self.services()
        if is_stream(row) and states_of(row)[-1].is_completed():
            return await services.ask(self._host(), lambda: items_of_result(services, row))
        if services.results is None:
            text = row.result
        else:
            text = await services.results.read(row, self._host())
        if text is None:
            raise MissingResultError(run_id, _why_missing(row))
        return decode(text)

    def stream(self, run_id: UUID | str, *, after: int | str | None = 0) -> ItemStream:
        """The items of a generator's run with `persist_result=True`: those on record, then each as it comes.

        From any process, any number of times. `async for item in client.stream(run_id)` ends when the run
        has completed, and raises what says so if it ended in another way. Leaving it changes nothing
        for the run. With `sse(...)` it is the body of a response that a client can come back to.

        Args:
            run_id: The run. An unknown one raises `RunNotFoundError` with the first item asked for; one
                whose items are not recorded, `MissingResultError`.
            after: Begin behind the item with this `number`. The text of a `Last-Event-ID` header
                is taken as it is; one that is no number raises `OptionError`, here.
        """
        return ItemStream(self.services, _required_id(run_id), position_of(after))

    async def delete_flow_run(self, flow_run_id: UUID | str) -> None:
        """Delete an outermost flow run that has ended: with all below it, its logs and its result files.

        Raises `CannotDeleteRunError` for one that goes on, or that is a part of another run.
        """
        row = await self._row(flow_run_id, _FLOWS)
        services = await self.services()
        if row.parent_id is not None:
            raise CannotDeleteRunError(flow_run_id, "it is a part of another run; delete that one")

        def delete() -> bool:
            gone = services.store.delete_runs([row.id])
            if services.results is not None:
                services.results.delete(gone)
            return bool(gone)

        if not await services.ask(self._host(), delete):
            raise CannotDeleteRunError(flow_run_id, "it, or a run below it, has not ended")

    async def _row(self, run_id: UUID | str, kinds: frozenset[int]) -> RunRow:
        row = await self._read(lambda services: services.store.read_run(_required_id(run_id)))
        if row is None or row.kind not in kinds:
            raise RunNotFoundError(run_id)
        return row

    async def _read(self, query: Callable[[Services], T]) -> T:
        services = await self.services()
        return await services.ask(self._host(), lambda: query(services))

    async def services(self) -> Services:
        """For the engine: what the runs of the runtime share."""
        if self._runtime is not None:
            return await self._host().run_blocking(self._runtime.open)
        in_force = HOME.in_force()
        return in_force if in_force is not None else await self._host().run_blocking(HOME.open_default)

    def _host(self) -> Host:
        return host_here(self._clock)


def _why_missing(row: RunRow) -> str:
    state = states_of(row)[-1]
    if not state.is_completed():
        return f"it is {state}"
    reason = decode(row.details or "{}").get("not_kept")
    return reason or "none was recorded"


def _required_id(run_id: UUID | str) -> bytes:
    try:
        return parse_id(run_id)
    except (ValueError, AttributeError, TypeError):
        raise RunNotFoundError(run_id) from None


def _id(run_id: UUID | str | None) -> bytes | None:
    return None if run_id is None else _required_id(run_id)


def _states(given: States | None) -> frozenset[StateType] | None:
    if given is None:
        return None
    try:
        names = [given] if isinstance(given, str) else list(given)
        return frozenset(StateType(name.upper()) for name in names)
    except (ValueError, AttributeError, TypeError):
        known = ", ".join(type_.value for type_ in StateType)
        raise OptionError("state", given, f"one or several of {known}") from None


def _micro(option: str, moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise OptionError(option, moment, "a datetime with a time zone: datetime.now(UTC)")
    return int(moment.timestamp() * _MICRO)


def _count(option: str, number: int) -> int:
    if number < 0:
        raise OptionError(option, number, "a whole number from 0")
    return number


def _level(level: int | str | None) -> int | None:
    if level is None or isinstance(level, int):
        return level
    import logging  # as in `asyncflow.logs`

    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise OptionError("level", level, "a level of logging, such as 'WARNING'")
    return number
