"""The final flag and the question whether the caller is gone, with senders in the place of Triton's."""

import importlib
import sys
import threading
from types import ModuleType

import pytest

FINAL, PATIENCE_SECONDS = 1, 60.0


@pytest.fixture
def triton(monkeypatch):
    """Return the module that knows Triton's Python backend, over a stand-in for that."""
    backend = ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    _forget_modules()
    module = importlib.import_module("refrag.serving.triton")
    monkeypatch.setattr(module, "CANCELLATION_CHECK_SECONDS", 0)
    yield module
    _forget_modules()


def _forget_modules():
    """Have what is built on the stand-in imported anew by whoever needs it next."""
    for name in ("triton", "callers"):
        sys.modules.pop(f"refrag.serving.{name}", None)


class Request:
    """A request whose caller is gone. Its sender takes its time to say so, and is freed with its final flag."""

    def __init__(self):
        self.is_asked, self.may_tell = threading.Event(), threading.Event()
        self.is_freed, self.was_freed_while_asked = False, False

    def get_response_sender(self):
        return self

    def correlation_id(self):
        return 0

    def send(self, flags):
        assert flags == FINAL and not self.is_freed
        self.is_freed = True

    def is_cancelled(self):
        self.is_asked.set()
        assert self.may_tell.wait(PATIENCE_SECONDS)
        self.was_freed_while_asked = self.is_freed
        return True


def test_a_sender_is_not_freed_while_it_is_asked_and_not_asked_once_it_is_freed(triton):
    request = Request()
    stream, told = triton.ResponseStream(request), []
    asking = threading.Thread(target=lambda: told.append(stream.is_cancelled()))
    asking.start()
    assert request.is_asked.wait(PATIENCE_SECONDS)
    closing = threading.Thread(target=stream.close)
    closing.start()
    assert stream.ending.locked() and not request.is_freed
    request.may_tell.set()
    for thread in (asking, closing):
        thread.join(PATIENCE_SECONDS)
    assert (told, request.was_freed_while_asked, request.is_freed) == ([True], False, True)
    request.is_asked.clear()
    assert not stream.is_cancelled() and not request.is_asked.is_set()


def test_the_final_flag_is_sent_once(triton):
    stream = triton.ResponseStream(Request())
    stream.close()
    stream.close()
    assert stream.closed


def test_a_stop_is_for_the_newest_request_of_its_caller(triton):
    callers = importlib.import_module("refrag.serving.callers").Callers()
    older, newer = (triton.ResponseStream(Request()) for _ in range(2))
    older.caller, newer.caller = 7, 8
    callers.add("a", older)
    callers.add("a", newer)
    assert [callers.may_stop("a", caller) for caller in (7, 8, triton.NOBODY)] == [False, True, True]
    assert not callers.may_stop("b", 8)
    newer.close()
    assert not callers.may_stop("a", 8)
