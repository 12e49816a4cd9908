"""Decoder: any Hugging Face causal language model, fed with token embeddings and chunk embeddings alike."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from refrag.errors import CheckpointError
from refrag.model.logits import LogitScale

# S slots, R rows of chunk embeddings, D decoder width, V vocabulary size


class Decoder(nn.Module):
    """A causal LM whose architecture is unchanged: a chunk embedding is one ordinary input position (paper §2)."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.logit_scale = LogitScale.of(self.config)

    @property
    def config(self) -> Any:
        """Return the backbone's config; that of its text model, if it reads images too."""
        return self.backbone.config.get_text_config()

    @property
    def width(self) -> int:
        """Return the width of token embeddings, D. A few families, like OPT, have other widths between their layers."""
        return self.token_embeddings.embedding_dim

    @property
    def vocab_size(self) -> int:
        """Return the rows of the embedding matrix, V. Ids from V on cannot be tokens, and mark chunk embeddings."""
        return self.token_embeddings.num_embeddings

    @property
    def device(self) -> torch.device:
        """Return where the weights are, and where inputs have to be."""
        return self.backbone.device

    @property
    def last_layer(self) -> nn.Module | None:
        """Return the backbone's last layer, or None if it does not keep its layers as transformers' decoders do."""
        layers = getattr(self.backbone.base_model, "layers", None)
        return layers[-1] if isinstance(layers, nn.ModuleList) else None

    @property
    def token_embeddings(self) -> nn.Embedding:
        embeddings = self.backbone.get_input_embeddings()
        if not isinstance(embeddings, nn.Embedding):
            raise CheckpointError(
                f"the decoder embeds tokens with a {type(embeddings).__name__}; it must be an Embedding, a matrix with "
                "one row for each token; name another decoder"
            )
        return embeddings

    def embed_prompt(self, input_ids: Tensor, chunk_embeddings: Tensor) -> Tensor:
        """Return token embeddings, and row (id − V) of `chunk_embeddings` (R, D) where id ≥ V.  (S,) -> (S, D)"""
        is_chunk = input_ids >= self.vocab_size
        embedded = self.token_embeddings(input_ids.masked_fill(is_chunk, 0))
        rows = chunk_embeddings[input_ids[is_chunk] - self.vocab_size].to(embedded.dtype)
        # A table without rows may have no width either. Not in place: with an adapter and recomputed activations,
        # transformers makes embeddings a leaf that wants a gradient.
        return embedded.index_put((is_chunk,), rows.reshape(len(rows), embedded.shape[-1]))

    def read(self, inputs_embeds: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Return the last hidden states, computed without a cache.  (B, S, D) -> (B, S, D)

        position_ids (B, S): where they start again within a row, a new prompt begins that does not see the one before.
        """
        return self.backbone.base_model(
            inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    def read_with(self, attention: str, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Return the last hidden states, with another attention than the backbone's.  (S, D), (S,) -> (S, D)

        attention: name under which its function is registered in transformers.
        """
        config = self.config
        usual = config._attn_implementation
        config._attn_implementation = attention
        try:
            output = self.backbone.base_model(
                inputs_embeds=inputs_embeds.unsqueeze(0), position_ids=position_ids.unsqueeze(0), use_cache=False
            )
        finally:
            config._attn_implementation = usual
        return output.last_hidden_state[0]

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits after these last hidden states.  (…, D) -> (…, V)"""
        return self.logit_scale.apply(self.backbone.get_output_embeddings()(states))

    @property
    def eos_ids(self) -> set[int]:
        """Token ids that end an answer; a Hugging Face config has none, one or several."""
        eos = self.backbone.generation_config.eos_token_id
        return set(eos) if isinstance(eos, list) else {eos} - {None}

    @torch.inference_mode()
    def prefill(self, inputs_embeds: Tensor) -> tuple[Tensor, Cache]:
        """Read the whole prompt; return the next token's logits and the cache to go on with.  (S, D) -> (V,)"""
        cache = DynamicCache(config=self.backbone.config)
        output = self.backbone(inputs_embeds=inputs_embeds.unsqueeze(0), cache=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1], cache

    @torch.inference_mode()
    def decode_one_token(self, token_id: int, cache: Cache) -> Tensor:
        """Append one token to the cache and return the next one's logits (V,)."""
        input_ids = torch.tensor([[token_id]], device=self.device)
        return self.backbone(input_ids=input_ids, cache=cache, use_cache=True).logits[0, -1]
