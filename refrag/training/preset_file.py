"""Reads presets: those that come with refrag, or any YAML file, with single values overridden.

Unknown names and values that do not fit are refused, and the message names the place in the file.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from refrag.errors import TrainingError
from refrag.settings import Settings
from refrag.spelling import suggestion
from refrag.training.preset import Preset

PRESETS = Path(__file__).parent / "presets"


def load_preset(name: str, overrides: list[str] | None = None) -> Preset:
    """Read the preset of that name, or the YAML file at that path, and apply the overrides in order.

    An override has the form `runs.finetune.optimisation.num_steps=100`; its value is read as YAML. Raise TrainingError
    that names the place where the preset or an override does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    values = _unshared(_read_yaml(_read_text(name, path), str(path)))
    if not isinstance(values, dict):
        raise TrainingError(f"{path} holds a {type(values).__name__}; a preset is a mapping of names to values")
    for override in overrides or []:
        _apply(override, values)
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{_place(fault['loc'])}: {fault['msg']}{_meant(fault)}" for fault in error.errors())
        raise TrainingError(f"{path} does not fit: {faults}") from None


def _read_text(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        known = sorted(preset.stem for preset in PRESETS.glob("*.yaml"))
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(
            f"no preset {name!r}; known are {known}, or give the path of a YAML file (here: {reason})"
            f"{suggestion([name], known)}"
        ) from None


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"{source} is not YAML: {error}") from None


def _unshared(value: Any) -> Any:
    """Return a copy in which no two places share a value, so that an override changes one use of a YAML alias."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _apply(override: str, values: dict[str, Any]) -> None:
    """Set one value in place. It need not be there yet: what has a default can be overridden too."""
    place, equals, text = override.partition("=")
    *path, last = place.split(".")
    if not equals or not last:
        raise TrainingError(f"override is {override!r}; the form is runs.finetune.optimisation.num_steps=100")
    inner: Any = values
    for key in path:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[_number(key, inner, override)]
    if isinstance(inner, dict):
        inner[last] = _read_yaml(text, f"override {override!r}")
    else:
        inner[_number(last, inner, override)] = _read_yaml(text, f"override {override!r}")


def _number(key: str, values: Any, override: str) -> int:
    """Return the place of an entry in a list, counted from 0, as in runs.continue.sources.0.path."""
    if not isinstance(values, list):
        raise TrainingError(
            f"override is {override!r}; there is a single value where it looks for {key!r}; end the place there"
        )
    if not key.isdecimal() or int(key) >= len(values):
        raise TrainingError(
            f"override is {override!r}; {key!r} must be the number of one of {len(values)} entries, counted from 0"
        )
    return int(key)


def _meant(fault: Any) -> str:
    """Return the name that an unknown one is nearest to, among those of all settings."""
    if fault["type"] != "extra_forbidden":
        return ""
    return suggestion([str(fault["loc"][-1])], sorted(_names_below(Settings)))


def _names_below(settings: type[BaseModel]) -> set[str]:
    return set(settings.model_fields).union(*map(_names_below, settings.__subclasses__()))


def _place(location: tuple[int | str, ...]) -> str:
    """Return the place of a fault in the file. Pydantic puts the stage behind a run's name; the file does not."""
    if location[:1] == ("runs",):
        location = (*location[:2], *location[3:])
    return ".".join(map(str, location)) or "the whole"
