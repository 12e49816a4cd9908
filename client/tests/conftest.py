import endpoint as http
import fake_triton_service
import pytest

import refrag_client.async_client
import refrag_client.client
from refrag_client import RefragClient
from refrag_client.cli.main import main


@pytest.fixture(autouse=True)
def patient_stops(monkeypatch):
    """Give a stop more time than a busy machine needs to hear of it, since tests look at once who was stopped."""
    for module in (refrag_client.client, refrag_client.async_client):
        monkeypatch.setattr(module, "STOP_TIMEOUT_SECONDS", 60.0)


@pytest.fixture
def fake():
    return fake_triton_service.FakeTriton()


@pytest.fixture
def url(fake):
    server, url = fake_triton_service.start(fake)
    yield url
    server.stop(grace=None).wait()


@pytest.fixture
def run(url, capsys):
    """Return a function that calls `refrag` at the fake's URL, and returns its exit code, its output and its errors."""

    def run(*arguments):
        code = main([*map(str, arguments), "--url", url])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def client(url):
    with RefragClient(url, timeout_seconds=fake_triton_service.WAIT_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def shared():
    """Yield a fake Triton that refuses what the real one would, in its words, and OpenAI's endpoint before it."""
    with http.before_fake_triton(max_body_bytes=100_000) as shared:
        yield shared


@pytest.fixture
def endpoint(shared):
    """Yield an endpoint that must still answer after the test."""
    fake, running = shared
    fake.reply = fake_triton_service.answer_over_passages
    yield running
    assert http.post(running, http.CHAT)[0] == 200
