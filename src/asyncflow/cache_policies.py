"""What a cached value depends on.

A policy names facts; two calls whose facts are all equal share one value. The task itself always
counts, so a value is never given to another task. Policies are added up, and an argument that
changes nothing about the value is taken out:

    @task(cache_policy=INPUTS + TASK_SOURCE)
    @task(cache_policy=INPUTS - "session")
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeAlias, TypeVar

from asyncflow.digests import digest
from asyncflow.exceptions import OptionError
from asyncflow.runs import TaskRun

__all__ = [
    "DEFAULT",
    "FLOW_PARAMETERS",
    "INPUTS",
    "NOT_IN_KEY",
    "NO_CACHE",
    "RUN_ID",
    "TASK_SOURCE",
    "CacheKeyContext",
    "CachePolicy",
    "KeyFacts",
    "NoKey",
]

T = TypeVar("T")

NOT_IN_KEY = "asyncflow: not in key"
"""What the hint of a parameter carries that is no part of what identifies a call."""
NoKey: TypeAlias = Annotated[T, NOT_IN_KEY]
"""`client: NoKey[AsyncClient]`: a parameter of that type whose argument does not identify the call.

It may be anything, a connection or a lock, and is in no cache key and in no digest of a call.
"""


class _Part(Enum):
    """One kind of fact. In the order in which a policy is written."""

    INPUTS = "inputs"
    TASK_SOURCE = "source"
    FLOW_PARAMETERS = "flow_parameters"
    RUN_ID = "run_id"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What may count for a key, of one call; None where there is no such thing."""

    task_key: str
    inputs: bytes | None = None
    """Digest of the arguments that count; None where one of them cannot be digested."""
    source: bytes | None = None
    """Digest of the task's own code."""
    flow_parameters: bytes | None = None
    """Digest of the parameters of the flow run around."""
    run_id: bytes | None = None
    """Of the flow run around; of the outermost run where there is no flow."""


@dataclass(frozen=True, slots=True)
class CacheKeyContext:
    """What a `cache_key_fn` gets as its first argument."""

    task: Any
    """The `Task` that was called."""
    task_run: TaskRun
    """The run, as of now."""
    parameters: dict[str, Any]
    """The arguments by name."""


@dataclass(frozen=True, slots=True, repr=False)
class CachePolicy:
    """Which facts count. Made by adding up the policies of this module; it never changes."""

    parts: frozenset[_Part]
    without: frozenset[str] = frozenset()
    """Names of the arguments that do not count."""

    def key(self, facts: KeyFacts) -> str | None:
        """The key of a call, or None where it is not to be cached: nothing counts, or something that does is not there.

        The same for equal facts in every process and on every supported Python.
        """
        counted = {part.value: getattr(facts, part.value) for part in self.parts}
        if not counted or None in counted.values():
            return None
        return f"{facts.task_key}:{digest(counted).hex()}"

    def counts_inputs(self) -> bool:
        """Whether the arguments count."""
        return _Part.INPUTS in self.parts

    def counts_source(self) -> bool:
        """Whether the task's own code counts."""
        return _Part.TASK_SOURCE in self.parts

    def counts_flow_parameters(self) -> bool:
        """Whether the parameters of the flow around count."""
        return _Part.FLOW_PARAMETERS in self.parts

    def __add__(self, other: object) -> CachePolicy:
        if not isinstance(other, CachePolicy):
            return NotImplemented
        return CachePolicy(self.parts | other.parts, self.without | other.without)

    def __sub__(self, argument: object) -> CachePolicy:
        if not isinstance(argument, str):
            raise OptionError("cache_policy", argument, f'the name of one argument: {self!r} - "name"')
        if not self.counts_inputs():
            raise OptionError(
                "cache_policy", argument, f"a policy of which INPUTS is a part; {self!r} has no arguments"
            )
        return CachePolicy(self.parts, self.without | {argument})

    def __bool__(self) -> bool:
        """Whether anything counts: without, nothing is cached."""
        return bool(self.parts)

    def __repr__(self) -> str:
        if not self.parts:
            return "NO_CACHE"
        excluded = "".join(f" - {name!r}" for name in sorted(self.without))
        names = [f"{part.name}{excluded if part is _Part.INPUTS else ''}" for part in _Part if part in self.parts]
        return " + ".join(names)


def _only(part: _Part) -> CachePolicy:
    return CachePolicy(frozenset({part}))


INPUTS = _only(_Part.INPUTS)
"""The arguments. `INPUTS - "session"`: but for that one."""
TASK_SOURCE = _only(_Part.TASK_SOURCE)
"""The code of the task's own function: a change of it makes new values. What it calls does not count,
nor do comments and layout; another version of Python is other code."""
FLOW_PARAMETERS = _only(_Part.FLOW_PARAMETERS)
"""The parameters of the flow run around; outside of any flow nothing is cached."""
RUN_ID = _only(_Part.RUN_ID)
"""The flow run around (outside of any, the outermost task run): values are not shared beyond it."""
NO_CACHE = CachePolicy(frozenset())
"""Nothing is cached."""
DEFAULT = INPUTS + TASK_SOURCE + RUN_ID
"""Within one flow run, for equal arguments."""
