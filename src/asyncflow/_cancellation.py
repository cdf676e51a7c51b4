"""Cancelling: marking a subtree with one cause, delivering it once, giving up on what stays deaf.

Scopes of the backends cannot do this: children under `asyncio.gather` inherit none. So the tree
decides: the whole subtree gets the cause first, and then it is delivered to the run and to those
below it that the library hosts. Children in tasks of the user's get it from their own `gather` or
task group, and what is left of them when a body has ended is told then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from asyncflow._causes import Cause
from asyncflow._recorded import ENDING
from asyncflow._run import Run
from asyncflow.error_records import error_summary
from asyncflow.exceptions import CrashedRunError
from asyncflow.states import RESTED, StateType

__all__ = [
    "bury",
    "cancel",
    "condemn",
    "crash",
    "end_tree",
    "give_up",
    "lose",
    "must_stop",
    "outermost_of",
    "settle_interrupted",
    "watch_deadline",
]

_LAST_CALL = 0.9
"""The part of the grace time after which what is still open is told once more, shields or not."""
_LEAST = 0.1
"""The least part of a grace time that those get who are told when it has begun already elsewhere."""


def cancel(run: Run, cause: Cause) -> bool:
    """Cancel an open run and everything below it, at once, from any thread; false when it has ended."""
    if run.is_over or lose(run):
        return False
    if run.host.here() and run.host.current_task() is not None:
        condemn(run, (run,), cause)
    else:
        # At once, for a thread of the run's own that looks at its next checkpoint: the loop may be busy.
        with ENDING:
            run.cause = run.cause or cause
        # Also from a signal handler on the loop's own thread: only `post` wakes a loop that waits for its files.
        run.host.post(partial(condemn, run, (run,), cause))
    return True


def end_tree(run: Run, what: str, error: BaseException) -> None:
    """Something in `run` raised what ends the program: so does its outermost run, whose caller gets it."""
    top = outermost_of(run)
    if top is not run:
        named = what.format(run=f"{run.spec.kind.value} run {run.display_name!r}", error=error_summary(error))
        cancel(top, Cause(f"cancelled because {named}", error=error))


def condemn(root: Run, targets: Sequence[Run], cause: Cause) -> None:
    """Mark `targets` and everything below, deliver, and begin the grace time. On `root`'s host.

    `root` is the run itself, or the one whose body has ended and whose children these are. Each
    cause has one grace time, however deep the subtree.
    """
    known = [run.cause for run in targets]
    for run in targets:
        run.mark(cause)
    for run in targets:
        for each in _told_directly(run):
            _tell(each)
    # Whoever was told before keeps the grace time that began then: asking again adds nothing.
    if not all(each is not None and each.until is not None for each in known):
        _begin_grace(root, targets, cause)


def _told_directly(run: Run) -> Iterator[Run]:
    """The run, and below it those that the library hosts, in the order they began."""
    yield run
    pending = list(run.children or ())[::-1]
    while pending:
        each = pending.pop()
        if each.is_hosted or each.stream is not None:
            yield each
        pending.extend(list(each.children or ())[::-1])


def _tell(run: Run, *, again: bool = False) -> None:
    if run.host.here():
        _deliver(run, again)
    else:
        run.host.post(partial(_deliver, run, again))


def _deliver(run: Run, again: bool) -> None:
    """Cancel an open run, on its own host: once, and `again` when most of the grace time is over."""
    if run.is_over or (run.told and not again):
        return
    run.told = True
    if run.stream is not None:
        run.stream.stop()
    elif run.task is None:
        return  # it has not begun, and sees its cause when it does
    elif run.parent is not None and run.host.cancel_task(
        run.task, again=again, is_ours=run.is_hosted, is_over=lambda: run.is_over
    ):
        return
    elif run.scope is not None:
        # An outermost run's task is its caller's, who is not cancelled: only a scope keeps the two apart.
        run.scope.cancel(again=again)


def _begin_grace(root: Run, targets: Sequence[Run], cause: Cause) -> None:
    if not root.host.here():
        return  # a coroutine that is being closed somewhere: it waits for nothing
    services = root.services
    grace = services.settings.grace_seconds
    now = services.clock.monotonic()
    left = grace if cause.until is None else max(cause.until - now, grace * _LEAST)
    cause.until = now + left
    later = root.host.call_later
    root.timers = [
        *(root.timers or ()),
        later(left * _LAST_CALL, partial(_tell_again, targets)),
        later(left, partial(give_up, targets, f"ignored cancellation for {grace:g} seconds ({cause.message})")),
    ]


def _tell_again(targets: Sequence[Run]) -> None:
    for run in targets:
        for each in _open_below(run):
            # One whose body has ended only waits for those below it; one in its parent's task is told with it.
            parent = each.parent
            if not each.closing and (each is run or parent is None or each.task is not parent.task):
                _tell(each, again=True)


def give_up(targets: Sequence[Run], message: str) -> None:
    """Record those as Crashed whose bodies go on; who only waits for them then ends by itself.

    Those that were to stop for a while only are Paused. All in one step, so that one commit has them.
    """
    for run in targets:
        for deaf in reversed(list(_open_below(run))):  # children first
            if not deaf.closing:
                if deaf.cause is not None and deaf.cause.rests_as is not None:
                    lay_to_rest(deaf, deaf.cause.rests_as, message)
                else:
                    crash(deaf, message)
                deaf.settle()
                deaf.unlink()


def _open_below(run: Run) -> Iterator[Run]:
    if not run.is_over:
        yield run
    for child in list(run.children or ()):
        yield from _open_below(child)


def watch_deadline(run: Run, seconds: float) -> None:
    """Give a body up that goes on when its deadline, in `seconds`, and then the grace time have passed."""
    grace = run.services.settings.grace_seconds
    message = f"ignored its timeout of {seconds:g} seconds for {grace:g} seconds"
    run.timers = [run.host.call_later(seconds + grace, partial(give_up, (run,), message))]


def crash(run: Run, message: str) -> None:
    """Record that a run, and what is open below it, ended without an ending of its own.

    Does nothing when it has a final state, or none at all yet. From any thread.
    """
    if run.is_torn:
        for child in list(run.children or ()):
            crash(child, message)
        run.closing = True  # nothing may begin under it any more, although its body may go on
        with ENDING:
            if run.is_torn:
                run.enter(StateType.CRASHED, run.services.clock.now(), message=message)
                if run.is_hosted:
                    run.error = CrashedRunError(message, run.bare_state())


def lay_to_rest(run: Run, name: str, message: str) -> None:
    """Record that a run, and what is open below it, was stopped and can be resumed. As `crash`."""
    if run.is_torn:
        for child in list(run.children or ()):
            lay_to_rest(child, name, message)
        run.closing = True
        with ENDING:
            if run.is_torn:
                settle_interrupted(run, StateType.PAUSED)
                facts = None if run.cause is None or run.parent is not None else run.cause.facts
                run.enter(StateType.PAUSED, run.services.clock.now(), name=name, message=message, facts=facts)
                if run.is_hosted:
                    run.error = RESTED[name](message, run.bare_state())


def settle_interrupted(run: Run, ending: StateType) -> None:
    """`run` is about to end. When that is for good, so is the end of those below it that were interrupted.

    They could only be resumed with it: else a run would have its final state and its children none.
    """
    if ending is StateType.PAUSED:
        parent = run.parent
        if parent is not None:
            parent.interrupted = [*(parent.interrupted or ()), run]
        return
    pending, run.interrupted = run.interrupted, None
    while pending:
        below = pending.pop()
        message = f"cancelled because its {run.spec.kind.value} run {run.display_name!r} ended without it"
        pending += below.interrupted or ()
        below.interrupted = None
        below.enter(StateType.CANCELLED, run.services.clock.now(), message=message)


def lose(run: Run) -> bool:
    """Whether a run's event loop was closed in the middle; it is then recorded Crashed, and its outcome can be had."""
    if run.is_settled or not run.host.is_dead():
        return False
    bury(run, "its event loop was closed before it ended")
    return True


def bury(run: Run, message: str) -> None:
    """End a run that nothing can drive any more, with everything open below it."""
    for child in list(run.children or ()):
        bury(child, message)
    if run.cause is not None and run.cause.rests_as is not None:
        lay_to_rest(run, run.cause.rests_as, f"{run.cause.message}; {message}")
    else:
        crash(run, message)
    run.settle()
    run.unlink()


def outermost_of(run: Run) -> Run:
    """The run at the top of the tree."""
    while run.parent is not None:
        run = run.parent
    return run


def must_stop(run: Run | None) -> bool:
    """Whether this run, or one above it, was cancelled or is past its deadline: for bodies that no loop can tell."""
    while run is not None:
        if run.cause is not None or run.status.type is StateType.CANCELLING:
            return True
        run = run.parent
    return False
