"""Deployments as they are shown: a table of them, one of them on its own, and the same as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from asyncflow._deployment_rows import SCHEDULE, DeploymentRow, RuleRow
from asyncflow._deployments.waiting_runs import facts_of, full_name
from asyncflow._rows import FLOW, RunRow, flow_run_of, moment, state_of
from asyncflow.abc import RunQuery, RunStore
from asyncflow.cli.live import state_style
from asyncflow.cli.output import age, duration_between, escaped, one_line, printable
from asyncflow.cli.records import run_json
from asyncflow.cli.run_table import print_runs
from asyncflow.cli.schemas import schema_lines
from asyncflow.schedules import describe, schedule_of, upcoming
from asyncflow.triggers import describe_trigger, trigger_of

__all__ = [
    "Known",
    "deployment_json",
    "deployment_lines",
    "known_of",
    "print_deployments",
    "show_json",
]

_SLOTS = 5
_MICRO = 1_000_000
_ROOM_FOR_MORE = 100


class Rule(NamedTuple):
    """A schedule or a trigger of a deployment."""

    row: RuleRow
    data: dict[str, Any]
    words: str
    slots: tuple[datetime, ...]
    """The next ones of an active schedule, in UTC."""


@dataclass(frozen=True)
class Known:
    """What is recorded of a deployment."""

    row: DeploymentRow
    rules: tuple[Rule, ...]
    runs: tuple[RunRow, ...]
    """The newest."""

    @property
    def name(self) -> str:
        """As people write it: flow/name."""
        return full_name(self.row)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is rarely asked for: parameters, schema, tags, description, version."""
        return facts_of(self.row)

    @property
    def next_slot(self) -> datetime | None:
        """The first of all slots to come; None where nothing will happen by itself."""
        return min((rule.slots[0] for rule in self.rules if rule.slots), default=None)


def known_of(store: RunStore, rows: Sequence[DeploymentRow], *, runs: int = 1) -> list[Known]:
    """What the store knows of deployments, with their newest runs."""
    rules: dict[bytes, list[Rule]] = {}
    now = datetime.now(UTC)
    paused = {row.id for row in rows if row.paused}
    for rule in store.read_rules([row.id for row in rows]):
        rules.setdefault(rule.deployment_id, []).append(_rule_of(rule, now, is_on=rule.deployment_id not in paused))
    return [
        Known(
            row,
            tuple(rules.get(row.id, ())),
            tuple(store.read_runs(RunQuery(kinds=frozenset({FLOW}), deployment_id=row.id, limit=runs))),
        )
        for row in rows
    ]


def _rule_of(row: RuleRow, now: datetime, *, is_on: bool) -> Rule:
    data: dict[str, Any] = json.loads(row.data)
    if row.kind != SCHEDULE:
        return Rule(row, data, f"on {describe_trigger(trigger_of(data))}", ())
    schedule = schedule_of(data)
    return Rule(row, data, describe(schedule), tuple(upcoming(schedule, now, _SLOTS)) if is_on and row.active else ())


# --- the table -------------------------------------------------------------------------------


def print_deployments(console: Console, known: Sequence[Known]) -> None:
    """Print a table with a line for each, as wide as the terminal."""
    if not known:
        console.print("no deployments; serve one: asyncflow serve FILE.py")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("DEPLOYMENT", no_wrap=True, overflow="ellipsis", ratio=3 if console.is_terminal else None)
    table.add_column("STATE", no_wrap=True, min_width=8)
    table.add_column("SCHEDULE", no_wrap=True, overflow="ellipsis", ratio=3 if console.is_terminal else None)
    table.add_column("NEXT", no_wrap=True, min_width=6)
    table.add_column("NEWEST RUN", no_wrap=True, min_width=13)
    now = _now()
    for each in known:
        table.add_row(
            one_line(each.name), _activity(each), _rule_words(each), _next_words(each, now), _newest(each, now)
        )
    console.print(table)


def _activity(known: Known) -> Text:
    return Text("‖ paused", "yellow") if known.row.paused else Text("● active", "green")


def _rule_words(known: Known) -> str:
    words = [each.words for each in known.rules if each.row.active]
    return "; ".join(words) if words else "none active" if known.rules else "none"


def _next_words(known: Known, now: int) -> str:
    slot = known.next_slot
    return "" if slot is None else f"in {duration_between(now, int(slot.timestamp() * _MICRO))}"


