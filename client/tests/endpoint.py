"""The endpoint in a thread, before a fake Triton, and requests to it by hand."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import fake_triton_service as service
from fake_triton_service import WAIT_SECONDS

from refrag_client.openai.serving import Endpoint
from refrag_client.openai.settings import EndpointSettings

CHAT = {"messages": [{"role": "user", "content": "Who built it?"}]}
CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"


@contextmanager
def running(triton_url: str, **options: object) -> Iterator[Endpoint]:
    """Run an endpoint on a free port; it drains at the end."""
    listening = threading.Event()
    endpoint = Endpoint(
        EndpointSettings(port=0, **options),
        {"url": triton_url, "timeout_seconds": WAIT_SECONDS},
        lambda url: listening.set(),
    )
    thread = threading.Thread(target=endpoint.run)
    thread.start()
    try:
        assert listening.wait(WAIT_SECONDS)
        yield endpoint
    finally:
        endpoint.should_exit = True
        thread.join()


@contextmanager
def before_fake_triton(**options: object) -> Iterator[tuple[service.FakeTriton, Endpoint]]:
    """Yield a fake Triton, whose store has chunks, and the endpoint before it."""
    fake = service.FakeTriton()
    fake.store = service.encode_in_two_chunks
    server, url = service.start(fake)
    with running(url, **options) as endpoint:
        yield fake, endpoint
    server.stop(grace=None).wait()


def connect(endpoint: Endpoint) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(endpoint.url).netloc, timeout=WAIT_SECONDS)


def request(endpoint, method, path, body=None, headers=None):
    """Return status, headers and the body, as JSON where it is that."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    with closing(connect(endpoint)) as connection:
        connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode()
    is_json = response.headers.get("Content-Type", "") == "application/json"
    return response.status, response.headers, json.loads(text) if is_json else text


def post(endpoint, body, path=CHAT_PATH, headers=None):
    """Return the status and the JSON of the answer."""
    status, _, answer = request(endpoint, "POST", path, body, headers)
    return status, answer


def post_stream(endpoint, body, path=CHAT_PATH):
    """Return the objects of a stream, which must end in order and have no line but data."""
    status, _, text = request(endpoint, "POST", path, {**body, "stream": True})
    assert status == 200, text
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
