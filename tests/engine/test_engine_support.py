"""Decoders that the engine cannot run are refused when they are loaded, by name and with the reason."""

import pytest
import torch
from engine_helpers import ARCHITECTURES, SHAPE, make_decoder
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen3NextConfig,
)

from refrag.engine.kv_cache import LayerShape, bytes_per_slot
from refrag.engine.support import layer_shapes
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder

LONG_FACTORS = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
GPT_OSS = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}


def make(config):
    torch.manual_seed(0)
    return Decoder(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_supported_decoders_tell_what_each_layer_keeps(name):
    decoder = make_decoder(name)
    shapes = layer_shapes(decoder, max_prompt_slots=512)
    width = getattr(ARCHITECTURES[name], "head_dim", None) or 12
    assert shapes == [LayerShape(num_heads=2, head_width=width)] * 3
    assert bytes_per_slot(shapes, torch.float16) == 3 * 2 * 2 * 2 * width


def test_a_decoder_that_no_line_of_code_names_is_supported_too():
    shape = {"vocab_size": 512, "n_embd": 48, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    assert layer_shapes(make(GPT2Config(**shape)), max_prompt_slots=512) == [LayerShape(4, 12)] * 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            r"'llama' is not supported: its RoPE scaling 'dynamic' .* from 8192 to 4096",
        ),
        (
            Phi3Config(
                **SHAPE,
                original_max_position_embeddings=1024,
                rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **LONG_FACTORS},
            ),
            r"'phi3' is not supported: its RoPE scaling 'longrope' .* from 8192 to 1024",
        ),
        (
            Qwen2MoeConfig(
                **SHAPE,
                use_sliding_window=True,
                sliding_window=9,
                max_window_layers=1,
                num_experts=2,
                num_experts_per_tok=1,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
            ),
            r"'qwen2_moe' is not supported: layers \[0\] are to see 9 positions, but ask the attention for all",
        ),
        (GptOssConfig(**SHAPE, **GPT_OSS), "'gpt_oss' is not supported: read in parts"),
        (Qwen3NextConfig(**SHAPE), "'qwen3_next' is not supported: it has layers of type linear_attention"),
        (MambaConfig(vocab_size=512, hidden_size=48, num_hidden_layers=2, state_size=4), "'mamba' is not supported"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_others_are_refused_by_name(config, reason):
    with pytest.raises(CheckpointError, match=reason):
        layer_shapes(make(config), max_prompt_slots=8192)


def test_a_scaling_that_the_window_never_reaches_is_no_obstacle():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert layer_shapes(make(LlamaConfig(**SHAPE, rope_parameters=rope)), max_prompt_slots=4096)
