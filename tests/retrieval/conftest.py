"""A folder for collections, what writes to it and what searches it. Tests with them need LanceDB, others do not."""

import pytest
from retrieval_helpers import ENCODER


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "collections")


@pytest.fixture
def writer(address):
    from refrag.retrieval.lance_writer import LanceWriter

    writer = LanceWriter(address, ENCODER)
    yield writer
    writer.close()


@pytest.fixture
def reader(address):
    from refrag.retrieval.lance import LanceReader

    return LanceReader(address, ENCODER)
