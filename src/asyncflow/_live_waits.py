"""What a run's innermost frames say that it waits for.

The engine's functions that wait, by name, each with what to tell of it. A test holds that the names
are there: whoever renames one is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import Any
from uuid import UUID

from asyncflow._backend.frames import innermost_of_library, innermost_of_user, is_ours, key_of, local_of
from asyncflow._limiter import Limiter
from asyncflow._limits import Named, Use
from asyncflow._live_tree import TAKE_PLACES, Look, Stretch
from asyncflow._places import Places
from asyncflow._run import Run
from asyncflow._waits import CodePlace, LiveWait, PlaceHolder, WaitKind
from asyncflow.states import StateType

__all__ = ["KNOWN", "OTHERS", "waits_of"]

_MICRO = 1_000_000


class _Seen:
    """A run, and the stretch of code in which it is looked at."""

    __slots__ = ("block", "look", "run", "stretch")

    def __init__(self, look: Look, run: Run, stretch: Stretch, block: Sequence[FrameType]) -> None:
        self.look = look
        self.run = run
        self.stretch = stretch
        self.block = block
        """Our own frames that are innermost, but for those of what we wait with."""

    def frame(self, name: str) -> FrameType | None:
        """The outermost frame of a function in which the engine waits."""
        return next((each for each in self.block if _name_of(each) == name), None)

    def local(self, function: str, variable: str) -> Any:
        frame = self.frame(function)
        return None if frame is None else local_of(frame, variable)

    def tell(self, kind: WaitKind, what: str, **more: Any) -> LiveWait:
        """A wait, with the place in the user's code that led to it."""
        return LiveWait(
            kind=kind, what=what, thread=self.stretch.thread, at=_user_place(self.run, self.stretch), **more
        )


_Teller = Callable[[_Seen], LiveWait]


def _name_of(frame: FrameType) -> str:
    return key_of(frame).removeprefix("asyncflow.")


