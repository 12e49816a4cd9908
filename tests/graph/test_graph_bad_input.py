"""Bad input through the real server: a typed error that says what to do, and a server that goes on."""

import shutil

import numpy as np
import pytest
from raw_requests import SERVER_OPTIONS, as_bytes, raw_request

from refrag.embedded import EmbeddedServer
from refrag.errors import SetupError
from refrag.model.attention_heads import AttentionHeads
from refrag_client import InvalidRequest, RefragError
from refrag_client.errors import error_from_message

pytestmark = pytest.mark.server

GOOD = ("What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."])


@pytest.fixture(autouse=True)
def the_server_is_alive_and_right_afterwards(client):
    before = client.generate(*GOOD, max_tokens=4).token_ids
    yield
    assert client.generate(*GOOD, max_tokens=4).token_ids == before


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_refused(client, question):
    with pytest.raises(InvalidRequest, match="text_input is empty"):
        client.generate(question, ["Mara keeps a parrot."])


@pytest.mark.parametrize("passages", [[], [""], ["", ""]])
def test_without_passages_the_question_alone_is_answered(client, passages):
    answer = client.generate("What does Mara Tolen keep?", passages, max_tokens=4)
    assert answer.statistics.num_chunks == answer.statistics.context_tokens == 0
    assert answer.finish_reason in ("stop", "length")


def test_an_empty_passage_among_others_changes_nothing(client):
    with_empty = client.generate(GOOD[0], ["", *GOOD[1], ""], max_tokens=4)
    assert with_empty.token_ids == client.generate(*GOOD, max_tokens=4).token_ids


def test_ten_thousand_passages_are_refused_with_their_number_and_the_limit(client):
    with pytest.raises(InvalidRequest, match=r"10000 chunks .* limit of 8192; send fewer"):
        client.generate(GOOD[0], ["Mara keeps a cat."] * 10_000)


def test_a_passage_of_one_megabyte_is_refused(client):
    with pytest.raises(InvalidRequest, match="over the limit of 8192; send fewer or shorter"):
        client.generate(GOOD[0], ["Mara keeps a cat. " * 60_000])


def test_more_bytes_than_the_limit_are_refused_before_tokenising(client):
    with pytest.raises(InvalidRequest, match=r"hold 500.* bytes, the limit is 4194304"):
        client.generate(GOOD[0], ["x" * 5_000_000])


@pytest.mark.parametrize("name, count", [("text_input", 1), ("passages", 2)])
def test_invalid_utf8_is_refused_by_name_and_offset(server, name, count):
    inputs = {"text_input": as_bytes(b"Who?"), name: as_bytes(*[b"ab\xff\xfe"] * count)}
    (message,) = raw_request(server, inputs)
    assert "not valid UTF-8 (byte 0xff at offset 2)" in message
    assert '"type": "InvalidRequest"' in message


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan"), float("inf")])
def test_an_impossible_fraction_is_refused(client, fraction):
    with pytest.raises(InvalidRequest, match=r"expand_fraction is .*allowed is 0 .* to 1"):
        client.generate(*GOOD, expand_fraction=fraction)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_less_than_one_token_is_refused(client, max_tokens):
    with pytest.raises(InvalidRequest, match=f"max_tokens is {max_tokens}; it must be at least 1"):
        client.generate(*GOOD, max_tokens=max_tokens)


def test_more_tokens_than_the_window_are_refused(client):
    with pytest.raises(InvalidRequest, match="max_tokens 2000000000 more, the decoder's window is 4096"):
        client.generate(*GOOD, max_tokens=2_000_000_000)


def test_a_question_over_the_window_is_to_be_shortened_whatever_the_passages(client):
    with pytest.raises(InvalidRequest, match=r"text_input takes \d+ slots by itself, .* is 4096; shorten the question"):
        client.generate("Who keeps a cat? " * 2000, GOOD[1])


def test_without_passages_nobody_is_told_to_send_fewer(client):
    with pytest.raises(InvalidRequest, match=r"window is 4096; shorten the question or lower max_tokens"):
        client.generate(GOOD[0], max_tokens=4090)


def test_a_prompt_over_the_window_is_refused(client):
    with pytest.raises(InvalidRequest, match=r"slots .* window is 4096; send fewer passages"):
        client.generate(GOOD[0], ["Mara keeps a cat and a dog. " * 800], expand_fraction=1)


