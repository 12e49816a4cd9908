"""Makes the untrained pair: decoder and encoder, pretrained or of random weights, and what stands between them."""

import random
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from refrag.base_models.cache import resolve
from refrag.base_models.reference import BaseModel
from refrag.config import RefragConfig
from refrag.context.chunking import NO_TOKEN, PackedChunks
from refrag.data.tokenizer import train_tokenizer
from refrag.data.world.world import make_document, make_world
from refrag.errors import TrainingError
from refrag.model.backbones import load_named
from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder, OrderedPooling, encode_in_batches
from refrag.model.policy import ExpansionPolicy
from refrag.model.projector import Projector
from refrag.teacher_forcing.batches import encoder_batch
from refrag.teacher_forcing.predict import encode
from refrag.training.fit import refuse_misfits
from refrag.training.memory import ENCODED_AT_ONCE
from refrag.training.pair_settings import Backbone, Pair

# An encoder with its own tokenizer may cut the same text into more tokens; its special ones come on top.
ENCODER_LENGTH_MARGIN = 2
# Entities of the made-up document on which the parts are tried together.
NUM_ENTITIES = 4


def make_pair(pair: Pair) -> Checkpoint:
    """Load both backbones, or make them of random weights, and return them in evaluation mode as a checkpoint.

    The projector starts at the scale of the decoder's token embeddings. Raise TrainingError if the parts do not fit.
    """
    torch.manual_seed(pair.seed)
    tokenizer = _decoder_tokenizer(pair)
    encoder_tokenizer = _load_tokenizer(_source(pair.encoder)) if pair.encoder.pretrained else None
    decoder = make_decoder(pair.decoder, tokenizer, pair.max_prompt_slots)
    checkpoint = join_parts(pair, decoder, make_encoder(pair.encoder, tokenizer), tokenizer, encoder_tokenizer)
    for module in checkpoint.modules.values():
        module.eval()
    refuse_misfits(checkpoint, sample_chunks(checkpoint, max(pair.trained_chunk_sizes), pair.seed))
    match_projector(checkpoint, pair.seed)
    add_adapters(checkpoint, pair)
    return checkpoint


def join_parts(
    pair: Pair,
    decoder_backbone: Any,
    encoder_backbone: Any,
    decoder_tokenizer: PreTrainedTokenizerFast,
    encoder_tokenizer: PreTrainedTokenizerFast | None = None,
) -> Checkpoint:
    """Return both backbones as a checkpoint, with an untrained projector and policy between them."""
    config = RefragConfig(
        chunk_size=pair.chunk_size,
        trained_chunk_sizes=pair.trained_chunk_sizes,
        max_prompt_slots=pair.max_prompt_slots,
        encoder_length=pair.encoder_length or _encoder_length(_longest_chunk(pair), encoder_tokenizer),
        pooling=pair.pooling,
        vector_width=pair.vector_width,
        template=pair.template,
        policy_num_heads=pair.policy_num_heads,
        decoder_base=pair.decoder.base,
        encoder_base=pair.encoder.base,
    )
    decoder = Decoder(decoder_backbone)
    encoder = ChunkEncoder(encoder_backbone, pair.pooling, _ordered_pooling(pair, encoder_backbone))
    return Checkpoint(
        config=config,
        encoder=encoder,
        projector=Projector(encoder.width, decoder.width),
        policy=ExpansionPolicy(encoder.width, pair.policy_width, pair.policy_num_heads, config.question_aware),
        decoder=decoder,
        decoder_tokenizer=decoder_tokenizer,
        encoder_tokenizer=encoder_tokenizer,
    )


