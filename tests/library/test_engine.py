import threading
import time
from dataclasses import dataclass, field

import pytest

from refrag.context import prepare_context
from refrag.engine.engine import Engine, EngineSettings, Job
from refrag.engine.generation import Delta, generate
from refrag.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, RefragError
from refrag.request import ContextRequest, SamplingParams

PATIENCE_SECONDS = 30.0


@dataclass
class FakeSink:
    """Keeps what it is sent; `stop_after` calls back after that many deltas."""

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


@pytest.fixture
def engine():
    engine = Engine(EngineSettings(max_active=4, max_waiting=40))
    yield engine
    engine.close()


def count_to(number):
    def start():
        for index in range(1, number + 1):
            yield Delta(f"{index} ", [index], "length" if index == number else None)

    return start


def count_for_ever():
    index = 0
    while True:
        index += 1
        yield Delta("", [index])


def submit(engine, start, request_id="", seconds=PATIENCE_SECONDS, **options):
    sink = FakeSink(**options)
    engine.submit(Job(request_id, start, sink, time.monotonic() + seconds))
    return sink


def test_every_delta_arrives_in_order(engine):
    assert submit(engine, count_to(5)).token_ids() == [1, 2, 3, 4, 5]


def test_more_jobs_than_places_all_finish(engine):
    sinks = [submit(engine, count_to(number)) for number in range(1, 20)]
    assert [len(sink.token_ids()) for sink in sinks] == list(range(1, 20))


def test_a_stop_ends_the_job_before_its_next_delta(engine):
    def stop_at_three(sink):
        if len(sink.deltas) == 3:
            engine.stop("long")

    sink = submit(engine, count_for_ever, "long", on_delta=stop_at_three)
    assert sink.token_ids() == [1, 2, 3]
    assert isinstance(sink.error, Cancelled)


def test_a_stop_that_overtakes_its_request_still_holds(engine):
    engine.stop("early")
    with pytest.raises(Cancelled, match="before it reached"):
        submit(engine, count_for_ever, "early")


def test_a_stop_that_comes_too_late_harms_no_later_request_of_that_id(engine):
    assert submit(engine, count_to(2), "late").token_ids() == [1, 2]
    engine.stop("late")
    assert submit(engine, count_to(2), "late").token_ids() == [1, 2]


def test_a_stop_without_an_id_is_refused(engine):
    with pytest.raises(InvalidRequest, match="without a request id"):
        engine.stop("")


def test_an_id_in_flight_is_refused_and_its_owner_undisturbed(engine):
    release = threading.Event()
    sink = submit(engine, count_to(3), "same", on_delta=lambda _: release.wait(PATIENCE_SECONDS))
    with pytest.raises(InvalidRequest, match="in flight already"):
        submit(engine, count_to(3), "same")
    release.set()
    assert sink.token_ids() == [1, 2, 3]


def test_an_id_is_free_again_once_its_answer_is_complete(engine):
    assert submit(engine, count_to(2), "again").token_ids() == [1, 2]
    assert submit(engine, count_to(2), "again").token_ids() == [1, 2]


def test_a_deadline_ends_a_running_job(engine):
    sink = submit(engine, count_for_ever, seconds=0.05)
    sink.token_ids()
    assert isinstance(sink.error, DeadlineExceeded)


def test_a_deadline_ends_a_job_that_still_waits(engine):
    running = [submit(engine, count_for_ever, f"r{index}") for index in range(4)]
    waiting = submit(engine, count_to(1), seconds=0.05)
    assert waiting.token_ids() == []
    assert isinstance(waiting.error, DeadlineExceeded)
    assert all(sink.error is None for sink in running)


def test_an_abandoned_job_is_dropped(engine):
    sink = submit(engine, count_for_ever)
    sink.abandoned = True
    sink.token_ids()
    assert isinstance(sink.error, Cancelled)


def test_a_full_queue_refuses_by_name():
    engine = Engine(EngineSettings(max_active=1, max_waiting=0))
    with pytest.raises(Overloaded, match="limit is 0"):
        submit(engine, count_to(1))
    engine.close()


def test_a_failing_step_fails_its_own_job_alone(engine, caplog):
    def broken():
        yield Delta("", [1])
        raise RuntimeError("no such thing")

    bad, good = submit(engine, broken), submit(engine, count_to(50))
    assert good.token_ids() == list(range(1, 51))
    assert bad.token_ids() == [1]
    assert "no such thing" in str(bad.error)


def test_a_worker_that_fails_leaves_nobody_waiting(engine, caplog):
    def fail():
        raise RuntimeError("out of memory")

    running = submit(engine, count_for_ever)
    engine._admit = fail
    running.token_ids()
    assert "must be restarted: out of memory" in str(running.error)
    with pytest.raises(RefragError, match="must be restarted"):
        submit(engine, count_to(1))


def test_a_closed_engine_refuses_at_once():
    engine = Engine(EngineSettings())
    engine.close()
    with pytest.raises(Cancelled, match="shutting down"):
        submit(engine, count_to(1))


def test_closing_cancels_what_is_left():
    engine = Engine(EngineSettings(max_active=1))
    sinks = [submit(engine, count_for_ever), submit(engine, count_for_ever)]
    engine.close()
    assert all(isinstance(sink.error, Cancelled) for sink in sinks)


def test_concurrent_answers_equal_those_alone(engine, pipeline):
    checkpoint, sampling = pipeline.checkpoint, SamplingParams(max_tokens=8, temperature=0.9, seed=7)
    prompts = []
    for number in range(8):
        request = ContextRequest(f"Question {number}?", [f"Passage number {number} says {number * 7}."])
        context = prepare_context(request, pipeline.chunker)
        prompts.append(pipeline.build_prompt(context, [], pipeline.encode(context)[0])[1])

    def start(prompt):
        return lambda: generate(checkpoint.decoder, checkpoint.decoder_tokenizer, prompt, sampling)

    alone = [[i for delta in start(prompt)() for i in delta.token_ids] for prompt in prompts]
    together = [submit(engine, start(prompt)) for prompt in prompts]
    assert [sink.token_ids() for sink in together] == alone


@pytest.mark.parametrize(
    "sampling", [SamplingParams(5), SamplingParams(5, temperature=1.0, seed=3, top_k=20, top_p=0.9)]
)
def test_the_same_seed_gives_the_same_answer(pipeline, sampling):
    request = ContextRequest("Who?", ["Mara Tolen keeps a parrot."])
    assert pipeline.answer(request, sampling).token_ids == pipeline.answer(request, sampling).token_ids


def test_top_k_of_one_is_greedy(pipeline):
    request = ContextRequest("Who?", ["Mara Tolen keeps a parrot."])
    sampled = pipeline.answer(request, SamplingParams(8, temperature=2.0, top_k=1))
    assert sampled.token_ids == pipeline.answer(request, SamplingParams(8)).token_ids
