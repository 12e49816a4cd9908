"""Decoders with layers of state, which `torch` refuses, answer through vLLM on a CPU with Hugging Face's tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from raw_requests import PATIENCE_SECONDS, decode
from tiny import tiny_pair
from vllm_environment import READY_SECONDS, needs_vllm, use_vllm

from refrag.decoders.base import MixedPrompt
from refrag.embedded import EmbeddedServer
from refrag.engine.support import layer_shapes
from refrag.errors import CheckpointError, SetupError
from refrag.export.repository import export_repository
from refrag.training.pair import make_pair
from refrag.training.pair_settings import Backbone
from refrag_client import RefragClient

pytestmark = [pytest.mark.server, pytest.mark.slow]

MAX_TOKENS = 12
PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    # Large enough that answers differ and vary.
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}
# By architecture: what its shape has besides, and the layers that the torch engine refuses. Real LFM2 name two widths
# that vLLM reads and transformers does not.
HYBRIDS = {
    "falcon_h1": (
        {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1},
        "hybrid",
    ),
    "lfm2": (
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "block_dim": 64,
            "conv_dim": 64,
        },
        "conv",
    ),
}


def make_hybrid(architecture, **shape):
    decoder = Backbone(architecture=architecture, shape=SHAPE | shape)
    return make_pair(tiny_pair().model_copy(update={"decoder": decoder}))


def export(checkpoint, folder, **values):
    """Export the checkpoint to the new folder `repository` in `folder`, for vLLM with a small KV cache."""
    checkpoint.save(folder / "checkpoint")
    export_repository(folder / "checkpoint", folder / "repository")
    use_vllm(folder / "repository", kv_cache_mib="128", max_active="8", max_step_slots="128", **values)
    return folder / "repository"


@pytest.fixture(scope="module", params=HYBRIDS)
def checkpoint(request):
    return make_hybrid(request.param, **HYBRIDS[request.param][0])


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory):
    repository = export(checkpoint, tmp_path_factory.mktemp("hybrid"))
    with EmbeddedServer(repository, **PORTS, probe_seconds=0, ready_timeout_seconds=READY_SECONDS) as server:
        yield server


@pytest.fixture(scope="module")
def prompts(checkpoint):
    """Return prompts of tokens and chunk embeddings: shorter than a block, of several blocks, and of several steps."""
    torch.manual_seed(0)
    vocab_size, scale = checkpoint.decoder.vocab_size, checkpoint.decoder.token_embeddings.weight.std().item()
    prompts = []
    for num_slots, num_chunks in ((5, 0), (9, 2), (40, 11), (150, 60), (300, 150), (301, 7)):
        ids = torch.randint(3, vocab_size, (num_slots,))
        ids[torch.randperm(num_slots)[:num_chunks]] = vocab_size + torch.arange(num_chunks)
        prompts.append(MixedPrompt(ids, scale * torch.randn(num_chunks, checkpoint.decoder.width)))
    return prompts


@pytest.fixture(scope="module")
def expected(checkpoint, prompts):
    return [greedy(checkpoint.decoder, prompt) for prompt in prompts]


@torch.inference_mode()
def greedy(decoder, prompt):
    """Return Hugging Face's greedy tokens, all slots read anew for each: not every family generates from embeddings."""
    rows, tokens = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings), []
    for _ in range(MAX_TOKENS):
        tokens.append(int(decoder.backbone(inputs_embeds=rows.unsqueeze(0), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in decoder.eos_ids:
            return tokens[:-1]
        rows = torch.cat([rows, decoder.token_embeddings(torch.tensor(tokens[-1:]))])
    return tokens


def test_the_torch_engine_refuses_it_by_its_layers(checkpoint):
    layers = HYBRIDS[checkpoint.decoder.config.model_type][1]
    with pytest.raises(CheckpointError, match=f"it has layers of type {layers}; the engine supports only"):
        layer_shapes(checkpoint.decoder, checkpoint.config.max_prompt_slots)


@needs_vllm
def test_its_tokens_are_hugging_faces_alone_and_among_others(served, prompts, expected):
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    assert [decode(served, prompt, MAX_TOKENS) for prompt in prompts] == expected
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(lambda prompt: decode(served, prompt, MAX_TOKENS), prompts)) == expected


@needs_vllm
def test_a_question_with_compressed_passages_is_answered(served):
    with RefragClient(served.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client:
        answer = client.generate("Who keeps it?", ["Mara keeps a parrot. " * 40] * 3, max_tokens=6, min_tokens=6)
    assert len(answer.token_ids) == 6


@needs_vllm
@pytest.mark.parametrize(
    ("architecture", "shape", "values", "message"),
    [
        (
            "lfm2",
            HYBRIDS["lfm2"][0],
            {"engine_arguments": "compilation_config='{\"custom_ops\": []}'"},
            "vLLM computes this decoder otherwise token by token than for a whole prompt",
        ),
        (
            "jamba",
            {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 8},
            {},
            "vLLM has started with this decoder but cannot answer: EngineDeadError",
        ),
    ],
    ids=["a kernel that computes something else", "a kernel that is missing"],
)
def test_a_hybrid_that_vllms_kernels_fail_is_refused_when_it_loads(architecture, shape, values, message, tmp_path):
    hybrid = make_hybrid(architecture, **shape)
    with (
        pytest.raises(SetupError, match=message),
        EmbeddedServer(export(hybrid, tmp_path, **values), **PORTS, ready_timeout_seconds=READY_SECONDS),
    ):
        pass
