"""Changes that a deployer makes to an exported repository."""

import re
from pathlib import Path


def set_parameter(repository: Path, model: str, name: str, value: str) -> None:
    """Give a parameter that the model's config.pbtxt has another value."""
    path = repository / model / "config.pbtxt"
    pattern = rf'(key: "{name}" value {{ string_value: ")[^"]*'
    text, count = re.subn(pattern, rf"\g<1>{value}", path.read_text())
    assert count == 1, f"{path} has {count} parameters {name}"
    path.write_text(text)
