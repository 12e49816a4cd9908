"""Settings of the store: parameters of each model that uses it, or the environment for all of them at once."""

import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path

from refrag.errors import SetupError
from refrag.store.forms import VectorForm
from refrag.store.keys import EncoderIdentity
from refrag.store.store import Store
from refrag.store.tiers.memory import MemoryTier
from refrag.store.tiers.tier import Tier

log = logging.getLogger(__name__)

MIB = 2**20
# As store_disk_path or store_redis_url: there is no such tier.
OFF = "off"


@dataclass(frozen=True)
class StoreSettings:
    """Settings of the store, as text.

    An empty value is taken from the environment, REFRAG_STORE_DISK_PATH for store_disk_path and so on; if that is not
    set, the default in brackets holds.

    store_memory_mib: MiB of vectors and tokens kept in the process [64]; 0 keeps none.
    store_disk_path: folder of LMDB files, shared by the processes of a machine [~/.cache/refrag/chunk_vectors], or off.
    store_disk_mib: MiB that these files may hold [4096]; beyond that, the oldest entries are evicted.
    store_redis_url: URL of a Redis server that replicas share, such as redis://host:6379/0 [off].
    store_redis_timeout_ms: milliseconds to wait for a connection to that server, or for its reply [50].
    """

    store_memory_mib: str = ""
    store_disk_path: str = ""
    store_disk_mib: str = ""
    store_redis_url: str = ""
    store_redis_timeout_ms: str = ""


DEFAULTS = StoreSettings("64", "", "4096", OFF, "50")


def open_store(settings: StoreSettings, encoder: EncoderIdentity, has_memory: bool = True) -> Store:
    """Return one process's store of the encoder's vectors, or raise SetupError for a setting that is not valid.

    A tier that cannot be reached is no error. has_memory: whether values are kept in the process too.
    """
    resolved = _resolve(settings)
    memory_bytes = _number("store_memory_mib", resolved.store_memory_mib, 0) * MIB
    memory = MemoryTier(memory_bytes) if has_memory and memory_bytes else None
    tiers: list[Tier] = []
    if resolved.store_disk_path != OFF:
        limit_bytes = _number("store_disk_mib", resolved.store_disk_mib, 1) * MIB
        tiers.append(_disk_tier(Path(resolved.store_disk_path).expanduser(), limit_bytes))
    if resolved.store_redis_url != OFF:
        timeout_seconds = _number("store_redis_timeout_ms", resolved.store_redis_timeout_ms, 1) / 1e3
        tiers.append(_shared_tier(resolved.store_redis_url, timeout_seconds))
    if memory is not None and not tiers:
        log.warning(
            "the store's disk and shared tiers are off, from which its memory gets chunk vectors: none will be found "
            "again; set store_disk_path or store_redis_url"
        )
    return Store(encoder.fingerprint, VectorForm(encoder.width), memory, tiers)


def _resolve(settings: StoreSettings) -> StoreSettings:
    values = {}
    for name in (field.name for field in fields(StoreSettings)):
        default = getattr(DEFAULTS, name) or str(_cache_folder())
        values[name] = getattr(settings, name) or os.environ.get(f"REFRAG_{name.upper()}") or default
    return StoreSettings(**values)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "refrag" / "chunk_vectors"


def _disk_tier(path: Path, limit_bytes: int) -> Tier:
    try:
        from refrag.store.tiers.disk import DiskTier
    except ModuleNotFoundError as error:
        raise _lacking(error, "store_disk_path", "store") from error
    return DiskTier(path, limit_bytes)


def _shared_tier(url: str, timeout_seconds: float) -> Tier:
    try:
        from refrag.store.tiers.shared import SharedTier
    except ModuleNotFoundError as error:
        raise _lacking(error, "store_redis_url", "redis") from error
    try:
        return SharedTier(url, timeout_seconds)
    except ValueError as error:
        raise SetupError(f"store_redis_url is {url!r}: {error}; write redis://host:port/database, or {OFF}") from None


def _lacking(error: ModuleNotFoundError, setting: str, extra: str) -> SetupError:
    return SetupError(f"{setting} needs {error.name}: pip install 'refrag[{extra}]', or set {setting} to {OFF}")


def _number(name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise SetupError(f"{name} is {text!r}; it must be a whole number, at least {least}")
    return int(text)
