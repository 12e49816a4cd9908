"""Makes another decoder answer in a model repository: rewrites the parameters in the config.pbtxt of `decoder`.

…  inputs, outputs, instances                    as they are
parameters decoder_backend                       the new name
parameters that all decoders share               as they are
parameters of the old decoder                    replaced by those of the new one
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from refrag.decoders import DECODERS
from refrag.errors import SetupError
from refrag.serving.parameters import OF_TRITON, parse_parameters

PARAMETER = re.compile(r'^parameters \{ key: "(\w+)" value \{ string_value: ("(?:[^"\\]|\\.)*") \} \}\n', re.MULTILINE)
BACKEND, ENVIRONMENT = "decoder_backend", "EXECUTION_ENV_PATH"
TEMPLATE = Path(str(files("refrag"))) / "model_repository" / "decoder" / "config.pbtxt"


def choose_decoder(repository: Path, decoder: str, values: Mapping[str, str], environment: Path | None) -> None:
    """Name the decoder in the repository, with these values for its own parameters and defaults for the others.

    environment: the Python environment that the model is started in; None for the server's own.
    Raises SetupError, and changes nothing, if the decoder or a parameter is unknown or the config is not of our form.
    """
    path = repository / "decoder" / "config.pbtxt"
    text = _read(path)
    settings_type = DECODERS.find(decoder).settings_type
    parse_parameters(values, settings_type)
    common = _without_own_parameters(text, path)
    common = PARAMETER.sub(lambda found: _line(BACKEND, decoder) if found[1] == BACKEND else found[0], common)
    placed = "" if environment is None else _line(ENVIRONMENT, str(environment))
    path.write_text(common + placed + "\n" + _own_parameters(decoder, settings_type, values))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise SetupError(f"{path} cannot be read ({error}); make the repository with `refrag export`") from None


def _without_own_parameters(text: str, path: Path) -> str:
    """Return the config up to the last parameter that does not belong to the decoder that it names."""
    given = {found[1]: json.loads(found[2]) for found in PARAMETER.finditer(text)}
    if BACKEND not in given or len(given) != text.count("parameters {"):
        raise SetupError(
            f"{path} must have its parameters on a line each, as it was exported, and {BACKEND} among them"
        )
    own = {field.name for field in fields(DECODERS.find(given[BACKEND]).settings_type)} | OF_TRITON
    shared = [found for found in PARAMETER.finditer(text) if found[1] not in own]
    return text[: shared[-1].end()]


def _own_parameters(decoder: str, settings_type: type[Any], values: Mapping[str, str]) -> str:
    """Return the lines of the decoder's own parameters; those that the project ships have comments."""
    template = TEMPLATE.read_text()
    if f'string_value: "{decoder}"' in template:
        own = template[len(_without_own_parameters(template, TEMPLATE)) :].lstrip("\n")
        return PARAMETER.sub(lambda found: _line(found[1], values[found[1]]) if found[1] in values else found[0], own)
    lines = [_line(field.name, values.get(field.name, _as_text(field.default))) for field in fields(settings_type)]
    return f"# These belong to {decoder!r}; docs/decoders.md tells what they mean.\n" + "".join(lines)


def _line(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}\n'


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