def place_of(frame: FrameType | None) -> CodePlace | None:
    """A frame as a record."""
    if frame is None:
        return None
    return CodePlace(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def _user_place(run: Run, stretch: Stretch) -> CodePlace | None:
    return place_of(innermost_of_user(stretch.frames, _package(run)))


def _package(run: Run) -> str:
    """The package that its function is from."""
    return str(getattr(run.spec.fn, "__module__", None) or "").partition(".")[0]


# --- limits ----------------------------------------------------------------------------------


def _holders(look: Look, limiter: Limiter, waiting: Run | None) -> tuple[PlaceHolder, ...]:
    told: list[PlaceHolder] = []
    for run, count in look.holders_of(limiter):
        if run is None:
            told.append(PlaceHolder(None, "code outside of any run", count, None))
        else:
            name = "itself" if run is waiting else run.display_name
            told.append(PlaceHolder(UUID(bytes=run.id), name, count, _where(look, run)))
    return tuple(told)


def _where(look: Look, run: Run) -> CodePlace | None:
    """The line of the user's code that a run is at, wherever its body executes."""
    stretch = look.stretches.get(run)
    if stretch is None:
        return None
    job = next((local_of(each, "job") for each in stretch.frames if _name_of(each) == _CALL_SYNC), None)
    return _user_place(run, look.jobs.get(job, stretch))


def _named_limit(look: Look, waiting: Run | None, limiter: Limiter, name: str) -> dict[str, Any]:
    return {
        "what": f"limit {name!r} ({limiter.in_use}/{limiter.capacity})",
        "name": name,
        "holders": _holders(look, limiter, waiting),
    }


def _of_concurrency(seen: _Seen) -> LiveWait:
    limit = seen.local("concurrency:ConcurrencyLimit._enter", "self")
    named = _used(seen)
    if named is None:
        return seen.tell("limit", f"limit {limit.name!r}", name=limit.name)
    return seen.tell("limit", **_named_limit(seen.look, seen.run, named.limiter, limit.name))


def _used(seen: _Seen) -> Named[Limiter] | None:
    use: Use[Limiter] | None = seen.local("concurrency:ConcurrencyLimit._enter", "use")
    return None if use is None else use.named


def _of_rate(seen: _Seen) -> LiveWait:
    limit = seen.local("concurrency:RateLimit._enter", "self")
    return seen.tell("rate_limit", f"rate limit {limit.name!r} ({limit.per_second:g} per second)", name=limit.name)


def _of_places(seen: _Seen) -> LiveWait:
    places = seen.local(_COME_BACK, "self") or seen.local("_engine.preparation:take_places", "places")
    return _for_place(seen, places)


def _for_place(seen: _Seen, places: Places) -> LiveWait:
    limiter = places.awaited
    if limiter is None:
        return seen.tell("turn", _TURN)
    count = f"({limiter.in_use}/{limiter.capacity})"
    holders = _holders(seen.look, limiter, seen.run)
    for services in seen.look.services:
        for tag, each in services.tag_limits.items():
            if each is limiter:
                return seen.tell("limit", f"a place of tag {tag!r} {count}", name=tag, holders=holders)
    above: Run | None = seen.run
    while above is not None and above.workers is not limiter:
        above = above.parent
    whose = "" if above is None else f" of {above.display_name}"
    return seen.tell("limit", f"a place in the task runner{whose} {count}", holders=holders)


def _of_key(seen: _Seen) -> LiveWait:
    turn = seen.local("_transactions.turn:KeyTurn.take", "self")
    name: str = getattr(turn, "_name", "transaction(...)")
    key = name.removeprefix("transaction(").removesuffix(")")
    if seen.frame("_transactions.turn:KeyTurn._lock_file") is not None:
        return seen.tell("key", f"the transaction key {key} of another process", name=key)
    named = _used(seen)
    holders = () if named is None else _holders(seen.look, named.limiter, seen.run)
    return seen.tell("key", f"the transaction key {key}", name=key, holders=holders)


# --- runs ------------------------------------------------------------------------------------


def _outcome_of(seen: _Seen, runs: Iterable[Run]) -> LiveWait:
    left = [each for each in runs if not each.is_settled]
    if not left:
        return seen.tell("turn", _TURN)
    what = left[0].display_name if len(left) == 1 else f"{len(left):,} runs: {_names(left)}"
    return seen.tell("run", what, run_ids=tuple(UUID(bytes=each.id) for each in left))


def _names(runs: Sequence[Run]) -> str:
    names = [each.display_name for each in runs[:_MOST_NAMES]]
    return ", ".join([*names, "..."] if len(runs) > _MOST_NAMES else names)


_MOST_NAMES = 3


def _of_run(seen: _Seen) -> LiveWait:
    target = seen.local("_outcomes:wait_settled", "target")
    return _outcome_of(seen, [target] if isinstance(target, Run) else [])


def _of_arrivals(seen: _Seen) -> LiveWait:
    arrivals = seen.local("completions:_Arrivals._wait_for", "self")
    return _outcome_of(seen, list(getattr(arrivals, "_waiters", {}).values()))


def _of_window(seen: _Seen) -> LiveWait:
    window = seen.local("_engine.map_window:Window.until", "self")
    left = [each.run for each in list(getattr(window, "_open", ()))]
    if not left:
        return seen.tell("item", "the next item of its map_stream's source")
    names = f"the next result of its map_stream: {_names(left)}"
    return seen.tell("run", names, run_ids=tuple(UUID(bytes=each.id) for each in left))


def _of_cache(seen: _Seen) -> LiveWait:
    key = seen.local("_engine.caching:from_cache", "key")
    if seen.frame("_engine.caching:_wait_for_lock") is not None:
        return seen.tell("cache", f"cached value {key!r}, which another process computes", name=key)
    leader = seen.local("_outcomes:wait_settled", "target")
    if isinstance(leader, Run):
        what = f"cached value {key!r}, which {leader.display_name} computes"
        return seen.tell("cache", what, name=key, run_ids=(UUID(bytes=leader.id),))
    return _of_disk(seen)


def _of_children(seen: _Seen) -> LiveWait:
    left = list(seen.run.children or ())
    count = f"{len(left):,} {'child' if len(left) == 1 else 'children'}"
    how = ", which are cancelled" if seen.frame("_engine.attempt:_tear_down") is not None else ""
    what = f"{count}{how}" if left else "what it started to end"
    return seen.tell("children", what, run_ids=tuple(UUID(bytes=each.id) for each in left))


# --- all the rest ----------------------------------------------------------------------------


def _of_delay(seen: _Seen) -> LiveWait:
    at = (seen.run.facts or {}).get("scheduled_time")
    if seen.run.status.type is not StateType.SCHEDULED or at is None:
        return _of_disk(seen)
    return seen.tell("delay", "its next attempt", until=datetime.fromtimestamp(at / _MICRO, UTC))


def _of_thread(seen: _Seen) -> LiveWait:
    job = seen.local(_CALL_SYNC, "job")
    there = seen.look.jobs.get(job)
    if there is not None:
        return _describe(seen.look, seen.run, there)
    if getattr(job, "started", True):
        return seen.tell("turn", _TURN)  # its thread has just ended
    most = seen.run.services.settings.max_threads
    return seen.tell("thread", f"a worker thread (max_threads={most})")


def _of_consumer(seen: _Seen) -> LiveWait:
    generator: Any = getattr(seen.local("_engine.items:_take_all", "items"), "_generator", None)
    at = getattr(generator, "ag_frame", None) or getattr(generator, "gi_frame", None)
    return LiveWait(kind="consumer", what=_CONSUMER, at=place_of(at))


def _of_item(seen: _Seen) -> LiveWait:
    channel = next((local_of(each, "self") for each in seen.block if "_Channel." in _name_of(each)), None)
    run = getattr(channel, "run", None)
    if not isinstance(run, Run):
        return seen.tell("turn", _TURN)
    what = "the next item of" if seen.frame("_engine.streams:_Channel._request") is not None else "the end of"
    return seen.tell("item", f"{what} {run.display_name}", run_ids=(UUID(bytes=run.id),))


def _of_disk(seen: _Seen) -> LiveWait:
    return seen.tell("disk", "the disk")


def _of_relaxing(seen: _Seen) -> LiveWait:
    is_behind = seen.run.services.store.backlog > seen.run.services.settings.queue_limit
    return seen.tell("disk", "the disk, which is behind") if is_behind else seen.tell("turn", _TURN)


def _of_hook(seen: _Seen) -> LiveWait:
    return seen.tell("hook", "its hooks")


_TURN = "its turn on the event loop"
_CONSUMER = "its consumer to ask for the next item"
_COME_BACK = "_places:Places.come_back"
_CALL_SYNC = "_backend.loop_host:LoopHost.call_sync"

KNOWN: dict[str, _Teller] = {
    TAKE_PLACES.removeprefix("asyncflow."): _of_places,
    "_backend.base:Host.confirm": _of_disk,
    "_backend.base:Host.relax": _of_relaxing,
    "_backend.loop_host:LoopHost.run_blocking": _of_disk,
    "_engine.aftermath:follow_up": _of_hook,
    "_engine.attempt:_join": _of_children,
    "_engine.attempt:_tear_down": _of_children,
    "_engine.bodies:_in_thread": _of_thread,
    "_engine.caching:from_cache": _of_cache,
    "_engine.caching:keep": _of_disk,
    "_engine.execution:_rest": _of_delay,
    "_engine.hooks:allows_retry": _of_hook,
    "_engine.hooks:run_hooks": _of_hook,
    "_engine.items:_ThreadItems._call": _of_thread,
    "_engine.map_window:Window.until": _of_window,
    "_engine.streams:_Channel._hand_over": _of_consumer,
    "_engine.streams:_Channel._request": _of_item,
    "_engine.streams:_Channel.close": _of_item,
    "_outcomes:wait_settled": _of_run,
    _COME_BACK: _of_places,
    "_transactions.turn:KeyTurn.take": _of_key,
    "completions:_Arrivals._wait_for": _of_arrivals,
    "concurrency:ConcurrencyLimit._enter": _of_concurrency,
    "concurrency:RateLimit._enter": _of_rate,
}
"""By the function that waits. Of several the outermost counts, but for those that count before or after all others."""
_FIRST = {_COME_BACK}  # what was waited for is there
_LAST = {"_engine.aftermath:follow_up", "_backend.loop_host:LoopHost.run_blocking"}
OTHERS = (
    _CALL_SYNC,
    "_engine.caching:_wait_for_lock",
    "_engine.items:_take_all",
    "_transactions.turn:KeyTurn._lock_file",
)
"""What else is looked for by name."""


# --- a run -----------------------------------------------------------------------------------


def waits_of(look: Look, run: Run) -> tuple[LiveWait, ...]:
    """What a run waits for: its body first, then what tasks of its body do beside it. Never raises."""
    try:
        return _waits_of(look, run)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        # What was looked at has ended on another thread in the middle of the look.
        return (LiveWait(kind="turn", what=_TURN),)


def _waits_of(look: Look, run: Run) -> tuple[LiveWait, ...]:
    stretch = look.stretches.get(run)
    body = _without_frames(look, run) if stretch is None else _describe(look, run, stretch)
    return (body, *_beside(look, run, body))


def _without_frames(look: Look, run: Run) -> LiveWait:
    """A run that nothing executes, and no task has: a stream between two items, or a run that has not begun."""
    seen = _Seen(look, run, Stretch((), None, None), ())
    if run.stream is not None:
        return LiveWait(kind="consumer", what=_CONSUMER)
    if run.places is not None and run.places.awaited is not None:
        return _for_place(seen, run.places)
    return seen.tell("turn", _TURN)


def _describe(look: Look, run: Run, stretch: Stretch) -> LiveWait:
    is_loops = stretch.thread is not None and not run.host.is_inline and stretch is look.stretches.get(run)
    shown = stretch._replace(thread=None) if is_loops else stretch
    if stretch.called is not None and stretch.called in look.known:
        called = stretch.called
        return _Seen(look, run, shown, ()).tell("run", called.display_name, run_ids=(UUID(bytes=called.id),))
    block, is_users = _innermost_of_ours(stretch.frames)
    seen = _Seen(look, run, shown, block)
    known = [name for each in block if (name := _name_of(each)) in KNOWN]
    if known and not is_users:
        return KNOWN[min(known, key=lambda name: (name in _LAST) - (name in _FIRST))](seen)
    kind: WaitKind = "await" if stretch.thread is None else "running"
    inside = place_of(innermost_of_library(stretch.frames, _package(run)))
    if "_engine.hooks:run_hooks" in known:
        return seen.tell("hook", "its hooks", inside=inside)
    return seen.tell(kind, "", inside=inside)


def _innermost_of_ours(frames: Sequence[FrameType]) -> tuple[Sequence[FrameType], bool]:
    """The innermost frames of ours that lie together, and whether code of the user's lies within them."""
    end = len(frames)
    while end and not is_ours(frames[end - 1]):
        end -= 1
    start = end
    while start and is_ours(frames[start - 1]):
        start -= 1
    return frames[start:end], innermost_of_user(frames[end:]) is not None


def _beside(look: Look, run: Run, body: LiveWait) -> Iterable[LiveWait]:
    """What tasks of its body wait for that are no runs: arms of a `gather`, say."""
    told = set(body.run_ids)
    targets = [each for each in list((run.waits or {}).values()) if each is not None and not each.is_settled]
    others = {UUID(bytes=each.id): each for each in targets if UUID(bytes=each.id) not in told}
    if others:
        what = _names(list(others.values()))
        yield LiveWait(kind="run", what=what, run_ids=tuple(others))
    for named in look.uses.get(run, ()):
        waiting = any(use.holder is run and not use.holds for use in named.uses())
        if waiting and not (body.kind in ("limit", "key") and body.name in (named.name, _key_in(named.name))):
            yield LiveWait(kind="limit", **_named_limit(look, run, named.limiter, named.name))


def _key_in(name: str) -> str:
    return name.removeprefix("transaction(").removesuffix(")")
