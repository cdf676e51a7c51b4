"""Pausing live runs: from outside, so that nothing more of them begins; from inside, in a body; and for good.

A run that is paused stays in its process. One that is suspended ends its part there like one whose
runtime stops, and begins anew when it is resumed: what it had completed is found in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncflow._backend.base import Host
from asyncflow._cancellation import cancel, outermost_of
from asyncflow._causes import Cause
from asyncflow._gates import Gate
from asyncflow._outcomes import blocked
from asyncflow._recorded import ENDING
from asyncflow._rules import SUSPENDED
from asyncflow._run import Run
from asyncflow.states import StateType

__all__ = [
    "Pause",
    "answer_pause",
    "begin_pause",
    "end_pause",
    "hold",
    "pause_of",
    "release",
    "suspend",
    "wait_in_pause",
]


# --- from outside ----------------------------------------------------------------------------


def hold(run: Run) -> bool:
    """Let nothing more begin in the tree of an outermost run until `release`; false when it does not run now.

    What has begun goes on. From any thread.
    """
    with ENDING:
        if run.id in run.services.held:
            return True
        if run.status.type is not StateType.RUNNING or run.cause is not None:
            return False
        run.services.held[run.id] = Gate()
        run.enter(StateType.PAUSED, run.services.clock.now())
    return True


def release(run: Run) -> bool:
    """The opposite of `hold`; false when it was not held. From any thread."""
    with ENDING:
        gate = run.services.held.pop(run.id, None)
        if gate is None:
            return False
        _go_on(run)
    gate.open()
    return True


# --- from inside -----------------------------------------------------------------------------


class Pause:
    """One wait of a body for somebody to resume its flow run."""

    __slots__ = ("accept", "answer", "facts", "gate", "is_answered", "is_taken", "keep", "key")

    def __init__(self, key: str, accept: Callable[[Any], Any], keep: Callable[[Any], object] | None = None) -> None:
        self.key = key
        self.accept = accept
        """Gives the input as the body is to get it, of what came in as JSON data; raises where it does not fit."""
        self.keep = keep
        """Puts what came in on record, before the body gets it. Blocks."""
        self.facts: dict[str, Any] = {}
        """What the state of its run tells of it."""
        self.gate = Gate()
        self.is_taken = False
        """Whether somebody answers it, or its time is over: nobody else will."""
        self.is_answered = False
        self.answer: Any = None

    def take(self) -> bool:
        """Be the one who ends it; false when somebody else is. From any thread."""
        with ENDING:
            is_first, self.is_taken = not self.is_taken, True
            return is_first

    def give_back(self) -> None:
        """The opposite: it could not be ended, and waits on."""
        self.is_taken = False

    def resume(self, answer: Any) -> None:
        """Let the body go on with what `accept` gave. From any thread; the first answer counts."""
        with ENDING:
            if self.is_answered:
                return
            self.is_answered = self.is_taken = True
            self.answer = answer
        self.gate.open()


def begin_pause(run: Run, pause: Pause, facts: dict[str, Any]) -> None:
    """Enter a pause of a flow run's body, or of a task's in it. From any thread."""
    with ENDING:
        pause.facts = facts
        run.services.pauses.setdefault(run.id, {})[pause] = None
        if run.status.type is StateType.RUNNING:
            run.enter(StateType.PAUSED, run.services.clock.now(), facts=facts)


def end_pause(run: Run, pause: Pause) -> None:
    """The body goes on, or will never: the run is Running again when it was the last of its pauses."""
    with ENDING:
        pauses = run.services.pauses.get(run.id, {})
        pauses.pop(pause, None)
        if not pauses:
            run.services.pauses.pop(run.id, None)
        _go_on(run)


def pause_of(run: Run, key: str | None = None) -> Pause | None:
    """The pause that a run is in: with this key, else any; the one it has been in the longest."""
    pauses: list[Pause] = list(run.services.pauses.get(run.id, ()))
    return next((pause for pause in pauses if not pause.is_taken and key in (None, pause.key)), None)


def answer_pause(run: Run, pause: Pause, given: Any) -> bool:
    """End a pause with what came in: checked, put on record, and then given to the body. Blocks; from any thread.

    False when it is over: somebody was quicker, or its time was. What `accept` raises passes, and it waits on.
    """
    answer = pause.accept(given)
    if not pause.take():
        return False
    try:
        if pause.keep is not None:
            pause.keep(given)
    except BaseException:
        pause.give_back()
        raise
    pause.resume(answer)
    end_pause(run, pause)
    return True


async def wait_in_pause(pause: Pause, host: Host, waiting: Run | None, seconds: float | None) -> bool:
    """Wait until a pause is answered, at most `seconds`; gives whether it is. `waiting` is the run whose body waits."""
    if not pause.is_answered:
        signal = host.signal()
        pause.gate.attend(signal.set)
        try:
            await blocked(host, waiting, signal, seconds)
        finally:
            pause.gate.desert(signal.set)
    return pause.is_answered


def _go_on(run: Run) -> None:
    """Have the state of a paused run tell what still keeps it, or that nothing does."""
    if run.status.type is not StateType.PAUSED or run.is_over or run.cause is not None or run.id in run.services.held:
        return
    now, first = run.services.clock.now(), next(iter(run.services.pauses.get(run.id, ())), None)
    if first is None:
        run.enter(StateType.RUNNING, now)
    elif run.facts is not first.facts:
        run.enter(StateType.PAUSED, now, facts=first.facts)


# --- for good --------------------------------------------------------------------------------


def suspend(run: Run, message: str, facts: dict[str, Any] | None = None) -> bool:
    """End this process's part of the tree that a run is in; false when it has ended. From any thread.

    All of it is Paused, named Suspended, and can be resumed; `facts` are what that state of the outermost run tells.
    """
    return cancel(outermost_of(run), Cause(message, rests_as=SUSPENDED, facts=facts))
