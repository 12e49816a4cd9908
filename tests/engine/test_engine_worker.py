"""The thread around the engine, with an engine that counts in the place of the real one."""

import threading
import time
from dataclasses import dataclass, field

import pytest
import torch

from refrag.decoders.base import DecoderStats, Delta, MixedPrompt
from refrag.engine.request import EngineRequest, Output
from refrag.engine.settings import EngineSettings
from refrag.engine.worker import EngineWorker
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

PATIENCE_SECONDS = 30.0
FOR_EVER = 10**9


@dataclass
class FakeSink:
    """Keeps what it is sent; `on_delta` is called after each delta."""

    deltas: list[Delta] = field(default_factory=list)
    error: RefragError | None = None
    done: threading.Event = field(default_factory=threading.Event)
    on_delta: object = None
    abandoned: bool = False

    def send(self, delta):
        self.deltas.append(delta)
        if self.on_delta:
            self.on_delta(self)
        if delta.finish_reason is not None:
            self.done.set()

    def fail(self, error):
        self.error = error
        self.done.set()

    def is_abandoned(self):
        return self.abandoned

    def token_ids(self):
        assert self.done.wait(PATIENCE_SECONDS)
        return [token_id for delta in self.deltas for token_id in delta.token_ids]


class CountingEngine:
    """Answers each request with 1, 2, 3 … up to its max_tokens; a request for one token too many is too large."""

    def __init__(self, max_active=4, max_waiting=40):
        self.settings = EngineSettings(max_active=max_active, max_waiting=max_waiting)
        self.counts: dict[EngineRequest, int] = {}
        self.stats = DecoderStats()

    @property
    def has_work(self):
        return bool(self.counts)

    @property
    def num_waiting(self):
        return max(0, len(self.counts) - self.settings.max_active)

    def check(self, request, num_ahead):
        if request.max_slots > FOR_EVER:
            raise InvalidRequest("too large")
        if self.num_waiting + num_ahead >= self.settings.max_waiting:
            raise Overloaded(f"{self.num_waiting + num_ahead} wait")

    def add(self, request):
        if request.request_id == "unfit":
            raise RuntimeError("no room")
        self.counts[request] = 0

    def cancel(self, request):
        self.counts.pop(request, None)

    def step(self):
        outputs = []
        for request in [request for request in self.counts if time.monotonic() > request.deadline]:
            self.cancel(request)
            outputs.append(Output(request, error=DeadlineExceeded("too late")))
        for request in list(self.counts)[: self.settings.max_active]:
            self.counts[request] += 1
            is_last = self.counts[request] == request.sampling.max_tokens
            outputs.append(Output(request, Delta("", [self.counts[request]], [], "length" if is_last else None)))
            if is_last:
                self.cancel(request)
        return outputs


@pytest.fixture
def worker():
    worker = EngineWorker(CountingEngine)
    yield worker
    worker.close()


def submit(worker, count, request_id="", seconds=PATIENCE_SECONDS, **options):
    sink = FakeSink(**options)
    prompt = MixedPrompt(torch.tensor([5]), torch.zeros(0, 0))
    worker.submit(EngineRequest(prompt, SamplingParams(max_tokens=count), request_id, time.monotonic() + seconds), sink)
    return sink


def test_every_delta_arrives_in_order(worker):
    assert submit(worker, 5).token_ids() == [1, 2, 3, 4, 5]


def test_more_requests_than_places_all_finish(worker):
    sinks = [submit(worker, number) for number in range(1, 20)]
    assert [len(sink.token_ids()) for sink in sinks] == list(range(1, 20))


def test_a_stop_ends_the_request_before_its_next_delta(worker):
    def stop_at_three(sink):
        if len(sink.deltas) == 3:
            worker.stop("long")

    sink = submit(worker, FOR_EVER, "long", on_delta=stop_at_three)
    assert sink.token_ids() == [1, 2, 3]
    assert isinstance(sink.error, Cancelled)


def test_a_stop_that_overtakes_its_request_still_holds(worker):
    worker.stop("early")
    with pytest.raises(Cancelled, match="before it reached"):
        submit(worker, FOR_EVER, "early")


def test_a_stop_that_comes_too_late_harms_no_later_request_of_that_id(worker):
    assert submit(worker, 2, "late").token_ids() == [1, 2]
    worker.stop("late")
    assert submit(worker, 2, "late").token_ids() == [1, 2]


def test_a_stop_without_an_id_is_refused(worker):
    with pytest.raises(InvalidRequest, match="without a request id"):
        worker.stop("")


def test_an_id_in_flight_is_refused_and_its_owner_undisturbed(worker):
    release = threading.Event()
    sink = submit(worker, 3, "same", on_delta=lambda _: release.wait(PATIENCE_SECONDS))
    with pytest.raises(InvalidRequest, match="in flight already"):
        submit(worker, 3, "same")
    release.set()
    assert sink.token_ids() == [1, 2, 3]


def test_an_id_is_free_again_once_its_answer_is_complete(worker):
    assert submit(worker, 2, "again").token_ids() == [1, 2]
    assert submit(worker, 2, "again").token_ids() == [1, 2]