def _newest(known: Known, now: int) -> Text:
    if not known.runs:
        return Text("")
    state = state_of(known.runs[0])
    mark, style = state_style(state.type)
    return Text.assemble((f"{mark} {one_line(state.name)}", style), (f"  {age(known.runs[0].created, now)}", "dim"))


# --- one of them -----------------------------------------------------------------------------


def deployment_lines(known: Known, console: Console) -> Iterator[RenderableType]:
    """All that is known of one, for people."""
    yield Text.assemble(_activity(known), "  deployment ", (one_line(known.name), "bold"))
    yield from (Text(f"  {name}: {printable(str(value))}") for name, value in _facts(known) if value)
    yield from _rules(known)
    yield from _parameters(known)
    yield Text("\nNewest runs", "bold")
    with console.capture() as captured:
        print_runs(console, known.runs)
    yield Text.from_ansi(captured.get().rstrip("\n"))


def _facts(known: Known) -> Iterator[tuple[str, object]]:
    row, facts = known.row, known.facts
    yield "id", UUID(bytes=row.id)
    yield "entrypoint", row.entrypoint or "none: only the process that serves it knows its flow"
    yield "description", " ".join((facts.get("description") or "").strip().partition("\n\n")[0].split())
    yield "version", facts.get("version")
    yield "tags", ", ".join(facts.get("tags", ()))
    if row.concurrency_limit is not None:
        beyond = "more are cancelled" if row.collision == "cancel_new" else "more wait their turn"
        yield "at once", f"{row.concurrency_limit} at most, {beyond}"


def _rules(known: Known) -> Iterator[Text]:
    for kind, title in ((True, "Schedules"), (False, "Triggers")):
        rules = [each for each in known.rules if (each.row.kind == SCHEDULE) is kind]
        if rules:
            yield Text(f"\n{title}", "bold")
        for each in rules:
            yield from _rule_lines(each)


def _rule_lines(rule: Rule) -> Iterator[Text]:
    line = Text.assemble("  ", (escaped(rule.words), "cyan"), (f"  {escaped(rule.row.slug)}", "dim"))
    yield line.append("" if rule.row.active else "  not active", "yellow")
    if rule.data.get("parameters"):
        yield Text(f"    with {one_line(json.dumps(rule.data['parameters'], ensure_ascii=False))}")
    for slot in rule.slots:
        local = slot.astimezone()
        utc = "" if local.tzname() == "UTC" else f"  {slot.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        yield Text.assemble(f"    {local:%a %Y-%m-%d %H:%M:%S %Z}", (utc, "dim"))


def _parameters(known: Known) -> Iterator[RenderableType]:
    lines = list(schema_lines(known.facts.get("schema", {}), known.facts.get("parameters", {})))
    if not lines:
        return
    yield Text("\nParameters", "bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, words, value in lines:
        table.add_row(f"  {one_line(name)}", Text(one_line(words), "dim"), Text(one_line(value)))
    yield table


# --- as JSON ---------------------------------------------------------------------------------


def deployment_json(known: Known) -> dict[str, Any]:
    """A line of the table as data."""
    row, facts, slot = known.row, known.facts, known.next_slot
    return {
        "id": str(UUID(bytes=row.id)),
        "flow": row.flow,
        "name": row.name,
        "paused": bool(row.paused),
        "entrypoint": row.entrypoint,
        "tags": facts.get("tags", []),
        "description": facts.get("description"),
        "version": facts.get("version"),
        "concurrency_limit": row.concurrency_limit,
        "collision": row.collision,
        "schedules": [_rule_json(each) for each in known.rules if each.row.kind == SCHEDULE],
        "triggers": [_rule_json(each) for each in known.rules if each.row.kind != SCHEDULE],
        "next": None if slot is None else slot.isoformat(),
        "created": moment(row.created).isoformat(),
        "updated": moment(row.updated).isoformat(),
    }


def show_json(known: Known) -> dict[str, Any]:
    """All that is known of one, as data."""
    facts = known.facts
    return {
        **deployment_json(known),
        "parameters": facts.get("parameters", {}),
        "schema": facts.get("schema", {}),
        "runs": [run_json(flow_run_of(row)) for row in known.runs],
    }


def _rule_json(rule: Rule) -> dict[str, Any]:
    slots = {"slots": [slot.isoformat() for slot in rule.slots]} if rule.row.kind == SCHEDULE else {}
    return {"slug": rule.row.slug, "active": bool(rule.row.active), "rule": rule.data, "words": rule.words, **slots}


def _now() -> int:
    return time.time_ns() // 1000
