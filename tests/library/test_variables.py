"""Misspelt environment variables are refused with the name that was meant."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from refrag.base_models.cache import cache_folder
from refrag.errors import SetupError
from refrag.retrieval.settings import CollectionSettings
from refrag.store.settings import StoreSettings
from refrag.variables import KNOWN, refuse_misspelt

ROOT = Path(__file__).parents[2]


def test_every_variable_that_the_code_names_is_known():
    sources = [path.read_text() for folder in ("refrag", "export") for path in (ROOT / folder).rglob("*.py")]
    named = {name for source in sources for name in re.findall(r'"(REFRAG_[A-Z_]+[A-Z])"', source)}
    assert named == set(KNOWN)


def test_every_setting_of_the_store_has_its_variable():
    assert {f"REFRAG_{field.name.upper()}" for field in fields(StoreSettings)} <= set(KNOWN)


def test_every_setting_of_collections_has_its_variable():
    assert {f"REFRAG_{field.name.upper()}" for field in fields(CollectionSettings)} <= set(KNOWN)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("REFRAG_STORE_DISKPATH", "REFRAG_STORE_DISK_PATH"),
        ("REFRAG_DISK_PATH", "REFRAG_STORE_DISK_PATH"),
        ("REFRAG_STORE_REDIS", "REFRAG_STORE_REDIS_URL"),
        ("REFRAG_CAHCE", "REFRAG_CACHE"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(name, meant):
    with pytest.raises(SetupError, match=f"{name} is no variable of refrag; is {meant} meant"):
        refuse_misspelt({name: "/data", "PATH": "/bin"})


def test_others_with_our_prefix_are_returned_and_known_ones_are_not():
    assert refuse_misspelt({"REFRAG_STORE_DISK_MIB": "7", "REFRAG_ZONE": "b", "OTHER_CACHE": "x"}) == ["REFRAG_ZONE"]


@pytest.mark.parametrize(
    "name", ["REFRAG_SERVICE_HOST", "REFRAG_SERVICE_PORT_GRPC", "REFRAG_PORT", "REFRAG_PORT_8001_TCP_ADDR"]
)
def test_what_kubernetes_sets_for_a_service_named_refrag_is_none_of_ours(name):
    assert refuse_misspelt({name: "10.0.0.1"}) == []


def test_the_cache_of_base_models_is_not_guessed_from_a_misspelt_variable(monkeypatch):
    monkeypatch.setenv("REFRAG_CACHE_DIR", "/data")
    with pytest.raises(SetupError, match="is REFRAG_CACHE meant"):
        cache_folder()
