"""A server answers the probe's question, and the probe draws the right conclusion."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest

from refrag.commands.check import run as run_check
from refrag.embedded.ports import pick_free_port
from refrag.embedded.probe import ProbeFailed, ask_server
from refrag.errors import DeadlineExceeded, InvalidRequest, Overloaded, RefragError


@contextmanager
def server_that_says(status: int, body: str):
    """Yield the address of a server that gives one answer to every POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def server_that_hangs(*counts: int):
    """Yield the address of a server that never answers a question, and has answered so many when it is asked."""
    answered, asked = iter(counts), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.wait()

        def do_GET(self):
            statistics = {"inference_stats": {"success": {"count": next(answered)}}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model_stats": [statistics]}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            asked.set()
            server.shutdown()
            thread.join()


def triton_error(error: RefragError) -> str:
    return json.dumps({"error": f"in ensemble 'refrag', {error.to_wire()}"})


def test_an_answer_is_well():
    with server_that_says(200, "{}") as address:
        ask_server(address)


@pytest.mark.parametrize("error", [Overloaded("256 wait already"), DeadlineExceeded("too late")])
def test_a_server_that_is_only_busy_is_well(error):
    with server_that_says(500, triton_error(error)) as address:
        ask_server(address)


def test_a_server_that_answers_others_meanwhile_is_well():
    with server_that_hangs(3, 4) as address:
        ask_server(address, timeout_seconds=0.1)


def test_a_server_that_answers_nobody_is_a_failure():
    with server_that_hangs(3, 3) as address, pytest.raises(ProbeFailed, match=r"no answer from .* within 0\.1 s"):
        ask_server(address, timeout_seconds=0.1)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, triton_error(InvalidRequest("no such policy")), "no such policy"),
        (500, '{"error": "Stub process \'decoder_0_0\' is not healthy."}', "status 500: Stub process 'decoder_0_0'"),
        (502, "<html>Bad Gateway</html>", "status 502: <html>Bad Gateway</html>"),
    ],
)
def test_any_other_error_is_a_failure_with_its_message(status, body, message):
    with server_that_says(status, body) as address, pytest.raises(ProbeFailed, match=message):
        ask_server(address)


def test_nobody_at_the_address_is_a_failure():
    address = f"127.0.0.1:{pick_free_port('127.0.0.1')}"
    with pytest.raises(ProbeFailed, match=rf"{address} cannot be asked: .*refused"):
        ask_server(address)


def test_an_address_that_is_none_is_a_failure():
    with pytest.raises(ProbeFailed, match="cannot be asked"):
        ask_server("http://127.0.0.1:8000")


def test_the_command_says_how_soon_the_server_answered(capsys):
    with server_that_says(200, "{}") as address:
        assert run_check(type("Arguments", (), {"server": address})) == 0
    assert capsys.readouterr().out.startswith(f"ok       {address} answered after ")
