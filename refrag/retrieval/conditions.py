"""Filters of a search: a JSON object over the passages' metadata.

    {"lang": "en"}                          equal
    {"lang": ["en", "de"]}                  one of
    {"year": {"gte": 2020, "lt": 2024}}     eq, ne, gt, gte, lt, lte
    {"lang": "en", "year": {"gt": 2020}}    all of them

A passage that lacks a field fits no condition on it.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from refrag.errors import InvalidRequest
from refrag.json_text import parse_json

Operator = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in"]
Scalar = str | int | float | bool

COMPARISONS = tuple(name for name in get_args(Operator) if name != "in")
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_CONDITIONS = 32
MAX_CHOICES = 1024


@dataclass(frozen=True)
class Condition:
    """A field of the metadata, compared with a value; with a tuple of them for "in"."""

    field: str
    operator: Operator
    value: Scalar | tuple[Scalar, ...]


def parse_filter(text: str) -> tuple[Condition, ...]:
    """Return the conditions in a filter, or raise InvalidRequest that names the field at fault."""
    parsed = parse_object(text, "filter", 'such as {"lang": "en"}')
    conditions = tuple(each for field, asked in parsed.items() for each in _parse_field(field, asked))
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidRequest(f"filter has {len(conditions)} conditions, the limit is {MAX_CONDITIONS}")
    return conditions


def parse_object(text: str, place: str, form: str) -> dict[str, Any]:
    """Return the JSON object in a text, or raise InvalidRequest that names the place and tells the form."""
    try:
        parsed = parse_json(text, place)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{place} is not JSON ({error}); send an object {form}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{place} is {text[:80]}; send an object {form}")
    return parsed


def check_field_name(field: str, place: str) -> None:
    if not FIELD_NAME.fullmatch(field):
        raise InvalidRequest(
            f"{place} has the field {field!r}; a field is named by up to 64 letters, digits and _, no digit first"
        )


def check_scalar(value: Any, place: str) -> Scalar:
    """Return the value, or raise InvalidRequest unless it is a string, a finite number that fits 64 bits, or a bool."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # False for NaN too, and unlike math.isfinite no error for an integer that no double can hold.
    if is_number and not abs(value) < 2**63:
        raise InvalidRequest(f"{place} is {str(value)[:80]}; give a finite number below 2^63")
    if not is_number and not isinstance(value, str | bool):
        raise InvalidRequest(f"{place} is {json.dumps(value)[:80]}; give a string, a number, true or false")
    return cast(Scalar, value)


def _parse_field(field: str, asked: Any) -> list[Condition]:
    check_field_name(field, "filter")
    place = f"filter field {field!r}"
    if isinstance(asked, list):
        return [Condition(field, "in", _parse_choices(asked, place))]
    if not isinstance(asked, dict):
        return [Condition(field, "eq", check_scalar(asked, place))]
    if not asked or (unknown := sorted(asked.keys() - set(COMPARISONS))):
        given = ", ".join(map(repr, unknown)) if asked else "no comparison"
        raise InvalidRequest(f"{place} has {given}; the comparisons are {', '.join(COMPARISONS)}")
    return [Condition(field, cast(Operator, name), _parse_operand(name, value, place)) for name, value in asked.items()]


def _parse_choices(asked: list[Any], place: str) -> tuple[Scalar, ...]:
    if not 1 <= len(asked) <= MAX_CHOICES:
        raise InvalidRequest(f"{place} has {len(asked)} values to choose from; give 1 to {MAX_CHOICES}")
    choices = tuple(check_scalar(each, place) for each in asked)
    if len({kind_of(each) for each in choices}) > 1:
        raise InvalidRequest(f"{place} has values of several types; give strings, numbers, or true and false")
    return choices


def _parse_operand(name: str, value: Any, place: str) -> Scalar:
    operand = check_scalar(value, f"{place}, {name},")
    if isinstance(operand, bool) and name not in ("eq", "ne"):
        raise InvalidRequest(f"{place} compares true or false by {name}; use eq or ne")
    return operand


def kind_of(value: Scalar) -> str:
    """Return "string", "number" or "bool"."""
    if isinstance(value, bool):
        return "bool"
    return "string" if isinstance(value, str) else "number"
