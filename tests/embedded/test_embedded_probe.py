"""A server answers the probe's question, and the probe draws the right conclusion."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from refrag.commands.check import run as run_check
from refrag.embedded.ports import pick_free_port
from refrag.embedded.probe import ProbeFailed, ask_server
from refrag.errors import DeadlineExceeded, InvalidRequest, Overloaded, RefragError

# A sixth of it is enough for a fake's statistics, on a busy machine too.
TIMEOUT_SECONDS = 3.0


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def say(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())


@contextmanager
def serving(handler: type[Handler]):
    """Yield the address of a server that does what the handler does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def server_that_says(status: int, body: str):
    """Return a server that gives one answer to every question, and knows of no statistics."""

    class Saying(Handler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say(status, body)

    return serving(Saying)


@contextmanager
def server_that_hangs(*counts: int | None, model: str = "refrag"):
    """Yield the address of a server that never answers, and tells how much `model` has answered; None tells nothing.

    Once there is no further count, it leaves the request for one without an answer too.
    """
    answered, is_over = iter(counts), threading.Event()

    class Hanging(Handler):
        def do_POST(self):
            is_over.wait()

        def do_GET(self):
            if (count := next(answered, "none left")) == "none left":
                is_over.wait()
                return
            statistics = [
                {"name": name, "inference_stats": {"success": {"count": number}}}
                for name, number in {"refrag": 0, model: count}.items()
            ]
            self.say(200, json.dumps({"model_stats": statistics}))

    with serving(Hanging) as address:
        try:
            yield address
        finally:
            is_over.set()


def triton_error(error: RefragError) -> str:
    return json.dumps({"error": f"in ensemble 'refrag', {error.to_wire()}"})


def test_an_answer_is_well():
    with server_that_says(200, "{}") as address:
        assert ask_server(address) == "answered"


@pytest.mark.parametrize("error", [Overloaded("256 wait already"), DeadlineExceeded("too late")])
def test_a_server_that_is_only_busy_is_well(error):
    with server_that_says(500, triton_error(error)) as address:
        assert ask_server(address) == "busy"


@pytest.mark.parametrize("ensemble", ["refrag", "refrag_rag"])
def test_a_server_that_answers_others_meanwhile_is_well(ensemble):
    with server_that_hangs(3, 4, model=ensemble) as address:
        assert ask_server(address, TIMEOUT_SECONDS) == "busy"


def test_answers_of_other_models_tell_nothing_about_the_graph():
    with server_that_hangs(3, 4, model="chunk_store") as address, pytest.raises(ProbeFailed, match="no answer"):
        ask_server(address, TIMEOUT_SECONDS)


@pytest.mark.parametrize("counts", [(3, 3), (3, None), (None, 3)])
def test_a_server_that_answers_nobody_as_far_as_it_tells_is_a_failure(counts):
    with server_that_hangs(*counts) as address, pytest.raises(ProbeFailed, match=r"no answer from .* within \d\.\d s"):
        ask_server(address, TIMEOUT_SECONDS)


def test_the_question_and_the_statistics_keep_within_the_time_together():
    began = time.monotonic()
    with server_that_hangs(3) as address, pytest.raises(ProbeFailed):
        ask_server(address, TIMEOUT_SECONDS)
    assert time.monotonic() - began < 2 * TIMEOUT_SECONDS


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


def test_the_command_says_that_the_server_was_only_busy(capsys):
    with server_that_says(500, triton_error(Overloaded("256 wait already"))) as address:
        assert run_check(type("Arguments", (), {"server": address})) == 0
    assert capsys.readouterr().out.startswith(f"busy     {address} serves others, and had not answered after ")
