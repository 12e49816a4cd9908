"""The decoder without a server: what is left when nothing is between the caller and the forward pass."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from perf.corpus import QUESTION
from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.model.checkpoint import load_decoder
from refrag.model.tokenizers import load_decoder_tokenizer

# S prompt slots, D decoder width


class BareDecoder:
    """A deployed checkpoint's decoder in transformers, with its own attention, and its tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_decoder(checkpoint).backbone.eval()
        self.tokenizer = load_decoder_tokenizer(checkpoint)
        self.chunker = Chunker(RefragConfig.load(checkpoint), self.tokenizer)
        self.width: int = self.model.get_input_embeddings().embedding_dim

    def plain_prompt(self, passages: Sequence[str], question: str) -> list[int]:
        """All of the passages' tokens, and the question's."""
        bos = self.tokenizer.bos_token_id
        context = [token_id for ids in self.chunker.passages_ids(passages) for token_id in ids]
        return [*([] if bos is None else [bos]), *context, *self.chunker.question_ids(question)]

    @torch.inference_mode()
    def prefill(self, passages: Sequence[str], num_slots: int) -> float:
        """Seconds to tokenise the passages and the question, and to compute the token after `num_slots` slots, both as
        transformers does it.

        The slots hold noise: what a slot holds does not change what it costs.
        """
        rows = torch.randn(1, num_slots, self.width)  # (1, S, D)
        start = time.perf_counter()
        self.tokenizer([*passages, QUESTION])
        output = self.model(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
        int(output.logits[0, -1].argmax())
        return time.perf_counter() - start


def decoder_width(checkpoint: Path) -> int:
    config = json.loads((checkpoint / "decoder" / "config.json").read_text())
    return int(config["hidden_size"])
