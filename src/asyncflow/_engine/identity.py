"""What a call is known by when its parent runs again: its function, and what it was given.

Made before the body begins, because a body may change what it was given.
"""

from __future__ import annotations

from itertools import islice
from types import FunctionType
from typing import Any

from asyncflow._run import Run
from asyncflow.digests import digest
from asyncflow.exceptions import NotDigestibleError
from asyncflow.logs import library_logger
from asyncflow.serializers import decode, encode

__all__ = ["identify", "needs_identity"]

_NOTHING = b""
_NEIGHBOURS = 4


def needs_identity(run: Run) -> bool:
    """Whether it is to be known by what it was given, and is not yet."""
    return run.digest is None and run.parent is not None and not run.is_beside


def identify(run: Run) -> None:
    """Digest what a run was given. One whose arguments cannot be digested is never answered from a record."""
    spec, parent = run.spec, run.parent
    # What calls that are counted in microseconds are given is mostly nothing.
    if run.arguments or run.run_key is not None or type(spec.fn) is not FunctionType:
        try:
            run.digest = digest(spec.keyed(run.arguments), _salt(run.run_key), _as_recorded)
        except NotDigestibleError as error:
            _say_once(run, error)
            return
    else:
        run.digest = _NOTHING
    if parent is not None and parent.children is not None and len(parent.children) > 1:
        _compare_with_neighbours(run, parent)


def _salt(run_key: str | None) -> bytes:
    return b"" if run_key is None else b"=" + run_key.encode("utf-8", "surrogatepass")


def _as_recorded(name: str, value: Any) -> Any:
    """What a value is as plain JSON: when the run is resumed, that comes back where no annotation says more.

    So a tuple counts as a list, and a date as its text: else a call that was given the value of a task
    without annotations would not be found again.
    """
    return decode(encode(value, where=name))


def _say_once(run: Run, error: NotDigestibleError) -> None:
    said = run.spec.said
    if "undigestible" not in said:
        said.add("undigestible")
        # Not a warning: a client among the arguments is nothing wrong, and the run itself goes on as ever.
        library_logger().info(
            "calls of %s %r are run again when their flow is resumed, whatever is recorded (said once): %s",
            run.spec.kind.value, run.spec.name, error,
        )  # fmt: skip


def _compare_with_neighbours(run: Run, parent: Run) -> None:
    """Warn, once for each function, when an equal call of another task of the host goes on beside this one.

    Only the few that began before it are looked at: remembering all calls would cost each run more
    than its record does.
    """
    said = run.spec.said
    if run.is_hosted or run.stream is not None or "exchangeable" in said:
        return  # what a body submits or streams has tasks of its own, and comes in the body's order
    if run.spec.options.is_cached:
        return  # it says itself that equal calls have equal values
    children: Any = parent.children
    try:
        neighbours: list[Run] = list(islice(reversed(children), _NEIGHBOURS))
    except RuntimeError:  # another thread has begun or ended one meanwhile
        return
    if any(_is_equal(each, run) for each in neighbours):
        said.add("exchangeable")
        library_logger().warning(
            "%s %r is called with equal arguments by several tasks at once in run %r: if the flow is resumed, "
            "one may get the value of the other (said once). Where the value depends on more than the "
            "arguments, tell the calls apart: %s(..., run_key=\"...\")",
            run.spec.kind.value, run.spec.name, parent.display_name, run.spec.name,
        )  # fmt: skip


def _is_equal(other: Run, run: Run) -> bool:
    """Whether it is an equal call, of another task."""
    if other.digest != run.digest or other.spec.key != run.spec.key:
        return False
    return other.task is not run.task and not other.is_hosted and other.stream is None
