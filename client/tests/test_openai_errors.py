"""Errors of the OpenAI-compatible endpoint: who may not ask is told, and so is what becomes of a request."""

import json
import socket
import threading
import time
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import endpoint as http
import fake_triton_service as service
import pytest

from refrag_client import InvalidRequest, RefragError
from refrag_client.errors import DeadlineExceeded
from refrag_client.openai import app
from refrag_client.openai.errors import from_refrag
from refrag_client.openai.keys import VARIABLE, ApiKeys
from refrag_client.openai.serving import Endpoint
from refrag_client.openai.settings import EndpointSettings


def test_unknown_models_and_paths_are_not_found(endpoint):
    status, answer = http.post(endpoint, {**http.CHAT, "model": "gpt-4o"})
    assert (status, answer["error"]["param"]) == (404, "model")
    assert "served are refrag" in answer["error"]["message"]
    assert http.request(endpoint, "GET", "/v1/nothing")[0] == 404
    assert http.request(endpoint, "GET", http.CHAT_PATH)[0] == 405


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [
        (("InvalidRequest", "temperature is -1; it must be 0"), 400, "temperature"),
        (("InvalidRequest", "stop_words holds 17 words"), 400, "stop"),
        (("InvalidRequest", "10000 chunks are over the limit of 8192; send fewer passages"), 400, "documents"),
        (("InvalidRequest", "policy is 'best'; allowed: learned"), 400, "refrag.policy"),
        (("InvalidRequest", "text_input takes 9000 slots by itself"), 400, "messages"),
        (("Overloaded", "256 requests wait already"), 429, None),
        (("DeadlineExceeded", "the deadline passed"), 504, "refrag.deadline_ms"),
        (("ServerUnavailable", "the server is stopping"), 503, None),
        (("CheckpointError", "a fault"), 502, None),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_triton_tells_has_its_status_and_field(shared, endpoint, error, status, param, is_stream):
    shared[0].reply = lambda fake, request: iter([service.error_response(*error)])
    told, headers, answer = http.request(endpoint, "POST", http.CHAT_PATH, {**http.CHAT, "stream": is_stream})
    shared[0].reply = service.answer_over_passages
    assert (told, answer["error"]["param"]) == (status, param)
    assert ("Retry-After" in headers) == (status in (429, 503))


def test_the_endpoints_own_wait_is_told_by_the_name_of_its_option():
    told = from_refrag(DeadlineExceeded("no whole answer within 60 s; raise timeout_seconds or lower max_tokens"), {})
    assert told.status == 504 and "raise the endpoint's --timeout-seconds or lower max_tokens" in told.message


def test_a_deadline_beyond_the_endpoints_own_is_refused(endpoint):
    longest = service.WAIT_SECONDS * 1000
    status, answer = http.post(endpoint, {**http.CHAT, "refrag": {"deadline_ms": longest + 1}})
    assert (status, answer["error"]["param"]) == (400, "refrag.deadline_ms")
    assert f"waits {longest:.0f} ms at most" in answer["error"]["message"]
    assert http.post(endpoint, {**http.CHAT, "refrag": {"deadline_ms": longest}})[0] == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("there is no collection 'towns'; there are birds", "collection"),
        ("num_passages is 300; allowed is 1 to 256", "num_passages"),
        ("filter field 'year' is of type number, and is compared with 'a'", "filter"),
        ("search_mode is 'best'; allowed: hybrid, text, dense", "search_mode"),
        ("10000 chunks are over the limit of 8192; send fewer passages", "num_passages"),
        ("sense_tokens is 999; allowed is 0 to 64", "refrag.sense_tokens"),
        ("shadow_fraction is 2; allowed is 0 to 1", "refrag.shadow_fraction"),
        ("min_confidence is 2.0; allowed is 0 to 1", "refrag.min_confidence"),
    ],
)
def test_what_the_search_tells_names_the_field(shared, endpoint, message, param):
    shared[0].reply = lambda fake, request: iter([service.error_response("InvalidRequest", message)])
    status, answer = http.post(endpoint, {**http.CHAT, "collection": "towns"})
    shared[0].reply = service.answer_over_passages
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        (http.CHAT_PATH, {**http.CHAT, "max_completion_tokens": 0}, "max_tokens is 0", "max_completion_tokens"),
        (http.CHAT_PATH, {**http.CHAT, "max_tokens": 0}, "max_tokens is 0", "max_tokens"),
        (http.COMPLETION_PATH, {"prompt": " "}, "text_input is empty", "prompt"),
    ],
)
@pytest.mark.parametrize("num_before", [0, 1])
def test_a_refusal_names_the_field_as_it_was_sent(shared, endpoint, path, body, message, param, num_before):
    def refuse(fake, request):
        yield from [service.piece_response("Ada", 0)][:num_before]
        yield service.error_response("InvalidRequest", message)

    shared[0].reply = refuse
    answer = http.post_stream(endpoint, body, path)[-1] if num_before else http.post(endpoint, body, path)[1]
    shared[0].reply = service.answer_over_passages
    assert answer["error"]["param"] == param


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/v1/chunks", "documents")])
@pytest.mark.parametrize("problem", ["refused by the store", "no Unicode"])
def test_what_is_wrong_with_texts_to_encode_names_their_field(shared, endpoint, path, field, problem):
    def refuse(operation, inputs):
        raise service.StoreError("InvalidRequest", "passages have 9000000 bytes, the limit is 4194304; send fewer")

    body = b'{"%s": ["\\ud800"]}' % field.encode() if problem == "no Unicode" else {field: ["Ada."]}
    shared[0].store = refuse
    status, answer = http.post(endpoint, body, path)
    shared[0].store = service.encode_in_two_chunks
    assert (status, answer["error"]["param"]) == (400, field)


