"""Every decoder gives Hugging Face's tokens, through a real server, whatever else it does at the same time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_requests import PATIENCE_SECONDS, decode, raw_request, send_prompt
from served_metrics import read_metric, wait_for, wait_for_metric
from vllm_environment import READY_SECONDS, needs_vllm, use_vllm

from refrag.embedded import EmbeddedServer
from refrag.engine.int8_linear import quantise_decoder
from refrag.export.repository import export_repository
from refrag.model.checkpoint import load_decoder
from refrag.pipeline import Pipeline
from refrag.request import ExpansionOptions, Request, SamplingParams
from refrag.serving.choose_decoder import choose_decoder
from refrag_client import Cancelled, DeadlineExceeded, RefragClient

pytestmark = [pytest.mark.server, pytest.mark.slow]

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "world"
MAX_TOKENS = 12
FRACTIONS = (0, 0.1, 0.3, 1)
QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")
ENDLESS = {"max_tokens": 3000, "min_tokens": 3000}


@pytest.fixture(
    scope="module",
    params=["torch", pytest.param("torch in int8", marks=needs_vnni), pytest.param("vllm", marks=needs_vllm)],
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(kind, demo_checkpoint):
    """Return the checkpoint whose decoder gives the expected tokens, by Hugging Face's own code."""
    if kind != "torch in int8":
        return demo_checkpoint
    decoder = load_decoder(CHECKPOINT)
    quantise_decoder(decoder)
    return replace(demo_checkpoint, decoder=decoder)


@pytest.fixture(scope="module")
def reference(checkpoint):
    return Pipeline(checkpoint)


@pytest.fixture(scope="module")
def served(kind, tmp_path_factory):
    """Start a server of its own, so that no answer of another test is in its KV cache."""
    repository = tmp_path_factory.mktemp("repository")
    export_repository(CHECKPOINT, repository)
    if kind == "vllm":
        use_vllm(repository)
    elif kind == "torch in int8":
        choose_decoder(repository, "torch", {"quantization": "int8"}, None)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with EmbeddedServer(repository, **ports, probe_seconds=0, ready_timeout_seconds=READY_SECONDS) as server:
        yield server


@pytest.fixture(scope="module")
def asked(served):
    with RefragClient(served.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def mixed_prompts(reference, heldout):
    """Return fifty questions' prompts, from all compressed to all expanded, as the ensemble sends them."""
    return [mixed_prompt(reference, *question) for question in questions(heldout)]


@pytest.fixture(scope="module")
def expected(checkpoint, mixed_prompts):
    return [generate(checkpoint.decoder, prompt) for prompt in mixed_prompts]


def questions(heldout):
    return [(context, FRACTIONS[number % len(FRACTIONS)]) for number, context in enumerate(heldout)]


def mixed_prompt(reference, context, fraction):
    request = Request(context.questions[0].text, context.passages, ExpansionOptions(fraction))
    prepared = reference.prepare(request, MAX_TOKENS)
    vectors, question_vectors = reference.encode(prepared)
    selection = reference.select(request.expansion, prepared, vectors, question_vectors)
    return reference.build_prompt(prepared, selection.numbers, vectors)[1]


@torch.inference_mode()
def generate(decoder, prompt):
    """Return the greedy tokens of Hugging Face's own `generate`, from embeddings."""
    embeddings = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings).unsqueeze(0)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    tokens = decoder.backbone.generate(
        inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=False
    )
    return [token for token in tokens[0].tolist() if token not in decoder.eos_ids]


def ask(client, context, fraction, **options):
    options = {"max_tokens": MAX_TOKENS, "expand_fraction": fraction, **options}
    return client.generate(context.questions[0].text, context.passages, **options)


def test_greedy_tokens_are_those_of_hugging_face_on_fifty_mixed_prompts(asked, heldout, expected):
    assert [list(ask(asked, *question).token_ids) for question in questions(heldout)] == expected


def test_an_answer_among_sixteen_is_the_answer_alone(asked, heldout, expected):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda question: ask(asked, *question), questions(heldout)))
    assert [list(answer.token_ids) for answer in answers] == expected


def test_an_answer_from_a_reused_prefix_is_a_fresh_one(asked, served, heldout, expected):
    """Both were asked before; asked again, their prompts are in the KV cache but for the last block."""
    before = read_metric(served, "refrag_reused_slots")
    for number in (3, 7, 11):
        context, fraction = questions(heldout)[number]
        assert list(ask(asked, context, fraction).token_ids) == expected[number]
    wait_for_metric(served, "refrag_reused_slots", before + 1)


