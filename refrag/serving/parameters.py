"""Parameters of a model's config.pbtxt, which are strings → the frozen dataclass of its settings."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from refrag.errors import SetupError
from refrag.spelling import suggestion

Settings = TypeVar("Settings")

# By the type of a setting: how its parameter is read, and what it must be.
PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": ({"true": True, "false": False}.__getitem__, "true or false"),
}
# Parameters that Triton's Python backend reads itself.
OF_TRITON = {"EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS"}


def parse_parameters(parameters: Mapping[str, str], cls: type[Settings]) -> Settings:
    """Return `cls` filled with the parameters, or raise SetupError for an unknown name or a value of another type."""
    kinds = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    refuse_unknown(parameters, kinds)
    return cls(**{name: _parse(name, text, kinds[name]) for name, text in parameters.items() if name in kinds})


def check_least(settings: Any, least: int, *names: str) -> None:
    """Raise SetupError if one of these settings is lower than the least allowed value."""
    for name in names:
        if (value := getattr(settings, name)) < least:
            raise SetupError(f"{name} is {value}; it must be at least {least}")


def split_parameters(parameters: Mapping[str, str], cls: type[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the parameters that `cls` has, and the others, which are left for another reader."""
    names = {field.name for field in fields(cls)}
    own = {name: text for name, text in parameters.items() if name in names}
    return own, {name: text for name, text in parameters.items() if name not in names}


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise SetupError if a given name is neither known nor a parameter of Triton's Python backend."""
    known = sorted(known)
    if unknown := sorted(set(given) - set(known) - OF_TRITON):
        raise SetupError(
            f"config.pbtxt has unknown parameters {unknown}; known are {known}{suggestion(unknown, known)}"
        )


def _parse(name: str, text: str, kind: Any) -> Any:
    # A module with postponed annotations has the names of its types.
    type_name = kind if isinstance(kind, str) else kind.__name__
    if type_name not in PARSERS:
        raise SetupError(f"parameter {name} is to be of type {type_name}; settings may be {', '.join(PARSERS)}")
    parse, needed = PARSERS[type_name]
    try:
        return parse(text)
    except (ValueError, KeyError):
        raise SetupError(f"parameter {name} is {text!r}; it must be {needed}") from None
