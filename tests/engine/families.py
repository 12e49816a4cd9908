"""Decoders of the families that transformers has, in tiny shapes of random weights: those that load, and the others."""

from dataclasses import fields

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from refrag.model.decoder import Decoder

VOCAB_SIZE, WINDOW = 96, 48
# Each family takes what its config knows. Positions end where the window does; short sliding windows are outgrown.
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": WINDOW,
    "sliding_window": 7,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough that answers differ and vary.
    "initializer_range": 0.3,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "moe_k": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
# Keys and values are of different widths.
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
LATENT |= {"num_key_value_heads": 4}
GLOBAL = {"global_head_dim": 8, "num_global_key_value_heads": 2, "hidden_size_per_layer_input": 0}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
SEQ2SEQ = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "d_model": 32}
SEQ2SEQ |= {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}

# By family, what its shape has besides. One line for each way in which a family differs from Llama.
LOADED = {
    "bert-generation": {"is_decoder": True},
    "biogpt": {},
    "cohere": {"logit_scale": 0.4},
    "cohere2": {"logit_scale": 0.4},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "gemma4_text": GLOBAL,
    "glm4": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gptj": {},
    "granite": {"logits_scaling": 7.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 7.0},
    "hyperclovax": {"logits_scaling": 0.2},
    "jetmoe": {},
    "llama": {},
    "minicpm3": {**LATENT, "logits_scaling": 5.0},
    "mixtral": {"sliding_window": None},
    "nanochat": {"final_logit_softcapping": 2.0},
    "nemotron": {},
    "olmo2": {},
    "opt": {},
    "opt, with embeddings narrower than its layers": {"word_embed_proj_dim": 24},
    "persimmon": {},
    "phi": {},
    "qwen2_moe": {"sliding_window": None},
    "stablelm": {},
    "starcoder2": {},
}
# The same again under another name, or nearly.
ALIKE = """
    afmoe apertus arcee aria_text beam bitnet codegen cohere2_moe cwm ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe
    flex_olmo gemma glm glm4_moe gpt-sw3 granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 internlm3
    iquestcoder jais2 kolibri1 laguna lfm2 mellum minimax_m2 minimax_m3_vl_text ministral ministral3 mistral olmo olmo3
    olmoe phi3 qwen2 qwen3 qwen3_moe sarvam_moe seed_oss smollm3 solar_open vaultgemma
"""
LOADED_TOO = {
    **{name: {} for name in ALIKE.split()},
    **dict.fromkeys(("axk1", "glm4_moe_lite", "sarvam_mla", "youtu"), LATENT),
    "gemma4_unified_text": GLOBAL,
}

OWN_ATTENTION = r"compute attention in code of their own \(.*Attention.*\) and not through transformers' attention"
ALIBI = r"compute attention in code of their own \(\w+Attention, with an ALiBi bias\)"
LAYER_TYPES = "it has layers of type "
HEAD = "its logits are not its last hidden states times its output matrix .* also belongs to its head"
POSITIONS = "it counts positions by itself and does not read position_ids"
SINKS = "its attention is computed with s_aux besides queries, keys and values"
REPEATED = r"layers \[0, 1\] compute attention more than once for a slot"
WINDOWS = r"layers \[0, 1\] are to see 7 positions, but ask the attention for all"

