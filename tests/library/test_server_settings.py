"""A number in a config.pbtxt that no request could be answered with is refused when its model loads."""

import importlib
import sys
from types import ModuleType

import pytest

from refrag.errors import SetupError
from refrag.serving.decoder_request import RequestDefaults
from refrag.serving.parameters import parse_parameters

# By module of refrag.serving: the settings, and the least value of each number.
LEAST = {
    "decoder": ("DecoderSettings", {"default_max_tokens": 1, "default_deadline_ms": 1, "max_deadline_ms": 1}),
    "preprocessing": (
        "PreprocessingSettings",
        {"max_chunks": 1, "max_text_bytes": 1, "default_max_tokens": 1, "history_text_tokens": 0},
    ),
    "chunk_store": ("ChunkStoreSettings", {"encoder_batch": 1, "max_text_bytes": 1}),
    "expansion": ("ExpansionSettings", {"num_threads": 1, "max_chunks": 1}),
    "retriever": ("RetrieverSettings", {"default_num_passages": 1, "max_passages": 10, "max_question_bytes": 1}),
    "passage_store": ("PassageStoreSettings", {"max_text_bytes": 1, "max_documents": 1}),
    "watched": ("WatchedSettings", {"max_streams": 1}),
}
PREFIX = "refrag.serving."


@pytest.fixture
def serving(monkeypatch):
    """Return a function that imports a module of refrag.serving over a stand-in for Triton's Python backend."""
    known = set(sys.modules)
    backend = ModuleType("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    yield lambda name: importlib.import_module(PREFIX + name)
    for name in set(sys.modules) - known:
        if name.startswith(PREFIX):
            del sys.modules[name]


@pytest.mark.parametrize("module", LEAST)
def test_the_least_value_of_each_number_is_taken_and_one_less_is_refused_by_name(serving, module):
    class_name, numbers = LEAST[module]
    settings = getattr(serving(module), class_name)
    for name, least in numbers.items():
        assert getattr(parse_parameters({name: str(least)}, settings), name) == least
        with pytest.raises(SetupError, match=rf"{name}\b.* {least - 1}\b"):
            parse_parameters({name: str(least - 1)}, settings)


def test_a_refused_number_is_told_with_what_is_allowed():
    with pytest.raises(SetupError, match="default_max_tokens is 0; it must be at least 1"):
        RequestDefaults(default_max_tokens=0)


def test_more_passages_by_default_than_a_request_may_have_are_refused(serving):
    with pytest.raises(SetupError, match="default_num_passages is 10; it must be at most max_passages, which is 5"):
        serving("retriever").RetrieverSettings(max_passages=5)
