"""A small model repository, and the real server over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_helpers import BATCHED_CONFIG, DOUBLER, VECTOR_CONFIG, write_affine_graph, write_model

from refrag.embedded import EmbeddedServer


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_repository")
    write_model(folder, "doubler", VECTOR_CONFIG.format(width=-1) + 'backend: "python"', DOUBLER)
    write_affine_graph(write_model(folder, "affine", BATCHED_CONFIG) / "model.onnx", ["rows", "width"])
    unbatched = VECTOR_CONFIG.format(width=3) + 'backend: "onnxruntime"\nmax_batch_size: 0'
    write_affine_graph(write_model(folder, "unbatched", unbatched) / "model.onnx", ["width"])
    # Nothing but the backend: the rest is read from the graph.
    write_affine_graph(write_model(folder, "completed", 'backend: "onnxruntime"') / "model.onnx", ["rows", 3])
    return folder


@pytest.fixture
def tiny_repository(tmp_path: Path) -> Path:
    """Return a repository with one Python model only, for tests that start a server of their own."""
    write_model(tmp_path / "models", "doubler", VECTOR_CONFIG.format(width=-1) + 'backend: "python"', DOUBLER)
    return tmp_path / "models"


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running
