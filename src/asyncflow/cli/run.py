"""`asyncflow run`: one flow, from the command line's words to its result and an exit status."""

from __future__ import annotations

import json
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, cast

import anyio
from rich.console import Console
from rich.text import Text

from asyncflow._rows import flow_run_of
from asyncflow._services import Services
from asyncflow._specs import Colour
from asyncflow.cli.arguments import Arguments, arguments_for
from asyncflow.cli.interrupts import collect_torn_runs, handler_restored, way_out
from asyncflow.cli.live import View, Watcher, listen, make_view, state_style
from asyncflow.cli.load import load_flow, spec_of
from asyncflow.cli.output import complain, error_console, json_text, one_line, only_data_on_stdout
from asyncflow.error_records import error_summary
from asyncflow.exceptions import DurabilityError, NotJSONError
from asyncflow.flows import Flow
from asyncflow.parameters import PREVIEW_KEY
from asyncflow.previews import preview
from asyncflow.runs import FlowRun
from asyncflow.runtime import HOME
from asyncflow.serializers import encode
from asyncflow.states import State

__all__ = ["Backend", "run_flow"]

Backend = Literal["asyncio", "trio"]
COMPLETED, NOT_COMPLETED, INTERRUPTED = 0, 1, 130
_MOST_LEAVES = 5


@dataclass(slots=True)
class _Outcome:
    """What became of the call."""

    value: Any = None
    error: BaseException | None = None

    @property
    def is_interrupt(self) -> bool:
        """Whether somebody pressed Ctrl-C. On trio it may come in a group, from a nursery."""
        return self.error is not None and any(isinstance(each, KeyboardInterrupt) for each in _leaves(self.error))


def run_flow(
    entrypoint: str,
    *,
    pairs: Iterable[str],
    file: str | None,
    backend: Backend,
    plain: bool,
    show_traceback: bool,
) -> int:
    """Run the flow, show how it goes, print its value; gives the exit status."""
    with only_data_on_stdout() as write:
        flow = load_flow(entrypoint)
        arguments = arguments_for(flow, pairs, file)
        services = HOME.open_default()
        console = error_console()
        outcome, run_id = _watched(flow, arguments, backend, services, make_view(console, plain=plain))
        if outcome.error is not None and show_traceback:
            console.print("".join(traceback.format_exception(outcome.error)).rstrip(), soft_wrap=True)
        if outcome.is_interrupt:
            outcome.error = KeyboardInterrupt()  # without a traceback, which would keep torn runs alive
            collect_torn_runs(services)
        run = _record(services, run_id)
        if outcome.error is None:
            write(_result_text(outcome.value))
            return COMPLETED if run is None or run.state.is_completed() else NOT_COMPLETED
        _report(console, flow, run, outcome)
        return INTERRUPTED if outcome.is_interrupt else NOT_COMPLETED


# --- the call --------------------------------------------------------------------------------


def _watched(
    flow: Flow[..., Any], arguments: Arguments, backend: Backend, services: Services, view: View
) -> tuple[_Outcome, bytes | None]:
    """Call the flow and show how it goes; gives what became of it and the id of its run."""
    watcher = Watcher(services.store, view)
    outcome = _Outcome()
    watcher.start()
    try:
        listen(view)
        outcome.value = _call(
            _announced(flow, watcher.follow),
            arguments,
            backend,
            way_out(services, lambda: watcher.run_id, leave=partial(_leave, watcher)),
        )
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told and gives the exit status
        outcome.error = error
    finally:
        watcher.close()
    return outcome, watcher.run_id


def _announced(flow: Flow[..., Any], follow: Callable[[bytes], None]) -> Flow[..., Any]:
    """The flow with hooks that tell its run's id; its parameters are checked already."""

    def announce(_flow: object, run: FlowRun, _state: State[Any]) -> None:
        follow(run.id.bytes)

    options = spec_of(flow).options
    return flow.with_options(
        validate_parameters=False,
        on_running=[announce, *options.on_running],
        on_failure=[announce, *options.on_failure],  # it may fail before it is Running
    )


def _leave(watcher: Watcher, message: str) -> None:
    watcher.abandon()
    complain(message)
    os._exit(INTERRUPTED)


def _call(
    flow: Flow[..., Any], arguments: Arguments, backend: Backend, exit_when_deaf: AbstractContextManager[None]
) -> Any:
    """A sync flow runs right here, on the main thread, where Ctrl-C and signals get to it."""
    positional, keywords = arguments
    colour = spec_of(flow).colour
    if colour is Colour.SYNC:
        return flow(*positional, **keywords)
    if colour is Colour.SYNC_GENERATOR:
        return list(flow(*positional, **keywords))

    async def call() -> Any:
        with exit_when_deaf:
            if colour is Colour.ASYNC_GENERATOR:
                async with flow.stream(*positional, **keywords) as items:
                    return [item async for item in items]
            return await flow(*positional, **keywords)

    with handler_restored():
        return anyio.run(call, backend=backend)


def _record(services: Services, run_id: bytes | None) -> FlowRun | None:
    row = None if run_id is None else services.store.read_run(run_id)
    return None if row is None else flow_run_of(row)


# --- what came of it -------------------------------------------------------------------------


def _result_text(value: Any) -> str:
    """The value as JSON; of one that is not JSON a preview, with a warning."""
    try:
        return json_text(json.loads(encode(value)))  # not orjson: integers of any size
    except NotJSONError as error:
        complain(f"{error.path} is not JSON ({error.problem}), so standard output has a preview of the result")
        return json_text({PREVIEW_KEY: preview(value)})


def _report(console: Console, flow: Flow[..., Any], run: FlowRun | None, outcome: _Outcome) -> None:
    """What went wrong, where, and where to read more."""
    error = outcome.error
    assert error is not None
    text = Text()
    if run is not None:
        mark, style = state_style(run.state.type)
        text.append(f"{mark} flow {one_line(flow.name)} {one_line(run.name)}: {run.state.name}", style)
    else:
        text.append(f"✗ flow {one_line(flow.name)}", "bold red")
    if outcome.is_interrupt:
        text.append(", interrupted by Ctrl-C")
    else:
        for leaf in islice(_leaves(error), _MOST_LEAVES):
            text.append(f"\n  {one_line(error_summary(leaf), 1000)}")
            place = _place(leaf.__traceback__)
            text.append(f"\n    at {place}" if place and not isinstance(leaf, DurabilityError) else "", "dim")
    if run is not None:
        text.append(f"\n  asyncflow runs show {run.id}", "bold")
    console.print(text, soft_wrap=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, at any depth; else the exception itself."""
    left: list[Any] = [error]
    while left:
        each = left.pop()
        if isinstance(each, BaseExceptionGroup):
            left += reversed(cast("Any", each).exceptions)
        else:
            yield each


def _place(frames: TracebackType | None) -> str | None:
    """`file:line in function` of the innermost frame in the user's own code, else in a library of theirs."""
    best: tuple[int, str] | None = None
    for frame, line in traceback.walk_tb(frames):
        rank = _rank(frame)
        if rank and (best is None or rank >= best[0]):
            best = rank, f"{_short(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
    return None if best is None else best[1]


_OURS = str(Path(__file__).parent.parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _rank(frame: FrameType) -> int:
    """2: the user's own code; 1: a library; 0: ours, which says nothing about what went wrong."""
    file = frame.f_code.co_filename
    if file.startswith(_OURS):
        return 0
    return 1 if file.startswith((*_LIBRARIES, "<frozen")) else 2


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
