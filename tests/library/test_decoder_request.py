"""What a request to the model `decoder` tells of chunks to sense is checked by name, also of direct callers."""

import numpy as np
import pytest

from refrag.errors import InvalidRequest
from refrag.serving.decoder_request import RequestDefaults, read_request
from refrag.serving.evidence import MOST_PASSAGES, check_passages
from refrag.serving.tensors import int32, strings

SENSED = {
    "input_ids": int32(5, 100, 101, 7),
    "prompt_embedding_table": np.zeros((2, 8), np.float32),
    "sense_policy": strings("attention"),
    "sense_budget": int32(1),
    "sense_chunk_ids": np.full((2, 3), 9, np.int32),
    "sense_passages": int32(0, 0),
    "sense_similarities": np.zeros(2, np.float32),
}


def read(**changes):
    return read_request("", {**SENSED, **changes}, RequestDefaults())


@pytest.mark.parametrize("passages", [(0, 1), (7, MOST_PASSAGES - 1)])
def test_passages_of_chunks_may_have_any_number_that_a_request_can_hold(passages):
    assert read(sense_passages=int32(*passages)).to_sense.passages.tolist() == list(passages)


@pytest.mark.parametrize("passages", [(0, MOST_PASSAGES), (0, 2**31 - 2), (-1, 0)])
def test_passages_beyond_what_a_request_can_hold_are_refused(passages):
    with pytest.raises(InvalidRequest, match=rf"sense_passages ranges from .*allowed is 0 to {MOST_PASSAGES - 1}"):
        read(sense_passages=int32(*passages))
    with pytest.raises(InvalidRequest, match="chunk_passages ranges from"):
        check_passages("chunk_passages", int32(*passages))


def test_chunks_without_any_token_are_refused():
    with pytest.raises(InvalidRequest, match=r"sense_chunk_ids has shape \[2, 0\]; every chunk must have a token"):
        read(sense_chunk_ids=np.zeros((2, 0), np.int32))
