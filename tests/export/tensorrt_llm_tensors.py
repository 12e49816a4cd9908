"""Tensors of NVIDIA's Triton backend for TensorRT-LLM, as its own config.pbtxt declares them: facts, read in public.

Source: NVIDIA/TensorRT-LLM at 1.2.0rc8, triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt. The
table's type is the engine's. Dimensions are without the batch; a scalar is one value that is reshaped to none.
"""

RELEASE = "1.2.0rc8"
TABLE = "TABLE_TYPE"

SCALARS = {
    "input_lengths": "TYPE_INT32",
    "request_output_len": "TYPE_INT32",
    "num_return_sequences": "TYPE_INT32",
    "draft_acceptance_threshold": "TYPE_FP32",
    "end_id": "TYPE_INT32",
    "pad_id": "TYPE_INT32",
    "beam_width": "TYPE_INT32",
    "temperature": "TYPE_FP32",
    "runtime_top_k": "TYPE_INT32",
    "runtime_top_p": "TYPE_FP32",
    "runtime_top_p_min": "TYPE_FP32",
    "runtime_top_p_decay": "TYPE_FP32",
    "runtime_top_p_reset_ids": "TYPE_INT32",
    "len_penalty": "TYPE_FP32",
    "early_stopping": "TYPE_BOOL",
    "repetition_penalty": "TYPE_FP32",
    "min_tokens": "TYPE_INT32",
    "beam_search_diversity_rate": "TYPE_FP32",
    "presence_penalty": "TYPE_FP32",
    "frequency_penalty": "TYPE_FP32",
    "seed": "TYPE_UINT64",
    "return_log_probs": "TYPE_BOOL",
    "return_context_logits": "TYPE_BOOL",
    "return_generation_logits": "TYPE_BOOL",
    "return_perf_metrics": "TYPE_BOOL",
    "return_num_input_tokens": "TYPE_BOOL",
    "return_num_output_tokens": "TYPE_BOOL",
    "exclude_input_in_output": "TYPE_BOOL",
    "stop": "TYPE_BOOL",
    "streaming": "TYPE_BOOL",
    "prompt_vocab_size": "TYPE_INT32",
    "lora_task_id": "TYPE_UINT64",
}
RAGGED = {
    "input_ids": ("TYPE_INT32", [-1]),
    "stop_words_list": ("TYPE_INT32", [2, -1]),
    "bad_words_list": ("TYPE_INT32", [2, -1]),
    "embedding_bias": ("TYPE_FP32", [-1]),
    "prompt_embedding_table": (TABLE, [-1, -1]),
    "prompt_table_extra_ids": ("TYPE_UINT64", [-1]),
}
INPUTS = {**{name: (kind, [1]) for name, kind in SCALARS.items()}, **RAGGED}
# Every request must have these.
NEEDED_INPUTS = {"input_lengths", "request_output_len"}
OUTPUTS = {
    "output_ids": ("TYPE_INT32", [-1, -1]),
    "sequence_length": ("TYPE_INT32", [-1]),
    "cum_log_probs": ("TYPE_FP32", [-1]),
    "output_log_probs": ("TYPE_FP32", [-1, -1]),
}
# The backend fails to answer a request that does not ask for them.
NEEDED_OUTPUTS = {"output_ids", "sequence_length"}
# Parameters that it reads and does without only if they are empty.
NEEDED_PARAMETERS = {
    "gpt_model_path",
    "gpt_model_type",
    "tokenizer_dir",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
}
# Names of 0.x releases for inputs of today (triton-inference-server/tensorrtllm_backend, the same file).
OLDER_NAMES = {"seed": "random_seed", "min_tokens": "min_length"}
