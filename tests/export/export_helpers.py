"""Tiny checkpoints and encoders for the export tests."""

import random
from pathlib import Path

import torch
from google.protobuf import text_format
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)
from tritonclient.grpc import model_config_pb2

from refrag.config import Pooling
from refrag.export.repository import TEMPLATES
from refrag.model.encoder import ChunkEncoder, OrderedPooling

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
BACKBONES = {
    "bert": lambda: BertModel(BertConfig(**SHAPE), add_pooling_layer=False),
    # Its positions count from the padding id, which is not 0.
    "roberta": lambda: RobertaModel(RobertaConfig(**SHAPE, pad_token_id=1), add_pooling_layer=False),
    # Rotary positions, and a window so narrow that a padded token may see padding only.
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**SHAPE, **SPECIAL_IDS, local_attention=4, global_attn_every_n_layers=2)
    ),
}


def make_encoder(family: str, pooling: Pooling = "mean") -> ChunkEncoder:
    torch.manual_seed(0)
    backbone: PreTrainedModel = BACKBONES[family]()
    ordered = None
    if pooling == "ordered":
        ordered = OrderedPooling(8, SHAPE["hidden_size"], 48)
        torch.nn.init.normal_(ordered.weight)
    return ChunkEncoder(backbone, pooling, ordered).eval()


def make_passages(count: int) -> list[str]:
    words = "the keeper of a harbour counts boats in winter and paints them red before every spring tide".split()
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=30)) for _ in range(count)]


def read_config(model: str, variant: str = "config.pbtxt", repository: Path = TEMPLATES):
    text = (repository / model / variant).read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_files(repository: Path) -> dict[Path, bytes]:
    """Return every file of the repository, hidden ones too, with its contents."""
    return {path.relative_to(repository): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
