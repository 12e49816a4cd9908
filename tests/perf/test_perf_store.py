"""The store's benchmark tells what it measured; how fast is for `make bench-store` to say."""

import json
from pathlib import Path

import pytest

from perf import sizing, store
from perf.sizing import GEOMETRIES, measure_entry_bytes
from refrag.config import RefragConfig

REPORT = {
    "machine": "a machine",
    "commit": "abc",
    "lookup": [{"tier": "memory", "num_chunks": 512, "num_requests": 3, "lookup_ms": 1.25, "preprocessing_ms": 30.0}],
    "index": {
        "vectors_per_second": {"encoder": 2000, "index": 1900},
        "index_against_encoder": 0.95,
        "num_vectors": 10,
        "bytes_per_vector": 384,
    },
    "ttft": {
        "context_tokens": 8192,
        "prompt_slots": {"plain": 8200, "cold": 530, "warm": 530},
        "ttft_ms": {"plain": 1000.0, "cold": 100.0, "warm": 40.0},
        "plain_against": {"cold": 10.0, "warm": 25.0},
    },
}


def test_the_tables_tell_what_was_measured():
    text = store.markdown(REPORT)
    assert "| memory | 512 | 1.2 ms | 30.0 ms |" in text
    assert "| compressed, all stored | 530 | 40 ms | 25.0× |" in text
    assert "95% of it" in text


def test_the_window_is_widened_in_a_copy(tmp_path):
    store.widen(Path("checkpoints/demo"), tmp_path / "wide")
    assert RefragConfig.load(tmp_path / "wide").max_prompt_slots == store.WINDOW
    assert json.loads((tmp_path / "wide/decoder/config.json").read_text())["max_position_embeddings"] == store.WINDOW


def test_the_sizing_page_is_what_its_command_writes():
    page = (Path(sizing.__file__).parents[1] / "refrag/store/SIZING.md").read_text()
    assert page == sizing.render() + "\n"


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_an_entry_is_larger_than_its_vector_but_not_by_much(geometry):
    assert geometry.vector_bytes < measure_entry_bytes(geometry.vector_bytes) < 2.1 * geometry.vector_bytes
