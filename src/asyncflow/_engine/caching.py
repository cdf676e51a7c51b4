"""Cached values: computed once for each key, by one run, however many ask for it at once.

The first run that asks for a value which is not there becomes the *leader* for its key, and its
body runs; the others wait for the leader and get what it gets, a value or an exception. A leader that
is cancelled or crashes has no outcome, so one of those who wait leads in its place. Among processes,
the leader holds the key's lock while its body runs, and looks again when it has got it.

What a leader owes is given back when it is *settled*, which every run is, whatever tears it apart:
its flight is entered as the first of those who wait for its outcome. A run never waits for one that
waits for it (a task that calls itself with an equal key): its body runs, unseen by the others.
A cache that cannot be read, locked or written is logged and costs a computation, nothing else.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from threading import Thread
from types import CodeType, TracebackType
from typing import Any, cast

from asyncflow._backend.detect import loop_is_running_here
from asyncflow._engine.reaching import reachably
from asyncflow._engine.records import record_of
from asyncflow._outcomes import blocked, wait_settled
from asyncflow._recorded import ENDING
from asyncflow._rows import CachedRow, storable
from asyncflow._rules import Ending
from asyncflow._run import Run, Waiter
from asyncflow._signature import innermost
from asyncflow.cache_policies import CacheKeyContext, CachePolicy, KeyFacts
from asyncflow.context import current_run
from asyncflow.digests import digest
from asyncflow.exceptions import MissingResultError, NotDigestibleError, OptionError, StoreError, WaitCycleError
from asyncflow.logs import library_logger
from asyncflow.previews import type_name
from asyncflow.runs import TaskRun
from asyncflow.serializers import decode, misfit
from asyncflow.states import ABSENT, StateType

__all__ = ["from_cache", "keep"]

_MICRO = 1_000_000
_LARGE = 256 * 1024
"""Characters of JSON that a loop should not be held for."""


class _Flight:
    """One run on its way to the value of one key."""

    __slots__ = ("_release", "error", "expires", "is_hit", "is_over", "key", "leader", "traceback", "value")

    def __init__(self, key: str, leader: Run) -> None:
        self.key = key
        self.leader = leader
        self.is_over: bool = False
        self.is_hit: bool = False
        """Whether the value was there, so that there is nothing to keep."""
        self.value: Any = ABSENT
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        self.expires: int | None = None
        self._release: Callable[[], None] | None = None

    def hold(self, release: Callable[[], None]) -> None:
        """The key's lock was got; from any thread. Too late, it is given back at once."""
        with ENDING:
            if not self.is_over:
                self._release = release
                return
        release()

    def release(self) -> None:
        """Give the key's lock back. Blocks."""
        with ENDING:
            release, self._release = self._release, None
        if release is not None:
            release()

    def end(self) -> None:
        """The leader is settled: take its outcome, before its caller does, and make room. From any thread."""
        run = self.leader
        with ENDING:
            if self.is_over:
                return
            if run.status.type is StateType.COMPLETED:
                self.value = run.value
            elif run.status.type is StateType.FAILED and run.error is not None:
                self.error = run.error
                self.traceback = run.error.__traceback__
            self.is_over = True
            held = self._release is not None
            if run.services.flights.get(self.key) is self:
                del run.services.flights[self.key]
            run.services.leaders.pop(run, None)
        if held:
            _off_the_loop(self.release)

    def is_for(self, run: Run) -> bool:
        """Whether it is to be given to `run`: what a transaction may still undo is for nobody outside of it."""
        inside = self.leader.transaction
        return self.is_hit or inside is None or inside is run.transaction or self.value is ABSENT

    def answer(self) -> Ending | None:
        """What a run that waited for it gets; None where the leader came to nothing."""
        status = self.leader.status
        if self.error is not None:
            # The same object for all: each takes it up where the body has raised it, not where the last one did.
            error = self.error.with_traceback(self.traceback)
            return Ending(type=StateType.FAILED, name=status.name, message=status.message, error=error)
        return None if self.value is ABSENT else _hit(self.key, self.value, self.expires)


def _off_the_loop(fn: Callable[[], None]) -> None:
    """Call something of ours that touches a file, where that holds up no loop."""
    if loop_is_running_here():
        try:
            _thread.start_new_thread(fn, ())
        except RuntimeError:  # no thread to be had any more: the interpreter shuts down
            pass
        else:
            return
    fn()


def _hit(key: str, value: Any, expires: int | None) -> Ending:
    facts = {"cache_key": key, "cache_expiration": expires}
    return Ending(type=StateType.COMPLETED, name="Cached", value=value, facts=facts)


