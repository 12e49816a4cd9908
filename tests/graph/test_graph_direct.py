"""Callers of single models cannot take the encoder away from everybody else."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inner_models import call, prepare, texts
from store_server import Served, check_answers

from refrag_client import InvalidRequest

pytestmark = pytest.mark.server

# What config.pbtxt allows: chunks in one request to the encoder.
MOST_ROWS, NUM_CALLERS = 8192, 6


def encoder_length(server):
    return prepare(server, ["Mara keeps a parrot."])["encoder_ids"].shape[1]


def chunks(num_rows, length):
    ids = np.random.default_rng(num_rows).integers(5, 500, (num_rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_answers_go_between_the_pieces_of_the_largest_batches(repository, tmp_path, contexts, expected):
    with Served(repository, tmp_path) as served, ThreadPoolExecutor(NUM_CALLERS) as pool:
        large = chunks(MOST_ROWS, encoder_length(served.server))
        calls = [pool.submit(call, served.server, "chunk_encoder", large) for _ in range(NUM_CALLERS)]
        served.wait_for_metric("refrag_long_batch_seconds", 1e-6, model="chunk_encoder")
        check_answers(served, contexts[:1], expected[:1])
        assert not all(each.done() for each in calls), "an answer waited for all large batches"
        vectors = [each.result()["chunk_vectors"] for each in calls]
        alone = call(served.server, "chunk_encoder", {name: array[-3:] for name, array in large.items()})
        for each in vectors:
            np.testing.assert_allclose(each[-3:], alone["chunk_vectors"], atol=1e-5)


def test_what_is_larger_than_any_request_of_the_graph_is_refused(server):
    length = encoder_length(server)
    with pytest.raises(InvalidRequest, match=f"rows of {length + 1} values; the model was exported for {length}"):
        call(server, "chunk_encoder", chunks(1, length + 1))
    with pytest.raises(InvalidRequest, match="passages hold 5000000 bytes, the limit is 4194304"):
        call(server, "chunk_store", {"operation": texts("index"), "passages": texts("x" * 5_000_000)})


@pytest.mark.parametrize("num_ids", [0, 2, 4])
def test_ids_of_rows_for_another_number_of_slots_are_refused(server, num_ids):
    prompt = {"input_ids": np.array([5, 6, 7], np.int32), "prompt_table_extra_ids": np.zeros(num_ids, np.uint64)}
    with pytest.raises(InvalidRequest, match=f"prompt_table_extra_ids has {num_ids} ids for the 3 slots"):
        call(server, "decoder", prompt)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sense_budget": np.array([4], np.int32)}, "sense_budget is 4; allowed is 1 to 3"),
        ({"sense_budget": np.array([-1], np.int32)}, "sense_budget is -1"),
        ({"sense_raised_budget": np.array([5], np.int32)}, "sense_raised_budget is 5; allowed is the budget, 1, to 4"),
        ({"sense_raised_budget": np.array([-1], np.int32)}, "sense_raised_budget is -1; allowed"),
        (
            {"sense_raised_budget": np.array([4], np.int32), "min_confidence": np.array([2], np.float32)},
            "min_confidence is 2.0; allowed is 0",
        ),
        ({"sense_tokens": np.array([99])}, "sense_tokens is 99; allowed is 0 to 16"),
        ({"sense_policy": texts("best")}, "policy is 'best'; allowed: learned"),
        ({"sense_policy": texts("similarity")}, "policy 'similarity' does not choose by attention"),
        ({"sense_passages": np.zeros(3, np.int32)}, "sense_passages has 3 for the 4 rows"),
        (
            {"sense_passages": np.full(4, 2**22, np.int32)},
            "sense_passages ranges from 4194304 to 4194304; allowed is 0",
        ),
        ({"sense_chunk_ids": np.zeros((4, 0), np.int32)}, r"sense_chunk_ids has shape \[4, 0\]"),
        ({"sense_chunk_ids": np.full((4, 2), 10**6, np.int32)}, "sense_chunk_ids range from 1000000 to 1000000"),
        ({"sense_chunk_ids": np.full((4, 2), -7, np.int32)}, "sense_chunk_ids range from -7 to -7"),
        ({"sense_similarities": np.full(4, np.nan, np.float32)}, "sense_similarities holds NaN or infinity"),
        ({"input_ids": np.array([5, 2049, 2048, 2050, 2051, 7], np.int32)}, "each row must have one slot, in order"),
        ({"input_ids": np.array([5, 2048, 2049, 2050, 2051], np.int32)}, "no slot after the last chunk"),
    ],
)
def test_chunks_to_sense_that_do_not_fit_their_prompt_are_refused_by_name(server, demo_checkpoint, changes, named):
    assert demo_checkpoint.decoder.vocab_size == 2048
    inputs = {
        "input_ids": np.array([5, 2048, 2049, 2050, 2051, 7], np.int32),
        "prompt_embedding_table": np.zeros((4, demo_checkpoint.decoder.width), np.float32),
        "sense_policy": texts("attention"),
        "sense_budget": np.array([1], np.int32),
        "sense_chunk_ids": np.full((4, 2), 9, np.int32),
        "sense_passages": np.zeros(4, np.int32),
        "sense_similarities": np.zeros(4, np.float32),
    }
    with pytest.raises(InvalidRequest, match=named):
        call(server, "decoder", {**inputs, **changes})
