"""The thread that answers with an engine that streams by itself, with an engine that counts in the place of vLLM's."""

import time

import pytest
import torch
from fake_engine import CountingEngine, FakeSink, wait_until

from refrag.decoders.async_worker import AsyncWorker
from refrag.decoders.base import DecoderRequest, MixedPrompt
from refrag.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RefragError,
    ServerUnavailable,
    SetupError,
)
from refrag.request import SamplingParams

FOR_EVER = 10**9


@pytest.fixture
def observed():
    return []


@pytest.fixture
def engine(tiny_checkpoint):
    return CountingEngine(tiny_checkpoint.decoder_tokenizer)


@pytest.fixture
def worker(engine, observed):
    worker = AsyncWorker(lambda: engine, observed.append)
    yield worker
    worker.close()


def submit(worker, count=FOR_EVER, request_id="", seconds=float("inf"), **options):
    sink = FakeSink(**{name: options.pop(name) for name in ("abandoned", "broken") if name in options})
    prompt = MixedPrompt(torch.tensor([5]), torch.zeros(0, 0))
    sampling = SamplingParams(max_tokens=count, **options)
    now = time.monotonic()
    worker.submit(DecoderRequest(prompt, sampling, request_id, now + seconds, arrival=now), sink)
    return sink


def test_tokens_arrive_in_order_and_end_at_max_tokens(worker):
    sink = submit(worker, 5)
    assert sink.token_ids() == [10, 11, 12, 13, 14]
    assert [delta.finish_reason for delta in sink.deltas] == [None] * 4 + ["length"]


def test_an_end_of_sequence_token_ends_the_answer_and_is_not_in_it(engine, worker):
    engine.last_token = 3
    sink = submit(worker)
    assert sink.token_ids() == [10, 11, 12]
    assert sink.deltas[-1].finish_reason == "stop"


def test_an_engine_that_stops_before_the_answers_end_is_an_error(engine, worker):
    engine.eos_ids, engine.last_token = set(), 3
    assert "before its end" in str(submit(worker).wait_for_error())


