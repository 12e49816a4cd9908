"""Runs the decoder without a server, to time the forward pass with nothing between it and the caller."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from perf.corpus import QUESTION
from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.context.deployed import DECODER
from refrag.model.bases import model_folder
from refrag.model.checkpoint import load_decoder
from refrag.model.tokenizers import load_decoder_tokenizer

# S prompt slots, D decoder width


class BareDecoder:
    """The decoder and tokenizer of a deployed checkpoint, run by transformers with its own attention."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_decoder(checkpoint).backbone.eval()
        self.tokenizer = load_decoder_tokenizer(checkpoint)
        self.chunker = Chunker.of(RefragConfig.load(checkpoint), self.tokenizer)
        self.width: int = self.model.get_input_embeddings().embedding_dim

    def plain_prompt(self, passages: Sequence[str], question: str) -> list[int]:
        """Return the ids of all the passages' tokens and the question's, inside what frames them."""
        context = [token_id for ids in self.chunker.passages_ids(passages) for token_id in ids]
        return [*self.chunker.frame.head_ids, *context, *self.chunker.question_ids(question)]

    @torch.inference_mode()
    def prefill(self, passages: Sequence[str], num_slots: int) -> float:
        """Return the seconds that transformers takes to tokenise passages and question and to predict one token.

        The token is predicted after `num_slots` slots of noise: the cost of a slot does not depend on what it holds.
        """
        rows = torch.randn(1, num_slots, self.width)  # (1, S, D)
        start = time.perf_counter()
        self.tokenizer([*passages, QUESTION])
        output = self.model(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
        int(output.logits[0, -1].argmax())
        return time.perf_counter() - start


def decoder_width(checkpoint: Path) -> int:
    config = json.loads((model_folder(checkpoint, DECODER) / "config.json").read_text())
    return int(config["hidden_size"])
