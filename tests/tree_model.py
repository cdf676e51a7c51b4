"""What becomes of a tree of flows and tasks: the rules of DESIGN 4.1, 4.4 and 4.5 on a page, without a loop.

A tree is data (`Node`). Each body starts its children, then waits at a gate of its own, so a tree
in which nothing moves any more is the same whatever ran first. Then one thing happens (a gate is
opened, something is cancelled, a deadline passes), what follows from it is followed to the end, and
again nothing moves: no race decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

__all__ = ["MAPPED", "Life", "Mode", "Node", "Outcome", "Place", "Reaction", "Timeout", "Tree", "leaves_of"]

MAPPED = 2
"""How many runs `map` makes of the one child it has."""


class Mode(Enum):
    """How a body starts its children."""

    SEQUENCE = "awaits each call"
    GATHER = "asyncio.gather of calls"
    GROUP = "a task group of the loop's own, of calls"
    ANYIO_GROUP = "a task group of anyio, of calls"
    SUBMIT = "submits all, then awaits each"
    FORGET = "submits all and awaits none"
    RETURN = "submits all and returns the futures"
    MAP = "map over the one child, awaited as a whole"


SUBMITTING = (Mode.SUBMIT, Mode.FORGET, Mode.RETURN, Mode.MAP)


class Reaction(Enum):
    """What a body at its gate does with a cancellation."""

    STOP = "lets it pass"
    CLEAN_UP = "lets it pass after a `finally` that awaits"
    SWALLOW = "returns a value"
    ANSWER = "raises something else"


class Timeout(Enum):
    """`timeout_seconds`."""

    NONE = "none"
    LONG = "one that never passes"
    SHORT = "one that passes before any gate is opened"


@dataclass(frozen=True)
class Node:
    """A flow or task, and what its body does."""

    is_flow: bool = True
    is_sync: bool = False
    mode: Mode = Mode.SEQUENCE
    children: tuple[Node, ...] = ()
    handles: bool = False  # whether it goes on after a child failed
    fails: int = 0  # how many attempts raise after the gate
    retries: int = 0
    timeout: Timeout = Timeout.NONE
    reaction: Reaction = Reaction.STOP


Error = str | tuple[str, ...]
"""The name of an exception's type; of a group, the sorted names of its leaves."""
CANCELLATION = "cancellation"  # the backend's own


class Outcome(NamedTuple):
    """A final state, and what whoever waits for the run gets instead of its value."""

    type: str
    name: str
    error: Error | None = None


COMPLETED = Outcome("COMPLETED", "Completed")
CANCELLED = Outcome("CANCELLED", "Cancelled", CANCELLATION)
TIMED_OUT = Outcome("FAILED", "TimedOut", "TimeoutError")


def failed(error: Error) -> Outcome:
    return Outcome("FAILED", "Failed", error)


def leaves_of(errors: list[Error]) -> tuple[str, ...]:
    return tuple(sorted(name for each in errors for name in ([each] if isinstance(each, str) else each)))


class Place(Enum):
    """Where a body is."""

    AT_CHILDREN = 1
    AT_GATE = 2
    RETURNED = 3  # and what it started is waited for


@dataclass(eq=False)
class Life:
    """A run."""

    node: Node
    path: str
    parent: Life | None
    attempt: int = 0
    kids: list[Life] = field(default_factory=list)  # of this attempt
    place: Place = Place.AT_CHILDREN
    is_stopping: bool = False  # its kids' ends are nothing to it
    outcome: Outcome | None = None

    @property
    def is_submitted(self) -> bool:
        return self.parent is not None and self.parent.node.mode in SUBMITTING

    @property
    def error(self) -> Error | None:
        """What an ended run means to its caller: for one that was not cancelled itself it is an exception."""
        error = self.outcome and self.outcome.error
        return "RunCancelledError" if error == CANCELLATION and self.is_submitted else error