def test_a_stop_word_ends_the_answer_and_the_engine_drops_the_request(engine, worker, tiny_checkpoint):
    text = "".join(delta.text for delta in _finished(submit(worker, 30)).deltas)
    word = text[len(text) // 2 :][:3]
    sink = _finished(submit(worker, 10_000, "stopped-by-word", stop_words=(word,)))
    assert word not in "".join(delta.text for delta in sink.deltas)
    assert sink.deltas[-1].finish_reason == "stop"
    wait_until(lambda: any("stopped-by-word" in name for name in engine.dropped))


def test_log_probabilities_come_with_their_tokens(worker):
    sink = _finished(submit(worker, 3, log_probabilities=True))
    assert [delta.log_probabilities for delta in sink.deltas] == [[-0.5]] * 3


def test_a_stop_ends_a_request_at_once_and_its_neighbour_goes_on(engine, worker):
    stopped, neighbour = submit(worker, request_id="a"), submit(worker, 500, request_id="b")
    assert stopped.started.wait(30)
    worker.stop("a")
    assert isinstance(stopped.wait_for_error(), Cancelled)
    assert len(neighbour.token_ids()) == 500
    wait_until(lambda: any(name.endswith("-a") for name in engine.dropped))
    assert stopped.num_ends == 1


def test_a_stop_that_overtakes_its_request_refuses_it(worker):
    worker.stop("early")
    with pytest.raises(Cancelled, match="stopped before it reached"):
        submit(worker, request_id="early")
    assert len(submit(worker, 2, request_id="early").token_ids()) == 2


def test_a_stop_without_an_id_is_refused(worker):
    with pytest.raises(InvalidRequest, match="without a request id"):
        worker.stop("")


def test_a_deadline_ends_a_request(engine, worker):
    sink = submit(worker, request_id="late", seconds=0.05)
    assert isinstance(sink.wait_for_error(), DeadlineExceeded)
    wait_until(lambda: any("late" in name for name in engine.dropped))


def test_a_deadline_that_has_passed_ends_a_request_before_its_first_token(worker):
    sink = submit(worker, seconds=-1.0)
    assert isinstance(sink.wait_for_error(), DeadlineExceeded)


def test_an_abandoned_request_is_ended(engine, worker):
    sink = submit(worker, request_id="gone", abandoned=True)
    assert isinstance(sink.wait_for_error(), Cancelled)
    wait_until(lambda: any("gone" in name for name in engine.dropped))


def test_a_receiver_that_cannot_be_sent_to_ends_its_own_request_alone(worker):
    broken, neighbour = submit(worker, broken=True), submit(worker, 50)
    assert "could not be sent" in str(broken.wait_for_error())
    assert len(neighbour.token_ids()) == 50


def test_an_id_in_flight_is_refused_and_is_free_after_the_end(worker):
    first = submit(worker, request_id="same")
    with pytest.raises(InvalidRequest, match="in flight already"):
        submit(worker, request_id="same")
    worker.stop("same")
    first.wait_for_error()
    assert len(submit(worker, 2, request_id="same").token_ids()) == 2


def test_more_requests_than_may_wait_are_refused_until_one_ends(engine, worker):
    running = [submit(worker, request_id=str(number)) for number in range(engine.max_in_flight)]
    with pytest.raises(Overloaded, match="8 requests are with the decoder, the limit is 8"):
        submit(worker)
    worker.stop("0")
    running[0].wait_for_error()
    assert len(submit(worker, 1).token_ids()) == 1


def test_a_dead_engine_ends_every_request_and_refuses_new_ones(engine, worker):
    running = [submit(worker) for _ in range(3)]
    for sink in running:
        assert sink.started.wait(30)
    engine.dead = True
    assert {type(sink.wait_for_error()) for sink in running} == {ServerUnavailable}
    with pytest.raises(ServerUnavailable, match="has died"):
        submit(worker)


def test_a_receiver_that_is_gone_before_its_request_begins_is_noticed_and_so_are_later_ones(worker, monkeypatch):
    held_back = []
    with monkeypatch.context() as patch:
        patch.setattr(worker.loop, "call_soon_threadsafe", lambda *call: held_back.append(call))
        gone = submit(worker, request_id="gone", abandoned=True)
    assert isinstance(gone.wait_for_error(), Cancelled)
    [start] = held_back
    worker.loop.call_soon_threadsafe(*start)
    assert isinstance(submit(worker, abandoned=True).wait_for_error(), Cancelled)
    assert (gone.num_ends, gone.deltas) == (1, [])


def test_closing_ends_every_request_and_the_engine_and_may_be_done_twice(engine, worker):
    running = [submit(worker) for _ in range(3)]
    worker.close()
    assert all("has cut this answer" in str(sink.wait_for_error()) for sink in running)
    assert [sink.num_ends for sink in running] == [1, 1, 1]
    assert engine.is_closed
    with pytest.raises(ServerUnavailable, match="stopping"):
        submit(worker)
    worker.close()


def test_requests_can_be_ended_before_the_engine_which_takes_its_time(engine, worker):
    running = [submit(worker) for _ in range(2)]
    worker.end_requests()
    assert all("has cut this answer" in str(sink.wait_for_error()) for sink in running)
    assert not engine.is_closed
    with pytest.raises(ServerUnavailable, match="stopping"):
        submit(worker)
    worker.close()
    assert engine.is_closed
    assert [sink.num_ends for sink in running] == [1, 1]


def test_an_engine_that_cannot_be_opened_raises_its_own_error():
    def fail():
        raise SetupError("no room")

    with pytest.raises(SetupError, match="no room"):
        AsyncWorker(fail)


def test_an_engine_that_cannot_answer_is_closed_and_its_error_raised(engine):
    engine.fault = SetupError("it died of the first prompt")
    with pytest.raises(SetupError, match="died of the first prompt"):
        AsyncWorker(lambda: engine)
    assert engine.is_closed


def test_every_delta_is_observed_with_its_latency(worker, observed):
    _finished(submit(worker, 5))
    assert sum(stats.num_tokens for stats in observed) == 5
    assert sum(len(stats.ttft_seconds) for stats in observed) == 1
    assert sum(len(stats.inter_token_seconds) for stats in observed) == 4
    assert sum(len(stats.queue_seconds) for stats in observed) == 1


def test_an_unforeseen_error_ends_its_request_alone(engine, worker):
    async def fail(request, name):
        raise ValueError("odd")
        yield

    usual, engine.stream = engine.stream, fail
    assert "ValueError: odd" in str(submit(worker).wait_for_error())
    engine.stream = usual
    assert len(submit(worker, 3).token_ids()) == 3


def test_every_request_has_one_end_however_they_overlap(worker):
    sinks = []
    for number in range(200):
        try:
            sinks.append(submit(worker, 1 + number % 7, request_id=f"{number}"))
        except Overloaded:
            worker.stop(f"{number - 3}")
    for sink in sinks:
        assert sink.done.wait(30)
        assert sink.num_ends == 1
        assert sink.error is None or isinstance(sink.error, RefragError)


def _finished(sink):
    assert sink.done.wait(30)
    assert sink.error is None
    return sink
