"""`Deployment`: a flow with a name, defaults and rules that say when it runs; what `serve` is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from inspect import getdoc
from typing import Any, Literal, TypedDict, TypeVar, get_args
from uuid import UUID

from asyncflow._deployment_rows import DeploymentRow, RuleRow
from asyncflow._deployments.waiting_runs import deployment_id_of, encoded_parameters
from asyncflow._engine.declared import Declared
from asyncflow._entrypoints import entrypoint_of
from asyncflow._rule_rows import schedule_rule, slug_of, trigger_rule
from asyncflow.exceptions import DeploymentError, DeploymentParametersError, OptionError, ParameterValidationError
from asyncflow.schedules import Cron, Interval, RRule, Schedule
from asyncflow.serializers import decode, encode
from asyncflow.triggers import Trigger

__all__ = ["Collision", "Deployment", "DeploymentOptions", "make_deployment"]

Collision = Literal["enqueue", "cancel_new"]
Rule = TypeVar("Rule", Schedule, Trigger)


class DeploymentOptions(TypedDict, total=False):
    """What `flow.to_deployment(name, ...)` and `flow.serve(name, ...)` take; see `Deployment`."""

    parameters: Mapping[str, Any] | None
    cron: str | None
    interval: float | timedelta | None
    rrule: str | None
    schedules: Schedule | Iterable[Schedule]
    triggers: Trigger | Iterable[Trigger]
    tags: Iterable[str]
    concurrency_limit: int | None
    collision: Collision
    paused: bool
    description: str | None
    version: str | None


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A flow that can be run by name, from anywhere: `await serve(deployment)` makes it known and runs it.

    Raises `DeploymentError`, and `DeploymentParametersError` for values that do not fit the flow.
    """

    flow: Declared
    """The flow: what `@flow` has made."""
    name: str
    """Its name among the deployments of the flow; both together, "flow/name", are what it is called by."""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values for the flow's parameters, by name, unless a schedule, a trigger or whoever asks for a run gives others.

    Plain JSON, as it is stored: checked and coerced by the flow's type hints.
    """
    schedules: tuple[Schedule, ...] = ()
    """When it runs by itself."""
    triggers: tuple[Trigger, ...] = ()
    """After which events it runs by itself."""
    tags: tuple[str, ...] = ()
    """Of each of its runs."""
    concurrency_limit: int | None = None
    """How many of its runs go on at once, in all processes together; None for any number."""
    collision: Collision = "enqueue"
    """What becomes of a run that is due when there is no room: it waits, or it is Cancelled."""
    paused: bool = False
    """Whether schedules and triggers begin paused. One that is known already is paused by it, and never resumed."""
    description: str | None = None
    """What it is for; without it, the flow's own description."""
    version: str | None = None
    """Its version; without it, the flow's."""

    def __post_init__(self) -> None:
        self._check_options()
        fixed: dict[str, Any] = {
            "parameters": self._checked(self.parameters),
            "schedules": tuple(self._with_slug(each) for each in _schedules(self.schedules)),
            "triggers": tuple(self._with_slug(each, is_template=True) for each in _triggers(self.triggers)),
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)
        slugs = [each.slug for each in self.schedules] + [each.slug for each in self.triggers]
        for slug in slugs:
            if slugs.count(slug) > 1:
                problem = f"two of its schedules and triggers are called {slug!r}: give one another slug=..."
                raise DeploymentError(self.full_name, problem)

    def _check_options(self) -> None:
        spec: Any = getattr(self.flow, "spec", None)
        if spec is None or not spec.is_flow:
            raise OptionError("flow", self.flow, "a flow: a function decorated with @flow")
        if not _is_text(self.name) or "/" in self.name:
            raise OptionError("name", self.name, "a text that is not empty and has no '/' in it")
        if not _is_limit(self.concurrency_limit):
            raise OptionError("concurrency_limit", self.concurrency_limit, "a whole number from 1, or None")
        if self.collision not in get_args(Collision):
            raise OptionError("collision", self.collision, "one of " + ", ".join(map(repr, get_args(Collision))))
        paused: Any = self.paused
        if not isinstance(paused, bool):  # any text is true, "no" as well
            raise OptionError("paused", paused, "True or False")
        tags: Any = self.tags
        object.__setattr__(self, "tags", tuple(dict.fromkeys(tags)))
        if isinstance(tags, str) or not all(_is_text(tag) for tag in self.tags):
            raise OptionError("tags", tags, "texts that are not empty, such as ['nightly']")

    @property
    def full_name(self) -> str:
        """The name it is called by: "flow/name"."""
        return f"{self.flow.spec.name}/{self.name}"

    @property
    def id(self) -> UUID:
        """Its id: the same in each process that serves "flow/name"."""
        return UUID(bytes=deployment_id_of(self.flow.spec.name, self.name))

    @property
    def entrypoint(self) -> str | None:
        """Where its flow can be found by another process: `path/of/file.py:name`. None: it can run in this one only."""
        return entrypoint_of(self.flow.spec.fn)

    # --- what is stored

    def row(self, now: int) -> DeploymentRow:
        """As it is stored. Builds the JSON schema of the parameters, which takes some milliseconds."""
        spec = self.flow.spec
        assert spec.model is not None  # a flow's
        data = {
            "parameters": self.parameters,
            "schema": spec.model.schema().model_dump(),
            "takes_any": spec.model.takes_any,
            "tags": list(self.tags),
            "description": self.description or spec.options.description or getdoc(spec.fn),
            "version": self.version or spec.options.version,
        }
        return DeploymentRow(
            id=self.id.bytes,
            flow=spec.name,
            name=self.name,
            entrypoint=self.entrypoint,
            data=encode(data, where="deployment"),
            paused=int(self.paused),
            concurrency_limit=self.concurrency_limit,
            collision=self.collision,
            created=now,
            updated=now,
        )

    def rules(self, schedule_state: str, trigger_state: str) -> list[RuleRow]:
        """Its schedules and triggers as they are stored, with the states of those that are new."""
        own = self.id.bytes
        schedules = [schedule_rule(own, each, schedule_state) for each in self.schedules]
        return schedules + [trigger_rule(own, each, trigger_state) for each in self.triggers]

    # --- checks

    def _with_slug(self, rule: Rule, *, is_template: bool = False) -> Rule:
        parameters = rule.parameters
        if parameters:
            parameters = self._checked(parameters, is_template=is_template)
        return replace(rule, parameters=parameters, slug=rule.slug or slug_of(rule))

    def _checked(self, given: Mapping[str, Any], *, is_template: bool = False) -> dict[str, Any]:
        """Values for some of the flow's parameters, coerced, as plain JSON; of templates only the names are checked."""
        spec = self.flow.spec
        assert spec.model is not None  # a flow's
        coerces = spec.options.validate_parameters and not is_template
        try:
            values = spec.model.validate_keywords(given, coerce=coerces, is_all=False)
        except ParameterValidationError as error:
            raise DeploymentParametersError(self.full_name, spec.name, error.problems) from None
        plain: dict[str, Any] = decode(encoded_parameters(self.full_name, spec.name, values))
        return plain

    def __repr__(self) -> str:
        return f"<Deployment {self.full_name!r}>"


