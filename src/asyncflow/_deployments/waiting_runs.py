"""Runs that wait to be started: how a deployment's run is made, whoever asks for it.

Schedules, triggers, `run_deployment` and the client make the same row, so that a server that claims one
never needs to know where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from asyncflow._deployment_rows import DeploymentRow
from asyncflow._names import slug
from asyncflow._parameter_models import SECRET_FORMAT
from asyncflow._rows import FLOW, STATE_CODES, RunRow, json_of, microseconds
from asyncflow.abc import RunStore
from asyncflow.exceptions import DeploymentNotFoundError, DeploymentParametersError, NotJSONError, OptionError
from asyncflow.ids import new_id
from asyncflow.previews import HIDDEN, preview
from asyncflow.serializers import decode, encode
from asyncflow.states import StateType

__all__ = [
    "Asked",
    "Parent",
    "checked_key",
    "checked_tags",
    "deployment_id_of",
    "due_at",
    "encoded_parameters",
    "facts_of",
    "find_deployment",
    "full_name",
    "rule_id_of",
    "waiting_row",
]

_DEPLOYMENTS = UUID("7d0c2f1e-6a55-5b0e-9b5f-3f1c8f4f0a11")
"""The namespace that the ids of deployments are made in: two processes that serve "flow/name" mean the same one."""
_SCHEDULED = STATE_CODES[StateType.SCHEDULED]
_MOST_NEAR = 3


def deployment_id_of(flow: str, name: str) -> bytes:
    """The id of the deployment "flow/name"."""
    return uuid5(_DEPLOYMENTS, f"{flow}/{name}").bytes


def rule_id_of(deployment_id: bytes, kind: str, slug: str) -> bytes:
    """The id of one of its schedules or triggers."""
    return uuid5(UUID(bytes=deployment_id), f"{kind}/{slug}").bytes


def full_name(row: DeploymentRow) -> str:
    """A deployment's name as people write it: "flow/name"."""
    return f"{row.flow}/{row.name}"


def facts_of(row: DeploymentRow) -> dict[str, Any]:
    """What a deployment's row tells beside its columns: parameters, schema, tags, description, version."""
    facts: dict[str, Any] = decode(row.data)
    return facts


def find_deployment(store: RunStore, wanted: UUID | str) -> DeploymentRow:
    """The deployment with an id, or of the name "flow/name". Blocks. Raises `DeploymentNotFoundError`."""
    found = _by_id(store, wanted) or _by_name(store, wanted)
    if found is None:
        from difflib import get_close_matches  # only who has mistyped a name pays for its import

        known = [full_name(row) for row in store.read_deployments()]
        raise DeploymentNotFoundError(wanted, get_close_matches(str(wanted), known, n=_MOST_NEAR, cutoff=0.5))
    return found


def _by_id(store: RunStore, wanted: UUID | str) -> DeploymentRow | None:
    try:
        key = wanted if isinstance(wanted, UUID) else UUID(wanted)
    except (ValueError, AttributeError, TypeError):
        return None
    return next(iter(store.read_deployments(ids=[key.bytes])), None)


def _by_name(store: RunStore, wanted: UUID | str) -> DeploymentRow | None:
    flow, _, name = str(wanted).rpartition("/")  # a flow may have a slash in its name, a deployment has none
    return next(iter(store.read_deployments(flow=flow, name=name)), None) if flow and name else None


# --- what is asked for ---------------------------------------------------------------------


class Parent(NamedTuple):
    """The run that a waiting run was asked for in."""

    flow_run_id: bytes | None
    task_run_id: bytes
    """The task run that stands for it there."""


class Asked(NamedTuple):
    """A run that somebody wants of a deployment, checked as far as that can be done without its flow."""

    parameters: Mapping[str, Any]
    due: int
    """When it is to begin, in microseconds since 1970 UTC."""
    name: str | None = None
    tags: Iterable[str] = ()
    key: str | None = None
    """The idempotency key: of one deployment there is one run with it."""
    parent: Parent | None = None


