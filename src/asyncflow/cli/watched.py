"""Calling a flow while people watch: the live view, Ctrl-C with a way out, its value, what went wrong.

`asyncflow run` and `asyncflow runs resume` differ only in how they call.
"""

from __future__ import annotations

import json
import os
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Iterator
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
from asyncflow.cli.interrupts import Stopper
from asyncflow.cli.live import View, Watcher, listen, make_view, state_style
from asyncflow.cli.load import spec_of
from asyncflow.cli.output import complain, error_console, json_text, one_line
from asyncflow.error_records import error_summary
from asyncflow.exceptions import DurabilityError, NotJSONError
from asyncflow.flows import Flow
from asyncflow.previews import PREVIEW_KEY, preview
from asyncflow.runs import FlowRun
from asyncflow.runtime import HOME
from asyncflow.serializers import encode
from asyncflow.states import State

__all__ = ["COMPLETED", "INTERRUPTED", "NOT_COMPLETED", "Backend", "Look", "Loop", "call_watched"]

Backend = Literal["asyncio", "trio"]
Loop = Callable[[Callable[[], Awaitable[Any]]], Any]
"""Runs an async function in an event loop of its own; gives its value."""
COMPLETED, NOT_COMPLETED, INTERRUPTED = 0, 1, 130
_MOST_LEAVES = 5


@dataclass(frozen=True, slots=True)
class Look:
    """How it is to be shown, and the event loop of async flows."""

    backend: Backend
    plain: bool
    traceback: bool


@dataclass(slots=True)
class _Outcome:
    """What became of the call."""

    value: Any = None
    error: BaseException | None = None

    @property
    def is_interrupt(self) -> bool:
        """Whether somebody pressed Ctrl-C. On trio it may come in a group, from a nursery."""
        return self.error is not None and any(isinstance(each, KeyboardInterrupt) for each in _leaves(self.error))


def call_watched(
    flow: Flow[..., Any], call: Callable[[Flow[..., Any], Loop], Any], look: Look, write: Callable[[str], None]
) -> int:
    """Call the flow with `call`, show how it goes, `write` its value; gives the exit status.

    `call` gets the flow to call, and the loop for what is async.
    """
    services = HOME.open_default()
    console = error_console()
    outcome, run_id, stopper = _watched(flow, call, look.backend, services, make_view(console, plain=look.plain))
    if outcome.error is not None and look.traceback:
        console.print("".join(traceback.format_exception(outcome.error)).rstrip(), soft_wrap=True)
    if outcome.is_interrupt:
        outcome.error = KeyboardInterrupt()  # without a traceback, which would keep torn runs alive
        stopper.collect_torn_runs()
    run = _record(services, run_id)
    if outcome.error is None:
        write(_result_text(outcome.value))
        return COMPLETED if run is None or run.state.is_completed() else NOT_COMPLETED
    is_stopped = stopper.signal is not None or outcome.is_interrupt
    _report(console, flow, run, outcome.error, stopper.cause if is_stopped else None)
    return (stopper.status or INTERRUPTED) if is_stopped else NOT_COMPLETED


# --- the call --------------------------------------------------------------------------------


def _watched(
    flow: Flow[..., Any],
    call: Callable[[Flow[..., Any], Loop], Any],
    backend: Backend,
    services: Services,
    view: View,
) -> tuple[_Outcome, bytes | None, Stopper]:
    """Call the flow and show how it goes; gives what became of it, the id of its run, and what stopped it."""
    watcher = Watcher(services.store, view)
    stopper = Stopper(services, lambda: () if watcher.run_id is None else (watcher.run_id,), partial(_leave, watcher))
    outcome = _Outcome()
    watcher.start()
    try:
        with stopper.answering():
            listen(view.log)
            outcome.value = call(_announced(flow, watcher.follow), partial(_in_loop, backend, stopper))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told and gives the exit status
        outcome.error = error
    finally:
        watcher.close()
    return outcome, watcher.run_id, stopper


def _announced(flow: Flow[..., Any], follow: Callable[[bytes], None]) -> Flow[..., Any]:
    """The flow with hooks that tell its run's id."""

    def announce(_flow: object, run: FlowRun, _state: State[Any]) -> None:
        follow(run.id.bytes)

    options = spec_of(flow).options
    return flow.with_options(
        on_running=[announce, *options.on_running],
        on_failure=[announce, *options.on_failure],  # it may fail before it is Running
    )


def _leave(watcher: Watcher, message: str, status: int) -> None:
    watcher.abandon()
    complain(message)
    os._exit(status)


def _in_loop(backend: Backend, stopper: Stopper, work: Callable[[], Awaitable[Any]]) -> Any:
    with stopper.in_loop():
        return anyio.run(work, backend=backend)


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


def _report(
    console: Console, flow: Flow[..., Any], run: FlowRun | None, error: BaseException, stopped_by: str | None
) -> None:
    """What went wrong, where, and what to do next."""
    text = Text()
    if run is not None:
        mark, style = state_style(run.state.type)
        text.append(f"{mark} flow {one_line(flow.name)} {one_line(run.name)}: {run.state.name}", style)
    else:
        text.append(f"✗ flow {one_line(flow.name)}", "bold red")
    if stopped_by is not None:
        text.append(f", interrupted by {stopped_by}")
    else:
        for leaf in islice(_leaves(error), _MOST_LEAVES):
            text.append(f"\n  {one_line(error_summary(leaf), 1000)}")
            place = _place(leaf.__traceback__)
            text.append(f"\n    at {place}" if place and not isinstance(leaf, DurabilityError) else "", "dim")
    if run is not None:
        verb = "resume" if run.state.is_paused() else "show"
        text.append(f"\n  asyncflow runs {verb} {run.id}", "bold")
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
