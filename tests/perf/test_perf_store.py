"""The store's benchmark tells what it measured; how fast is for `make bench-store` to say."""

from pathlib import Path

import pytest

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
    text = store.markdown(REPORT)
    assert "| memory | 512 | 1.2 ms | 30.0 ms |" in text
    assert "95.0% of it" in text


def test_the_sizing_page_is_what_its_command_writes():
    page = (Path(sizing.__file__).parents[1] / "refrag/store/SIZING.md").read_text()
    assert page == sizing.render() + "\n"


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_an_entry_is_larger_than_its_vector_but_not_by_much(geometry):
    assert geometry.vector_bytes < measure_entry_bytes(geometry.vector_bytes) < 2.1 * geometry.vector_bytes
