"""The engine's own rules: what it refuses, what ends a request, and that no request harms another."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from engine_helpers import GREEDY, answer_alone, make_engine, make_prompt, make_request, mixed_requests, run

from refrag.decoders.base import MixedPrompt
from refrag.engine.request import EngineRequest
from refrag.engine.settings import EngineSettings, count_blocks
from refrag.errors import DeadlineExceeded, InvalidRequest, Overloaded, RefragError, SetupError
from refrag.request import SamplingParams


def test_a_request_larger_than_the_cache_is_refused(llama, tokenizer):
    engine = make_engine(llama, tokenizer)
    num_slots = engine.pool.num_blocks * engine.pool.block_size
    with pytest.raises(InvalidRequest, match=f"need {num_slots + 1} slots, the KV cache holds {num_slots}"):
        engine.add(make_request(make_prompt(num_slots + 2 - GREEDY.max_tokens)))
    assert not engine.has_work


def test_whole_numbers_say_the_same_as_fractions(llama, tokenizer):
    whole = SamplingParams(8, temperature=2, top_p=1, repetition_penalty=2, seed=1)
    fractions = SamplingParams(8, temperature=2.0, top_p=1.0, repetition_penalty=2.0, seed=1)
    requests = [make_request(make_prompt(9), sampling) for sampling in (whole, fractions)]
    first, second = run(make_engine(llama, tokenizer), requests)
    assert first.token_ids == second.token_ids


def test_a_full_queue_refuses_by_name(llama, tokenizer):
    engine = make_engine(llama, tokenizer, max_waiting=2)
    for number in range(2):
        engine.add(make_request(make_prompt(9, number)))
    with pytest.raises(Overloaded, match="3 requests wait for the decoder, the limit is 2"):
        engine.check(make_request(make_prompt(9, 3)), num_ahead=1)
    with pytest.raises(Overloaded, match="2 requests wait for the decoder, the limit is 2"):
        engine.add(make_request(make_prompt(9, 3)))


def test_a_budget_below_one_window_is_refused_with_the_amount_that_is_needed():
    with pytest.raises(SetupError, match=r"kv_cache_mib is 1, .* needs at least 4"):
        count_blocks(EngineSettings(kv_cache_mib=1), slot_bytes=1024, max_prompt_slots=4096)
    assert count_blocks(EngineSettings(kv_cache_mib=4), slot_bytes=1024, max_prompt_slots=4096) == 256


def test_blocks_that_no_request_may_have_come_on_top_of_a_window():
    settings = EngineSettings(kv_cache_mib=4)
    with pytest.raises(SetupError, match=r"holds 4080 slots of 1024 bytes; .* needs at least 5"):
        count_blocks(settings, slot_bytes=1024, max_prompt_slots=4096, num_padding=1)
    assert count_blocks(settings, slot_bytes=1024, max_prompt_slots=4080, num_padding=1) == 256


def test_the_budget_is_what_the_cache_takes(llama, tokenizer):
    engine = make_engine(llama, tokenizer, kv_cache_mib=3)
    cache = engine.runner.cache
    size = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert 0 <= 3 * 2**20 - size < size / engine.pool.num_blocks


def test_a_deadline_ends_running_and_waiting_requests(llama, tokenizer):
    engine = make_engine(llama, tokenizer, max_active=1)
    now = 0.0
    engine.clock = lambda: now
    running, waiting = (make_request(make_prompt(9, number), deadline=5.0) for number in range(2))
    engine.add(running)
    engine.add(waiting)
    assert [output.request for output in engine.step()] == [running]
    now = 6.0
    ended = {output.request: output.error for output in engine.step()}
    assert set(ended) == {running, waiting}
    assert all(isinstance(error, DeadlineExceeded) for error in ended.values())
    assert not engine.has_work
    engine.check_integrity()


def test_a_request_that_breaks_the_pass_ends_alone(llama, tokenizer, caplog):
    """The prompt has an id without an embedding, which only a bug could let through."""
    broken = make_prompt(20)
    broken.input_ids[5] = 10_000
    bad, good = EngineRequest(broken, GREEDY), mixed_requests(4)
    engine = make_engine(llama, tokenizer)
    for request in (bad, *good):
        engine.add(request)
    tokens, errors = {request: [] for request in good}, {}
    while engine.has_work:
        for output in engine.step():
            if output.error is None:
                tokens[output.request] += output.delta.token_ids
            else:
                errors[output.request] = output.error
        engine.check_integrity()
    assert list(errors) == [bad] and isinstance(errors[bad], RefragError)
    assert list(tokens.values()) == [answer_alone(llama, tokenizer, request).token_ids for request in good]


def test_a_token_that_cannot_be_picked_ends_its_request_alone(llama, tokenizer, caplog):
    bad, good = (
        make_request(make_prompt(9), SamplingParams(max_tokens=5, temperature=1.0)),
        make_request(make_prompt(9)),
    )
    engine = make_engine(llama, tokenizer)
    engine.add(bad)
    engine.add(good)
    engine.tasks[bad].generation.pick = lambda logits: 1 / 0
    outputs = {output.request: output for output in engine.step()}
    assert "division" in str(outputs[bad].error)
    assert outputs[good].delta.token_ids == answer_alone(llama, tokenizer, good).token_ids[:1]


def test_nan_ends_its_request_and_is_shared_with_nobody(llama, tokenizer):
    """Finite rows may still overflow within the decoder."""
    prompt = make_prompt(40)
    poisoned = MixedPrompt(prompt.input_ids, torch.full_like(prompt.chunk_embeddings, float("nan")))
    engine = make_engine(llama, tokenizer, max_step_slots=512)
    # It has the keys of the clean prompt, as if its rows had been damaged later.
    bad, good = EngineRequest(poisoned, GREEDY, keys=make_request(prompt).keys), make_request(prompt)
    engine.add(bad)
    [output] = engine.step()
    assert "NaN or infinity" in str(output.error)
    assert run(engine, [good]) == [answer_alone(llama, tokenizer, good)]


def test_a_prompt_without_slots_is_refused(llama, tokenizer):
    with pytest.raises(InvalidRequest, match="no slots"):
        make_engine(llama, tokenizer).add(make_request(make_prompt(0)))


@pytest.mark.parametrize("name", [field.name for field in fields(EngineSettings)])
def test_settings_that_would_never_answer_are_refused(name):
    with pytest.raises(SetupError, match=f"{name} is 0; it must be at least 1"):
        EngineSettings(**{name: 0})


def test_cancelled_twice_is_cancelled_once(llama, tokenizer):
    engine = make_engine(llama, tokenizer)
    engine.add(request := make_request(make_prompt(9)))
    engine.step()
    engine.cancel(request)
    engine.cancel(request)
    assert not engine.has_work
    engine.check_integrity()


def test_steps_tell_what_they_did(llama, tokenizer):
    engine = make_engine(llama, tokenizer, max_active=1)
    now = 10.0
    engine.clock = lambda: now
    for number in range(2):
        engine.add(make_request(make_prompt(20, number), SamplingParams(max_tokens=3, min_tokens=3), arrival=8.0))
    engine.step()
    first = engine.stats
    assert (first.num_active, first.num_waiting, first.num_computed_slots, first.num_tokens) == (1, 1, 20, 1)
    assert (first.queue_seconds, first.ttft_seconds, first.inter_token_seconds) == ([2.0], [2.0], [])
    assert first.num_held_blocks == 3
    now = 10.5
    engine.step()
    assert (engine.stats.queue_seconds, engine.stats.inter_token_seconds) == ([], [0.5])


@pytest.mark.slow
def test_a_thousand_requests_leave_memory_where_it_was():
    """Memory is measured in a separate process, after everything in it has been in use once."""
    script = Path(__file__).with_name("resident_memory.py")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    before, after = map(int, result.stdout.split()[-2:])
    assert abs(after - before) <= 0.02 * before, f"{before} KiB resident before, {after} KiB after"