def take_chunk_sizes(checkpoint: Checkpoint, chunk_sizes: list[int]) -> Checkpoint:
    """Return the checkpoint with other sizes of chunk to train, in decoder tokens, and room for the longest of them.

    Its encoder may read more tokens of a chunk, and ordered pooling gets more places. What it is served with stays its
    size, or becomes the longest where that is not among them. Raise TrainingError if the encoder has too few positions.
    """
    longest, config = max(chunk_sizes), checkpoint.config
    if checkpoint.encoder.ordered is not None:
        pooling = checkpoint.encoder.ordered.widened(longest)
        checkpoint = replace(checkpoint, encoder=ChunkEncoder(checkpoint.encoder.backbone, config.pooling, pooling))
    config = replace(
        config,
        chunk_size=config.chunk_size if config.chunk_size in chunk_sizes else longest,
        trained_chunk_sizes=sorted(set(chunk_sizes)),
        encoder_length=max(config.encoder_length, _encoder_length(longest, checkpoint.encoder_tokenizer)),
    )
    checkpoint = replace(checkpoint, config=config)
    refuse_misfits(checkpoint, sample_chunks(checkpoint, longest, seed=0))
    return checkpoint


def add_adapters(checkpoint: Checkpoint, pair: Pair) -> None:
    """Put the adapters that the pair asks for into decoder and encoder."""
    for module, backbone in ((checkpoint.decoder, pair.decoder), (checkpoint.encoder, pair.encoder)):
        if backbone.adapter is not None:
            # peft takes long to import, and most pairs train whole.
            from refrag.model.adapters import add_adapter

            add_adapter(module, **backbone.adapter.model_dump())


def make_decoder(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, max_prompt_slots: int) -> Any:
    """Load the pretrained causal LM, or make one of random weights with the tokenizer's vocabulary."""
    if backbone.pretrained is not None:
        model = load_named(AutoModelForCausalLM, _source(backbone), dtype=torch.float32)
        _end_answers_with(tokenizer, model)
        return model
    own = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_prompt_slots,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoModelForCausalLM.from_config(make_config(backbone, own))


def make_encoder(backbone: Backbone, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Load the pretrained encoder, or make one of random weights that reads the decoder's tokens."""
    if backbone.pretrained is not None:
        return load_named(AutoModel, _source(backbone), dtype=torch.float32)
    # Chunks are padded with 0 where the tokenizer has no padding token.
    config = make_config(backbone, {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id or 0})
    options = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta") else {}
    return AutoModel.from_config(config, **options)


def make_config(backbone: Backbone, own: dict[str, Any]) -> Any:
    """Return the architecture's configuration; values of the preset's shape win over `own`.

    Raise TrainingError if transformers knows no such architecture, or it refuses the values.
    """
    assert backbone.architecture is not None
    try:
        return AutoConfig.for_model(backbone.architecture, **{**own, **backbone.shape})
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"no model has architecture {backbone.architecture!r} and this shape: {error}; give a model type of "
            "transformers, and values of its configuration"
        ) from None


@torch.no_grad()
def start_encoder_from_decoder(checkpoint: Checkpoint) -> None:
    """Copy the decoder's token embeddings into the encoder, if it reads the decoder's tokens and is as wide."""
    backbone: Any = checkpoint.encoder.backbone
    embeddings = backbone.get_input_embeddings()
    if (
        checkpoint.encoder_tokenizer is None
        and embeddings.weight.shape == checkpoint.decoder.token_embeddings.weight.shape
    ):
        embeddings.weight.copy_(checkpoint.decoder.token_embeddings.weight)


@torch.no_grad()
def match_projector(checkpoint: Checkpoint, seed: int = 0) -> None:
    """Start the projector at the scale of the token embeddings, measured on the chunks of one made-up document."""
    chunks = sample_chunks(checkpoint, checkpoint.config.chunk_size, seed)
    token_ids = torch.tensor([token for chunk in chunks for token in chunk.token_ids])
    vectors = encode(checkpoint.encoder, encoder_batch(checkpoint.chunker, chunks))
    checkpoint.projector.match_scale(vectors, checkpoint.decoder.token_embeddings(token_ids))


