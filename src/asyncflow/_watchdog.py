"""Telling of event loops that do not turn: which task blocks one, for how long, and where.

One thread for the process, while a runtime is open whose setting `blocked_loop_seconds` asks for it.
It looks at the threads of the loops a few times in that span. A loop that waits in its selector is
left alone, so an idle one is never woken; one that executes something is asked for a sign of life,
and when that does not come in time the stack of its thread is told, once, and the end of the block too.

A process that was suspended as a whole (`SIGSTOP`, a debugger, a laptop that sleeps), or that gets no
processor, is not to blame: then this thread itself came late without the process having computed
anything, and that time is not counted. (Where it came late while the process did compute, something
held the interpreter lock, which blocks a loop like anything else.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from asyncflow._backend.frames import file_of, innermost_of_user, key_of, local_of
from asyncflow._backend.loops import Loop, WatchedHost, is_debugged, loops
from asyncflow._live_tree import EXECUTE, live_runs
from asyncflow._rows import FLOW, LogRow
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._waits import CodePlace
from asyncflow.logs import library_logger

__all__ = ["WATCHDOG", "Watchdog"]

_LOOKS = 4
"""How often in the span that a loop may be blocked for it is looked at."""
_PERIODS = (0.005, 0.5)
_MOST_FRAMES = 30
_WARNING = 30
"""The level of the lines that are kept: `logging.WARNING`."""
_MICRO = 1_000_000


class _Pulse:
    """What is known of one loop."""

    __slots__ = ("asked", "told", "turned", "whose")

    def __init__(self) -> None:
        self.asked: float | None = None
        """When it was asked for a sign of life that has not been seen yet."""
        self.turned: float | None = None
        """When that sign came."""
        self.told: list[Services] = []
        """Those who were told that it is blocked."""
        self.whose: Run | None = None
        """The run that was said to block it."""

    def ask(self, loop: Loop, now: float) -> None:
        self.turned, self.asked = None, now
        loop.post(partial(self._turn, now))

    def _turn(self, asked: float) -> None:
        """Called by the loop."""
        if self.asked is not None and asked <= self.asked:
            self.turned = time.monotonic()


class Watchdog:
    """The watcher of one process."""

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """Begin anew, as in a forked child."""
        self._lock = threading.RLock()
        self._watched: list[Services] = []
        self._pulses: WeakKeyDictionary[WatchedHost, _Pulse] = WeakKeyDictionary()
        self._stop = threading.Event()
        self.asked: int = 0
        """How often loops were asked for a sign of life."""

    def watch(self, services: Services) -> None:
        """Look at the loops that host runs of this runtime, until `forget`."""
        with self._lock:
            self._watched.append(services)
            if len(self._watched) > 1:
                return
            self._stop = threading.Event()
            threading.Thread(target=self._run, args=(self._stop,), name="asyncflow-watchdog", daemon=True).start()

    def forget(self, services: Services) -> None:
        """Look no more for this runtime; the end of a block that has just ended is told yet."""
        with self._lock:
            if services not in self._watched:
                return
            for loop in loops():
                self._tell_end(loop)
            self._watched.remove(services)
            if not self._watched:
                self._stop.set()
                self._pulses.clear()

    @property
    def _span(self) -> float:
        return min(each.settings.blocked_loop_seconds for each in self._watched)

    def _run(self, stop: threading.Event) -> None:
        expected, spent = time.monotonic(), time.process_time()
        pause = 0.0
        while not stop.wait(pause):
            now, used = time.monotonic(), time.process_time()
            with self._lock:
                if stop.is_set():
                    return
                late = now - expected
                if late > pause and used - spent < late / 2:
                    self._excuse(late)
                try:
                    self._look(now)
                except Exception:  # noqa: BLE001  # of whatever kind: it must not end the watch, or hurt anybody
                    library_logger().exception("the watchdog could not look at the event loops")
                pause = min(max(self._span / _LOOKS, _PERIODS[0]), _PERIODS[1])
            expected, spent = time.monotonic() + pause, time.process_time()

    def _excuse(self, seconds: float) -> None:
        """Nobody could do anything for so long."""
        for pulse in self._pulses.values():
            if pulse.asked is not None:
                pulse.asked += seconds

    # --- a look ------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        is_at_work = any(each.outermost for each in self._watched)
        for loop in loops():
            self._tell_end(loop)
            pulse = self._pulses.get(loop.host)
            if pulse is None or pulse.asked is None:
                if is_at_work:
                    self._ask(loop, now)
            elif now - pulse.asked >= self._span:
                self._tell(loop, pulse, now - pulse.asked)

    def _ask(self, loop: Loop, now: float) -> None:
        stack = loop.stack()
        if stack and not loop.is_idle(stack):
            self.asked += 1
            self._pulses.setdefault(loop.host, _Pulse()).ask(loop, now)

    def _tell(self, loop: Loop, pulse: _Pulse, seconds: float) -> None:
        stack = loop.stack()
        if not stack or is_debugged(stack):
            pulse.asked = None  # it does not turn because nobody runs it, or because somebody looks at it
            return
        due = [
            each
            for each in self._watched
            if each not in pulse.told and seconds >= each.settings.blocked_loop_seconds and _hosts_runs(loop, each)
        ]
        if not due:
            return
        if not pulse.told:
            pulse.whose = _run_in(stack)
            run = "" if pulse.whose is None else f"{_named(pulse.whose)}, "
            task = loop.task_name(stack)
            where = "a callback" if task is None else f"task {task!r}"
            text = (
                f"the event loop of thread {loop.thread_name!r} has not turned for {seconds:.2f} s: "
                f"it executes {run}in {where}\n{_stack_text(loop.step(stack))}"
            )
            _warn(text, pulse.whose)
        pulse.told += due

    def _tell_end(self, loop: Loop) -> None:
        pulse = self._pulses.get(loop.host)
        if pulse is None or pulse.asked is None or pulse.turned is None:
            return
        seconds, pulse.asked = pulse.turned - pulse.asked, None
        told, pulse.told = pulse.told, []
        run, pulse.whose = pulse.whose, None
        if told:
            who = "" if run is None else f" ({_named(run)})"
            _warn(f"the event loop of thread {loop.thread_name!r} turns again, after {seconds:.2f} s{who}", run)


WATCHDOG = Watchdog()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WATCHDOG.forget_all)


# --- what is told ----------------------------------------------------------------------------


def _hosts_runs(loop: Loop, services: Services) -> bool:
    host: Any = loop.host
    return any(run.host is host for run in live_runs(services))


def _run_in(stack: Sequence[FrameType]) -> Run | None:
    """The innermost run whose code executes there."""
    for frame in reversed(stack):
        if key_of(frame) == EXECUTE and isinstance(run := local_of(frame, "run"), Run):
            return run
    return None


def _named(run: Run) -> str:
    return f"{run.spec.kind.value} run {run.display_name!r}"


def _stack_text(stack: Sequence[FrameType]) -> str:
    """Innermost first: the lines of the user's code, then all others."""
    innermost = list(reversed(stack))
    users = [frame for frame in innermost if innermost_of_user([frame]) is not None]
    others = [frame for frame in innermost if frame not in users]
    lines = [_line(frame) for frame in (*users, *others)[:_MOST_FRAMES]]
    return "\n".join(lines)


def _line(frame: FrameType) -> str:
    import linecache  # reads a file, in this thread, where something is wrong already

    place = CodePlace(file_of(frame), frame.f_lineno, frame.f_code.co_qualname)
    code = linecache.getline(file_of(frame), frame.f_lineno).strip()
    return f"  {place}: {code}" if code else f"  {place}"


def _warn(text: str, run: Run | None) -> None:
    """Say it to the program's log handlers, and keep it with the run."""
    library_logger().warning("%s", text)
    if run is None or not _keeps_warnings(run.services):
        return
    now = int(run.services.clock.now() * _MICRO)
    is_flow = run.kind == FLOW
    flow_run_id, task_run_id = (run.id, None) if is_flow else (run.flow_run_id, run.id)
    run.services.store.put_log(LogRow(flow_run_id, task_run_id, now, _WARNING, "asyncflow", text))


def _keeps_warnings(services: Services) -> bool:
    import logging  # as in `asyncflow.logs`

    return logging.getLevelNamesMapping()[services.settings.log_level.upper()] <= _WARNING
