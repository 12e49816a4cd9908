"""The exported ONNX models run under the real server: config.pbtxt and model.onnx belong together."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpcclient

from refrag.embedded import EmbeddedServer

pytestmark = pytest.mark.server
TRITON_TYPES = {"int64": "INT64", "float32": "FP32"}


@pytest.fixture(scope="module")
def client(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpcclient.InferenceServerClient]:
    """Yield a client of a server with the two ONNX models alone."""
    repository = tmp_path_factory.mktemp("graphs")
    for model in ("chunk_encoder", "projector"):
        shutil.copytree(exported / model, repository / model)
    with (
        EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0, ready_timeout_seconds=600) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        yield client


def infer(client: grpcclient.InferenceServerClient, model: str, output: str, **arrays: np.ndarray) -> np.ndarray:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpcclient.InferInput(name, list(array.shape), TRITON_TYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    return client.infer(model, inputs).as_numpy(output)


def run_graph(repository: Path, model: str, **arrays: np.ndarray) -> np.ndarray:
    path = repository / model / "1" / "model.onnx"
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, arrays)[0]


def test_served_vectors_are_the_graphs_for_chunks_of_any_width(client, exported):
    for length in (5, 16):
        ids = np.arange(3 * length, dtype=np.int64).reshape(3, length)
        chunks = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        served = infer(client, "chunk_encoder", "chunk_vectors", **chunks)
        np.testing.assert_allclose(served, run_graph(exported, "chunk_encoder", **chunks), atol=1e-5)


def test_served_embeddings_are_the_graphs(client, exported):
    vectors = np.linspace(-1, 1, 2 * 16, dtype=np.float32).reshape(2, 16)
    served = infer(client, "projector", "chunk_embeddings", chunk_vectors=vectors)
    np.testing.assert_allclose(served, run_graph(exported, "projector", chunk_vectors=vectors), atol=1e-5)
