"""Fixtures of one real tritonserver for the whole tier, with a repository exported from the committed checkpoint."""

import random
from pathlib import Path

import pytest
from openai_endpoint import run_endpoint
from raw_requests import PATIENCE_SECONDS, SERVER_OPTIONS
from repository_edits import set_parameter
from store_server import MAX_TOKENS

from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.tasks import TASKS
from refrag.embedded import EmbeddedServer
from refrag.export.repository import export_repository
from refrag.model.checkpoint import Checkpoint, load_checkpoint
from refrag.pipeline import Pipeline
from refrag.request import Request, SamplingParams
from refrag_client import RefragClient

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "world"
# Every test of this tier runs with each of them.
DECODER_BACKENDS = ["torch"]


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="session")
def reference(demo_checkpoint) -> Pipeline:
    return Pipeline(demo_checkpoint)


@pytest.fixture(scope="session", params=DECODER_BACKENDS)
def repository(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    export_repository(CHECKPOINT, path)
    set_parameter(path, "decoder", "decoder_backend", request.param)
    return path


@pytest.fixture(scope="session")
def server(repository):
    # Without probes, since tests count what the decoder does.
    with EmbeddedServer(repository, **SERVER_OPTIONS, probe_seconds=0) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with RefragClient(server.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="session")
def base_url(server):
    """Yield the URL of OpenAI's endpoint before the server."""
    with run_endpoint(server.grpc_address, f"--timeout-seconds={PATIENCE_SECONDS}") as url:
        yield url


@pytest.fixture(scope="session")
def heldout(demo_checkpoint) -> list[TokenisedContext]:
    """Return fifty questions of all tasks, over one to twelve passages about entities that training never saw."""
    rng = random.Random("graph tests")
    maker = ContextMaker.draw(rng, demo_checkpoint.chunker, "heldout")
    return [maker.ask_one(rng, TASKS[index % len(TASKS)], 1 + index % 12) for index in range(50)]


@pytest.fixture(scope="session")
def contexts(heldout):
    """Return contexts of at least four passages; some passages are in several contexts."""
    return [context for context in heldout if len(context.passages) >= 4][:6]


@pytest.fixture(scope="session")
def expected(contexts, reference):
    """Return the answers of the in-process reference, which has no store."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    return [
        tuple(reference.answer(Request(context.questions[0].text, context.passages), sampling).token_ids)
        for context in contexts
    ]
