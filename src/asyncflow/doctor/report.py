"""What an examination found, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Level", "Report", "counted"]

Level = Literal["problem", "repaired", "note"]

_MOST_EXAMPLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found, however often."""

    kind: str
    """One word for programs, such as `orphans` or `missing-file`."""
    level: Level
    """A `note` is nothing wrong; what is `repaired` was a problem."""
    what: str
    """One line."""
    remedy: str | None = None
    """What to do about it."""
    examples: tuple[str, ...] = ()
    """The first few of the files, runs or keys it is about."""


@dataclass(slots=True)
class Report:
    """All that an examination found in `home`."""

    home: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """Versions, sizes and counts."""
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def is_sound(self) -> bool:
        """Whether no problem is left."""
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        """What is wrong still."""
        return [finding for finding in self.findings if finding.level == "problem"]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        findings = [asdict(finding) for finding in self.findings]
        return {"home": self.home, "is_sound": self.is_sound, "facts": self.facts, "findings": findings}

    def add(
        self, kind: str, what: str, remedy: str | None = None, examples: Iterable[str] = (), *, level: Level = "problem"
    ) -> None:
        """Add a finding."""
        what = " ".join(what.split())  # it may quote what a damaged file holds
        shown = tuple(examples)[:_MOST_EXAMPLES]
        self.findings.append(Finding(kind=kind, level=level, what=what, remedy=remedy, examples=shown))

    def note(self, kind: str, what: str, remedy: str | None = None, examples: Iterable[str] = ()) -> None:
        """Add what is worth knowing and no problem."""
        self.add(kind, what, remedy, examples, level="note")


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
