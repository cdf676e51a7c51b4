"""The logger of a run: standard `logging` records that are also kept in the store, with the run they belong to.

A record is kept whatever the levels and handlers of the program are (they are the program's
business, and stay untouched), and goes the ordinary way to whoever listens. Only the filters of the
two loggers count for both: they are where a program drops a record or takes something out of it.

A call costs no I/O: what is kept is text when the call returns, and the store writes it later, in a
thread of its own. (Where a traceback is logged, Python reads the source lines that it shows, once
for each file.)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, cast

import orjson

from asyncflow._rows import FLOW, LogRow
from asyncflow._run import Run
from asyncflow.error_records import error_summary
from asyncflow.exceptions import ForkedRuntimeError, NotJSONError, RuntimeClosedError
from asyncflow.previews import preview
from asyncflow.serializers import encode

__all__ = ["RunLogger"]

_LONGEST_LINE = 64 * 1024
_LONGEST_EXTRA = 16 * 1024
_LONGEST_NAME = 200
_MOST_PARTS = 1000
"""Items of one list or dict of `extra` that are looked at; of a longer one a preview is kept."""
_DEEPEST = 3
"""Levels of `extra` where a part that is not JSON is replaced alone; further down the whole branch is."""
_LOGGER_NAMES = {True: "asyncflow.flow_runs", False: "asyncflow.task_runs"}
_class: Callable[[object], Any] = type  # what is asked of a class here is for any class
_RESERVED = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime"})


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger bound to one run."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.getLogger(_LOGGER_NAMES[run.kind == FLOW]), None)
        self._run = run
        self._kept_from = logging.getLevelNamesMapping().get(run.services.settings.log_level.upper())

    def isEnabledFor(self, level: int) -> bool:
        """Whether a record of this level is heard by the program, or kept."""
        return self._keeps(level) or self.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the run's ids and names to the record's attributes; `extra` of the caller stays.

        But for a name that is an attribute of every record: `logging` would raise, because of data.
        """
        given: Mapping[str, Any] = kwargs.get("extra") or {}
        kwargs["extra"] = {name: given[name] for name in given if name not in _RESERVED} | _about(self._run)
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Keep the record, then hand it to `logging` if that wants it."""
        heard, kept = self.logger.isEnabledFor(level), self._keeps(level)
        if not (heard or kept):
            return
        extra: Mapping[str, Any] = kwargs.get("extra") or {}
        if heard or self.logger.filters or kwargs.get("stack_info"):
            record = self._record(level, msg, args, kwargs)
            if self.logger.filters:
                answer: Any = self.logger.filter(record)  # since 3.12 it may be another record
                if not answer:
                    return
                record = answer if isinstance(answer, logging.LogRecord) else record
        else:  # half the time: where it was called is not kept
            record = logging.LogRecord(self.logger.name, level, "", 0, msg, args, _exc_info(kwargs.get("exc_info")))
        if kept:
            _keep(self._run, record, extra)
        if heard and self.logger.filters:
            self.logger.callHandlers(record)
        elif heard:
            self.logger.handle(record)

    def _record(self, level: int, msg: object, args: tuple[object, ...], kwargs: dict[str, Any]) -> logging.LogRecord:
        msg, kwargs_ = self.process(msg, kwargs)
        logger = self.logger
        path, line, function, stack = logger.findCaller(
            kwargs_.get("stack_info", False), kwargs_.get("stacklevel", 1) + 2
        )
        return logger.makeRecord(
            logger.name,
            level,
            path,
            line,
            msg,
            args,
            _exc_info(kwargs_.get("exc_info")),
            function,
            kwargs_["extra"],
            stack,
        )

    def _keeps(self, level: int) -> bool:
        return self._kept_from is not None and level >= self._kept_from


def _about(run: Run) -> dict[str, str | None]:
    """The attributes that every record of a run has."""
    flow_run: Run | None = run
    while flow_run is not None and flow_run.kind != FLOW:
        flow_run = flow_run.parent
    task_run = run if run is not flow_run else None
    return {
        "run_name": run.display_name,
        "flow_name": None if flow_run is None else flow_run.spec.name,
        "flow_run_id": None if flow_run is None else _hex(flow_run.id),
        "flow_run_name": None if flow_run is None else flow_run.display_name,
        "task_name": None if task_run is None else task_run.spec.name,
        "task_run_id": None if task_run is None else _hex(task_run.id),
        "task_run_name": None if task_run is None else task_run.display_name,
    }


def _hex(run_id: bytes) -> str:
    text = run_id.hex()  # a UUID's spelling; making the UUID takes four times as long
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _exc_info(given: Any) -> Any:
    """What `exc_info=` may be (an exception, a tuple, true, nothing), as a record wants it."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return sys.exc_info() if given is True or given == 1 else given or None


