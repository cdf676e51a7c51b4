"""Every error asyncflow raises on its own account.

An error takes fields, writes its own message from them and says what to do next, so that the
place that raises it states facts only. All of them derive from :class:`AsyncflowError`, keep
their fields as attributes and survive ``pickle`` and ``copy`` (worker processes send them home).
"""

from asyncflow.exceptions.base import (
    AsyncflowError,
)
from asyncflow.exceptions.calls import (
    EntrypointError,
    MapError,
    MissingResultError,
    NotAFunctionError,
    NotJSONError,
    OptionError,
    ParametersTooLargeError,
    ParameterValidationError,
    ReservedParameterError,
    SyncCallOnEventLoopError,
    WaitOnEventLoopError,
)
from asyncflow.exceptions.home import (
    DurabilityError,
    ForkedRuntimeError,
    HomeError,
    LimitConflictError,
    LimitDeadlockError,
    LimitTimeoutError,
    RunNotFoundError,
    RuntimeClosedError,
    StoreBusyError,
    StoreError,
    UnsupportedSchemaError,
)
from asyncflow.exceptions.runs import (
    CannotCancelNestedRunError,
    CrashedRunError,
    FailedRunError,
    IllegalTransitionError,
    NestingTooDeepError,
    NoRuntimeError,
    RunCancelledError,
    RunElsewhereError,
    RunEndedError,
    StateNotFinalError,
    UnfinishedRunError,
    UpstreamFailedError,
    WaitCycleError,
    WaitTimeoutError,
)

__all__ = [
    "AsyncflowError",
    "CannotCancelNestedRunError",
    "CrashedRunError",
    "DurabilityError",
    "EntrypointError",
    "FailedRunError",
    "ForkedRuntimeError",
    "HomeError",
    "IllegalTransitionError",
    "LimitConflictError",
    "LimitDeadlockError",
    "LimitTimeoutError",
    "MapError",
    "MissingResultError",
    "NestingTooDeepError",
    "NoRuntimeError",
    "NotAFunctionError",
    "NotJSONError",
    "OptionError",
    "ParameterValidationError",
    "ParametersTooLargeError",
    "ReservedParameterError",
    "RunCancelledError",
    "RunElsewhereError",
    "RunEndedError",
    "RunNotFoundError",
    "RuntimeClosedError",
    "StateNotFinalError",
    "StoreBusyError",
    "StoreError",
    "SyncCallOnEventLoopError",
    "UnfinishedRunError",
    "UnsupportedSchemaError",
    "UpstreamFailedError",
    "WaitCycleError",
    "WaitOnEventLoopError",
    "WaitTimeoutError",
]