@pytest.mark.parametrize(
    "policy, named",
    [("best", "allowed: learned"), ("", "policy is ''"), ("Attention", "policy is 'Attention'.*attention")],
)
def test_an_unknown_policy_is_refused_with_the_known_ones(client, policy, named):
    with pytest.raises(InvalidRequest, match=named):
        client.generate(*GOOD, policy=policy)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"deadline_ms": 0}, "deadline_ms is 0; it must be at least 1"),
        ({"temperature": 1e-3}, "temperature is 0.001; it must be 0"),
        ({"temperature": 4e-7}, "temperature is 4e-07; it must be 0"),
        ({"temperature": -1e-7}, "temperature is -1e-07; it must be 0"),
        ({"expand_fraction": 1.0000002}, "expand_fraction is 1.0000002"),
        ({"max_prompt_slots": 0}, "max_prompt_slots is 0"),
        ({"max_prompt_slots": 4097}, "max_prompt_slots is 4097; allowed is 1 to 4096, the decoder's window"),
        ({"max_prompt_slots": 3}, r"max_prompt_slots is 3; the prompt takes \d+ with no chunk expanded; allow more"),
        ({"min_confidence": 1.25}, r"min_confidence is 1.25; allowed is 0 \(.*\) to 1"),
        ({"min_confidence": -0.5}, "min_confidence is -0.5; allowed is 0"),
        ({"min_confidence": float("nan")}, "min_confidence is nan; allowed is 0"),
        ({"policy": "attention", "sense_tokens": 17}, "sense_tokens is 17; allowed is 0 to 16"),
        ({"policy": "attention", "sense_tokens": -1}, "sense_tokens is -1; allowed is 0 to 16"),
        ({"max_tokens": 2**40}, "max_tokens 1099511627776 more, the decoder's window is 4096; lower max_tokens"),
        ({"stop_words": ["a"] * 17}, "17 words"),
        ({"stop_words": ["a", ""]}, "empty word"),
        ({"exclude_input_in_output": False}, "exclude_input_in_output is false"),
    ],
)
def test_bad_options_are_refused_by_name(client, options, named):
    with pytest.raises(InvalidRequest, match=named):
        client.generate(*GOOD, **options)


def test_a_wrong_type_is_refused(server):
    inputs = {"text_input": as_bytes(b"Who?"), "max_tokens": (np.array([4.0], np.float32), "FP32")}
    error = error_from_message(*raw_request(server, inputs))
    assert isinstance(error, InvalidRequest)
    assert "max_tokens" in str(error)
    assert "data-type" in str(error)


def test_a_wrong_rank_is_refused(server):
    inputs = {"text_input": as_bytes(b"Who?"), "max_tokens": (np.array([[4]], np.int64), "INT64")}
    error = error_from_message(*raw_request(server, inputs))
    assert isinstance(error, InvalidRequest)
    assert "max_tokens" in str(error)
    assert "shape" in str(error)


def test_an_id_in_flight_is_refused_and_its_owner_finishes(client):
    # Tokens enough to be in flight when the other request comes, and so hot that no end token is likely before.
    options = {"max_tokens": 1000, "temperature": 50.0, "seed": 1}
    with client.stream(*GOOD, request_id="twice", **options) as first:
        received = list(next(first).token_ids)
        with pytest.raises(InvalidRequest, match="in flight already"):
            client.generate(*GOOD, request_id="twice")
        received += [token_id for piece in first for token_id in piece.token_ids]
    assert received == list(client.generate(*GOOD, **options).token_ids)


@pytest.mark.parametrize(
    "damage, named",
    [
        (
            lambda models: (models / "expansion_policy/1/checkpoint/policy.safetensors").unlink(),
            "policy.* is missing",
        ),
        (lambda models: (models / "decoder/1/checkpoint/refrag.json").write_text("{"), r"refrag\.json cannot be read"),
        (lambda models: _overwrite(models / "decoder/1/checkpoint/decoder/model.safetensors"), "cannot be loaded"),
        (
            lambda models: AttentionHeads(((1, 0),), (1.0,), digest="0" * 64).save(models / "decoder/1/checkpoint"),
            "attention_heads.json holds heads of other weights than the decoder's; run `refrag heads find`",
        ),
        (lambda models: _overwrite(models / "chunk_encoder/1/model.onnx"), "failed to load 'chunk_encoder'"),
    ],
)
def test_a_missing_or_corrupt_checkpoint_stops_the_start_and_is_named(repository, tmp_path, damage, named):
    damaged = shutil.copytree(repository, tmp_path / "damaged")
    damage(damaged)
    with (
        pytest.raises(SetupError, match=named),
        EmbeddedServer(damaged, **SERVER_OPTIONS),
    ):
        pass


def _overwrite(path):
    path.write_bytes(b"garbage")


def test_errors_carry_the_type_that_the_server_raised(client):
    with pytest.raises(RefragError) as caught:
        client.generate("")
    assert type(caught.value) is InvalidRequest
