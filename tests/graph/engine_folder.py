"""A folder as trtllm-build leaves it, for the stand-in backend: config.json, and our decoder as the engine."""

import json
from pathlib import Path

from refrag.config import RefragConfig
from refrag.export.parts import build_decoder

STAND_IN = Path(__file__).parent / "stand_in"


def describe_engine(checkpoint: Path, dtype: str = "float32", **build) -> dict:
    """Return the parts of a real config.json that the export reads; `build` changes its build_config."""
    decoder = json.loads((checkpoint / "decoder" / "config.json").read_text())
    model = {"architecture": "LlamaForCausalLM", "dtype": dtype}
    sizes = {name: decoder[name] for name in ("vocab_size", "hidden_size")}
    limits = {
        "max_batch_size": 16,
        "max_seq_len": 8192,
        "max_input_len": 4096,
        "max_prompt_embedding_table_size": 16 * 4096,
        "plugin_config": {"use_paged_context_fmha": True},
    }
    return {"version": "1.2.0", "pretrained_config": {**model, **sizes}, "build_config": {**limits, **build}}


def make_engine(checkpoint: Path, folder: Path, dtype: str = "float32") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(describe_engine(checkpoint, dtype)))
    build_decoder(checkpoint, RefragConfig.load(checkpoint), folder / "checkpoint")
    return folder