@torch.no_grad()
def fit_projector(checkpoint: Checkpoint, chunks: PackedChunks) -> None:
    """Start the projector where each of the chunks gets the mean of its token embeddings, as nearly as it can.

    What tells these means apart is made longer, so that chunk embeddings are as far from each other as tokens are.
    """
    token_ids = torch.from_numpy(chunks.token_ids).long()  # (C, K)
    is_token = token_ids != NO_TOKEN
    embedded = checkpoint.decoder.token_embeddings(token_ids.clamp(min=0)) * is_token.unsqueeze(-1)  # (C, K, D)
    means = embedded.sum(1) / is_token.sum(1, keepdim=True)  # (C, D)
    centre = means.mean(0)
    gain = (embedded[is_token] - centre).norm(dim=1).median() / (means - centre).norm(dim=1).median()
    batch = encoder_batch(checkpoint.chunker, chunks)
    vectors = encode_in_batches(checkpoint.encoder, batch.input_ids, batch.attention_mask, ENCODED_AT_ONCE)
    checkpoint.projector.fit(vectors, centre + gain * (means - centre))


def sample_chunks(checkpoint: Checkpoint, chunk_size: int, seed: int) -> PackedChunks:
    """Return the chunks of one made-up document, cut to `chunk_size` tokens."""
    rng = random.Random(seed)
    document = make_document(rng, make_world(rng, NUM_ENTITIES, "train"))
    return PackedChunks.cut([checkpoint.chunker.passage_ids(document)], chunk_size)


def _ordered_pooling(pair: Pair, encoder_backbone: Any) -> OrderedPooling | None:
    if pair.pooling != "ordered":
        return None
    encoder_width = encoder_backbone.config.hidden_size
    return OrderedPooling(_longest_chunk(pair), encoder_width, pair.vector_width or encoder_width)


def _end_answers_with(tokenizer: PreTrainedTokenizerFast, model: Any) -> None:
    """Let generation stop where training ends answers, and drop all other generation settings of the model.

    Nothing uses the others, and in many models they contradict each other, so that the model could not be saved.
    """
    settings = model.generation_config
    eos_ids = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    eos_ids = sorted({*eos_ids, tokenizer.eos_token_id} - {None})
    model.generation_config = GenerationConfig(
        bos_token_id=settings.bos_token_id, eos_token_id=eos_ids, pad_token_id=settings.pad_token_id
    )


def _longest_chunk(pair: Pair) -> int:
    return max(*pair.trained_chunk_sizes, pair.chunk_size)


def _encoder_length(chunk_size: int, encoder_tokenizer: PreTrainedTokenizerFast | None) -> int:
    """Return how many encoder tokens a chunk may have; without a tokenizer the encoder reads the decoder's tokens."""
    if encoder_tokenizer is None:
        return chunk_size
    return ENCODER_LENGTH_MARGIN * chunk_size + encoder_tokenizer.num_special_tokens_to_add()


def _decoder_tokenizer(pair: Pair) -> PreTrainedTokenizerFast:
    if pair.decoder.pretrained is None:
        return train_tokenizer(pair.vocab_size, pair.seed, pair.tokenizer_documents)
    return _load_tokenizer(_source(pair.decoder))


def _source(backbone: Backbone) -> str:
    """Return the folder or the hub's name of a pretrained model; a base model is fetched if it is not here."""
    if isinstance(backbone.pretrained, BaseModel):
        return str(resolve(backbone.pretrained))
    assert backbone.pretrained is not None
    return backbone.pretrained


def _load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the tokenizer of {name} cannot be loaded: {error}; name a folder that holds a whole Hugging Face model "
            "with its tokenizer, or a model of the hub"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TrainingError(
            f"the tokenizer of {name} is a {type(tokenizer).__name__}, which has no tokenizer.json to serve; "
            "convert it with transformers.convert_slow_tokenizer and save it as a PreTrainedTokenizerFast"
        )
    return tokenizer
