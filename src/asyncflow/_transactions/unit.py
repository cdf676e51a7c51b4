"""A transaction as the engine sees it: what it holds, and how it ends.

Each belongs to the block of one `Transaction`, which enters and leaves it. What comes from several
threads at once, runs that begin and end, goes without a lock: whoever enters does so before it
looks whether the unit is open, and the unit closes before it looks who is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from asyncflow._backend.base import Host
from asyncflow._rows import ACTIVE, COMMITTED, INTERRUPTED, ROLLED_BACK, CachedRow
from asyncflow._run import Enclosing, Run
from asyncflow._services import Services
from asyncflow._transactions.hooks import (
    Rollback,
    Staged,
    call_hook,
    names_of_hooks,
    on_commit_calls,
    on_rollback_calls,
)
from asyncflow._transactions.members import Members, was_committed
from asyncflow._transactions.record import Contents, TransactionRecord, soon
from asyncflow.exceptions import StoreError, TransactionEndedError
from asyncflow.logs import library_logger
from asyncflow.states import StateType

__all__ = ["Unit"]

_BESIDE_GRACE = 1.0


class Unit(Enclosing):
    """One transaction, from the moment it is entered."""

    def __init__(
        self,
        handle: Any,
        services: Services,
        around: Unit | None,
        key: str | None,
        texts: dict[str, str],
        run_id: bytes | None,
        *,
        is_beside: bool,
    ) -> None:
        self.handle = handle
        """The `Transaction`: hooks get it."""
        self.services = services
        self.around = around
        """The transaction that it is a part of."""
        self.is_beside: bool = is_beside or (around is not None and around.is_beside)
        """Whether a hook has opened it: what it holds is done each time, as all that hooks call."""
        self.state: int = ACTIVE
        self._texts = texts
        """JSON of the values that were set, by name; the handle's."""
        self._key = key
        self._is_open = True
        self._members = Members()
        self._staged: list[Staged | Unit] = []
        """In the order they came; a unit inside comes when its block has ended."""
        self._inside: dict[Unit, None] = {}
        """Units inside whose blocks go on."""
        self._cached: dict[str, CachedRow] = {}
        self._kept: list[str] = []
        self._rollback: Rollback | None = None
        self._is_changed = False
        self.record = TransactionRecord(services, key, run_id, self._contents)

    # --- the runs inside, on any thread

    def begun(self, run: Run) -> None:
        run.is_beside = self.is_beside
        self._members.enter(run)
        if not self._accepts():
            self._members.forget(run)
            raise TransactionEndedError(f"{run.spec.name!r} was called", repr(self.handle))

    def ended(self, run: Run) -> None:
        if run not in self._members:
            return
        self._is_changed = True
        options = run.spec.options
        if (options.on_commit or options.on_rollback) and _did_its_work(run):
            what = f"{run.spec.kind.value} run {run.display_name!r}"
            self._staged.append(Staged(what, self.handle, options.on_commit, options.on_rollback))
            self.touch()
        self._members.leave(run)

    def stage(self, row: CachedRow) -> None:
        self._is_changed = True
        self._cached[row.key] = row

    def enter(self, unit: Unit) -> None:
        """A block inside begins. Raises `TransactionEndedError` when it is too late for that."""
        self._inside[unit] = None
        if not self._accepts():
            self.leave(unit)
            raise TransactionEndedError(f"{unit.handle!r} was entered", repr(self.handle))

    def leave(self, unit: Unit) -> None:
        """A block inside has ended."""
        self._inside.pop(unit, None)

    def touch(self) -> None:
        """Bring the records that tell of what changed here up to date soon."""
        self._is_changed = True
        unit: Unit | None = self
        while unit is not None:
            if unit.is_recorded:
                unit.record.touch()
            unit = unit.around

    @property
    def is_recorded(self) -> bool:
        """Whether it has a record while it goes on; one inside without a key is told of by the one around it."""
        return self.around is None or self._key is not None

    @property
    def _has_news(self) -> bool:
        """Whether there is anything to record: not where a key was committed before, and nothing was done."""
        return self.record.may_be_on_disk or self._is_changed

    def _accepts(self) -> bool:
        unit: Unit | None = self
        while unit is not None:
            if not unit._is_open:
                return False
            unit = unit.around
        return True

    # --- what it holds

    def _contents(self) -> Contents:
        return Contents(dict(self._texts), names_of_hooks(self._hooks(with_open=True)))

    def _hooks(self, *, with_open: bool = False) -> Iterator[Staged]:
        """What is to be done, in order; also for blocks inside that go on, for the record."""
        for each in list(self._staged):
            if isinstance(each, Unit):
                yield from each._hooks()
            else:
                yield each
        for unit in list(self._inside) if with_open else ():
            yield from unit._hooks(with_open=True)

    def _units(self) -> Iterator[Unit]:
        """The units that end with this one, which is the last."""
        for each in self._staged:
            if isinstance(each, Unit):
                yield from each._units()
        yield self

    def _completed(self) -> list[bytes]:
        return [run_id for unit in self._units() for run_id in unit._members.completed]

    # --- the end of the block

    async def settle(self, host: Host) -> BaseException | None:
        """Wait for the runs that go on, and take no more; gives the exception of one that nobody looked at."""
        while self._is_open or not self._members.are_gone:
            await self._members.wait(host, self.ended)
            if self._members.are_gone:
                self._is_open = False  # who came before this is there now, and is waited for in one more turn
        return await self._members.unseen_failure(host)

    async def commit(self, host: Host) -> BaseException | None:
        """Commit, or join what is around; gives what was held back meanwhile. Where it raises, it is not committed."""
        if self.around is not None:
            self._join(self.around)
            return None
        for call in on_commit_calls(self._hooks()):
            await call_hook(host, call)
        problem, held_back = None, None
        if any(unit._has_news for unit in self._units()):
            problem, held_back = await self._recorded(host, self._write_commit)
        if problem is not None:
            raise held_back or problem
        for unit in self._units():
            unit.state = COMMITTED
        return held_back

    def _join(self, around: Unit) -> None:
        around._staged.append(self)
        if not around._accepts():
            around._staged.remove(self)
            raise TransactionEndedError(f"{self.handle!r} came to its end", repr(around.handle))
        around.leave(self)

    def _write_commit(self) -> None:
        units = list(self._units())
        for unit in units:
            for row in unit._cached.values():
                self._kept.append(row.key)
                self.services.store.write_cached(row)
        for unit in units:  # this one last: while it is open, the others are told of by it
            if unit.is_recorded and unit._has_news:
                unit.record.end(COMMITTED, self._completed() if unit is self else ())

    async def roll_back(self, host: Host) -> BaseException | None:
        """Undo it; gives what was held back meanwhile. What goes wrong is logged."""
        self._is_open = False
        settings, clock = self.services.settings, self.services.clock
        held_back = await self._members.stop(host, settings.grace_seconds + _BESIDE_GRACE)
        calls = on_rollback_calls(self._hooks())
        if calls:
            # In a task of their own: neither a second cancellation nor a third cuts them short.
            self._rollback = Rollback(host, calls, repr(self.handle), clock, settings.hook_seconds)
            held_back = await host.protect(self._rollback.run, settings.hook_seconds) or held_back
        cut = self._end_hooks()
        if cut:
            library_logger().error(
                "%r is rolled back in part: of its hooks, which had %g seconds (hook_seconds), "
                "these were not called to their end: %s",
                self.handle, settings.hook_seconds, ", ".join(cut),
            )  # fmt: skip
        self._set_rolled_back()
        problem, also_held_back = await self._recorded(host, self._write_rollback)
        if problem is not None:
            library_logger().error("%r is rolled back, but that could not be recorded: %s", self.handle, problem)
        return also_held_back or held_back

    def _end_hooks(self) -> list[str]:
        return [] if self._rollback is None else self._rollback.end()

    def _set_rolled_back(self) -> None:
        for unit in self._units():
            unit.state = ROLLED_BACK
        if self.around is not None:
            self.around.leave(self)
            self.around.touch()  # its record told of the hooks in here

    def _write_rollback(self) -> None:
        if self._kept:
            self.services.store.delete_cached(keys=self._kept)
        for unit in self._units():
            if unit.is_recorded or unit is self:
                mine = (self._completed(), self._end_hooks()) if unit is self else ((), ())
                unit.record.end(ROLLED_BACK, *mine)

    def withdraw(self) -> None:
        """Its block never began. Plain code; a record that may be there is ended soon."""
        self._is_open = False
        self.state = ROLLED_BACK
        if self.record.may_be_on_disk:
            soon(partial(self.record.end, ROLLED_BACK))
        if self.around is not None:
            self.around.leave(self)

    def abandon(self) -> None:
        """It ends where nothing can be waited for. Plain code: what was not undone is told, and recorded soon."""
        self._is_open = False
        left = [str(call) for call in on_rollback_calls(self._hooks())] if self._rollback is None else self._end_hooks()
        library_logger().error(
            "%r was interrupted: it is neither committed nor rolled back, and of its hooks these were not called "
            "to their end: %s", self.handle, ", ".join(left) or "(it had none)",
        )  # fmt: skip
        for unit in self._units():
            unit.state = INTERRUPTED
            if unit.is_recorded or unit is self:
                soon(partial(unit.record.end, INTERRUPTED, (), left if unit is self else ()))
        if self.around is not None:
            self.around.leave(self)

    async def _recorded(self, host: Host, write: Callable[[], None]) -> tuple[Exception | None, BaseException | None]:
        """Have a blocking write done, whatever comes meanwhile; gives why it was not, and what was held back."""
        seconds = self.services.settings.durability_seconds
        problem: Exception | None = StoreError(
            "recording a transaction", self.services.settings.home, f"no word from the disk within {seconds:g} seconds"
        )

        async def do() -> None:
            nonlocal problem
            try:
                await self.services.ask(host, write)
                problem = None
            except Exception as error:  # noqa: BLE001  # raised past `protect`, it would hide what was held back
                problem = error

        held_back = await host.protect(do, seconds)
        return problem, held_back


def _did_its_work(run: Run) -> bool:
    """Whether it completed, and its hooks are still to be called.

    They are those of another run where it got a cached value, and were called already where a
    transaction of an earlier life was committed.
    """
    facts = run.facts or {}
    is_cached = run.status.name == "Cached" and "cache_key" in facts
    return run.status.type is StateType.COMPLETED and not is_cached and not was_committed(run)