def test_the_same_ids_with_other_rows_share_nothing(served, checkpoint, mixed_prompts):
    """The rows of one prompt are put in the places of another's, with the ids as they are."""
    prompt = next(prompt for prompt in mixed_prompts if len(prompt.chunk_embeddings) > 8)
    other = type(prompt)(prompt.input_ids, prompt.chunk_embeddings.flip(0).contiguous())
    for each in (prompt, other, prompt):
        assert decode(served, each, MAX_TOKENS) == generate(checkpoint.decoder, each)


def test_a_sampled_answer_is_the_same_for_its_seed_alone_and_among_others(asked, heldout):
    def sample(number):
        context, fraction = questions(heldout)[number % 50]
        return ask(asked, context, fraction, temperature=1.0, top_p=0.95, seed=number).token_ids

    alone = [sample(number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(sample, range(16))) == alone
    assert len({sample(number) for number in (100, 150, 200, 250)}) > 1


def test_penalties_and_least_lengths_are_those_of_hugging_face(asked, reference, heldout):
    for context, fraction in questions(heldout)[:8]:
        options = {"repetition_penalty": 1.5, "min_tokens": MAX_TOKENS}
        request = Request(context.questions[0].text, context.passages, ExpansionOptions(fraction))
        wanted = reference.answer(request, SamplingParams(MAX_TOKENS, **options)).token_ids
        assert list(ask(asked, context, fraction, **options).token_ids) == wanted


def test_log_probabilities_are_those_of_hugging_face(asked, checkpoint, heldout, mixed_prompts, expected):
    decoder = checkpoint.decoder
    for number in (1, 5):
        answer = ask(asked, *questions(heldout)[number], log_probs=True, min_tokens=2)
        prompt = mixed_prompts[number]
        with torch.inference_mode():
            rows = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings)
            logits, _ = decoder.prefill(rows)
        assert len(answer.log_probs) == len(answer.token_ids)
        wanted = float(logits.log_softmax(-1)[answer.token_ids[0]])
        assert answer.log_probs[0] == pytest.approx(wanted, abs=1e-3)


def test_a_stop_word_ends_the_answer(asked, heldout):
    context, fraction = questions(heldout)[3]
    whole = ask(asked, context, fraction, temperature=2.0, seed=1).text
    assert len(whole) > 8
    cut = ask(asked, context, fraction, temperature=2.0, seed=1, stop_words=[whole[4:7]])
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(whole[4:7])]


def test_a_stop_ends_an_answer_and_frees_its_id(asked, served):
    stream = asked.stream(QUESTION, PASSAGES, request_id="stop-me", **ENDLESS)
    next(stream)
    raw_request(served, {"stop": (np.array([True]), "BOOL")}, "decoder", request_id="stop-me")
    with pytest.raises(Cancelled, match="stopped by its caller"):
        for _ in stream:
            pass
    assert asked.generate(QUESTION, PASSAGES, max_tokens=1, request_id="stop-me").token_ids


def test_leaving_an_answer_ends_it(asked, served):
    with asked.stream(QUESTION, PASSAGES, request_id="left", **ENDLESS) as stream:
        next(stream)
    wait_for_metric(served, "refrag_unread_tokens", 1)
    wait_for(lambda: read_metric(served, "refrag_active_requests") == 0)


def test_a_deadline_ends_an_answer_and_its_neighbour_goes_on(asked, heldout, expected):
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(ask, asked, *questions(heldout)[2])
        with pytest.raises(DeadlineExceeded, match="deadline"):
            asked.generate(QUESTION, PASSAGES, deadline_ms=1500, **ENDLESS)
        assert list(neighbour.result().token_ids) == expected[2]


def test_a_row_that_is_not_finite_or_of_another_width_harms_nobody(asked, served, heldout, mixed_prompts, expected):
    prompt = next(prompt for prompt in mixed_prompts if len(prompt.chunk_embeddings) > 8)
    spoilt = prompt.chunk_embeddings.clone()
    spoilt[3, 5] = float("nan")
    for rows, told in ((spoilt, "NaN or infinity"), (prompt.chunk_embeddings[:, :-1], "width")):
        [message] = send_prompt(served, type(prompt)(prompt.input_ids, rows.contiguous()), MAX_TOKENS)
        assert told in message
    assert list(ask(asked, *questions(heldout)[4]).token_ids) == expected[4]


def test_latencies_and_counts_are_told(asked, served):
    names = ["refrag_ttft_seconds_count", "refrag_queue_seconds_count", "refrag_generated_tokens"]
    before = [read_metric(served, name) for name in names]
    asked.generate(QUESTION, PASSAGES, max_tokens=5, min_tokens=5)
    for name, value, count in zip(names, before, (1, 1, 5), strict=True):
        wait_for_metric(served, name, value + count)
    assert read_metric(served, "refrag_kv_blocks") > 0
    assert read_metric(served, "refrag_computed_slots") > 0
