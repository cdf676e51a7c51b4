"""Transactions: what runs leave behind counts when the block around them ends, or is undone.

There is one code path for `with` and `async with`: a coroutine that waits on the host of whoever
enters, and on a thread without a loop never suspends.
"""

from __future__ import annotations

from contextvars import Token
from copy import deepcopy
from enum import Enum
from functools import partial
from inspect import CO_ASYNC_GENERATOR, currentframe
from types import TracebackType
from typing import Any, Final, Literal, Self

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._rows import ACTIVE, COMMITTED, INTERRUPTED, ROLLED_BACK, storable
from asyncflow._run import BESIDE, Enclosing, current_transaction
from asyncflow._services import Services
from asyncflow._transactions.turn import KeyTurn
from asyncflow._transactions.unit import Unit
from asyncflow.clock import SystemClock
from asyncflow.context import current_run
from asyncflow.exceptions import (
    NotJSONError,
    OptionError,
    TransactionEndedError,
    TransactionReusedError,
    TransactionValueError,
    WaitOnEventLoopError,
)
from asyncflow.runtime import HOME
from asyncflow.serializers import decode, encode

__all__ = ["Transaction", "TransactionState", "get_transaction", "transaction"]

Isolation = Literal["read_committed", "serializable"]

_CLOCK = SystemClock()
_MISSING: Final = object()


def transaction(key: str | None = None, *, isolation: Isolation = "read_committed") -> Transaction:
    """A block whose runs count together: all of them are committed at its end, or what they did is undone.

    `async with transaction() as txn:` in async code, `with transaction() as txn:` on a thread
    without a loop. Every run called inside belongs to it. When the block ends normally, the
    `on_commit` hooks of the tasks that completed are called in their order, and values that were to
    be cached are kept. When it raises or is cancelled, when a commit hook raises, or when a run
    inside failed and nobody looked at it, the `on_rollback` hooks are called, the latest first, and
    what the runs returned is never given to another call.

    With a `key` the block is done once: entered again after it was committed, by whatever process
    on this home, `txn.is_committed()` is true and `txn.get` gives what was put into it then. With
    `isolation="serializable"` only one block of the key goes on at a time; the others wait.

    Inside of another transaction it is a part of that one: it is committed with it.
    """
    return Transaction(key, isolation)


def get_transaction() -> Transaction | None:
    """The transaction whose block the executing code is in, or was started in."""
    unit = current_transaction.get()
    return unit.handle if isinstance(unit, Unit) else None


