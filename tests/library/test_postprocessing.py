"""Running answers keep their request ids, with senders and an engine in the place of Triton's."""

import importlib
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

PATIENCE_SECONDS = 60.0
# The modules of refrag.serving that are built on Triton's Python backend.
BUILT_ON_IT = ("triton", "responses", "decoder_metrics", "engine_answers", "postprocessing")


@pytest.fixture
def module(monkeypatch):
    """Return refrag.serving.postprocessing over a stand-in for Triton's Python backend."""
    backend = ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    backend.InferenceResponse = lambda error: error
    backend.TritonError = lambda message, code: message
    backend.TritonError.INVALID_ARG = 3
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    _forget_modules()
    yield importlib.import_module("refrag.serving.postprocessing")
    _forget_modules()


def _forget_modules():
    """Have what is built on the stand-in imported anew by whoever needs it next."""
    for name in BUILT_ON_IT:
        sys.modules.pop(f"refrag.serving.{name}", None)


@pytest.fixture
def engine(module, monkeypatch):
    """Return an engine that takes no stop before it may, and notes the ids of those that it has taken."""
    engine = SimpleNamespace(may_stop=threading.Event(), stopped=[])

    def send_stop(model, request_id, besides):
        assert engine.may_stop.wait(PATIENCE_SECONDS)
        engine.stopped.append(request_id)

    monkeypatch.setattr(module, "send_stop", send_stop)
    return engine


@pytest.fixture
def service(module, engine, monkeypatch, tmp_path, tiny_checkpoint):
    """Return a service that waits no longer for an answer once it is stopped, and looks only when a test says so."""
    metrics = SimpleNamespace(publish=lambda stats: None, count_unread=lambda num_tokens: None, close=lambda: None)
    tokenizers = SimpleNamespace(decoder=tiny_checkpoint.decoder_tokenizer)
    monkeypatch.setattr(module, "DecoderMetrics", lambda: metrics)
    monkeypatch.setattr(module.EngineFacts, "load", lambda folder: SimpleNamespace(eos_ids=[2]))
    monkeypatch.setattr(module.DeployedTokenizers, "load", lambda folder: tokenizers)
    monkeypatch.setattr(module, "ENDING_SECONDS", -1.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", PATIENCE_SECONDS)
    service = module.Postprocessing(tmp_path, module.PostprocessingSettings(), ["answer", "stop"])
    yield service
    engine.may_stop.set()
    service.close()


class Message:
    """A request to the service, which gathers the errors that answer it."""

    def __init__(self, request_id, **inputs):
        self.id, self.tensors, self.errors = request_id, inputs, []

    def request_id(self):
        return self.id

    def correlation_id(self):
        return 0

    def parameters(self):
        return ""

    def inputs(self):
        return [SimpleNamespace(name=lambda n=n: n, as_numpy=lambda v=v: v) for n, v in self.tensors.items()]

    def get_response_sender(self):
        return self

    def send(self, response=None, flags=0):
        self.errors += [] if response is None else [response]


def begin(module, service, request_id):
    """Have an answer begin; return what it is refused with, or None."""
    answer = module.Announcement(prompt_slots=1, max_tokens=9, deadline=float("inf"), arrival=0.0).to_json()
    message = Message(request_id, answer=np.array([answer.encode()], object))
    service.accept(message)
    return message.errors[0] if message.errors else None


def stop(service, request_id):
    service.accept(Message(request_id, stop=np.array([True])))


def wait_for_stops(service):
    """Return once the stops so far have been sent: one thread sends them in turn."""
    service._stops.submit(lambda: None).result(PATIENCE_SECONDS)


def test_an_id_is_kept_while_a_stop_for_it_waits_for_the_engine_however_long(module, service, engine):
    for request_id in ("first", "second"):
        assert begin(module, service, request_id) is None
        stop(service, request_id)
    service._end_late()
    for request_id in ("first", "second"):
        assert f"{request_id!r} is in flight already" in begin(module, service, request_id)
    engine.may_stop.set()
    wait_for_stops(service)
    for request_id in ("first", "second"):
        assert begin(module, service, request_id) is None
    assert engine.stopped == ["first", "second"]


def test_an_id_is_given_up_where_the_stop_is_sent_and_the_engine_says_no_more(module, service, engine):
    engine.may_stop.set()
    assert begin(module, service, "silent") is None
    stop(service, "silent")
    wait_for_stops(service)
    assert "in flight already" in begin(module, service, "silent")
    service._end_late()
    assert begin(module, service, "silent") is None


def test_an_answer_has_one_stop_on_its_way_at_a_time(module, service, engine):
    assert begin(module, service, "cut") is None
    stop(service, "cut")
    assert service._cut_answers() == 1
    service._end_late()
    engine.may_stop.set()
    wait_for_stops(service)
    assert engine.stopped == ["cut"]
