"""Options and requests are translated for vLLM, and refused, without vLLM."""

from types import SimpleNamespace

import pytest
import torch

from refrag.decoders.base import DecoderRequest, MixedPrompt
from refrag.decoders.vllm import VllmSettings
from refrag.decoders.vllm_engine import (
    VllmEngine,
    embed,
    read_eos_ids,
    refuse_numpy_2,
    refuse_other_rows,
    refuse_other_steps,
)
from refrag.decoders.vllm_options import EngineOptions, check_sampling, refuse_unknown, sampling_arguments
from refrag.decoders.vllm_stats import EngineStats
from refrag.engine.answer import Pick
from refrag.errors import CheckpointError, InvalidRequest, SetupError
from refrag.model.embeddings import TokenEmbeddings, load_token_embeddings
from refrag.request import SamplingParams

EMBEDDINGS = TokenEmbeddings(torch.arange(24.0).reshape(6, 4))


@pytest.fixture(scope="module")
def saved(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint.save(folder)
    return folder


def options(checkpoint, **values):
    defaults = {
        "window": 512,
        "dtype": "float32",
        "num_threads": 3,
        "kv_cache_mib": 1536,
        "max_active": 4,
        "max_waiting": 2,
        "max_step_slots": 64,
    }
    return EngineOptions(checkpoint, **{**defaults, **values})


def request(ids, rows):
    return DecoderRequest(MixedPrompt(torch.tensor(ids), torch.tensor(rows)), SamplingParams())


def test_a_greedy_request_needs_no_seed_and_no_limits():
    sent = sampling_arguments(SamplingParams(max_tokens=9, top_k=5, top_p=0.5, seed=3), {7, 2})
    assert sent["temperature"] == 0
    assert (sent["seed"], sent["top_k"], sent["top_p"]) == (None, 0, 1.0)
    assert (sent["max_tokens"], sent["min_tokens"], sent["logprobs"]) == (9, 0, None)
    assert (sent["stop_token_ids"], sent["ignore_eos"], sent["detokenize"]) == ([2, 7], True, False)


def test_a_sampled_request_keeps_its_seed_and_its_limits():
    sampling = SamplingParams(
        temperature=0.7,
        top_k=5,
        top_p=0.5,
        seed=2**63 + 11,
        min_tokens=4,
        repetition_penalty=1.3,
        log_probabilities=True,
    )
    sent = sampling_arguments(sampling, {2})
    assert (sent["temperature"], sent["top_k"], sent["top_p"], sent["seed"]) == (0.7, 5, 0.5, 2**63 + 11)
    assert (sent["min_tokens"], sent["repetition_penalty"], sent["logprobs"]) == (4, 1.3, 0)


def test_a_temperature_beyond_vllms_is_refused_by_name():
    check_sampling(SamplingParams(temperature=2.0))
    with pytest.raises(InvalidRequest, match="temperature is 50; the decoder vllm takes up to 2"):
        check_sampling(SamplingParams(temperature=50.0))


def test_two_sampled_requests_without_a_seed_draw_from_different_ones():
    seeds = {sampling_arguments(SamplingParams(temperature=1.0), {2})["seed"] for _ in range(20)}
    assert len(seeds) == 20


def test_further_engine_arguments_are_json_or_text():
    settings = VllmSettings(
        engine_arguments="tensor_parallel_size=2 distributed_executor_backend=ray enforce_eager=true "
        "compilation_config='{\"level\": 0}'"
    )
    assert settings.further_arguments == {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "ray",
        "enforce_eager": True,
        "compilation_config": {"level": 0},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, bfloat16, float16"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"kv_cache_mib": 0}, "kv_cache_mib is 0; it must be at least 1"),
        ({"max_waiting": 0}, "max_waiting is 0"),
        ({"engine_arguments": "tensor_parallel_size"}, "write name=value"),
        ({"engine_arguments": "a='b"}, "No closing quotation"),
        ({"engine_arguments": "enable_prompt_embeds=false"}, r"enable_prompt_embeds \(prompts are embeddings\)"),
        ({"engine_arguments": "max_model_len=5"}, "max_prompt_slots in refrag.json"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(values, message):
    with pytest.raises(SetupError, match=message):
        VllmSettings(**values)


def test_an_engine_argument_that_vllm_lacks_is_refused_with_the_nearest():
    with pytest.raises(SetupError, match=r"tensor_paralel_size.*tensor_parallel_size"):
        refuse_unknown(["tensor_paralel_size"], ["model", "tensor_parallel_size"])


def test_the_engine_is_told_what_keeps_callers_apart(tmp_path):
    sent = options(tmp_path, further={"block_size": 32}).engine_arguments()
    assert sent["enable_prompt_embeds"] is True
    assert sent["prefix_caching_hash_algo"] == "sha256"
    assert sent["scheduling_policy"] == "priority"
    assert (sent["block_size"], sent["max_model_len"], sent["max_num_seqs"]) == (32, 512, 4)


def test_the_processes_get_their_threads_and_the_cache_its_memory(tmp_path):
    assert options(tmp_path).variables()["OMP_NUM_THREADS"] == "3"
    assert options(tmp_path).engine_arguments()["kv_cache_memory_bytes"] == 1536 * 2**20


def test_rows_are_token_embeddings_and_chunk_embeddings_in_their_places():
    rows = embed(request([1, 6, 5, 7], [[0.5] * 4, [0.25] * 4]), EMBEDDINGS)
    assert rows.tolist() == [[4, 5, 6, 7], [0.5] * 4, [20, 21, 22, 23], [0.25] * 4]


def test_a_prompt_without_chunk_embeddings_is_its_tokens():
    prompt = MixedPrompt(torch.tensor([0, 2]), torch.zeros(0, 0))
    assert embed(DecoderRequest(prompt, SamplingParams()), EMBEDDINGS).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_refused(value):
    with pytest.raises(InvalidRequest, match="not finite"):
        embed(request([1, 6], [[0.0, 0.0, value, 0.0]]), EMBEDDINGS)


def test_a_row_that_is_not_finite_in_the_decoders_dtype_is_refused():
    with pytest.raises(InvalidRequest, match="not finite in float16"):
        embed(request([1, 6], [[0.0, 1e6, 0.0, 0.0]]), TokenEmbeddings(EMBEDDINGS.weight.half()))


@pytest.mark.parametrize("width", [3, 5])
def test_a_row_of_another_width_never_reaches_the_engine(width):
    with pytest.raises(InvalidRequest, match=f"rows of width {width}; the decoder's width is 4"):
        embed(request([1, 6], [[0.0] * width]), EMBEDDINGS)


def test_the_embeddings_of_a_folder_are_the_decoders(saved, tiny_checkpoint):
    embeddings = load_token_embeddings(saved / "decoder", torch.float32)
    decoder = tiny_checkpoint.decoder
    assert (embeddings.vocab_size, embeddings.width) == (decoder.vocab_size, decoder.width)
    ids, rows = torch.tensor([1, decoder.vocab_size, 9]), torch.randn(1, decoder.width)
    assert torch.equal(embeddings.embed_prompt(ids, rows), decoder.embed_prompt(ids, rows))


def test_the_end_of_sequence_is_the_decoders(saved, tiny_checkpoint):
    assert read_eos_ids(options(saved)) == tiny_checkpoint.decoder.eos_ids


@pytest.mark.parametrize(("version", "is_refused"), [("1.26.4", False), ("2.0.0", True), ("2.3.1", True)])
def test_numpy_2_is_refused_with_the_way_out(version, is_refused):
    if not is_refused:
        refuse_numpy_2(version)
        return
    with pytest.raises(SetupError, match=r"NumPy 2.*refrag decoders install vllm"):
        refuse_numpy_2(version)


def test_a_decoder_that_reads_ids_otherwise_than_their_rows_is_refused():
    refuse_other_rows(Pick(3, -0.5), Pick(3, -0.505), allowed=0.01)
    with pytest.raises(CheckpointError, match=r"ids of this decoder otherwise than their rows .* -0.500 and -0.600"):
        refuse_other_rows(Pick(3, -0.5), Pick(3, -0.6), allowed=0.01)


@pytest.mark.parametrize("log_probability", [-0.9, float("nan")])
def test_a_decoder_whose_steps_are_not_its_prompts_is_refused(log_probability):
    """One step of two, which is off by 0.4, is enough; so is one that is no number."""
    at_once = [Pick(4, -0.5), Pick(5, -0.1)]
    refuse_other_steps([Pick(4, -0.505), Pick(5, -0.1)], at_once, allowed=0.01)
    with pytest.raises(CheckpointError, match=r"token by token than for a whole prompt.*docs/decoders.md"):
        refuse_other_steps([Pick(4, log_probability), Pick(5, -0.1)], at_once, allowed=0.01)


def test_a_prompt_is_sent_whole_as_rows_beside_ids_of_no_token(saved, tiny_checkpoint):
    engine = SimpleNamespace(errored=False)
    opened = VllmEngine(engine, options(saved), EMBEDDINGS, tiny_checkpoint.decoder_tokenizer, {2}, None)
    sent = opened._prompt(torch.zeros(3, 4))
    assert sent["prompt_embeds"].shape == (3, 4)
    assert sent["prompt_token_ids"] == [6, 6, 6]
    assert sent["prompt_is_token_ids"] == [False] * 3


def test_steps_of_the_engine_become_the_decoders_statistics():
    observed = []
    stats = EngineStats(observed.append)
    stats.num_blocks = 40
    scheduler = SimpleNamespace(
        num_running_reqs=3,
        num_waiting_reqs=2,
        kv_cache_usage=0.25,
    )
    prompts = SimpleNamespace(computed=40, cached_tokens=128)
    iteration = SimpleNamespace(num_preempted_reqs=1, num_generation_tokens=3, prompt_token_stats=prompts)
    stats.logger(None).record(scheduler, iteration, mm_cache_stats=None, engine_idx=0)
    assert (stats.state.num_active, stats.state.num_waiting) == (3, 2)
    assert (stats.state.num_held_blocks, stats.state.num_blocks) == (10, 40)
    assert (observed[0].num_reused_slots, observed[0].num_computed_slots, observed[0].num_preempted) == (128, 43, 1)


def test_a_step_without_figures_changes_nothing():
    stats = EngineStats(lambda step: None)
    stats.logger(None).record(None, None, engine_idx=0)
    assert stats.state.num_active == 0
