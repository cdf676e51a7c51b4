"""Where runs and asyncflow itself log, and what becomes of `print` under `log_prints`."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from contextvars import ContextVar
from io import StringIO
from typing import TYPE_CHECKING, Any

from asyncflow._run import Run
from asyncflow.context import current_run
from asyncflow.exceptions import AsyncflowError

if TYPE_CHECKING:
    import logging

    from asyncflow.run_logger import RunLogger

__all__ = ["MissingRunError", "get_run_logger", "install_print_dispatcher", "library_logger"]


class MissingRunError(AsyncflowError, RuntimeError):
    """`get_run_logger()` was called where no run is."""

    def __init__(self) -> None:
        super().__init__(
            "get_run_logger() was called outside of a flow or task run; call it in the body of one, "
            "or use logging.getLogger(__name__) here"
        )


def library_logger() -> logging.Logger:
    """Where asyncflow itself logs."""
    import logging  # at first use: 3 ms of the 50 that importing asyncflow may take

    return logging.getLogger("asyncflow")


def _logger_of(run: Run) -> RunLogger:
    from asyncflow.run_logger import RunLogger  # brings `logging`: see above

    return RunLogger(run)


def get_run_logger() -> RunLogger:
    """The logger of the run whose body executes here. Raises `MissingRunError` outside of any."""
    run = current_run.get()
    if run is None:
        raise MissingRunError
    return _logger_of(run)


# --- log_prints ------------------------------------------------------------------------------

_installed: Callable[..., None] | None = None
# A handler of the program may print, too: that is not logged again.
_is_logging: ContextVar[bool] = ContextVar("asyncflow_is_logging_a_print", default=False)


def _wants_prints(run: Run | None) -> bool:
    while run is not None:  # a task that says nothing does as its flow does
        if run.spec.options.log_prints is not None:
            return run.spec.options.log_prints
        run = run.parent
    return False


def _print_over(real: Callable[..., None]) -> Callable[..., None]:
    def print(  # it is shown where somebody looks at it
        *values: object, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False
    ) -> None:
        run = current_run.get()
        to_terminal = file is None or file is sys.stdout or file is sys.stderr
        if run is None or not to_terminal or _is_logging.get() or not _wants_prints(run):
            real(*values, sep=sep, end=end, file=file, flush=flush)
            return
        text = StringIO()
        real(*values, sep=sep, end="", file=text)
        token = _is_logging.set(True)
        try:
            _logger_of(run).info("%s", text.getvalue(), stacklevel=2)
        finally:
            _is_logging.reset(token)

    return print


def install_print_dispatcher() -> None:
    """Make `print` ask which run it is called in; done with the first `log_prints=True`.

    Permanent on purpose: replacing `print` for the time of a run loses or keeps the replacement
    when runs overlap. Outside of such runs it is the one there was. Where somebody has replaced
    ours meanwhile, a second one is laid over theirs, which may still call the first.
    """
    global _installed
    if builtins.print is not _installed:
        _installed = builtins.print = _print_over(builtins.print)
