"""What the row of a flow run holds of its parameters: secrets while it waits, and not everything later."""

from __future__ import annotations

from asyncflow._rows import RunRow, birth_of, parameters_of
from asyncflow.previews import PREVIEW_KEY, is_preview
from asyncflow.serializers import encode

__all__ = ["not_recorded", "without_secrets"]


def without_secrets(row: RunRow) -> RunRow:
    """`row` of a run that waited, and will not be begun any more."""
    if not birth_of(row).get("secret"):
        return row
    return row._replace(parameters=encode(parameters_of(row), where="parameters"))


def not_recorded(row: RunRow) -> list[str]:
    """The names of the parameters whose values the row does not hold."""
    if row.parameters is None or PREVIEW_KEY not in row.parameters:
        return []
    return [name for name, value in parameters_of(row).items() if is_preview(value)]