def test_a_request_that_the_engine_ends_is_told_why(worker):
    sink = submit(worker, FOR_EVER, seconds=0.05)
    sink.token_ids()
    assert isinstance(sink.error, DeadlineExceeded)


def test_an_abandoned_request_is_dropped(worker):
    sink = submit(worker, FOR_EVER)
    sink.abandoned = True
    sink.token_ids()
    assert isinstance(sink.error, Cancelled)


def test_a_request_too_large_is_refused_by_the_call(worker):
    with pytest.raises(InvalidRequest, match="too large"):
        submit(worker, FOR_EVER + 1)


def test_a_request_that_cannot_be_added_harms_no_other(worker, caplog):
    blocked, go_on = threading.Event(), threading.Event()

    def block(_):
        blocked.set()
        go_on.wait(PATIENCE_SECONDS)

    submit(worker, 1, on_delta=block)
    assert blocked.wait(PATIENCE_SECONDS)
    before, unfit, behind = submit(worker, 2), submit(worker, 2, "unfit"), submit(worker, 2)
    go_on.set()
    assert (before.token_ids(), unfit.token_ids(), behind.token_ids()) == ([1, 2], [], [1, 2])
    assert "no room" in str(unfit.error)


def test_an_observer_or_a_receiver_that_fails_ends_nothing(caplog):
    def fail(*_):
        raise RuntimeError("pipe is broken")

    worker = EngineWorker(CountingEngine, fail)
    sink = FakeSink()
    sink.is_abandoned = fail
    prompt = MixedPrompt(torch.tensor([5]), torch.zeros(0, 0))
    worker.submit(EngineRequest(prompt, SamplingParams(max_tokens=3)), sink)
    assert sink.token_ids() == [1, 2, 3]
    worker.close()


def test_a_full_queue_refuses_with_those_that_are_still_to_be_added():
    worker = EngineWorker(lambda: CountingEngine(max_active=1, max_waiting=2))
    blocked, go_on = threading.Event(), threading.Event()

    def block(_):
        blocked.set()
        go_on.wait(PATIENCE_SECONDS)

    sinks = [submit(worker, 1, on_delta=block)]
    assert blocked.wait(PATIENCE_SECONDS)
    sinks += [submit(worker, 1), submit(worker, 1)]
    with pytest.raises(Overloaded, match="2 wait"):
        submit(worker, 1)
    go_on.set()
    assert [sink.token_ids() for sink in sinks] == [[1], [1], [1]]
    worker.close()


def test_a_sink_that_fails_ends_its_own_request_alone(worker, caplog):
    def break_at_two(sink):
        if len(sink.deltas) == 2:
            raise RuntimeError("pipe is broken")

    bad, good = submit(worker, FOR_EVER, "bad", on_delta=break_at_two), submit(worker, 50)
    assert good.token_ids() == list(range(1, 51))
    assert bad.token_ids() == [1, 2]
    assert "pipe is broken" in str(bad.error)
    assert submit(worker, 1, "bad").token_ids() == [1]


def test_a_worker_that_fails_leaves_nobody_waiting(worker, caplog):
    def fail():
        raise RuntimeError("out of memory")

    running = submit(worker, FOR_EVER)
    worker.engine.step = fail
    running.token_ids()
    assert "must be restarted: out of memory" in str(running.error)
    with pytest.raises(RefragError, match="must be restarted"):
        submit(worker, 1)


def test_a_closed_worker_refuses_at_once():
    worker = EngineWorker(CountingEngine)
    worker.close()
    with pytest.raises(ServerUnavailable, match="is stopping"):
        submit(worker, 1)


def test_closing_ends_what_is_left_as_unavailable():
    worker = EngineWorker(lambda: CountingEngine(max_active=1))
    sinks = [submit(worker, FOR_EVER), submit(worker, FOR_EVER)]
    worker.close()
    assert all(isinstance(sink.error, ServerUnavailable) for sink in sinks)


def test_each_step_is_observed():
    seen = []
    worker = EngineWorker(CountingEngine, seen.append)
    submit(worker, 3).token_ids()
    worker.close()
    assert seen == [worker.engine.stats] * 3


def test_while_a_step_is_under_way_the_stats_are_those_of_the_last_one(worker):
    submit(worker, 1).token_ids()
    seen, complete, step = [], worker.stats, worker.engine.step

    def step_with_new_stats():
        worker.engine.stats = DecoderStats(num_active=7)
        seen.append(worker.stats)
        return step()

    worker.engine.step = step_with_new_stats
    submit(worker, 1).token_ids()
    assert seen[0] is complete
    submit(worker, 1).token_ids()
    assert seen[1].num_active == 7


def test_the_engine_is_opened_by_the_thread_that_steps_it():
    opened_by = []

    def open_engine():
        opened_by.append(threading.current_thread())
        return CountingEngine()

    worker = EngineWorker(open_engine)
    assert opened_by == [worker.thread]
    worker.close()


def test_an_engine_that_cannot_be_opened_is_told():
    def open_engine():
        raise SetupError("kv_cache_mib is too little")

    with pytest.raises(SetupError, match="too little"):
        EngineWorker(open_engine)
