"""Errors of deployments: of making them, of finding them, of what their runs are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow.exceptions.base import AsyncflowError
from asyncflow.exceptions.calls import ParameterValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DeploymentError",
    "DeploymentNotFoundError",
    "DeploymentParametersError",
    "NothingToServeError",
]


class DeploymentError(AsyncflowError, ValueError):
    """A deployment cannot be made or served as it is."""

    def __init__(self, deployment: str, problem: str) -> None:
        self.deployment = deployment
        self.problem = problem
        super().__init__(f"deployment {deployment!r}: {problem}")


class DeploymentParametersError(ParameterValidationError):
    """What a deployment, one of its schedules or a run of it is given does not fit its flow; no run was made.

    ``problems`` is as of `ParameterValidationError`.
    """

    def __init__(self, deployment: str, flow: str, problems: Sequence[tuple[str, str, str]]) -> None:
        super().__init__(flow, problems)
        self.deployment = deployment
        lines = "".join(f"\n  - {path}: {text}, got {value}" for path, text, value in problems)
        self.args = (f"deployment {deployment!r} was given parameters that do not fit its flow:{lines}",)


class DeploymentNotFoundError(AsyncflowError, LookupError):
    """No deployment on this home has the name or the id."""

    def __init__(self, deployment: object, near: Sequence[str] = ()) -> None:
        self.deployment: str = str(deployment)
        self.near: tuple[str, ...] = tuple(near)
        if self.near:
            remedy = "did you mean " + " or ".join(map(repr, self.near)) + "?"
        else:
            remedy = "it is there once it has been served: `await flow.serve(name=...)`, or `asyncflow serve FILE.py`"
        super().__init__(f"no deployment {self.deployment!r} on this home; {remedy}")


class NothingToServeError(AsyncflowError, ValueError):
    """`serve()` was called without a deployment."""

    def __init__(self) -> None:
        super().__init__('serve() was given no deployment: `await serve(my_flow.to_deployment("nightly"))`')
