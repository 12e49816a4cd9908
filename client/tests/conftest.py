import fake_triton_service
import pytest

from refrag_client import RefragClient
from refrag_client.cli.main import main


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