class TransactionState(Enum):
    """How far a transaction is."""

    PENDING = "pending"
    """Not entered yet."""
    ACTIVE = "active"
    STAGED = "staged"
    """Its block has ended, and it is committed with the transaction around it."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    INTERRUPTED = "interrupted"
    """It ended where nothing could be waited for: not all of its rollback hooks were called."""


_STATES = {
    ACTIVE: TransactionState.ACTIVE,
    COMMITTED: TransactionState.COMMITTED,
    ROLLED_BACK: TransactionState.ROLLED_BACK,
    INTERRUPTED: TransactionState.INTERRUPTED,
}


class Transaction:
    """What `transaction` gives: a context manager, entered once. Its values may be used from any thread."""

    def __init__(self, key: str | None, isolation: Isolation) -> None:
        self._key = _checked_key(key)
        self._isolation: Isolation = _checked_isolation(isolation, key)
        self._is_entered = self._is_known = self._is_staged = self._is_asked_to_roll_back = False
        self._values: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        """The values as JSON, those that have such a form."""
        self._unit: Unit | None = None
        self._turn: KeyTurn | None = None
        self._token: Token[Enclosing | None] | None = None

    @property
    def key(self) -> str | None:
        """The key it was given."""
        return self._key

    @property
    def state(self) -> TransactionState:
        """How far it is."""
        if self._unit is None:
            return TransactionState.PENDING
        if self._unit.state != ACTIVE:
            return _STATES[self._unit.state]
        if self._is_known:
            return TransactionState.COMMITTED
        return TransactionState.STAGED if self._is_staged else TransactionState.ACTIVE

    def is_committed(self) -> bool:
        """Whether its key was committed before it was entered (after the block: whether it is committed now)."""
        return self.state is TransactionState.COMMITTED

    def set(self, name: str, value: Any) -> None:
        """Keep a copy of a value, for `get` here, in transactions inside and in hooks; with a key also for later ones.

        With a key it has to be JSON, else `NotJSONError`. Raises `TransactionEndedError` when the
        transaction is committed or rolled back.
        """
        self._refuse_at_end(f"value {name!r} was set")
        copy = deepcopy(value)
        try:
            self._texts[name] = encode(copy, where=name)
        except NotJSONError:
            if self._key is not None:
                raise
            self._texts.pop(name, None)
        self._values[name] = copy
        if self._unit is not None:
            self._unit.touch()

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """A copy of a value that was set here, in a transaction around, or under the same key before (then plain JSON).

        Without one `default`, or `TransactionValueError` where none was given.
        """
        if name in self._values:
            return deepcopy(self._values[name])
        if self._unit is not None and self._unit.around is not None:
            return self._unit.around.handle.get(name, default)
        if default is _MISSING:
            raise TransactionValueError(name, repr(self))
        return default

    def rollback(self) -> None:
        """Have the block's end roll it back. The block itself goes on, and nothing is raised."""
        self._refuse_at_end("a rollback was asked for")
        self._is_asked_to_roll_back = True

    def _refuse_at_end(self, what: str) -> None:
        if self._unit is not None and self._unit.state != ACTIVE:
            raise TransactionEndedError(what, repr(self))

    # --- the block

    def __enter__(self) -> Self:
        if loop_is_running_here():
            raise WaitOnEventLoopError(f"with {self!r}", f"async with {self!r}:")
        drive(self._enter())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._raise_other(drive(self._leave(exc, can_wait=True)), exc)

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        can_wait = not isinstance(exc, GeneratorExit) or _is_generator_around()
        self._raise_other(await self._leave(exc, can_wait=can_wait), exc)

    def _raise_other(self, error: BaseException | None, exc: BaseException | None) -> None:
        try:
            if error is not None and error is not exc:
                raise error
        finally:
            del error, exc  # its traceback holds this frame

    async def _enter(self) -> None:
        if self._is_entered:
            raise TransactionReusedError(repr(self))
        self._is_entered = True
        services = await _services_here()
        host = host_here(services.clock)
        run, enclosing = current_run.get(), current_transaction.get()
        # In another runtime it cannot be a part: that one has another record.
        around = enclosing if isinstance(enclosing, Unit) and enclosing.services is services else None
        is_beside = enclosing is BESIDE
        unit = Unit(
            self, services, around, self._key, self._texts, None if run is None else run.id, is_beside=is_beside
        )
        if around is not None:
            around.enter(unit)
        try:
            if self._key is not None and self._isolation == "serializable":
                turn = KeyTurn(services, self._key)
                await turn.take(host)
                self._turn = turn
            await services.ask(host, partial(self._begin, unit))
            self._unit = unit
            self._token = current_transaction.set(unit)
        except BaseException:
            self._unit = None
            unit.withdraw()
            self._give_back_turn(host)
            raise

    def _begin(self, unit: Unit) -> None:
        """Find what was committed under the key, or write the record. Blocks."""
        store = unit.services.store
        committed = store.read_transactions(key=self._key, state=COMMITTED, limit=1) if self._key is not None else []
        for row in committed:
            self._is_known = True
            known: dict[str, Any] = decode(row.data) if row.data is not None else {}
            self._values = {**known, **self._values}
            self._texts.update({name: encode(value) for name, value in self._values.items()})
        if unit.is_recorded and not committed:
            unit.record.begin()

    async def _leave(self, exc: BaseException | None, *, can_wait: bool) -> BaseException | None:
        """End the block; gives what is to be raised: `exc` itself where that is to pass on."""
        unit = self._unit
        assert unit is not None, "a transaction is left that was not entered"
        host = host_here(unit.services.clock)
        self._restore_context(unit)
        try:
            if not can_wait:
                unit.abandon()
                return exc
            return await self._end(unit, host, exc)
        except BaseException:  # a person's last Ctrl-C, or the coroutine is being closed
            unit.abandon()
            raise
        finally:
            self._give_back_turn(host)

    async def _end(self, unit: Unit, host: Host, exc: BaseException | None) -> BaseException | None:
        error = exc
        if error is None:
            try:
                error = await unit.settle(host)
                if error is None and not self._is_asked_to_roll_back:
                    held_back = await unit.commit(host)
                    self._is_staged = True
                    return held_back
            except GeneratorExit:
                raise
            except BaseException as failure:  # noqa: BLE001  # it goes to the caller
                error = failure
        self._is_known = False
        held_back = await unit.roll_back(host)
        try:
            # The caller was cancelled meanwhile: that wins over an exception, not over an earlier cancellation.
            is_to_pass = held_back is not None and (error is None or isinstance(error, Exception))
            return held_back if is_to_pass else error
        finally:
            del error, held_back

    def _restore_context(self, unit: Unit) -> None:
        token, self._token = self._token, None
        try:
            if token is not None:
                current_transaction.reset(token)
        except ValueError:  # left in another context: of a generator that another task closes
            if current_transaction.get() is unit:
                current_transaction.set(unit.around)

    def _give_back_turn(self, host: Host) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.give_back(host)

    def __repr__(self) -> str:
        return "transaction()" if self._key is None else f"transaction({self._key!r})"


async def _services_here() -> Services:
    """What the executing code's runtime shares; without one open, the default one is opened."""
    run = current_run.get()
    services = HOME.in_force() if run is None else run.services
    if services is None:
        services = await host_here(_CLOCK).run_blocking(HOME.open_default)
    return services


def _is_generator_around() -> bool:
    """Whether the block is in an async generator: that one is closed with `aclose`, in which it may wait.

    A coroutine that is closed gets the same exception, and must not.
    """
    frame = currentframe()
    for _ in range(2):  # this function and `__aexit__`
        frame = None if frame is None else frame.f_back
    try:
        return frame is not None and bool(frame.f_code.co_flags & CO_ASYNC_GENERATOR)
    finally:
        del frame


def _checked_key(key: Any) -> str | None:
    if key is not None and (not isinstance(key, str) or not key):
        raise OptionError("key", key, "a text that is not empty, or None")
    return None if key is None else str(storable(key))  # half a surrogate pair, as in a file's name, is escaped


def _checked_isolation(isolation: Any, key: str | None) -> Isolation:
    if isolation not in ("read_committed", "serializable"):
        raise OptionError("isolation", isolation, "'read_committed' or 'serializable'")
    if isolation == "serializable" and key is None:
        raise OptionError("isolation", isolation, "a key= as well: blocks of one key wait for each other")
    chosen: Isolation = isolation
    return chosen
