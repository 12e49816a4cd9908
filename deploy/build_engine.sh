#!/usr/bin/env bash
# Builds an engine of TensorRT-LLM 1.0 to 1.2 from the decoder of an exported repository, in NVIDIA's container:
#
#   docker run --rm --gpus all -v "$PWD":/work -w /work nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3 \
#       deploy/build_engine.sh model_repository build/engine
#
# Then `refrag export --tensorrt-llm build/engine --repository …`. This project has never run it on a GPU: a test runs it
# with programs in the place of NVIDIA's that note what they are told.
#
# FAMILY      folder of the decoder's conversion script: llama (also Mistral, SmolLM), qwen, gemma, phi, …
# DTYPE       float16, bfloat16 or float32
# MAX_BATCH   sequences in flight
# MAX_CHUNKS  compressed chunks of a prompt
# EXAMPLES    the examples of TensorRT-LLM, as they lie in its container
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: $0 REPOSITORY ENGINE" >&2; exit 2; }
checkpoint=$1/decoder/1/checkpoint engine=$2
family=${FAMILY:-llama} dtype=${DTYPE:-bfloat16} max_batch=${MAX_BATCH:-16} max_chunks=${MAX_CHUNKS:-4096}
convert=${EXAMPLES:-/app/tensorrt_llm/examples}/models/core/$family/convert_checkpoint.py

[ -f "$checkpoint/refrag.json" ] || { echo "$checkpoint holds no decoder; run refrag export first" >&2; exit 1; }
[ -f "$convert" ] || { echo "$convert is missing; set FAMILY and EXAMPLES" >&2; exit 1; }
window=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["max_prompt_slots"])' "$checkpoint/refrag.json")

converted=$(mktemp -d)
trap 'rm -rf "$converted"' EXIT
python3 "$convert" --model_dir "$checkpoint/decoder" --output_dir "$converted" --dtype "$dtype"

# A batch shares one table of chunk embeddings. Reuse of keys and values by prefix needs paged attention in the prompt.
trtllm-build \
    --checkpoint_dir "$converted" \
    --output_dir "$engine" \
    --max_batch_size "$max_batch" \
    --max_input_len "$window" \
    --max_seq_len "$window" \
    --max_prompt_embedding_table_size $((max_batch * max_chunks)) \
    --gemm_plugin auto \
    --kv_cache_type paged \
    --remove_input_padding enable \
    --use_paged_context_fmha enable
