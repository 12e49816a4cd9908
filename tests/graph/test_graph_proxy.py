"""A real nginx with the recipe in deploy/ in front of the real server: answers pass, attacks do not."""

import http.client
import json
import os
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from refrag.embedded.ports import pick_free_port
from refrag.embedded.run import status_of

RECIPE = Path(__file__).parents[2] / "deploy" / "nginx.conf"
# Debian keeps it where only root's PATH leads.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)"),
]
QUESTION = {"text_input": "What does Mara Tolen keep?", "passages": ["Mara Tolen keeps a parrot."], "max_tokens": 8}
GENERATE = "/v2/models/refrag/generate"
KINDS_OF_FILES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """Yield the address of an nginx that runs the recipe, but for its ports and its folders."""
    folder, port = tmp_path_factory.mktemp("nginx"), pick_free_port("127.0.0.1")
    paths = "".join(f"{kind}_temp_path {folder / kind};" for kind in KINDS_OF_FILES)
    text = RECIPE.read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = text.replace("127.0.0.1:8000", server.http_address)
    (folder / "nginx.conf").write_text(text.replace("http {\n", f"http {{ access_log off; {paths}\n", 1))
    options = f"daemon off; pid {folder / 'nginx.pid'}; error_log stderr;"
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_open(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_until_open(port, process):
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AssertionError(f"nginx ended with {process.returncode}")


def post(address, path, body):
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")


@pytest.mark.parametrize("path", [GENERATE, GENERATE.replace("refrag", "refrag_watched")])
def test_an_answer_through_the_proxy_is_the_servers_own(proxy, server, path):
    question = {**QUESTION, "stream": False}
    answers = [post(address, path, question) for address in (proxy, server.http_address)]
    assert [status for status, _ in answers] == [200, 200]
    texts = [json.loads(body)["text_output"] for _, body in answers]
    assert texts[0] == texts[1] != ""


def test_a_streamed_answer_comes_through_in_pieces(proxy):
    status, events = post(proxy, GENERATE + "_stream", QUESTION)
    assert status == 200
    assert events.count("data: ") > 1


def test_a_stop_comes_through_and_a_prompt_for_the_decoder_does_not(proxy):
    stop, decode = {"id": "web-1", "stop": True}, "/v2/models/decoder/generate_stream"
    assert post(proxy, decode, stop)[0] == 200
    assert post(proxy, decode, {"input_ids": [1] * 200, "request_output_len": 64})[0] == 413


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_comes_through(proxy, path):
    assert status_of(proxy, path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/refrag/infer",
        "/v2/models/chunk_encoder/infer",
        "/v2/models/chunk_store/generate",
        "/v2/repository/index",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/logging",
        "/v2/models/refrag/generate/../infer",
        "/v2/models/refrag/stats",
    ],
)
def test_everything_else_is_closed(proxy, path):
    assert post(proxy, path, {})[0] == 404


def test_a_huge_declared_shape_does_not_reach_the_server(proxy, server):
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [2**40], "data": ["a"]}
    assert post(proxy, "/v2/models/refrag/infer", {"inputs": [tensor]})[0] == 404
    assert status_of(server.http_address, "/v2/health/ready") == 200


def test_a_million_chunks_arrive_as_one_body(proxy, server):
    body = json.dumps({**QUESTION, "stream": False, "passages": ["x" * 900_000]}).encode()
    host, port = proxy.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        status = int(connection.makefile("rb").readline().split()[1])
    # A passage of this length is refused, however it comes.
    assert (status, "InvalidRequest" in post(server.http_address, GENERATE, body)[1]) == (500, True)
    assert status_of(server.http_address, "/v2/health/ready") == 200


def test_a_body_beyond_the_limit_is_refused(proxy):
    assert post(proxy, GENERATE, {**QUESTION, "passages": ["x" * 6_000_000]})[0] == 413
