"""Connections: certificates, headers and sizes, by the library and by every command, and proxies of the environment."""

import socket

import fake_triton_service as service
import pytest
from slow_link import slow_link

from refrag_client import InvalidRequest, RefragClient, ServerUnavailable, StoreClient, Tls
from refrag_client.cli.main import main
from refrag_client.settings import ConnectionSettings

# Each way: a greeting over such a link takes longer than the first pause between two attempts to connect.
DELAY_SECONDS = 0.15
COMMANDS = {"ask": ["ask", "who?"], "index": ["index"], "store": ["store", "stats"]}


@pytest.fixture
def proxy(monkeypatch):
    """Return the address of a proxy that nobody runs."""
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")


@pytest.fixture
def command(url, fake, tmp_path):
    """Runs a command against the fake server, with further options."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('"a"\n')
    report = {"fingerprint": "ab", "num_chunks": 1, "num_tokens": 1, "num_encoded": 1, "num_bytes": 1}
    stats = {"fingerprint": "ab", "chunk_size": 16, "tiers": []}
    fake.store = lambda operation, inputs: ({"index": report, "stats": stats}[operation], {})

    def run(name, *options):
        arguments = [*COMMANDS[name], *([str(corpus)] if name == "index" else [])]
        return main([*arguments, "--url", url, *options])

    return run


def test_this_machine_is_reached_without_the_proxy_of_the_environment(proxy, url, fake):
    with RefragClient(url) as client:
        assert client.generate("who?").text == "Ada built it."
    with RefragClient(url.replace("127.0.0.1", "localhost")) as client:
        assert client.generate("who?").text == "Ada built it."


def test_a_proxy_that_fails_is_named_with_its_variable_and_without_its_password(proxy):
    with (
        RefragClient("triton.invalid:8001", timeout_seconds=service.WAIT_SECONDS) as client,
        pytest.raises(
            ServerUnavailable, match=r"through the proxy 127.0.0.1:9 \(\$http_proxy; \$no_proxy=triton"
        ) as told,
    ):
        client.generate("who?")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "variables", "is_proxied"),
    [
        ("triton:8001", {}, True),
        ("triton:8001", {"no_proxy": "other,triton"}, False),
        ("triton:8001", {"no_grpc_proxy": "other"}, True),
        ("[::1]:8001", {}, False),
        ("127.0.0.7:8001", {}, False),
        ("unix:/run/triton", {}, False),
    ],
)
def test_only_a_proxy_that_is_used_is_told(proxy, monkeypatch, url, variables, is_proxied):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("proxy" in ConnectionSettings(url, 1.0).place) == is_proxied


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_sends_headers_and_takes_all_options_of_a_connection(command, fake, name):
    options = ["--keepalive-seconds", "300", "--max-message-bytes", "100000", "--timeout-seconds", "9"]
    assert command(name, "--header", "Authorization=Bearer x=", "--header", "trace=7", *options) == 0
    assert fake.metadata["authorization"] == "Bearer x=" and fake.metadata["trace"] == "7"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_which_certificate_cannot_be_read(command, capsys, tmp_path, name):
    assert command(name, "--root-certificates", str(tmp_path / "none.pem")) == 2
    assert "root_certificates cannot be read" in capsys.readouterr().err
    (tmp_path / "bad.pem").write_text("no certificate")
    assert command(name, "--root-certificates", str(tmp_path / "bad.pem")) == 2
    assert "root_certificates do not fit" in capsys.readouterr().err


def test_files_that_are_no_certificates_are_refused_before_anything_is_sent(tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for tls in (Tls(bad), Tls(private_key=bad, certificate_chain=bad), Tls(private_key=bad), Tls(tmp_path)):
        for client in (RefragClient, StoreClient):
            with pytest.raises(InvalidRequest, match=r"do not fit|without certificate_chain|cannot be read"):
                client("127.0.0.1:8001", tls=tls)


def test_a_far_server_is_reached_at_the_first_call(url, fake):
    with slow_link(url, DELAY_SECONDS) as far, RefragClient(far, timeout_seconds=service.WAIT_SECONDS) as client:
        assert client.generate("who?").text == "Ada built it."


def test_a_server_that_starts_late_is_noticed_soon(fake):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with RefragClient(f"127.0.0.1:{port}") as client:
        assert not client.is_ready()
        server, _ = service.start(fake, port)
        client.wait_until_ready(service.WAIT_SECONDS)
    server.stop(grace=None).wait()