def waiting_row(deployment: DeploymentRow, asked: Asked, now: int) -> RunRow:
    """The row of a run that waits to be started; the deployment's parameters are under those asked for.

    Raises `DeploymentParametersError` for names that its flow does not have, and values that are not JSON.
    """
    facts, run_id = facts_of(deployment), new_id()
    given = {**facts.get("parameters", {}), **asked.parameters}
    _refuse_unknown(deployment, facts, asked.parameters)
    told: dict[str, Any] = {"scheduled_time": asked.due}
    if secret := [name for name in given if _is_secret(facts, name)]:
        told["secret"] = secret
    if asked.parent is not None:
        told["parent_task_run_id"] = str(UUID(bytes=asked.parent.task_run_id))
        if asked.parent.flow_run_id is not None:
            told["parent_flow_run_id"] = str(UUID(bytes=asked.parent.flow_run_id))
    tags = sorted({*facts.get("tags", ()), *asked.tags})
    return RunRow(
        id=run_id,
        kind=FLOW,
        parent_id=None,
        flow_run_id=None,
        function=deployment.flow,
        key=deployment.flow,
        name=asked.name or slug(run_id),
        state=_SCHEDULED,
        state_name=None,
        message=None,
        created=now,
        started=None,
        ended=None,
        run_count=0,
        seq=1,
        tags=json_of(tags) if tags else None,
        parameters=encoded_parameters(full_name(deployment), deployment.flow, given),
        result=None,
        result_file=None,
        error=None,
        history=json_of([[_SCHEDULED, None, None, now, told]]),
        details=None if deployment.entrypoint is None else json_of({"entrypoint": deployment.entrypoint}),
        digest=None,
        owner=0,
        deployment_id=deployment.id,
        scheduled=asked.due,
        idempotency_key=asked.key,
    )


def checked_tags(tags: Iterable[Any]) -> tuple[str, ...]:
    """The tags that somebody gave. Raises `OptionError`."""
    found = () if isinstance(tags, str) else tuple(tags)
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in found):
        raise OptionError("tags", tags, "texts that are not empty, such as ['nightly']")
    return found


def checked_key(key: Any) -> str | None:
    """The idempotency key that somebody gave. Raises `OptionError`."""
    if key is not None and (not isinstance(key, str) or not key):  # an empty one comes of a variable that is not set
        raise OptionError("idempotency_key", key, "a text that is not empty, or None")
    return key


def _is_secret(facts: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter is a secret by its schema, or may have one in it."""
    schema: Mapping[str, Any] = facts.get("schema", {})
    about = encode(schema.get("properties", {}).get(name))
    return SECRET_FORMAT in about or ('"$ref"' in about and SECRET_FORMAT in encode(schema))


def encoded_parameters(deployment: str, flow: str, given: Mapping[str, Any]) -> str:
    """The JSON of what a run is given, by name. Raises `DeploymentParametersError` when something is not JSON."""
    problems: list[tuple[str, str, str]] = []
    for name, value in given.items():
        try:
            encode(value, where=name)
        except NotJSONError as error:
            told = f"Not JSON ({error.path}: {error.problem}), and another process is to read it"
            problems.append((name, told, preview(value)))
    if problems:
        raise DeploymentParametersError(deployment, flow, problems)
    return encode(dict(given), where="parameters")


def _refuse_unknown(deployment: DeploymentRow, facts: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    schema: Mapping[str, Any] = facts.get("schema", {})
    known: Mapping[str, Any] = schema.get("properties", {})
    unknown = [] if facts.get("takes_any") else [name for name in given if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        has_secrets = SECRET_FORMAT in encode(schema)  # a misspelled name may stand before one of them
        problems = [
            (name, f"No such parameter (there are: {listed})", HIDDEN if has_secrets else preview(given[name]))
            for name in unknown
        ]
        raise DeploymentParametersError(full_name(deployment), deployment.flow, problems)


def due_at(option: str, moment: datetime | None, now: int) -> int:
    """When a run is to begin that was asked for at `now`; microseconds since 1970 UTC."""
    if moment is None:
        return now
    if moment.tzinfo is None:
        raise OptionError(option, moment, "a datetime with a time zone: datetime.now(UTC) + timedelta(hours=1)")
    return microseconds(moment)