# --- before the body -----------------------------------------------------------------------


async def from_cache(run: Run) -> Ending | None:
    """The ending of a run whose value is in the cache, or was computed by another one meanwhile.

    None where its body is to run; it may then be the leader for its key. Raises what a
    `cache_key_fn` raises.
    """
    if run.stream is not None:
        return None  # what it yields is handed on, not kept
    key = _key_of(run)
    if key is None:
        return None
    run.leave_places()  # it queues for one when its body is to run
    if run.spec.options.refresh_cache:
        _take_off(run, key, even_beside=True)
        return None
    while True:
        ahead = _take_off(run, key)
        if ahead is None:
            return await _look_up(run, run.services.leaders[run])
        try:
            if stopped := await reachably(run, partial(wait_settled, ahead.leader, run.host, run)):
                return stopped
        except WaitCycleError:
            return None
        if not ahead.leader.is_settled:
            continue  # a thread may be woken for nothing
        ahead.end()  # who looks from another thread may be here before the leader has got there
        if ahead.is_for(run) and (ending := ahead.answer()):
            return ending


def _take_off(run: Run, key: str, *, even_beside: bool = False) -> _Flight | None:
    """Make `run` the leader for `key`; gives the flight of another one that is it already."""
    services = run.services
    flight = _Flight(key, run)
    with ENDING:
        ahead: _Flight | None = services.flights.get(key)
        if ahead is not None and not ahead.is_over and not even_beside:
            return ahead
        services.leaders[run] = flight
        if ahead is None or ahead.is_over:
            services.flights[key] = flight
    run.attend(Waiter(flight.end))
    return None


async def _look_up(run: Run, flight: _Flight) -> Ending | None:
    """For the leader: the value that is in the cache; without one, with the key's lock in hand."""
    try:
        found: list[Ending] = []
        if stopped := await reachably(run, partial(_find, run, flight, found)):
            return stopped
    except StoreError as error:
        library_logger().warning("the cache is not used for %r: %s", run.display_name, error)
        return None
    return found[0] if found else None


async def _find(run: Run, flight: _Flight, found: list[Ending]) -> None:
    host, services = run.host, run.services
    row, has_lock = await services.ask(host, partial(_read_or_lock, run, flight))
    if row is None and not has_lock:
        await _wait_for_lock(run, flight)
        row = await services.ask(host, partial(_read_again, run, flight))
    if row is None:
        return
    text = row.result if services.results is None else await _text_of(run, row)
    if text is None:
        return
    try:
        if len(text) > _LARGE or "pydantic" not in sys.modules:
            value = await host.run_blocking(partial(decode, text, run.spec.return_hint))
        else:
            value = decode(text, run.spec.return_hint)
    except ValueError as error:  # the annotation is another one now: so is the value
        library_logger().info("the cached value of %r does not fit any more: %s", run.spec.name, misfit(error))
    else:
        flight.is_hit, flight.expires = True, row.expires
        found.append(_hit(flight.key, value, row.expires))


async def _text_of(run: Run, row: CachedRow) -> str | None:
    assert run.services.results is not None
    try:
        return await run.services.results.read(row, run.host)
    except MissingResultError:  # deleted by hand, or by retention just now
        return None


def _read(run: Run, key: str) -> CachedRow | None:
    row = run.services.store.read_cached(key)
    if row is None or (row.expires is not None and row.expires <= run.services.clock.now() * _MICRO):
        return None
    return row


def _read_or_lock(run: Run, flight: _Flight) -> tuple[CachedRow | None, bool]:
    """The row; without one the lock if it is free, and whether it was."""
    if row := _read(run, flight.key):
        return row, False
    release = run.services.key_locks.try_acquire(_lock_name(flight.key))
    if release is None:
        return None, False
    flight.hold(release)
    return _read_again(run, flight), True


def _read_again(run: Run, flight: _Flight) -> CachedRow | None:
    """The row, with the lock in hand: its last holder may just have written it."""
    row = _read(run, flight.key)
    if row is not None:
        flight.release()
    return row


async def _wait_for_lock(run: Run, flight: _Flight) -> None:
    """Wait for another process, in a thread of its own: who stops waiting leaves it to give the lock back."""
    signal = run.host.signal()
    problems: list[Exception] = []

    def wait() -> None:
        try:
            flight.hold(run.services.key_locks.acquire(_lock_name(flight.key)))
        except Exception as error:  # noqa: BLE001  # raised where it is waited for
            problems.append(error)
        signal.set()

    try:
        Thread(target=wait, name="asyncflow-key-lock", daemon=True).start()
    except RuntimeError as error:  # the system gives no thread
        raise StoreError("waiting for the lock of a key", flight.key, error) from error
    await blocked(run.host, run, signal)
    if problems:
        raise problems[0]


