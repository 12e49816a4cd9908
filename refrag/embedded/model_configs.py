"""Finds out whether a repository's models say all that Triton must know of them, so that it need not ask them.

To complete a config, Triton starts a model's process once more, which takes a fifth of the time until it is ready.
"""

import re
from pathlib import Path

# Without these three a backend may fill them in from the model's file.
NEEDED = tuple(re.compile(rf"^\s*{name}\s*[:\[{{]", re.MULTILINE) for name in ("max_batch_size", "input", "output"))


def are_complete(repository: Path, config_name: str | None = None) -> bool:
    """Return whether every model has batch size, inputs and outputs in the config that it is served with.

    config_name: of variants, <model>/configs/NAME.pbtxt, which are used where a model has one.
    """
    models = [folder for folder in repository.glob("*") if folder.is_dir() and not folder.name.startswith(".")]
    return all(_is_complete(folder, config_name) for folder in models)


def _is_complete(model: Path, config_name: str | None) -> bool:
    variant = model / "configs" / f"{config_name}.pbtxt"
    path = variant if config_name and variant.is_file() else model / "config.pbtxt"
    try:
        text = path.read_text()
        # A model's own code may add anything.
        adds = any("auto_complete_config" in code.read_text() for code in model.glob("*/model.py"))
    except (OSError, UnicodeDecodeError):
        return False
    return not adds and all(each.search(text) for each in NEEDED)
