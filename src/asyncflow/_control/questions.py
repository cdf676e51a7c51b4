"""What a body asks when it pauses: once, and again each time the body is run, with the same answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._cancellation import outermost_of
from asyncflow._control.pause_answers import MOST, PauseAnswer, record_of
from asyncflow._engine.pausing import Pause, begin_pause, end_pause, suspend, wait_in_pause
from asyncflow._input_models import NONE_GIVEN, InputModel, Problem, input_model, is_loaded
from asyncflow._outcomes import blocked
from asyncflow._recorded import ENDING
from asyncflow._rows import FLOW
from asyncflow._run import Run
from asyncflow._upkeep import microseconds_now
from asyncflow.exceptions import (
    CannotPauseError,
    CannotResumeError,
    InputValidationError,
    PauseTimeoutError,
    RunEndedError,
)

__all__ = ["Question", "flow_run_around", "made_model"]

_TICK = 0.05
"""Seconds between two looks at whether somebody could answer in the moment when the time was over."""


def flow_run_around(run: Run | None) -> Run | None:
    """The nearest flow run whose body, or whose tasks' bodies, `run` is."""
    while run is not None and run.kind != FLOW:
        run = run.parent
    return run


async def made_model(option: str, type_: Any, host: Host) -> InputModel:
    """The model of a type, where its import blocks no loop."""
    if is_loaded():
        return input_model(option, type_)
    return await host.run_blocking(lambda: input_model(option, type_))


@dataclass
class _Asked:
    """What an attempt of a body has asked so far under one key."""

    read: int = -1
    """The place of the last answer that it got."""
    resumed: set[int] = field(default_factory=set[int])
    """The suspensions that those answered."""
    count: int = 0


class Question:
    """One pause of a body."""

    def __init__(
        self, caller: Run, flow_run: Run, key: str | None, model: InputModel | None, seconds: float | None
    ) -> None:
        self._caller = caller
        self._flow_run = flow_run
        self._services = caller.services
        self._model = model
        self._seconds = seconds
        with ENDING:  # two threads may ask in one body
            asked: dict[str, Any] = self._services.received.setdefault(caller, {})
            if key is None:  # those without one are told apart by their order
                unnamed: _Asked = asked.setdefault(f"{caller.run_count}", _Asked())
                unnamed.count += 1
                key = str(unnamed.count)
            self.key = key
            self._asked: _Asked = asked.setdefault(f"{caller.run_count} {record_of(key)}", _Asked())
        self._refused: InputValidationError | None = None

    async def wait_here(self, host: Host) -> Any:
        """Have the flow run Paused until it is resumed, and give the input; raises `PauseTimeoutError`."""
        answered, value = await self._recorded(host)
        if answered:
            return value
        pause = Pause(self.key, self._value_of, self._keep)
        begin_pause(self._flow_run, pause, self._facts())
        try:
            await self._wait(pause, host)
        finally:
            end_pause(self._flow_run, pause)
        return pause.answer

    async def suspend(self, host: Host) -> Any:
        """End this process's part of the whole run, and in a later life give the input."""
        answered, value = await self._recorded(host)
        if answered:
            return value
        top = outermost_of(self._caller)
        if top.kind != FLOW:
            why = f"it is a part of the task run {top.display_name!r}, which cannot be resumed"
            instead = "Wait in place instead, with pause_flow_run()."
            raise CannotPauseError(UUID(bytes=self._flow_run.id), why, instead)
        message = f"suspended in its pause {self.key!r}"
        if self._refused is not None:
            message += f", again: {self._refused}"
        if not suspend(top, message, {**self._facts(), "paused_in": self._caller.id.hex()}):
            raise RunEndedError("suspend_flow_run", top.display_name)  # it was given up, and this body goes on
        await blocked(host, self._caller, host.signal())  # until that comes
        raise AssertionError("a run went on that was suspended")

    # --- what it is answered

    async def _recorded(self, host: Host) -> tuple[bool, Any]:
        """The answer that an earlier life of the body got, if it did."""
        store, asked = self._services.store, self._asked
        read = partial(store.read_inputs, self._caller.id, record_of(self.key), asked.read, MOST)
        for row in await self._services.ask(host, read):
            asked.read, answer = row.n, PauseAnswer.of(row)
            if answer.seq is not None:
                if answer.seq in asked.resumed:  # of two who resumed it at the same time, this is the second
                    continue
                asked.resumed.add(answer.seq)
            if answer.timed_out is not None:
                self._raise_timeout(answer.timed_out)
            try:
                return True, self._value_of(answer.text)
            except InputValidationError as error:
                self._refused = error  # only whoever waits for it knows its type
        return False, None

    def _value_of(self, text: str | None) -> Any:
        flow_run_id = UUID(bytes=self._flow_run.id)
        if self._model is None:
            if text is not None:
                why = f"its pause {self.key!r} waits for no input"
                raise CannotResumeError(flow_run_id, why, "Resume it without run_input.")
            return None
        problems: list[Problem]
        value, problems = self._model.read("{}" if text is None else text)
        if problems and text is None:
            problems = [NONE_GIVEN]
        if problems:
            raise InputValidationError(flow_run_id, self.key, problems)
        return value

    def _keep(self, text: str | None) -> None:
        self._record(PauseAnswer(text))

    def _record(self, answer: PauseAnswer) -> None:
        services = self._services
        now = microseconds_now(services)
        place = services.store.add_input(self._caller.id, record_of(self.key), answer.to_json(), None, now)
        self._asked.read = place

    # --- waiting

    async def _wait(self, pause: Pause, host: Host) -> None:
        monotonic = self._services.clock.monotonic
        until = None if self._seconds is None else monotonic() + self._seconds
        left = self._seconds
        while not await wait_in_pause(pause, host, self._caller, left):
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                if pause.take():
                    assert self._seconds is not None
                    timed_out = PauseAnswer(timed_out=self._seconds)
                    await self._services.ask(host, partial(self._record, timed_out))
                    self._raise_timeout(self._seconds)
                left = _TICK

    def _raise_timeout(self, seconds: float) -> NoReturn:
        raise PauseTimeoutError(self._flow_run.display_name, self.key, seconds)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"pause_key": self.key}
        if self._seconds is not None:
            facts["pause_timeout"] = microseconds_now(self._services) + round(self._seconds * 1_000_000)
        if self._model is not None:
            facts["input_schema"] = self._model.schema
        return facts