class Tree:
    """All runs of one call, at a moment when nothing moves."""

    def __init__(self, node: Node) -> None:
        self.lives: dict[str, Life] = {}
        self.root = self._begin(node, "r", None)

    def open(self) -> list[Life]:
        return [each for each in self.lives.values() if each.outcome is None]

    def at_gates(self) -> list[Life]:
        return [each for each in self.open() if each.place is Place.AT_GATE]

    # --- what can happen

    def pass_gate(self, life: Life) -> None:
        """The body returns, or raises; whoever returned waits for what it started."""
        if life.attempt <= life.node.fails:
            self._fail(life, failed("LookupError"))
        else:
            life.place = Place.RETURNED
            self._go_on(life)

    def cancel(self, life: Life) -> None:
        """The whole subtree is told; each body has its own answer."""
        self._end(life, self._stop(life) or CANCELLED)

    def expire(self, life: Life) -> None:
        """Its own deadline passes: below it that is a cancellation; retries cover it."""
        self._fail(life, self._stop(life) or TIMED_OUT)

    # --- what follows

    def _begin(self, node: Node, path: str, parent: Life | None) -> Life:
        life = self.lives[path] = Life(node, path, parent)
        self._try(life)
        return life

    def _try(self, life: Life) -> None:
        life.attempt += 1
        life.kids, life.place, life.is_stopping = [], Place.AT_CHILDREN, False
        if life.node.mode is not Mode.SEQUENCE:
            for _ in range(MAPPED if life.node.mode is Mode.MAP else len(life.node.children)):
                self._begin_next(life)
        self._go_on(life)

    def _begin_next(self, life: Life) -> None:
        place = len(life.kids)
        child = life.node.children[0 if life.node.mode is Mode.MAP else place]
        life.kids.append(self._begin(child, f"{life.path}/{life.attempt}.{place}", life))

    def _go_on(self, life: Life) -> None:
        """A kid has ended, or the body has come to its next line."""
        if life.is_stopping or life.outcome is not None:
            return
        if life.place is Place.RETURNED and all(kid.outcome for kid in life.kids):
            self._return(life)
        elif life.place is Place.AT_CHILDREN:
            raised, waits = _WAITS[life.node.mode](self, life)
            if raised is not None and not life.node.handles:
                self._fail(life, failed(raised))
            elif not waits:
                life.place = Place.AT_GATE

    def _return(self, life: Life) -> None:
        """A flow that returns futures is what they are: all Completed, or the worst, Cancelled before Failed."""
        errors = [kid.error for kid in life.kids if kid.error is not None]
        if life.node.mode is not Mode.RETURN or not errors:
            self._end(life, COMPLETED)
            return
        is_cancelled = any(kid.outcome and kid.outcome.type == "CANCELLED" for kid in life.kids)
        error = errors[0] if len(errors) == 1 else leaves_of(errors)  # our own groups collapse
        self._fail(life, Outcome("CANCELLED", "Cancelled", error) if is_cancelled else failed(error))

    def _fail(self, life: Life, outcome: Outcome) -> None:
        """What it started is cancelled; then retries, which cover failures and timeouts."""
        self._stop_kids(life)
        if outcome.type == "FAILED" and life.attempt <= life.node.retries:
            self._try(life)
        else:
            self._end(life, outcome)

    def _end(self, life: Life, outcome: Outcome) -> None:
        life.outcome = outcome
        if life.parent is not None:
            self._go_on(life.parent)

    def _stop(self, life: Life) -> Outcome | None:
        """Tell a body and all below it to stop; gives its answer, if it is not just that it stops."""
        answers = life.place is Place.AT_GATE and not life.node.children
        self._stop_kids(life)
        if answers and life.node.reaction is Reaction.SWALLOW:
            return COMPLETED
        return failed("LookupError") if answers and life.node.reaction is Reaction.ANSWER else None

    def _stop_kids(self, life: Life) -> None:
        life.is_stopping = True
        for kid in life.kids:
            if kid.outcome is None:
                self.cancel(kid)

    # --- what a body waits for at its children: what that raises, and whether it still waits

    def _in_order(self, life: Life) -> tuple[Error | None, bool]:
        for place in range(len(life.node.children)):
            if place == len(life.kids):
                self._begin_next(life)
            if life.kids[place].outcome is None:
                return None, True
            if life.kids[place].error is not None and not life.node.handles:
                return life.kids[place].error, False
        return None, False

    def _first_error(self, life: Life) -> tuple[Error | None, bool]:
        """`asyncio.gather` raises the first failure, and leaves the others running."""
        for kid in life.kids:
            if kid.error is not None:
                return kid.error, False
        return None, any(kid.outcome is None for kid in life.kids)

    def _group(self, life: Life) -> tuple[Error | None, bool]:
        """A task group cancels the others at the first failure, and raises a group of all failures."""
        if any(kid.error for kid in life.kids):
            self._stop_kids(life)
            life.is_stopping = False
        errors = [kid.error for kid in life.kids if kid.error not in (None, CANCELLATION)]
        return leaves_of([each for each in errors if each]) or None, any(kid.outcome is None for kid in life.kids)

    def _all(self, life: Life) -> tuple[Error | None, bool]:
        """`map`: all are waited for, then the only exception, or a group of several."""
        errors = [kid.error for kid in life.kids if kid.error is not None]
        if any(kid.outcome is None for kid in life.kids):
            return None, True
        return (leaves_of(errors) if len(errors) > 1 else errors[0] if errors else None), False

    def _none(self, life: Life) -> tuple[Error | None, bool]:
        return None, False


_WAITS = {
    Mode.SEQUENCE: Tree._in_order,
    Mode.SUBMIT: Tree._in_order,
    Mode.GATHER: Tree._first_error,
    Mode.GROUP: Tree._group,
    Mode.ANYIO_GROUP: Tree._group,
    Mode.MAP: Tree._all,
    Mode.FORGET: Tree._none,
    Mode.RETURN: Tree._none,
}
