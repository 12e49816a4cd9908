"""A sentence encoder of random weights, in the form that sentence-transformers saves."""

import json
import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WIDTH, MAX_LENGTH = 32, 48


def make_sentence_encoder(folder: Path, tokenizer: Path, pooling: str = "mean_tokens") -> Path:
    """Write the encoder with the tokenizer of another folder; return its folder."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    vocab_size = len(PreTrainedTokenizerFast.from_pretrained(folder))
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=vocab_size, max_position_embeddings=64, initializer_range=0.2, **shape)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    parts = {"0": ("", "Transformer"), "1": ("1_Pooling", "Pooling"), "2": ("2_Normalize", "Normalize")}
    modules = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, (path, kind) in parts.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_LENGTH}))
    return folder
