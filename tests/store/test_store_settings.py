"""Parameters say first where the vectors lie, then the environment, then the defaults; what means nothing is told."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from store_helpers import ENCODER, digest, vector, vectors

from refrag.errors import SetupError
from refrag.store.settings import MIB, StoreSettings, open_store


@pytest.fixture
def settings(tmp_path):
    return StoreSettings(store_disk_path=str(tmp_path / "disk"))


def opened(settings, **options):
    """Open a store; return the names of its memory and its tiers."""
    store = open_store(replace(settings, **options), ENCODER)
    store.close()
    return store.memory, {guarded.tier.name: guarded.tier for guarded in store.tiers}


def test_by_default_vectors_lie_in_memory_and_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory, tiers = opened(StoreSettings())
    assert memory.limit_bytes == 64 * MIB
    assert list(tiers) == ["disk"]
    assert (tiers["disk"].path, tiers["disk"].limit_bytes) == (tmp_path / "refrag" / "chunk_vectors", 4096 * MIB)


def test_the_environment_is_asked_where_a_parameter_is_empty(tmp_path, settings, monkeypatch):
    monkeypatch.setenv("REFRAG_STORE_DISK_PATH", str(tmp_path / "ignored"))
    monkeypatch.setenv("REFRAG_STORE_DISK_MIB", "7")
    monkeypatch.setenv("REFRAG_STORE_REDIS_URL", "redis://cache:6379/0")
    _, tiers = opened(settings, store_disk_mib="5")
    assert (tiers["disk"].path, tiers["disk"].limit_bytes) == (Path(settings.store_disk_path), 5 * MIB)
    assert tiers["shared"].url == "redis://cache:6379/0"


def test_every_tier_can_be_turned_off(settings, monkeypatch):
    monkeypatch.setenv("REFRAG_STORE_REDIS_URL", "redis://cache:6379/0")
    assert opened(settings, store_memory_mib="0", store_disk_path="off", store_redis_url="off") == (None, {})


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ({"store_disk_path": "off"}, True),
        ({}, False),
        ({"store_disk_path": "off", "store_redis_url": "redis://cache:6379/0"}, False),
        ({"store_disk_path": "off", "store_memory_mib": "0"}, False),
    ],
)
def test_a_memory_without_a_tier_that_fills_it_is_told_once(settings, caplog, options, is_told):
    opened(settings, **options)
    assert ["none will be found again" in record.message for record in caplog.records] == [True] * is_told


def test_a_home_folder_is_found(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, tiers = opened(settings, store_disk_path="~/vectors")
    assert tiers["disk"].path == tmp_path / "vectors"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("store_memory_mib", "-1", "whole number, at least 0"),
        ("store_memory_mib", "much", "whole number, at least 0"),
        ("store_disk_mib", "0", "whole number, at least 1"),
        ("store_disk_mib", "1.5", "whole number, at least 1"),
        ("store_redis_timeout_ms", "0", "whole number, at least 1"),
        ("store_redis_url", "cache:6379", "redis://host:port/database, or off"),
    ],
)
def test_a_setting_that_means_nothing_is_told(settings, name, value, message):
    options = {"store_redis_url": "redis://cache:6379/0", name: value}
    with pytest.raises(SetupError, match=f"{name} is '{value}'.*{message}"):
        open_store(replace(settings, **options), ENCODER)


def test_two_stores_of_one_folder_see_the_same_vectors(settings):
    first, second = (open_store(settings, ENCODER, has_memory=False) for _ in range(2))
    first.put(vectors([1]))
    first.close()
    assert second.find([digest(1), digest(2)]) == [vector(1), None]
    second.close()


@pytest.mark.parametrize(
    ("settings", "module", "tier", "extra"),
    [
        (StoreSettings(store_disk_path="somewhere"), "lmdb", "disk", "store"),
        (StoreSettings(store_disk_path="off", store_redis_url="redis://127.0.0.1:1/0"), "redis", "shared", "redis"),
    ],
)
def test_a_tier_that_lacks_its_library_names_the_extra(monkeypatch, settings, module, tier, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"refrag.store.tiers.{tier}", raising=False)
    with pytest.raises(SetupError, match=rf"needs {module}: pip install 'refrag\[{extra}\]', or set store_.* to off"):
        open_store(settings, ENCODER)


def test_a_store_in_memory_alone_needs_neither(monkeypatch):
    for name in ("lmdb", "redis"):
        monkeypatch.setitem(sys.modules, name, None)
    memory, tiers = opened(StoreSettings(store_disk_path="off"))
    assert memory is not None and not tiers