def make_deployment(
    flow: Declared,
    name: str,
    *,
    cron: str | None = None,
    interval: float | timedelta | None = None,
    rrule: str | None = None,
    schedules: Schedule | Iterable[Schedule] = (),
    parameters: Mapping[str, Any] | None = None,
    triggers: Trigger | Iterable[Trigger] = (),
    tags: Any = (),
    **others: Any,
) -> Deployment:
    """A deployment of a flow; `cron`, `interval` and `rrule` are short for one schedule each."""
    _refuse_unknown(others)
    short: list[Schedule] = []
    if cron is not None:
        short.append(Cron(cron))
    if interval is not None:
        short.append(Interval(interval))
    if rrule is not None:
        short.append(RRule(rrule))
    return Deployment(
        flow=flow,
        name=name,
        parameters=parameters or {},
        schedules=(*short, *_schedules(schedules)),
        triggers=_triggers(triggers),
        tags=tags,
        **others,
    )


def _schedules(given: object) -> tuple[Schedule, ...]:
    return _rules("schedules", given, Schedule, 'a schedule or several, such as [Cron("0 9 * * *"), Interval(60)]')


def _triggers(given: object) -> tuple[Trigger, ...]:
    return _rules("triggers", given, Trigger, 'a trigger or several, such as [EventTrigger("order.paid")]')


def _rules(option: str, given: Any, kind: Any, expected: str) -> tuple[Any, ...]:
    """One rule, or several, as a tuple."""
    is_one = isinstance(given, kind) or not hasattr(given, "__iter__")
    rules: tuple[Any, ...] = (given,) if is_one else tuple(given)
    if not all(isinstance(each, kind) for each in rules):
        raise OptionError(option, given, expected)
    return rules


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raise `TypeError` as a call with a misspelled option does, by the name that the caller knows."""
    known = sorted(DeploymentOptions.__optional_keys__)
    for name in options:
        if name not in known:
            problem = f"to_deployment() got an unexpected option {name!r}; it takes {', '.join(known)}"
            raise TypeError(problem)


def _is_text(text: object) -> bool:
    return isinstance(text, str) and text != ""


def _is_limit(limit: object) -> bool:
    return limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit > 0)
