"""Converts a GGUF file into an ordinary Hugging Face folder, through transformers' own reader."""

import stat
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedModel

from refrag.errors import CheckpointError

ARCHITECTURE, TOKENS, PRE_TOKENIZER = "general.architecture", "tokenizer.ggml.tokens", "tokenizer.ggml.pre"
EMBEDDINGS = "token_embd.weight"
# Pre-tokenizers that cut numbers into digits, which transformers' reader loses.
DIGIT_SPLITTING = {"smollm"}
ORDINARY_MODE = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH


def convert_gguf(path: Path, target: Path) -> None:
    """Write model, tokenizer and generation settings to the folder `target`, with weights in float16.

    Raises CheckpointError if it is no GGUF file, if transformers cannot read its kind, or if its tokenizer has another
    number of tokens than its weights.
    """
    header = _read_header(path)
    try:
        model, tokenizer = _read_model(path), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path.name} is a GGUF of architecture {header[ARCHITECTURE]!r} that transformers cannot read: {error}; "
            "name a GGUF of another kind, or a Hugging Face folder of the model"
        ) from error
    if header.get(PRE_TOKENIZER) in DIGIT_SPLITTING:
        _split_digits(tokenizer)
    _save(model, tokenizer, target)


def _read_header(path: Path) -> dict[str, Any]:
    """Return the texts of the header, after the tokens were counted."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: reader.get_field(name) for name in (ARCHITECTURE, PRE_TOKENIZER)}
        texts = {name: None if field is None else field.contents() for name, field in fields.items()}
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path.name} is not a GGUF file: {error}; name another `file` of the package") from error
    num_tokens = len(reader.fields[TOKENS].data) if TOKENS in reader.fields else None
    num_rows = next((int(tensor.shape[-1]) for tensor in reader.tensors if tensor.name == EMBEDDINGS), None)
    if None not in (num_tokens, num_rows) and num_tokens != num_rows:
        raise CheckpointError(
            f"{path.name} has a tokenizer of {num_tokens} tokens, but embeddings for {num_rows}; "
            "name a file whose tokenizer belongs to its weights"
        )
    return texts


def _read_model(path: Path) -> PreTrainedModel:
    auto_class: Any = AutoModelForCausalLM
    model, report = auto_class.from_pretrained(
        path.parent,
        gguf_file=path.name,
        # Packed weights could not be saved.
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(f"it has no weights for {', '.join(lacking)}")
    return model.half()


def _split_digits(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _save(model: PreTrainedModel, tokenizer: Any, target: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    # safetensors writes files that nobody else may read.
    for path in target.iterdir():
        path.chmod(ORDINARY_MODE)