def test_a_failure_after_the_first_token_ends_the_stream_with_an_error(shared, endpoint):
    def fail_later(fake, request):
        yield service.piece_response("Ada", 0)
        yield service.error_response("DeadlineExceeded", "the deadline passed")

    shared[0].reply = fail_later
    first, last = http.post_stream(endpoint, http.CHAT)
    shared[0].reply = service.answer_over_passages
    assert first["choices"][0]["delta"]["content"] == "Ada"
    assert last["error"]["code"] == "deadline_exceeded"


def test_nobody_without_a_key_gets_in(url, fake, tmp_path, monkeypatch):
    fake.reply = service.answer_over_passages
    (tmp_path / "keys").write_text("# of the team\nsesame\n\nother-key\nclé\n", encoding="utf-8")
    monkeypatch.setenv(VARIABLE, "third, fourth")
    with http.running(url, api_keys=tmp_path / "keys") as endpoint:
        for key in ("sesame", "other-key", "clé", "third", "fourth"):
            header = {"Authorization": f"Bearer {key}".encode()}
            assert http.post(endpoint, http.CHAT, headers=header)[0] == 200
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "sesame"},
            {"Authorization": "Bearer é"},
        ):
            status, headers, answer = http.request(endpoint, "POST", http.CHAT_PATH, http.CHAT, header)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert headers["WWW-Authenticate"] == "Bearer"
        assert http.request(endpoint, "GET", "/v1/models")[0] == 401
        assert http.request(endpoint, "GET", "/health")[0] == 200


@pytest.mark.parametrize(("content", "told"), [("# none\n", "holds no key"), (None, "No such file")])
def test_a_file_without_keys_does_not_open_the_endpoint(tmp_path, content, told):
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(InvalidRequest, match=told):
        ApiKeys.read(tmp_path / "keys", {})


