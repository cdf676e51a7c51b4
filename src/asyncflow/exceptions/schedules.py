"""Errors about when and why a deployment starts runs by itself."""

from __future__ import annotations

from asyncflow.exceptions.base import AsyncflowError

__all__ = ["MissingExtraError", "ScheduleError", "TemplateError", "TriggerError"]


class ScheduleError(AsyncflowError, ValueError):
    """A schedule cannot be made from these values."""

    def __init__(self, kind: str, field: str, value: object, expected: str) -> None:
        self.kind = kind
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{kind}: {field}={value!r}: expected {expected}")


class TriggerError(AsyncflowError, ValueError):
    """An event trigger cannot be made from these values."""

    def __init__(self, kind: str, field: str, value: object, expected: str) -> None:
        self.kind = kind
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{kind}: {field}={value!r}: expected {expected}")


class TemplateError(AsyncflowError, LookupError):
    """The parameters of a trigger ask for something that the event does not tell."""

    def __init__(self, parameter: str, template: str, problem: str) -> None:
        self.parameter = parameter
        self.template = template
        self.problem = problem
        super().__init__(f"parameter {parameter}: {template!r}: {problem}")


class MissingExtraError(AsyncflowError, ImportError):
    """What was asked for needs a package that is not installed; ``extra`` of asyncflow brings it."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        self.purpose = purpose
        self.package = package
        self.extra = extra
        super().__init__(f'{purpose} needs {package}, which is not installed: pip install "asyncflow[{extra}]"')
