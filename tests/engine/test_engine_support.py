"""Decoders that the engine cannot run are refused when they are loaded, by name and with the reason."""

import logging

import pytest
import torch
from engine_helpers import ARCHITECTURES, LLAMA3_ROPE, SHAPE, make_decoder
from families import LATENT, VISION, WINDOW, make_family
from families import SHAPE as TINY_SHAPE
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

from refrag.engine.engine import Engine
from refrag.engine.kv_cache import LayerShape, bytes_per_slot
from refrag.engine.settings import EngineSettings
from refrag.engine.support import layer_shapes
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder
from refrag.model.logits import LogitScale

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
    assert shapes == [LayerShape(num_heads=2, key_width=width, value_width=width)] * 3
    assert bytes_per_slot(shapes, torch.float16) == 3 * 2 * 2 * 2 * width


def test_keys_and_values_of_different_widths_are_each_kept_as_they_are():
    shapes = layer_shapes(make_family("deepseek_v3", **LATENT), WINDOW)
    assert shapes == [LayerShape(num_heads=4, key_width=16, value_width=12)] * 2
    assert bytes_per_slot(shapes, torch.float16) == 2 * 2 * 4 * (16 + 12)


def test_a_decoder_that_no_line_of_code_names_is_supported_too():
    shape = {"vocab_size": 512, "n_embd": 48, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    assert layer_shapes(make(GPT2Config(**shape)), max_prompt_slots=512) == [LayerShape(4, 12, 12)] * 2


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
        (GptOssConfig(**SHAPE, **GPT_OSS), "'gpt_oss' is not supported: its attention is computed with s_aux besides"),
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


def test_a_decoder_that_sees_images_too_is_its_text_model():
    decoder = make_family("gemma3", text_config=TINY_SHAPE, vision_config=VISION)
    assert layer_shapes(decoder, WINDOW) == [LayerShape(2, 8, 8)] * 2


def test_state_that_is_neither_key_nor_value_is_found_out():
    """A layer adds up what it has read, which is lost between the parts of a prompt."""
    decoder = make(LlamaConfig(**SHAPE))
    decoder.last_layer.register_forward_hook(lambda _, inputs, output: output + inputs[0].cumsum(1))
    with pytest.raises(CheckpointError, match="'llama' is not supported: read in parts, a prompt gets other logits"):
        layer_shapes(decoder, max_prompt_slots=512)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt", "gpt_bigcode", "biogpt"])
def test_positions_that_end_before_the_window_are_refused_with_what_to_lower(family):
    reason = (
        rf"'{family}' is not supported: it has positions for {WINDOW} slots \(max_position_embeddings in its config\), "
        rf"and max_prompt_slots in refrag.json is {WINDOW + 1}; lower max_prompt_slots to {WINDOW}"
    )
    with pytest.raises(CheckpointError, match=reason):
        layer_shapes(make_family(family), WINDOW + 1)


@pytest.mark.parametrize("num_positions", [1, 30, WINDOW - 1])
def test_positions_that_are_fewer_than_the_config_says_are_counted(num_positions):
    decoder = make_family("gpt2")
    decoder.backbone.transformer.wpe = torch.nn.Embedding(num_positions, 32, dtype=torch.double)
    with pytest.raises(
        CheckpointError, match=f"it has positions for {num_positions} slots .* lower .* to {num_positions},"
    ):
        layer_shapes(decoder, WINDOW)


def test_a_token_that_gets_more_than_its_embedding_is_found_out():
    decoder = make(LlamaConfig(**SHAPE))
    model, forward = decoder.backbone, decoder.backbone.forward

    def forward_ids_otherwise(input_ids=None, inputs_embeds=None, **options):
        embedded = inputs_embeds if input_ids is None else 2 * model.get_input_embeddings()(input_ids)
        return forward(inputs_embeds=embedded, **options)

    model.forward = forward_ids_otherwise
    with pytest.raises(CheckpointError, match="it reads token ids otherwise than their rows of its token embeddings"):
        layer_shapes(decoder, max_prompt_slots=512)


def test_an_unknown_factor_of_the_logits_is_refused_by_the_names_of_such_settings():
    decoder = make_family("granite", logits_scaling=7.0)
    decoder.logit_scale = LogitScale()
    with pytest.raises(CheckpointError, match=r"its logits are not its last hidden states .*: .*logits_scaling"):
        layer_shapes(decoder, WINDOW)


@pytest.mark.parametrize(
    ("rope", "reach"),
    [(None, 4096), (LLAMA3_ROPE, 4096), ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 8192)],
    ids=["plain", "scaled up to the config's length", "scaled beyond it"],
)
def test_a_window_beyond_the_trained_length_is_warned_of_once(rope, reach, tokenizer, caplog):
    decoder = make(LlamaConfig(**SHAPE, rope_parameters=rope))
    with caplog.at_level(logging.WARNING):
        layer_shapes(decoder, reach)
        assert not caplog.records
        Engine(decoder, tokenizer, reach + 1, EngineSettings(kv_cache_mib=64))
    [record] = caplog.records
    assert f"max_prompt_slots in refrag.json is {reach + 1}" in record.message
    assert f"lower max_prompt_slots to {reach}" in record.message
