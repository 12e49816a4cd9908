"""Conditions on metadata → a WHERE clause over the columns of a collection."""

from collections.abc import Mapping, Sequence

from refrag.errors import InvalidRequest
from refrag.retrieval.conditions import Condition, Scalar, kind_of
from refrag.retrieval.lance_rows import PREFIX, quote

OPERATORS = {"eq": "=", "ne": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def where_clause(conditions: Sequence[Condition], kinds: Mapping[str, str]) -> str | None:
    """Return the clause, or None without conditions.

    kinds: of the collection's fields. Raises InvalidRequest for a field that it lacks, or a value of another type.
    """
    return " AND ".join(_clause(condition, kinds) for condition in conditions) or None


def _clause(condition: Condition, kinds: Mapping[str, str]) -> str:
    field = condition.field
    if field not in kinds:
        known = ", ".join(sorted(kinds)) or "none"
        raise InvalidRequest(f"filter has the field {field!r}, which no passage has; the collection's fields: {known}")
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    for value in values:
        if kind_of(value) != kinds[field]:
            raise InvalidRequest(f"filter field {field!r} is of type {kinds[field]}, and is compared with {value!r}")
    literals = [_literal(value) for value in values]
    if condition.operator == "in":
        return f"{PREFIX}{field} IN ({', '.join(literals)})"
    return f"{PREFIX}{field} {OPERATORS[condition.operator]} {literals[0]}"


def _literal(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Numbers are kept as FP64, and compared as such.
    return quote(value) if isinstance(value, str) else f"CAST({float(value)!r} AS DOUBLE)"