def test_other_origins_are_let_in_only_where_they_are_named(url, endpoint):
    origin = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in http.request(endpoint, "GET", "/v1/models", headers=origin)[1]
    with http.running(url, cors_origin=("https://example.org",)) as open_to_one:
        _, headers, _ = http.request(open_to_one, "GET", "/v1/models", headers=origin)
        assert headers["access-control-allow-origin"] == "https://example.org"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_caller_who_leaves_stops_the_decoder(shared, endpoint, is_stream):
    fake = shared[0]
    fake.reply, num_before = service.answer_until_stopped, len(fake.requests)
    host, port = urlsplit(endpoint.url).netloc.split(":")
    body = json.dumps({**http.CHAT, "stream": is_stream}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {http.CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if is_stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        else:
            fake.wait_for_requests(num_before + 1)
    fake.wait_for_stop(fake.requests[-1].id)
    fake.reply = service.answer_over_passages


def test_a_caller_who_leaves_before_the_encoder_is_done_is_let_go(shared, endpoint):
    begun, gone = threading.Event(), threading.Event()

    def wait(operation, inputs):
        begun.set()
        assert gone.wait(service.WAIT_SECONDS)
        return service.encode_in_two_chunks(operation, inputs)

    shared[0].store = wait
    with closing(http.connect(endpoint)) as connection:
        connection.request("POST", "/v1/chunks", b'{"documents": ["Ada."]}', {"Content-Type": "application/json"})
        assert begun.wait(service.WAIT_SECONDS)
    wait_until(lambda: "refrag_openai_running_requests 0.0" in http.request(endpoint, "GET", "/metrics")[2])
    counted = 'refrag_openai_requests_total{route="/v1/chunks",status="left"} 1.0'
    wait_until(lambda: counted in http.request(endpoint, "GET", "/metrics")[2])
    gone.set()
    shared[0].store = service.encode_in_two_chunks


def wait_until(is_so):
    deadline = time.monotonic() + service.WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline


def test_a_fault_of_the_endpoint_has_openais_form_and_a_line_in_the_log(endpoint, monkeypatch, caplog):
    def fail(cut):
        raise RuntimeError("a fault")

    monkeypatch.setattr(app, "describe_chunks", fail)
    status, headers, answer = http.request(endpoint, "POST", "/v1/chunks", {"documents": ["Ada."]})
    assert (status, answer["error"]["code"]) == (500, "endpoint_failed")
    assert headers["x-request-id"] in answer["error"]["message"]
    assert headers["x-request-id"] in caplog.text and "a fault" in caplog.text


def test_more_requests_than_allowed_are_turned_away_for_a_moment(url, fake):
    fake.reply = service.answer_until_stopped
    with http.running(url, max_requests=1) as endpoint, closing(http.connect(endpoint)) as first:
        first.request(
            "POST", http.CHAT_PATH, json.dumps({**http.CHAT, "stream": True}), {"Content-Type": "application/json"}
        )
        assert first.getresponse().readline().startswith(b"data: ")
        status, headers, answer = http.request(endpoint, "POST", http.CHAT_PATH, http.CHAT)
        assert (status, headers["Retry-After"], answer["error"]["code"]) == (429, "1", "overloaded")
        first.sock.shutdown(socket.SHUT_RDWR)
        fake.wait_for_stop(fake.requests[-1].id)


@contextmanager
def stopping(url, **options):
    """Yield an endpoint that stops while a stream is on its way, of which the first part has come, and its response."""
    body = json.dumps({**http.CHAT, "stream": True})
    with http.running(url, **options) as endpoint, closing(http.connect(endpoint)) as connection:
        connection.request("POST", http.CHAT_PATH, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        endpoint.should_exit = True
        address = connection.sock.getpeername()
        while is_listened_on(address):
            pass
        yield response


def is_listened_on(address):
    with closing(socket.socket()) as probe:
        return probe.connect_ex(address) == 0


def test_a_stopping_endpoint_lets_answers_end(url, fake):
    fake.reply = service.answer_when_released
    with stopping(url) as response:
        fake.release()
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_answers_that_outlast_the_drain_are_told(url, fake):
    fake.reply = service.answer_until_stopped
    with stopping(url, drain_seconds=0.1) as response:
        assert b"the endpoint is stopping" in response.read()
    fake.wait_for_stop(fake.requests[-1].id)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"port": -1}, "port is -1"),
        ({"max_requests": 0}, "max_requests is 0"),
        ({"drain_seconds": float("inf")}, "drain_seconds is inf"),
        ({"model": ()}, "model is empty"),
        ({"tls_key": "key.pem"}, "belong together"),
    ],
)
def test_settings_that_are_not_allowed_are_named(options, told):
    with pytest.raises(InvalidRequest, match=told):
        EndpointSettings(**options)


def test_a_port_that_is_taken_and_a_certificate_that_is_none_are_told(url, tmp_path):
    connection = {"url": url}
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(RefragError, match="cannot listen on"):
        Endpoint(EndpointSettings(port=taken.getsockname()[1]), connection, print)
    (tmp_path / "no.pem").write_text("nothing")
    settings = EndpointSettings(port=0, tls_certificate=tmp_path / "no.pem", tls_key=tmp_path / "no.pem")
    with pytest.raises(InvalidRequest, match="do not fit"):
        Endpoint(settings, connection, print)
