"""Settings of collections: parameters of each model that uses them, or the environment for all of them at once."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from refrag.errors import SetupError
from refrag.retrieval.base import CollectionReader, PassageEncoderIdentity

if TYPE_CHECKING:
    from refrag.retrieval.lance_writer import LanceWriter


@dataclass(frozen=True)
class CollectionSettings:
    """Settings of collections, as text.

    An empty value is taken from the environment, REFRAG_COLLECTIONS_PATH and so on; if that is not set, the default in
    brackets holds.

    collections_path: folder, or URL of object storage such as s3://bucket/folder [~/.local/share/refrag/collections].
    collections_writable: true lets this server change collections [true]; false only lets it search them.
    """

    collections_path: str = ""
    collections_writable: str = ""


def open_reader(settings: CollectionSettings, encoder: PassageEncoderIdentity | None) -> CollectionReader:
    """Return what searches the collections; raise SetupError where the engine is not installed."""
    _require_engine()
    from refrag.retrieval.lance import LanceReader

    return LanceReader(_resolve(settings).collections_path, encoder)


def open_writer(settings: CollectionSettings, encoder: PassageEncoderIdentity | None) -> "LanceWriter | None":
    """Return what changes the collections, None if this server is not to; raise SetupError as `open_reader` does."""
    _require_engine()
    from refrag.retrieval.lance_writer import LanceWriter

    resolved = _resolve(settings)
    return LanceWriter(resolved.collections_path, encoder) if resolved.collections_writable == "true" else None


def _resolve(settings: CollectionSettings) -> CollectionSettings:
    defaults = CollectionSettings(str(_data_folder()), "true")
    values = {}
    for name in (field.name for field in fields(CollectionSettings)):
        own = getattr(settings, name) or os.environ.get(f"REFRAG_{name.upper()}")
        values[name] = own or getattr(defaults, name)
    if values["collections_writable"] not in ("true", "false"):
        raise SetupError(f"collections_writable is {values['collections_writable']!r}; it must be true or false")
    if "://" not in values["collections_path"]:
        values["collections_path"] = str(Path(values["collections_path"]).expanduser())
    return CollectionSettings(**values)


def _data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "refrag" / "collections"


def _require_engine() -> None:
    try:
        import lancedb  # noqa: F401
    except ImportError as error:
        raise SetupError(f"collections need {error.name or 'lancedb'}: pip install 'refrag[retrieval]'") from error
