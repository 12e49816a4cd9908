"""The store's benchmark tells what it measured; how fast is for `make bench-store` to say."""

import pytest
from table_text import unaligned

from perf import sizing, store
from perf.sizing import GEOMETRIES, measure_entry_bytes

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
}


def test_the_tables_tell_what_was_measured():
    text = unaligned(store.markdown(REPORT))
    assert "| memory | 512 | 1.2 ms | 30.0 ms |" in text
    assert "95.0% of it" in text


def test_the_sizing_tables_are_arithmetic_on_the_measured_entries():
    row = {"pair": "a pair", "vector_bytes": 384, "entry_bytes": 480.0, "kv_bytes_per_token": 3000}
    sizes = {"chunk_size": 16, "passage_tokens": 128, "num_measured": 20, "token_entry_bytes": 640.0, "rows": [row]}
    text = unaligned(sizing.markdown({**sizes, "command": "a command", "commit": "abc"}))
    assert "| a pair | 384 B | 480 B | 30 B | 3,000 B | 100× |" in text
    assert "| a pair | 3.8 GB | 384.0 GB | 1.5 TB | 153.6 TB |" in text
    assert "an entry of 640 B, 5 B per token" in text


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_an_entry_is_larger_than_its_vector_but_not_by_much(geometry):
    assert geometry.vector_bytes < measure_entry_bytes(geometry.vector_bytes) < 2.1 * geometry.vector_bytes