# --- keeping ---------------------------------------------------------------------------------


def _keep(run: Run, record: logging.LogRecord, extra: Mapping[str, Any]) -> None:
    is_flow = run.kind == FLOW
    row = LogRow(
        flow_run_id=run.id if is_flow else run.flow_run_id,
        task_run_id=None if is_flow else run.id,
        timestamp=int(run.services.clock.now() * 1_000_000),
        level=record.levelno,
        logger=record.name,
        message=_text_of(record),
        extra=_json_of(extra) if extra else None,
    )
    # A thread that was given up may go on after its runtime was closed, and a forked child has none.
    with suppress(RuntimeClosedError, ForkedRuntimeError):
        run.services.store.put_log(row)


def _text_of(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001  # as everywhere in logging: a wrong call does not break the program
        text = f"{preview(record.msg)} (its arguments do not fit: {error_summary(error)})"
    if record.exc_info:
        text += "\n" + _traceback_of(record)
    if record.stack_info:
        text += "\n" + record.stack_info
    if len(text) <= _LONGEST_LINE:
        return text
    # Without its middle: a traceback's last line says what was raised.
    left, end = len(text) - _LONGEST_LINE, _LONGEST_LINE // 4
    return f"{text[: _LONGEST_LINE - end]} ... {left:,} characters left out ... {text[-end:]}"


def _traceback_of(record: logging.LogRecord) -> str:
    try:
        return logging.Formatter().formatException(cast("Any", record.exc_info))
    except Exception as error:  # noqa: BLE001  # an exception's `__str__` and its source's loader are anybody's code
        return f"(its traceback cannot be shown: {error_summary(error)})"


def _json_of(extra: Mapping[str, Any]) -> str:
    """`extra` as a JSON object of bounded size: of what is not JSON, or too large, a preview; never raises."""
    told: dict[str, Any] = {}
    room = _LONGEST_EXTRA
    for name, value in extra.items():
        text = _part(value, _DEEPEST)
        if len(text) > room:
            text = encode(preview(value))
        if len(text) > room:
            told["..."] = f"{len(extra) - len(told)} more, for which there is no room"
            break
        key = _name(name)
        room -= len(text) + len(key) + 6  # the quotes, the colon and the comma
        told[key] = orjson.Fragment(text)
    return orjson.dumps(told).decode()


def _part(value: Any, depth: int) -> str:
    """A part of `extra` as JSON text."""
    kind: Any = _class(value)
    is_long = kind in (str, list, tuple, dict) and len(value) > (_LONGEST_EXTRA if kind is str else _MOST_PARTS)
    if not is_long:
        with suppress(NotJSONError):
            return encode(value)
        if depth and kind is dict:
            parts = {_name(name): orjson.Fragment(_part(each, depth - 1)) for name, each in value.items()}
            return orjson.dumps(parts).decode()
        if depth and kind in (list, tuple):
            return orjson.dumps([orjson.Fragment(_part(each, depth - 1)) for each in value]).decode()
    return encode(preview(value))


def _name(name: object) -> str:
    if type(name) is not str:
        return preview(name, _LONGEST_NAME)
    return name[:_LONGEST_NAME].encode(errors="backslashreplace").decode()
