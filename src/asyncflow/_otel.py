"""Spans of OpenTelemetry for runs, for programs that have set it up.

Only its API is used, which does nothing by itself: where spans go is the program's business. It is
never imported on the program's behalf; a program that has configured a tracer provider has imported
it, and one that has not must not pay for it (30 ms).

A span's parent is given, and not what happens to be current: the span of the parent run, or a span
of the user's that is open inside of that run's body. Which of the two it is, is told by a mark that
each body's context carries. So a hook, a task that kept an old context or a generator that is closed
from elsewhere cannot put a run into a wrong place.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import ref

import orjson

from asyncflow._recorded import Recorded
from asyncflow._rules import RESTING
from asyncflow._run import Run, Waiter
from asyncflow._spans import Spans, SpanSource
from asyncflow._version import __version__
from asyncflow.exceptions import OptionError
from asyncflow.logs import library_logger
from asyncflow.states import State, StateType

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["span_source"]

_MICRO = 1000
"""Nanoseconds."""
_ERRORS = (StateType.FAILED, StateType.CRASHED)
_said: set[str] = set()


def span_source(setting: bool | None) -> SpanSource | None:
    """What `Settings.otel` asks for. Raises `OptionError` when it is to be on and the library is not there."""
    if setting is False:
        return None
    if setting:
        try:
            import opentelemetry.trace  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError:
            expected = 'the extra "otel" to be installed: pip install "asyncflow[otel]"'
            raise OptionError("otel", True, expected) from None
    return _Configured()


class _Configured:
    """The spans of the program's tracer provider, once it has one."""

    def __init__(self) -> None:
        self._known: tuple[TracerProvider, Spans | None] | None = None

    def __call__(self) -> Spans | None:
        if "opentelemetry.trace" not in sys.modules:
            return None
        from opentelemetry import trace  # an import statement, because another thread may be in the middle of it

        provider = trace.get_tracer_provider()
        if self._known is None or self._known[0] is not provider:
            is_none = isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)
            self._known = provider, None if is_none else _OtelSpans(trace.get_tracer("asyncflow", __version__))
        return self._known[1]


class _OtelSpans:
    """Starts the spans of runs and makes them current."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import context, trace

        self._tracer = tracer
        self._context = context
        self._trace = trace
        self._mark = context.create_key("asyncflow-run")

    def enter(self, run: Run) -> Any:
        try:
            return self._enter(run)
        except Exception as error:  # noqa: BLE001  # processors and samplers are anybody's code
            _complain(error)
            return None

    def _enter(self, run: Run) -> Any:
        around = self._context.get_current()
        span = self._span_of(run, around)
        inside = self._trace.set_span_in_context(span, self._context.set_value(self._mark, run.id, around))
        return self._context.attach(inside)

    def leave(self, token: Any) -> None:
        self._context.detach(token)

    def _span_of(self, run: Run, around: Any) -> Span:
        if run.span is None:
            run.span = self._start(run, around)
        span: Span = run.span
        return span

    def _start(self, run: Run, around: Any) -> Span:
        parent = run.parent
        if parent is not None:
            above = self._span_of(parent, around)  # which may begin here: a hook has called `run` before the body began
            if around.get(self._mark) != parent.id or not self._is_same_trace(above, around):
                around = self._trace.set_span_in_context(above, around)
        span = self._tracer.start_span(
            run.spec.name, around, attributes=_attributes(run), start_time=run.latest * _MICRO
        )
        # It does not hold the run: one that nobody can finish any more is recorded Crashed when it is collected.
        told = run.status.seq, run.run_count
        run.attend(Waiter(partial(self._end, ref(run), span, *told)))
        return span

    def _is_same_trace(self, span: Span, around: Any) -> bool:
        current = self._trace.get_current_span(around)
        return current.get_span_context().trace_id == span.get_span_context().trace_id

    def _end(self, reference: ref[Run], span: Span, seq: int, first: int) -> None:
        run = reference()
        if run is None or not span.is_recording():
            return
        try:
            state = run.bare_state()
            self._tell(span, run, state, seq, first)
            span.end(run.latest * _MICRO)
        except Exception as error:  # noqa: BLE001  # as in `enter`
            _complain(error)

    def _tell(self, span: Span, run: Run, state: State[Any], seq: int, first: int) -> None:
        """What became of the run, which had so many states, and was in so many attempts, when its span began."""
        span.set_attribute("asyncflow.run.state", state.type.value)
        span.set_attribute("asyncflow.run.state_name", state.name)
        span.set_attribute("asyncflow.run.attempts", run.run_count)
        waited = [entry for entry in (run.history or ())[seq:] if entry[1] == "AwaitingRetry"]
        for number, (_, _, message, at, _) in enumerate(waited, first):
            told = {"asyncflow.run.attempt": number, "asyncflow.reason": message or ""}
            span.add_event("asyncflow.retry", told, at * _MICRO)
        ended = run.latest * _MICRO
        if state.type in _ERRORS:
            span.set_status(self._trace.StatusCode.ERROR, state.message)
            if run.error_json is not None:
                error = _told(run.error_json)
                span.set_attribute("error.type", error["exception.type"])
                span.add_event("exception", error, ended)
        elif state.type is StateType.CANCELLED or state.name in RESTING:
            what = state.name.lower() if state.name in RESTING else "cancelled"
            span.add_event(f"asyncflow.{what}", {"asyncflow.reason": state.message or ""}, ended)


def _attributes(run: Recorded) -> dict[str, str | list[str]]:
    """What is known of a run when it begins; never its arguments."""
    kind = run.spec.kind.value
    told: dict[str, str | list[str]] = {
        "asyncflow.run.id": str(UUID(bytes=run.id)),
        "asyncflow.run.name": run.display_name,
        "asyncflow.run.kind": kind,
        f"asyncflow.{kind}.name": run.spec.name,
    }
    if run.flow_run_id is not None:
        told["asyncflow.flow_run.id"] = str(UUID(bytes=run.flow_run_id))
    if run.tags:
        told["asyncflow.run.tags"] = sorted(run.tags)
    return told


def _told(error_json: str) -> dict[str, str]:
    """A recorded error as OpenTelemetry has exceptions. (Its own way reads source files, on the event loop.)"""
    error = orjson.loads(error_json)
    module = error["module"]
    return {
        "exception.type": error["type"] if module == "builtins" else f"{module}.{error['type']}",
        "exception.message": error["message"],
        "exception.stacktrace": error["traceback"],
    }


def _complain(error: Exception) -> None:
    """What the program's tracing raises must not change what becomes of a run."""
    kind = type(error).__qualname__
    if kind not in _said:
        _said.add(kind)
        library_logger().warning("a run is not traced as it should be (said once per kind of error)", exc_info=error)
