import fake_triton_service
import pytest

from refrag_client import RefragClient


@pytest.fixture
def fake():
    return fake_triton_service.FakeTriton()


@pytest.fixture
def url(fake):
    server, url = fake_triton_service.start(fake)
    yield url
    server.stop(grace=None).wait()


@pytest.fixture
def client(url):
    with RefragClient(url, timeout_seconds=fake_triton_service.WAIT_SECONDS) as client:
        yield client
