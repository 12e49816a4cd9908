"""A server that is stopped ends the processes of its models in order."""

import pytest
from raw_requests import PATIENCE_SECONDS, SERVER_OPTIONS

from refrag.embedded import EmbeddedServer
from refrag_client import RefragClient

pytestmark = pytest.mark.server

MODELS = ["preprocessing", "chunk_encoder", "expansion_policy", "projector", "decoder", "chunk_store", "refrag_watched"]


def test_no_models_process_crashes_while_the_server_stops(repository, heldout, tmp_path):
    log = tmp_path / "server.log"
    with (
        EmbeddedServer(repository, **SERVER_OPTIONS, log_path=log) as server,
        RefragClient(server.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client,
    ):
        assert client.generate(heldout[0].questions[0].text, heldout[0].passages, max_tokens=4).token_ids
    told = log.read_text()
    assert [name for name in MODELS if f"successfully unloaded '{name}' version 1" not in told] == []
    assert "Fatal Python error" not in told
