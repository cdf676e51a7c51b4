"""The logger of a run: standard `logging` records that are also kept in the store, with the run they belong to.

A record goes to the store whatever the levels and handlers of the program are (they are the
program's business, and stay untouched), and then the ordinary way to whoever listens.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from asyncflow._rows import FLOW, LogRow
from asyncflow._run import Run
from asyncflow.error_records import error_summary
from asyncflow.previews import preview

__all__ = ["RunLogger"]

_LONGEST_LINE = 64 * 1024
_LOGGER_NAMES = {True: "asyncflow.flow_runs", False: "asyncflow.task_runs"}


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger bound to one run."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.getLogger(_LOGGER_NAMES[run.kind == FLOW]), None)
        self._run = run
        self._kept_from = logging.getLevelNamesMapping().get(run.services.settings.log_level.upper())

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the run's ids and name to the record's attributes; `extra` of the caller stays."""
        given: Mapping[str, Any] = kwargs.get("extra") or {}
        run = self._run
        kwargs["extra"] = {
            **given,
            "run_name": run.display_name,
            "flow_run_id": _hex(run.id if run.kind == FLOW else run.flow_run_id),
            "task_run_id": None if run.kind == FLOW else _hex(run.id),
        }
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Keep the record, then hand it to `logging` if that wants it."""
        logger = self.logger
        heard = logger.isEnabledFor(level)
        kept = self._kept_from is not None and level >= self._kept_from
        if not (heard or kept):
            return
        msg, kwargs_ = self.process(msg, kwargs)
        exc_info = _exc_info(kwargs_.get("exc_info"))
        path, line, function, stack = logger.findCaller(
            kwargs_.get("stack_info", False), kwargs_.get("stacklevel", 1) + 1
        )
        record = logger.makeRecord(
            logger.name, level, path, line, msg, args, exc_info, function, kwargs_["extra"], stack
        )
        if kept:
            _keep(self._run, record)
        if heard:
            logger.handle(record)


def _exc_info(given: Any) -> Any:
    """What `exc_info=` may be (an exception, a tuple, true, nothing), as a record wants it."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return sys.exc_info() if given is True or given == 1 else given or None


def _keep(run: Run, record: logging.LogRecord) -> None:
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001  # as everywhere in logging: a wrong call does not break the program
        text = f"{preview(record.msg)} (its arguments do not fit: {error_summary(error)})"
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        text += "\n" + record.stack_info
    is_flow = run.kind == FLOW
    run.services.store.put_log(
        LogRow(
            run.id if is_flow else run.flow_run_id,
            None if is_flow else run.id,
            int(run.services.clock.now() * 1_000_000),
            record.levelno,
            record.name,
            text[:_LONGEST_LINE],
        )
    )


def _hex(run_id: bytes | None) -> str | None:
    if run_id is None:
        return None
    text = run_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