# By family, what its shape has besides, and the property by which it is refused.
REFUSED = {
    "axk2": (LATENT, LAYER_TYPES + "indexed_attention"),
    "bamba": ({"mamba_n_heads": 8, "mamba_d_head": 8}, LAYER_TYPES + "linear_attention"),
    "bart": (SEQ2SEQ, POSITIONS),
    "bert": ({"is_decoder": True}, HEAD.replace(".*", ".*cls", 1)),
    "bert, as the encoder that it is": ({}, "it is not causal: .*; is_decoder in its config is false"),
    "bigbird_pegasus": (SEQ2SEQ, POSITIONS),
    "blenderbot": (SEQ2SEQ, POSITIONS),
    "blenderbot-small": (SEQ2SEQ, POSITIONS),
    "bloom": ({}, ALIBI),
    "camembert": ({"is_decoder": True}, HEAD),
    "cpmant": ({}, "its forward has no inputs_embeds"),
    "data2vec-text": ({"is_decoder": True}, HEAD),
    "diffllama": ({}, REPEATED),
    "doge": ({}, WINDOWS),
    "dory": ({}, REPEATED),
    "electra": ({"is_decoder": True, "embedding_size": 32}, HEAD.replace(".*", ".*generator_predictions", 1)),
    "electra, as the encoder that it is": ({"embedding_size": 32}, "it is not causal"),
    "falcon": ({}, OWN_ATTENTION),
    "falcon, with ALiBi": ({"alibi": True}, ALIBI),
    "falcon_h1": ({"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8}, LAYER_TYPES + "hybrid"),
    "flint": ({}, SINKS),
    "gemma4_text": (
        {**GLOBAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE},
        "each of its layers has an input of its own, looked up by token id .hidden_size_per_layer_input is 8.",
    ),
    "gpt_neox_japanese": ({}, OWN_ATTENTION),
    "gpt_oss": ({}, SINKS),
    "granite_swa": ({}, SINKS),
    "granitemoe_swa": ({}, SINKS),
    "hrm_text": ({}, "compute attention more than once for a slot"),
    "jamba": ({}, LAYER_TYPES + "linear_attention"),
    "lfm2, with convolutions": ({"layer_types": ["conv", "full_attention"]}, LAYER_TYPES + "conv"),
    "lfm3": ({}, LAYER_TYPES + "conv"),
    "llama4_text": ({}, LAYER_TYPES + "chunked_attention"),
    "mamba": ({}, LAYER_TYPES + "linear_attention"),
    "marian": (SEQ2SEQ, POSITIONS),
    "mbart": (SEQ2SEQ, POSITIONS),
    "megatron-bert": ({"is_decoder": True}, OWN_ATTENTION),
    "modernbert-decoder": ({}, HEAD.replace(".*", ".*lm_head", 1)),
    "moshi": ({}, WINDOWS),
    "mpt": ({}, ALIBI),
    "mvp": (SEQ2SEQ, OWN_ATTENTION),
    "nemotron_h": (
        {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8},
        LAYER_TYPES + "linear_attention",
    ),
    "openai-gpt": ({}, OWN_ATTENTION),
    "pegasus": (SEQ2SEQ, POSITIONS),
    "phimoe": ({}, WINDOWS),
    "plbart": (SEQ2SEQ, POSITIONS),
    "qwen3_next": ({}, LAYER_TYPES + "linear_attention"),
    "recurrent_gemma": ({}, LAYER_TYPES + "linear_attention"),
    "rembert": ({"is_decoder": True}, OWN_ATTENTION),
    "roberta": ({"is_decoder": True}, HEAD),
    "roformer": ({"is_decoder": True}, OWN_ATTENTION),
    "rwkv": ({"attention_hidden_size": 32}, OWN_ATTENTION),
    "trocr": (SEQ2SEQ, OWN_ATTENTION),
    "whisper": ({**SEQ2SEQ, "num_hidden_layers": 1}, r"1 layers \(num_hidden_layers\), but layers \[1\] compute"),
    "xglm": ({}, OWN_ATTENTION),
    "xlm": ({}, OWN_ATTENTION),
    "xlm-roberta": ({"is_decoder": True}, HEAD),
    "xlstm": ({}, "compute attention in code of their own .xLSTMModel."),
    "xmod": ({"is_decoder": True}, r"it cannot read embeddings without more input than these \(inputs_embeds\)"),
}


def make_family(name: str, **shape: object) -> Decoder:
    """Make a decoder in double precision, so that sums in another order cannot change a token."""
    torch.manual_seed(0)
    return Decoder(AutoModelForCausalLM.from_config(make_config(name, **shape)).eval().double())


def make_config(name: str, **shape: object):
    """Return the family's config; what stands behind a comma in its name tells two shapes apart."""
    config_class = CONFIG_MAPPING[name.split(",")[0]]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    return config_class(**{key: value for key, value in {**SHAPE, **shape}.items() if key in known})