def _lock_name(key: str) -> str:
    return f"cache {key}"  # a transaction may have the same key


# --- after the body ------------------------------------------------------------------------


async def keep(run: Run) -> BaseException | None:
    """Keep the value of a leader that has completed; gives what was held back meanwhile.

    Only what was encoded for its record is kept. Inside a transaction it is kept when that commits.
    """
    flight: _Flight | None = run.services.leaders.get(run)
    if flight is None or flight.is_hit or run.status.type is not StateType.COMPLETED or run.result is None:
        return None
    seconds = run.spec.options.cache_expiration
    created = int(run.services.clock.now() * _MICRO)
    flight.expires = None if seconds is None else created + int(seconds * _MICRO)
    row = CachedRow(flight.key, run.spec.key, run.id, created, flight.expires, run.result, None)
    if run.transaction is not None:
        run.transaction.stage(row)
        return None
    host = run.host
    write = partial(run.services.ask, host, partial(_write, run, flight, row))
    return await host.protect(write, run.services.settings.durability_seconds)


def _write(run: Run, flight: _Flight, row: CachedRow) -> None:
    try:
        run.services.store.write_cached(row)
    except StoreError as error:
        library_logger().warning("the value of %r could not be kept in the cache: %s", run.display_name, error)
    finally:
        flight.release()  # here, and not when it is settled: it takes system calls


# --- keys ----------------------------------------------------------------------------------


def _key_of(run: Run) -> str | None:
    options = run.spec.options
    if options.cache_key_fn is None:
        return None if not options.cache_policy else options.cache_policy.key(_facts(run, options.cache_policy))
    context = CacheKeyContext(run.owner, cast("TaskRun", record_of(run)), dict(run.arguments))
    token = current_run.set(run)
    try:
        key: Any = options.cache_key_fn(context, dict(run.arguments))
    finally:
        current_run.reset(token)
    if key is None:
        return None
    if not isinstance(key, str) or not key:
        raise OptionError("cache_key_fn", key, "a function that gives text or None")
    return f"{run.spec.key}:{storable(key)}"


def _facts(run: Run, policy: CachePolicy) -> KeyFacts:
    flow = _flow_around(run) if policy.counts_flow_parameters() else None
    return KeyFacts(
        task_key=run.spec.key,
        inputs=_digest_or_say(run, run.spec.keyed(run.arguments)) if policy.counts_inputs() else None,
        source=_source_of(run.spec.fn) if policy.counts_source() else None,
        flow_parameters=None if flow is None else _digest_or_say(run, flow.spec.keyed(flow.arguments)),
        run_id=run.flow_run_id or run.root_id,
    )


def _flow_around(run: Run) -> Run | None:
    above = run.parent
    while above is not None and not above.spec.is_flow:
        above = above.parent
    return above


def _digest_or_say(run: Run, given: Any) -> bytes | None:
    try:
        return digest(given)
    except NotDigestibleError as error:
        if "not cached" not in run.spec.said:
            run.spec.said.add("not cached")
            library_logger().warning("calls of task %r are not cached (said once): %s", run.spec.name, error)
        return None


def _source_of(fn: Callable[..., Any]) -> bytes:
    code: Any = getattr(innermost(fn), "__code__", None)
    return digest({"builtin": type_name(fn)}) if code is None else _digest_of_code(code)


@lru_cache(maxsize=512)
def _digest_of_code(code: CodeType) -> bytes:
    """Of what the compiler made, not of the file: that may have been edited since it was read."""
    return digest({"code": _plain(code)})


def _plain(part: Any) -> Any:
    """A code object as plain data, without where it stands."""
    if isinstance(part, CodeType):
        consts = [_plain(each) for each in part.co_consts]
        counts = (part.co_argcount, part.co_posonlyargcount, part.co_kwonlyargcount, part.co_flags)
        names = (part.co_name, part.co_names, part.co_varnames, part.co_freevars, part.co_cellvars)
        return [part.co_code, part.co_exceptiontable, consts, counts, names]
    if isinstance(part, tuple):
        return tuple(map(_plain, cast("Iterable[Any]", part)))
    if isinstance(part, frozenset):
        return frozenset(map(_plain, cast("Iterable[Any]", part)))
    # What else a constant may be and has no digest: `...`, and slices since CPython 3.14.
    return ("constant", repr(cast("Any", part))) if part is ... or isinstance(part, slice) else part
