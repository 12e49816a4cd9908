"""The untrained pair: a decoder and an encoder, pretrained or of random weights, with what stands between them."""

import random
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from refrag.chunking import Chunker, cut_into_chunks
from refrag.config import RefragConfig
from refrag.errors import TrainingError
from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.policy import ExpansionPolicy
from refrag.model.projector import Projector
from refrag.training.batches import encoder_batch
from refrag.training.data.tokenizer import train_tokenizer
from refrag.training.data.world import make_document, make_world
from refrag.training.decoding import encode
from refrag.training.settings import Backbone, Pair

# An encoder with its own tokenizer cuts the same text into more tokens, and adds its special ones.
ENCODER_LENGTH_MARGIN = 2


def make_pair(pair: Pair) -> Checkpoint:
    """Load or draw both backbones; the projector starts at the scale of the decoder's token embeddings."""
    torch.manual_seed(pair.seed)
    decoder_tokenizer = _decoder_tokenizer(pair)
    encoder_tokenizer = AutoTokenizer.from_pretrained(pair.encoder.pretrained) if pair.encoder.pretrained else None
    longest = max(pair.trained_chunk_sizes)
    config = RefragConfig(
        chunk_size=pair.chunk_size,
        trained_chunk_sizes=pair.trained_chunk_sizes,
        max_prompt_slots=pair.max_prompt_slots,
        encoder_length=pair.encoder_length or (ENCODER_LENGTH_MARGIN * longest if encoder_tokenizer else longest),
        pooling=pair.pooling,
        policy_num_heads=pair.policy_num_heads,
    )
    decoder = Decoder(make_decoder(pair.decoder, decoder_tokenizer, pair.max_prompt_slots))
    encoder = ChunkEncoder(make_encoder(pair.encoder, decoder_tokenizer), pair.pooling)
    checkpoint = Checkpoint(
        config=config,
        encoder=encoder,
        projector=Projector(encoder.width, decoder.width),
        policy=ExpansionPolicy(encoder.width, pair.policy_width, pair.policy_num_heads, config.question_aware),
        decoder=decoder,
        decoder_tokenizer=decoder_tokenizer,
        encoder_tokenizer=encoder_tokenizer,
    )
    match_projector(checkpoint, pair.seed)
    return checkpoint


def make_decoder(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, max_prompt_slots: int) -> Any:
    """The pretrained causal LM, or one of random weights with the tokenizer's vocabulary."""
    if backbone.pretrained is not None:
        return AutoModelForCausalLM.from_pretrained(backbone.pretrained, dtype=torch.float32)
    own = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_prompt_slots,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoModelForCausalLM.from_config(make_config(backbone, own))


def make_encoder(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The pretrained encoder, or one of random weights that reads the decoder's tokens."""
    if backbone.pretrained is not None:
        return AutoModel.from_pretrained(backbone.pretrained, dtype=torch.float32)
    config = make_config(backbone, {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id})
    options = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta") else {}
    return AutoModel.from_config(config, **options)


def make_config(backbone: Backbone, own: dict[str, Any]) -> Any:
    """The architecture's configuration; values of the preset's shape win over our own."""
    try:
        return AutoConfig.for_model(backbone.architecture, **{**own, **backbone.shape})
    except (ValueError, TypeError) as error:
        raise TrainingError(f"no model of architecture {backbone.architecture!r} and that shape: {error}") from None


@torch.no_grad()
def start_encoder_from_decoder(checkpoint: Checkpoint) -> None:
    """Give an encoder of random weights that reads the decoder's tokens the decoder's token embeddings."""
    embeddings = checkpoint.encoder.backbone.get_input_embeddings()
    if (
        checkpoint.encoder_tokenizer is None
        and embeddings.weight.shape == checkpoint.decoder.token_embeddings.weight.shape
    ):
        embeddings.weight.copy_(checkpoint.decoder.token_embeddings.weight)


@torch.no_grad()
def match_projector(checkpoint: Checkpoint, seed: int = 0) -> None:
    """Start the projector at the scale of the token embeddings, measured on the chunks of one made-up document."""
    rng = random.Random(seed)
    chunker: Chunker = checkpoint.chunker
    chunks = cut_into_chunks(
        chunker.passage_ids(make_document(rng, make_world(rng, 4, "train"))), chunker.config.chunk_size
    )
    token_ids = torch.tensor([token for chunk in chunks for token in chunk.token_ids])
    vectors = encode(checkpoint.encoder, encoder_batch(chunker, chunks))
    checkpoint.projector.match_scale(vectors, checkpoint.decoder.token_embeddings(token_ids))


def _decoder_tokenizer(pair: Pair) -> PreTrainedTokenizerBase:
    if pair.decoder.pretrained is None:
        return train_tokenizer(pair.vocab_size, pair.seed, pair.tokenizer_documents)
    return AutoTokenizer.from_pretrained(pair.decoder.pretrained)
