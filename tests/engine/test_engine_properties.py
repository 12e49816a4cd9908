"""Random traffic against the sequential reference: whatever comes and goes, answers stay what they are alone."""

from engine_helpers import BLOCK_SIZE, GREEDY, SAMPLED, answer_alone, make_engine, make_prompt, make_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refrag.engine.block_pool import BlockPool
from refrag.errors import DeadlineExceeded
from refrag.request import SamplingParams

STOPPED = SamplingParams(max_tokens=12, temperature=1.5, seed=3, stop_words=("a", "e"))
# Few prompts, with common beginnings, so that the reference need not be run for every example.
LENGTHS = (1, 8, 9, 40, 41, 90)
ARRIVALS = st.tuples(
    st.integers(0, len(LENGTHS) - 1),
    st.sampled_from([GREEDY, SAMPLED, STOPPED]),
    st.integers(0, 2),  # priority
    st.integers(0, 12),  # the step of its arrival
    st.one_of(st.none(), st.integers(1, 10)),  # steps until it is cancelled
    st.one_of(st.none(), st.integers(1, 10)),  # steps until its deadline
)


class Traffic:
    """Requests that arrive, are cancelled and run late by a clock of steps."""

    def __init__(self, decoder, tokenizer):
        self.decoder, self.tokenizer, self.now = decoder, tokenizer, 0
        self.alone = {}

    def expected(self, length, sampling):
        if (length, sampling) not in self.alone:
            request = make_request(make_prompt(LENGTHS[length]), sampling)
            self.alone[length, sampling] = answer_alone(self.decoder, self.tokenizer, request).token_ids
        return self.alone[length, sampling]

    def run(self, arrivals, **limits):
        engine = make_engine(self.decoder, self.tokenizer, **limits)
        engine.clock = lambda: self.now
        self.now, requests, tokens, ended = 0, {}, {}, {}
        while len(requests) < len(arrivals) or engine.has_work:
            for number, (length, sampling, priority, step, patience, timeout) in enumerate(arrivals):
                if step == self.now:
                    deadline = float("inf") if timeout is None else self.now + timeout
                    prompt = make_prompt(LENGTHS[length])
                    requests[number] = make_request(prompt, sampling, priority=priority, deadline=deadline)
                    tokens[requests[number]] = []
                    engine.add(requests[number])
                if patience is not None and step + patience == self.now and requests[number] not in ended:
                    engine.cancel(requests[number])
                    ended[requests[number]] = "cancelled"
            for output in engine.step():
                assert output.request not in ended
                if output.delta is not None:
                    tokens[output.request] += output.delta.token_ids
                if output.is_last:
                    ended[output.request] = output.error or output.delta.finish_reason
            engine.check_integrity()
            self.now += 1
        assert engine.pool.num_available == engine.pool.num_blocks
        return [(tokens[requests[number]], ended[requests[number]]) for number in range(len(arrivals))]


@given(st.lists(ARRIVALS, min_size=1, max_size=10), st.sampled_from([2, 8]), st.sampled_from([7, 24]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_random_traffic_is_answered_as_if_alone(llama, tokenizer, arrivals, max_active, max_step_slots):
    traffic = Traffic(llama, tokenizer)
    results = traffic.run(arrivals, max_active=max_active, max_step_slots=max_step_slots)
    for (length, sampling, _, _, patience, timeout), (tokens, end) in zip(arrivals, results, strict=True):
        expected = traffic.expected(length, sampling)
        if end == "cancelled":
            assert patience is not None
            assert tokens == expected[: len(tokens)]
        elif isinstance(end, DeadlineExceeded):
            assert timeout is not None
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected


def test_a_cache_that_holds_few_at_a_time_still_answers_all(llama, tokenizer):
    """Room for two of the longest: blocks are evicted and written anew, and the urgent take the places of others."""
    requests = [
        make_request(make_prompt(50 + number, number), (GREEDY, SAMPLED)[number % 2], priority=-(number % 3))
        for number in range(24)
    ]
    engine = make_engine(llama, tokenizer)
    engine.pool = engine.scheduler.pool = BlockPool(22, BLOCK_SIZE)
    deltas, waiting, num_preempted = {request: [] for request in requests}, list(requests), 0
    while waiting or engine.has_work:
        if waiting:
            engine.add(waiting.pop(0))
        for output in engine.step():
            deltas[output.request] += output.delta.token_ids
        engine.check_integrity()
        num_preempted += engine.stats.num_preempted
    assert num_preempted > 0
    assert any(engine.pool.find(request.keys) == [] for request in requests), "nothing was evicted"
    assert list(deltas.values()) == [answer_alone(llama, tokenizer, request).token_ids for request in requests]
